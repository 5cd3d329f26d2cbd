//! The gated activation of the MLP (Shazeer 2020), fused for the CPU as in [`super::ops`].

use candle_core::{CpuStorage, CustomOp2, D, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::elements::{elements, with_elements};
use super::kernels::math::{self, vectorised};
use super::ops::{PARALLEL_ELEMENTS, for_rows, fused};

/// The function on the gate: `x · σ(z(x))`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// z = x (SiLU, or swish).
    Silu,
    /// z = 2 √(2/π) (x + 0.044715 x³): GELU by its approximation with tanh (Gemma).
    GeluTanh,
}

/// What goes into an MLP's way down: `activation(gate) ∘ up`, both `[.., width]`.
#[derive(Clone, Copy)]
pub struct Gated<'a> {
    /// What the gate's projection gives.
    pub gate: &'a Tensor,
    /// What it is multiplied with.
    pub up: &'a Tensor,
    /// The function on the gate.
    pub activation: Activation,
}

/// √(2/π) and the cube's share, as torch has them.
const GELU: (f32, f32) = (0.797_884_6, 0.044_715);

#[inline(always)]
fn silu_argument(x: f32) -> (f32, f32) {
    (x, 1.0)
}

#[inline(always)]
fn gelu_argument(x: f32) -> (f32, f32) {
    let (root, cube) = GELU;
    (2.0 * root * (x + cube * x * x * x), 2.0 * root * (1.0 + 3.0 * cube * x * x))
}

/// Elements that the operation takes as a row.
const ROW: usize = 1024;

/// `activation(gate) ∘ up`, element by element.
pub(crate) fn gated_of(activation: Activation, gate: &[f32], up: &[f32]) -> Vec<f32> {
    match activation {
        Activation::Silu => value_of(silu_argument, gate, up),
        Activation::GeluTanh => value_of(gelu_argument, gate, up),
    }
}

/// The gradients of gate and up, from that of [`gated_of`].
pub(crate) fn gated_grads(
    activation: Activation,
    gate: &[f32],
    up: &[f32],
    grad: Vec<f32>,
) -> (Vec<f32>, Vec<f32>) {
    match activation {
        Activation::Silu => grads_of(silu_argument, gate, up, grad),
        Activation::GeluTanh => grads_of(gelu_argument, gate, up, grad),
    }
}

/// `argument` gives z(x) and its derivative.
#[inline(always)]
fn value_of(
    argument: impl Fn(f32) -> (f32, f32) + Copy + Sync,
    gate: &[f32],
    up: &[f32],
) -> Vec<f32> {
    let mut out = vec![0f32; gate.len()];
    for_rows(
        &mut out,
        ROW,
        #[inline(always)]
        |i, row| {
            let (gate, up) = (&gate[i * ROW..], &up[i * ROW..]);
            for ((o, &g), &u) in row.iter_mut().zip(gate).zip(up) {
                *o = g * math::sigmoid(argument(g).0) * u;
            }
        },
    );
    out
}

/// With s = σ(z): d(x s)/dx = s + x s (1 − s) z′.
#[inline(always)]
fn grads_of(
    argument: impl Fn(f32) -> (f32, f32) + Copy + Sync,
    gate: &[f32],
    up: &[f32],
    grad: Vec<f32>,
) -> (Vec<f32>, Vec<f32>) {
    let mut dgate = grad;
    let mut dup = vec![0f32; gate.len()];
    let chunk = PARALLEL_ELEMENTS / 4;
    dgate.par_chunks_mut(chunk).zip(dup.par_chunks_mut(chunk)).enumerate().for_each(
        |(task, (dgate, dup))| {
            let from = task * chunk;
            vectorised!({
                let inputs = gate[from..].iter().zip(&up[from..]);
                for ((dgate, dup), (&g, &u)) in dgate.iter_mut().zip(dup).zip(inputs) {
                    let (z, slope) = argument(g);
                    let (grad, s) = (*dgate, math::sigmoid(z));
                    *dup = grad * g * s;
                    *dgate = grad * u * (s + g * s * (1.0 - s) * slope);
                }
            });
        },
    );
    (dgate, dup)
}

impl Gated<'_> {
    /// Returns the product `[.., width]`.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn product(&self) -> Result<Tensor> {
        let Self { gate, up, activation } = *self;
        if gate.dims() != up.dims() || gate.dim(D::Minus1)? == 0 {
            bail!("gated: gate {:?} and up {:?} do not fit", gate.shape(), up.shape());
        }
        if fused(gate.device()) {
            return gate.contiguous()?.apply_op2(&up.contiguous()?, GatedOp(activation));
        }
        match activation {
            Activation::Silu => gate.silu()? * up,
            Activation::GeluTanh => {
                let (root, cube) = (f64::from(GELU.0), f64::from(GELU.1));
                let inner = (gate * ((gate.sqr()? * (cube * root))? + root)?)?;
                ((inner.tanh()? + 1.0)? * 0.5)? * gate * up
            }
        }
    }
}

struct GatedOp(Activation);

impl CustomOp2 for GatedOp {
    fn name(&self) -> &'static str {
        "gated"
    }

    fn cpu_fwd(
        &self,
        gate: &CpuStorage,
        gate_layout: &Layout,
        up: &CpuStorage,
        up_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let out = gated_of(self.0, elements(gate, gate_layout)?, elements(up, up_layout)?);
        Ok((CpuStorage::F32(out), gate_layout.shape().clone()))
    }

    fn bwd(
        &self,
        gate: &Tensor,
        up: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let (dgate, dup) = with_elements([gate, up, &grad], |[g, u, grad]| {
            gated_grads(self.0, g, u, grad.to_vec())
        })?;
        let tensor = |data| Tensor::from_vec(data, gate.shape(), gate.device()).map(Some);
        Ok((tensor(dgate)?, tensor(dup)?))
    }
}
