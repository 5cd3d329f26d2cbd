//! The projection seam: a frozen or trained dense layer, and whatever is adapted on top of it.

use std::ops::Range;
use std::sync::Mutex;

use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, DType, InplaceOp1, Layout, MetalStorage, Result, Shape,
    Tensor, bail,
};

use super::elements::elements;
use super::gated::Gated;
use super::kernels::product;
use super::ops;
use super::weight::{Quantize, Weight};

/// One of the seven projections of a decoder layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Module {
    /// Queries.
    QProj,
    /// Keys.
    KProj,
    /// Values.
    VProj,
    /// Attention's output.
    OProj,
    /// The MLP's gate.
    GateProj,
    /// The MLP's way up.
    UpProj,
    /// The MLP's way down.
    DownProj,
}

impl Module {
    /// All modules, in the order in which a layer uses them.
    pub const ALL: [Module; 7] = [
        Module::QProj,
        Module::KProj,
        Module::VProj,
        Module::OProj,
        Module::GateProj,
        Module::UpProj,
        Module::DownProj,
    ];

    /// Returns the module's name as in `target_modules`.
    pub fn name(self) -> &'static str {
        match self {
            Module::QProj => "q_proj",
            Module::KProj => "k_proj",
            Module::VProj => "v_proj",
            Module::OProj => "o_proj",
            Module::GateProj => "gate_proj",
            Module::UpProj => "up_proj",
            Module::DownProj => "down_proj",
        }
    }

    /// Returns the module's path inside a layer, as in tensor names.
    pub fn path(self) -> &'static str {
        match self {
            Module::QProj => "self_attn.q_proj",
            Module::KProj => "self_attn.k_proj",
            Module::VProj => "self_attn.v_proj",
            Module::OProj => "self_attn.o_proj",
            Module::GateProj => "mlp.gate_proj",
            Module::UpProj => "mlp.up_proj",
            Module::DownProj => "mlp.down_proj",
        }
    }

    /// Finds a module by its name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|m| m.name() == name)
    }
}

/// A place in the decoder where an adaptation may act.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Site {
    /// Index of the decoder layer, from 0.
    pub layer: usize,
    /// The projection in it.
    pub module: Module,
}

/// What acts on top of the projections. The decoder knows nothing else about adapters.
pub trait Adapt: Send + Sync {
    /// Returns the adapted projection of `x` `[tokens, in]` at `site`: `[tokens, out]`, bias included.
    ///
    /// # Errors
    /// A failed tensor operation.
    fn project(&self, site: Site, linear: &Linear, x: &Tensor) -> Result<Tensor>;

    /// Tells what is added to the base's projection at `site`, where that can be said in factors: a token is then computed
    /// without tensors.
    fn added(&self, _site: Site) -> Added<'_> {
        Added::Otherwise
    }

    /// Like [`Self::project`], for the MLP's way down, whose input is a product of two `[tokens, in]`: who trains can compute that
    /// again instead of keeping it.
    ///
    /// # Errors
    /// A failed tensor operation.
    fn project_gated(&self, site: Site, linear: &Linear, input: Gated<'_>) -> Result<Tensor> {
        self.project(site, linear, &input.product()?)
    }
}

/// What an [`Adapt`] adds to a projection.
#[derive(Debug)]
pub enum Added<'a> {
    /// Products of small matrices; none where the base acts alone.
    LowRank(Vec<Term<'a>>),
    /// Something else: [`Adapt::project`] computes it.
    Otherwise,
}

/// `scale · B (A x)`.
#[derive(Debug, Clone, Copy)]
pub struct Term<'a> {
    /// `[rank, in]`.
    pub a: &'a Tensor,
    /// `[out, rank]`.
    pub b: &'a Tensor,
    /// Both in f16, which a token takes beside weights of a few bits: half the bytes, and still far more exact than those.
    pub halves: Option<(&'a Tensor, &'a Tensor)>,
    /// What it counts.
    pub scale: f32,
}

/// The base model as it is.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoAdapter;

impl Adapt for NoAdapter {
    fn project(&self, _site: Site, linear: &Linear, x: &Tensor) -> Result<Tensor> {
        linear.forward(x)
    }

    fn added(&self, _site: Site) -> Added<'_> {
        Added::LowRank(Vec::new())
    }
}

