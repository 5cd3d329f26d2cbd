//! AdamW with moments that can be saved (candle's are private, so its runs cannot be resumed).

use candle_core::{Result, Tensor, Var};
use rayon::prelude::*;

use crate::models::kernels::math::{self, vectorised};
use crate::models::{ops, with_elements};

/// The hyper-parameters of [`AdamW`]; the defaults are those of PyTorch, without weight decay.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWConfig {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Keeps the division finite.
    pub eps: f64,
    /// Decoupled weight decay per unit of learning rate.
    pub weight_decay: f64,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 }
    }
}

/// First and second moment of one variable's gradient.
#[derive(Debug, Clone)]
pub struct Moments {
    /// Mean of the gradient.
    pub first: Tensor,
    /// Mean of its square.
    pub second: Tensor,
}

/// Adam with decoupled weight decay (Loshchilov and Hutter 2019), over variables in a fixed order.
#[derive(Debug)]
pub struct AdamW {
    config: AdamWConfig,
    vars: Vec<Var>,
    moments: Vec<Moments>,
    step: usize,
}

impl AdamW {
    /// Starts with zero moments.
    ///
    /// # Errors
    /// No memory on the device.
    pub fn new(vars: Vec<Var>, config: AdamWConfig) -> Result<Self> {
        let zeros = |v: &Var| Ok(Moments { first: v.zeros_like()?, second: v.zeros_like()? });
        let moments = vars.iter().map(zeros).collect::<Result<_>>()?;
        Ok(Self { config, vars, moments, step: 0 })
    }

    /// Goes on from saved moments, one pair per variable, after `step` steps.
    ///
    /// # Errors
    /// Moments that do not fit the variables.
    pub fn resume(
        vars: Vec<Var>,
        config: AdamWConfig,
        moments: Vec<Moments>,
        step: usize,
    ) -> Result<Self> {
        let fits = |(var, moments): (&Var, &Moments)| {
            var.dims() == moments.first.dims() && var.dims() == moments.second.dims()
        };
        if vars.len() != moments.len() || !vars.iter().zip(&moments).all(fits) {
            candle_core::bail!("{} variables but {} saved moments", vars.len(), moments.len());
        }
        Ok(Self { config, vars, moments, step })
    }

    /// Returns the moments, one pair per variable.
    pub fn moments(&self) -> &[Moments] {
        &self.moments
    }

    /// Returns the number of steps done.
    pub fn step_count(&self) -> usize {
        self.step
    }

    /// Moves every variable along its gradient (one per variable, in order).
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn step(&mut self, gradients: &[Tensor], learning_rate: f64) -> Result<()> {
        let fits = |(var, gradient): (&Var, &Tensor)| var.dims() == gradient.dims();
        if gradients.len() != self.vars.len() || !self.vars.iter().zip(gradients).all(fits) {
            candle_core::bail!("the gradients do not fit the {} variables", self.vars.len());
        }
        self.step += 1;
        let AdamWConfig { beta1, beta2, weight_decay, .. } = self.config;
        let steps = i32::try_from(self.step).unwrap_or(i32::MAX);
        let update = Update {
            config: self.config,
            learning_rate,
            keep: 1.0 - learning_rate * weight_decay,
            correction1: 1.0 - beta1.powi(steps),
            correction2: 1.0 - beta2.powi(steps),
        };
        let all = self.vars.par_iter().zip(&mut self.moments).zip(gradients);
        all.try_for_each(|((var, moments), gradient)| update.apply(var, moments, gradient))
    }
}

/// What one step does to every variable.
struct Update {
    config: AdamWConfig,
    learning_rate: f64,
    /// What weight decay leaves of a value.
    keep: f64,
    correction1: f64,
    correction2: f64,
}

