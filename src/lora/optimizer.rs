//! AdamW with moments that can be saved (candle's are private, so its runs cannot be resumed).

use candle_core::{Result, Tensor, Var};

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
    pub fn resume(
        vars: Vec<Var>,
        config: AdamWConfig,
        moments: Vec<Moments>,
        step: usize,
    ) -> Result<Self> {
        if vars.len() != moments.len() {
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
        self.step += 1;
        let AdamWConfig { beta1, beta2, eps, weight_decay } = self.config;
        let steps = i32::try_from(self.step).unwrap_or(i32::MAX);
        let correction1 = 1.0 - beta1.powi(steps);
        let correction2 = 1.0 - beta2.powi(steps);
        for ((var, moments), gradient) in self.vars.iter().zip(&mut self.moments).zip(gradients) {
            let gradient = gradient.detach();
            let first = ((&moments.first * beta1)? + (&gradient * (1.0 - beta1))?)?;
            let second = ((&moments.second * beta2)? + (gradient.sqr()? * (1.0 - beta2))?)?;
            let denominator = ((&second / correction2)?.sqrt()? + eps)?;
            let update = (&first / correction1)?.div(&denominator)?;
            let value = var.as_tensor().detach();
            let kept = (value * (1.0 - learning_rate * weight_decay))?;
            var.set(&(kept - (update * learning_rate)?)?)?;
            *moments = Moments { first, second };
        }
        Ok(())
    }
}

/// Scales the gradients so that their joint L2 norm is at most `max_norm`; returns the norm before.
///
/// # Errors
/// A failed tensor operation.
pub fn clip_gradients(gradients: &mut [Tensor], max_norm: f64) -> Result<f64> {
    let mut sum = 0f64;
    for gradient in gradients.iter() {
        sum += f64::from(gradient.sqr()?.sum_all()?.to_scalar::<f32>()?);
    }
    let norm = sum.sqrt();
    // As torch.nn.utils.clip_grad_norm_.
    let scale = max_norm / (norm + 1e-6);
    if scale < 1.0 {
        for gradient in gradients {
            *gradient = (&*gradient * scale)?;
        }
    }
    Ok(norm)
}

/// Linear warm-up over `warmup` steps, then a cosine to zero at `total`; the factor for `step` from 0.
pub fn warmup_cosine(step: usize, warmup: usize, total: usize) -> f64 {
    if step < warmup {
        return (step + 1) as f64 / warmup as f64;
    }
    let progress = (step - warmup) as f64 / total.saturating_sub(warmup).max(1) as f64;
    0.5 * (1.0 + (std::f64::consts::PI * progress.min(1.0)).cos())
}