/// A linear layer: `y = x Wᵀ + b`.
///
/// The weights stay in the format that they are kept in and are computed with in f32.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Weight,
    bias: Option<Tensor>,
}

impl Linear {
    /// Makes a layer of `weight` `[out, in]` and `bias` `[out]` (f32).
    pub fn new(weight: impl Into<Weight>, bias: Option<Tensor>) -> Self {
        Self { weight: weight.into(), bias }
    }

    /// Brings the weights to a format of a few bits.
    ///
    /// # Errors
    /// Rows that do not divide into blocks.
    pub fn quantised(self, format: Quantize) -> Result<Self> {
        Ok(Self { weight: self.weight.quantised(format)?, bias: self.bias })
    }

    /// Applies the layer to `x` `[tokens, in]`; returns `[tokens, out]`.
    ///
    /// Weights that are no variables get no gradient; `x` gets its own.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = self.without_bias(x)?;
        match &self.bias {
            Some(bias) => y.broadcast_add(bias),
            None => Ok(y),
        }
    }

    /// Returns `x Wᵀ`.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn without_bias(&self, x: &Tensor) -> Result<Tensor> {
        match &self.weight {
            Weight::Dense(weight) if weight.track_op() => x.matmul(&weight.t()?),
            weight => frozen_matmul(x, weight),
        }
    }

    /// Returns `W m` `[out, r]` of a small matrix `[in, r]`, without a gradient.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn times(&self, m: &Tensor) -> Result<Tensor> {
        frozen_matmul(&m.detach().t()?.contiguous()?, &self.weight)?.t()?.contiguous()
    }

    /// Returns the gradient `[tokens, in]` of the input, from that of the output, `[tokens, out]`: `g W`.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn input_gradient(&self, grad: &Tensor) -> Result<Tensor> {
        match &self.weight {
            Weight::Dense(weight) if !ops::fused(grad.device()) => {
                composed_input_gradient(weight, grad)
            }
            weight => grad.contiguous()?.apply_op1_no_bwd(&FrozenProductGrad { weight }),
        }
    }

    /// Returns `out` and `in`.
    ///
    /// # Errors
    /// Weights that are no matrix.
    pub fn dims(&self) -> Result<(usize, usize)> {
        self.weight.dims()
    }

    /// Returns some rows of the weights in f32, `[rows, in]`, without a gradient.
    ///
    /// # Errors
    /// Rows beyond the last.
    pub fn wide_rows(&self, rows: Range<usize>) -> Result<Tensor> {
        self.weight.wide_rows(rows)
    }

    /// Returns the weights.
    pub fn weight(&self) -> &Weight {
        &self.weight
    }

    /// Returns the bias `[out]`.
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }
}

/// `x Wᵀ` with a gradient for `x` alone.
///
/// candle's own matmul computes the gradient of the frozen weight as well, and keeps it: for a 0.5 B
/// model gigabytes that nobody reads.
fn frozen_matmul(x: &Tensor, weight: &Weight) -> Result<Tensor> {
    let (out, width) = weight.dims()?;
    let (tokens, got) = x.dims2()?;
    if got != width {
        bail!("{tokens} rows of {got} do not fit weights [{out}, {width}]");
    }
    let dense = match weight {
        Weight::Dense(dense) if !ops::fused(x.device()) => dense,
        weight => return x.contiguous()?.apply_op1(FrozenProduct { weight: weight.clone() }),
    };
    let value =
        in_type_of(dense, x.detach().contiguous()?)?.matmul(&dense.t()?)?.to_dtype(x.dtype())?;
    let shape = value.shape().clone();
    let taken = TakeStorage::default();
    value.inplace_op1(&taken)?;
    let storage = taken.0.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    x.apply_op1(FrozenMatmul { weight: dense.clone(), value: Mutex::new(storage), shape })
}

/// Accelerators multiply in the type of the weights, and add up in f32.
fn in_type_of(weight: &Tensor, x: Tensor) -> Result<Tensor> {
    x.to_dtype(weight.dtype())
}

