//! The projection seam: a frozen or trained dense layer, and whatever is adapted on top of it.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, DType, Device, InplaceOp1, Layout, MetalStorage, Result,
    Shape, Storage, Tensor, TensorId, bail,
};

use super::gated::Gated;
use super::kernels::{Rows, product};
use super::ops::{self, elements};
use super::quantised::{QuantisedMatrix, Quantize};

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

    /// The same for the MLP's way down, whose input is a product of two `[tokens, in]`: who trains can compute that
    /// again instead of keeping it.
    ///
    /// # Errors
    /// A failed tensor operation.
    fn project_gated(&self, site: Site, linear: &Linear, input: Gated<'_>) -> Result<Tensor> {
        self.project(site, linear, &input.product()?)
    }
}

/// The base model as it is.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoAdapter;

impl Adapt for NoAdapter {
    fn project(&self, _site: Site, linear: &Linear, x: &Tensor) -> Result<Tensor> {
        linear.forward(x)
    }
}

/// The weights of a layer `[out, in]`.
#[derive(Debug, Clone)]
pub enum Weight {
    /// f32, f16 or bf16, as in their file; a variable where they are trained.
    Dense(Tensor),
    /// In blocks of a few bits, on the CPU.
    Quantised(Arc<QuantisedMatrix>),
}

/// Tells weights apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WeightId(Identity);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Identity {
    Tensor(TensorId),
    Address(usize),
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
    pub fn new(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self { weight: Weight::Dense(weight), bias }
    }

    /// Brings the weights to a format of a few bits.
    ///
    /// # Errors
    /// Rows that do not divide into blocks.
    pub fn quantised(self, format: Quantize) -> Result<Self> {
        let Weight::Dense(weight) = &self.weight else {
            return Ok(self);
        };
        let matrix = Arc::new(QuantisedMatrix::new(weight, format)?);
        Ok(Self { weight: Weight::Quantised(matrix), bias: self.bias })
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

    /// Tells whether the weights are variables.
    pub fn is_trained(&self) -> bool {
        matches!(&self.weight, Weight::Dense(weight) if weight.track_op())
    }

    /// Returns what tells these weights from others.
    pub fn id(&self) -> WeightId {
        WeightId(match &self.weight {
            Weight::Dense(weight) => Identity::Tensor(weight.id()),
            Weight::Quantised(matrix) => Identity::Address(Arc::as_ptr(matrix) as usize),
        })
    }

    /// Returns the name of the format that the weights are kept in.
    pub fn format(&self) -> &'static str {
        match &self.weight {
            Weight::Dense(weight) => weight.dtype().as_str(),
            Weight::Quantised(matrix) => matrix.format(),
        }
    }

    /// Returns the bytes that the weights take.
    pub fn bytes(&self) -> u64 {
        match &self.weight {
            Weight::Dense(weight) => (weight.elem_count() * weight.dtype().size_in_bytes()) as u64,
            Weight::Quantised(matrix) => matrix.bytes(),
        }
    }

    /// Returns some rows of the weights in f32, `[rows, in]`.
    ///
    /// # Errors
    /// Rows beyond the last.
    pub fn wide_rows(&self, rows: Range<usize>) -> Result<Tensor> {
        match &self.weight {
            Weight::Dense(weight) => {
                weight.detach().narrow(0, rows.start, rows.len())?.to_dtype(DType::F32)
            }
            Weight::Quantised(matrix) => {
                let (_, cols) = matrix.dims();
                let mut wide = vec![0f32; rows.len() * cols];
                let shape = (rows.len(), cols);
                product::widen(matrix.as_rows(), rows, cols, &mut wide);
                Tensor::from_vec(wide, shape, &Device::Cpu)
            }
        }
    }

    pub(crate) fn weight(&self) -> &Weight {
        &self.weight
    }

    /// Returns the bias `[out]`.
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }
}

impl Weight {
    fn dims(&self) -> Result<(usize, usize)> {
        match self {
            Self::Dense(weight) => weight.dims2(),
            Self::Quantised(matrix) => Ok(matrix.dims()),
        }
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

/// Calls `f` with the weights `[rows, cols]` as they are kept.
pub(crate) fn with_rows<R>(weight: &Weight, f: impl FnOnce(Rows<'_>) -> R) -> Result<R> {
    let weight = match weight {
        Weight::Dense(weight) => weight,
        Weight::Quantised(matrix) => return Ok(f(matrix.as_rows())),
    };
    let (storage, layout) = weight.storage_and_layout();
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("weights are not contiguous");
    };
    let Storage::Cpu(storage) = &*storage else {
        bail!("weights are not on the CPU");
    };
    let rows = match storage {
        CpuStorage::F32(data) => Rows::F32(&data[start..end]),
        CpuStorage::BF16(data) => Rows::Bf16(&data[start..end]),
        CpuStorage::F16(data) => Rows::F16(&data[start..end]),
        _ => bail!("weights are neither f32 nor f16 nor bf16"),
    };
    Ok(f(rows))
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
        with_rows(&self.weight, |w| product::times_transposed(x, w, rows, cols, &mut out))?;
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
        with_rows(self.weight, |w| product::times(grad, w, rows, cols, &mut out))?;
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