impl Update {
    fn apply(&self, var: &Var, moments: &mut Moments, gradient: &Tensor) -> Result<()> {
        if !ops::fused(var.device()) {
            return self.composed(var, moments, gradient);
        }
        let gradient = gradient.contiguous()?;
        let operands = [var.as_tensor(), &moments.first, &moments.second, &gradient];
        let (value, first, second) =
            with_elements(operands, |[value, first, second, gradient]| {
                let (mut value, mut first, mut second) =
                    (value.to_vec(), first.to_vec(), second.to_vec());
                self.run(&mut value, &mut first, &mut second, gradient);
                (value, first, second)
            })?;
        let tensor = |data| Tensor::from_vec(data, var.shape(), var.device());
        var.set(&tensor(value)?)?;
        *moments = Moments { first: tensor(first)?, second: tensor(second)? };
        Ok(())
    }

    fn run(&self, value: &mut [f32], first: &mut [f32], second: &mut [f32], gradient: &[f32]) {
        let single = |x: f64| x as f32;
        let (beta1, beta2, eps) =
            (single(self.config.beta1), single(self.config.beta2), single(self.config.eps));
        let (new1, new2) = (single(1.0 - self.config.beta1), single(1.0 - self.config.beta2));
        let (scale1, scale2) = (single(1.0 / self.correction1), single(1.0 / self.correction2));
        let (keep, rate) = (single(self.keep), single(self.learning_rate));
        vectorised!({
            let moments = first.iter_mut().zip(second).zip(gradient);
            for (value, ((first, second), &g)) in value.iter_mut().zip(moments) {
                *first = *first * beta1 + g * new1;
                *second = *second * beta2 + g * g * new2;
                let denominator = (*second * scale2).sqrt() + eps;
                *value = *value * keep - *first * scale1 / denominator * rate;
            }
        });
    }

    /// The same of plain tensor operations, on other devices.
    fn composed(&self, var: &Var, moments: &mut Moments, gradient: &Tensor) -> Result<()> {
        let AdamWConfig { beta1, beta2, eps, .. } = self.config;
        let gradient = gradient.detach();
        let first = ((&moments.first * beta1)? + (&gradient * (1.0 - beta1))?)?;
        let second = ((&moments.second * beta2)? + (gradient.sqr()? * (1.0 - beta2))?)?;
        let denominator = ((&second / self.correction2)?.sqrt()? + eps)?;
        let update = (&first / self.correction1)?.div(&denominator)?;
        let kept = (var.as_tensor().detach() * self.keep)?;
        var.set(&(kept - (update * self.learning_rate)?)?)?;
        *moments = Moments { first, second };
        Ok(())
    }
}

/// Scales the gradients so that their joint L2 norm is at most `max_norm`; returns the norm before.
///
/// # Errors
/// A failed tensor operation.
pub fn clip_gradients(gradients: &mut [Tensor], max_norm: f64) -> Result<f64> {
    let squares: Vec<f64> = gradients.par_iter().map(square_sum).collect::<Result<_>>()?;
    let norm = squares.iter().sum::<f64>().sqrt();
    // As torch.nn.utils.clip_grad_norm_.
    let scale = max_norm / (norm + 1e-6);
    if scale < 1.0 {
        for gradient in gradients {
            *gradient = (&*gradient * scale)?;
        }
    }
    Ok(norm)
}

fn square_sum(gradient: &Tensor) -> Result<f64> {
    if !ops::fused(gradient.device()) {
        return Ok(f64::from(gradient.sqr()?.sum_all()?.to_scalar::<f32>()?));
    }
    with_elements([&gradient.contiguous()?], |[g]| {
        vectorised!(f64::from(math::sum_map(g.len(), |i| g[i] * g[i])))
    })
}

/// Linear warm-up over `warmup` steps, then a cosine to zero at `total`; the factor for `step` from 0.
pub fn warmup_cosine(step: usize, warmup: usize, total: usize) -> f64 {
    if step < warmup {
        return (step + 1) as f64 / warmup as f64;
    }
    let progress = (step - warmup) as f64 / total.saturating_sub(warmup).max(1) as f64;
    0.5 * (1.0 + (std::f64::consts::PI * progress.min(1.0)).cos())
}