/// `g W` of plain tensor operations, without a gradient of its own.
fn composed_input_gradient(weight: &Tensor, grad: &Tensor) -> Result<Tensor> {
    let grad = grad.detach().contiguous()?;
    // The range of f16 is too narrow for gradients: small ones would become zero.
    let weight = match weight.dtype() {
        DType::F16 => weight.detach().to_dtype(DType::F32)?,
        _ => weight.detach(),
    };
    in_type_of(&weight, grad.clone())?.matmul(&weight)?.to_dtype(grad.dtype())
}

/// `x Wᵀ` on the CPU, the weights widened tile by tile.
struct FrozenProduct {
    weight: Weight,
}

impl CustomOp1 for FrozenProduct {
    fn name(&self) -> &'static str {
        "frozen-product"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, cols) = self.weight.dims()?;
        let x = elements(x, layout)?;
        let tokens = x.len() / cols;
        let mut out = vec![0f32; tokens * rows];
        self.weight.with_rows(|w| product::times_transposed(x, w, rows, cols, &mut out))?;
        Ok((CpuStorage::F32(out), Shape::from((tokens, rows))))
    }

    fn bwd(&self, x: &Tensor, _res: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        if !x.track_op() {
            return Ok(None);
        }
        let grad = grad.contiguous()?.detach();
        Ok(Some(grad.apply_op1_no_bwd(&FrozenProductGrad { weight: &self.weight })?))
    }
}

struct FrozenProductGrad<'a> {
    weight: &'a Weight,
}

impl CustomOp1 for FrozenProductGrad<'_> {
    fn name(&self) -> &'static str {
        "frozen-product-grad"
    }

    fn cpu_fwd(&self, grad: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, cols) = self.weight.dims()?;
        let grad = elements(grad, layout)?;
        let tokens = grad.len() / rows;
        let mut out = vec![0f32; tokens * cols];
        self.weight.with_rows(|w| product::times(grad, w, rows, cols, &mut out))?;
        Ok((CpuStorage::F32(out), Shape::from((tokens, cols))))
    }
}

/// A computed value on its way into an operation.
enum Computed {
    Cpu(CpuStorage),
    Cuda(CudaStorage),
    Metal(MetalStorage),
}

/// Moves the storage out of a tensor that nobody else holds.
#[derive(Default)]
struct TakeStorage(Mutex<Option<Computed>>);

impl TakeStorage {
    fn put(&self, value: Computed) {
        *self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(value);
    }
}

impl InplaceOp1 for TakeStorage {
    fn name(&self) -> &'static str {
        "take-storage"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, _layout: &Layout) -> Result<()> {
        self.put(Computed::Cpu(std::mem::replace(storage, CpuStorage::F32(Vec::new()))));
        Ok(())
    }

    fn cuda_fwd(&self, storage: &mut CudaStorage, layout: &Layout) -> Result<()> {
        use candle_core::backend::BackendStorage;
        self.put(Computed::Cuda(storage.try_clone(layout)?));
        Ok(())
    }

    fn metal_fwd(&self, storage: &mut MetalStorage, layout: &Layout) -> Result<()> {
        use candle_core::backend::BackendStorage;
        self.put(Computed::Metal(storage.try_clone(layout)?));
        Ok(())
    }
}

/// Attaches the input's gradient to a product that was computed already.
struct FrozenMatmul {
    weight: Tensor,
    value: Mutex<Option<Computed>>,
    shape: Shape,
}

impl FrozenMatmul {
    fn take(&self) -> Option<Computed> {
        self.value.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take()
    }
}

impl CustomOp1 for FrozenMatmul {
    fn name(&self) -> &'static str {
        "frozen-matmul"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        match self.take() {
            Some(Computed::Cpu(storage)) => Ok((storage, self.shape.clone())),
            _ => bail!("frozen-matmul: its value is on another device"),
        }
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        match self.take() {
            Some(Computed::Cuda(storage)) => Ok((storage, self.shape.clone())),
            _ => bail!("frozen-matmul: its value is on another device"),
        }
    }

    fn metal_fwd(&self, _: &MetalStorage, _: &Layout) -> Result<(MetalStorage, Shape)> {
        match self.take() {
            Some(Computed::Metal(storage)) => Ok((storage, self.shape.clone())),
            _ => bail!("frozen-matmul: its value is on another device"),
        }
    }

    fn bwd(&self, _x: &Tensor, _res: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        composed_input_gradient(&self.weight, grad).map(Some)
    }
}
