//! Every operation of our own against the same composed of candle's: value and gradient.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may fall")]

mod reference;

use candle_core::{D, Device, Result, Tensor, Var};
use candle_nn::ops::{log_softmax, softmax};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use reference::values;
use shammah::lora::loss::{cross_entropy, kl_from_base};
use shammah::models::{Linear, ops};

/// Largest relative error of a tensor; both sides are f32.
const RELATIVE: f32 = 5e-6;
/// And per element, for gradients that cancel to nothing.
const ABSOLUTE: f32 = 5e-7;

struct Draw(StdRng);

impl Draw {
    fn new() -> Self {
        Self(StdRng::seed_from_u64(17))
    }

    fn tensor(&mut self, shape: &[usize]) -> Tensor {
        let count = shape.iter().product();
        let data: Vec<f32> = (0..count).map(|_| self.0.random_range(-2.0..2.0)).collect();
        Tensor::from_vec(data, shape, &Device::Cpu).unwrap()
    }

    fn var(&mut self, shape: &[usize]) -> Var {
        Var::from_tensor(&self.tensor(shape)).unwrap()
    }
}

/// Compares values, and the gradients of `vars` under one random gradient of the output.
fn compare(
    what: &str,
    vars: &[&Var],
    ours: impl Fn() -> Result<Tensor>,
    plain: impl Fn() -> Result<Tensor>,
) {
    let (ours, plain) = (ours().unwrap(), plain().unwrap());
    assert_eq!(ours.dims(), plain.dims(), "{what}");
    let near = |what: String, x: &Tensor, y: &Tensor| {
        let norm =
            |t: &Tensor| t.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
        let (apart, size) = (norm(&(x - y).unwrap()), norm(y));
        let allowed = RELATIVE * size + ABSOLUTE * (x.elem_count() as f32).sqrt();
        assert!(apart <= allowed, "{what}: {apart:.1e} away, {allowed:.1e} are allowed");
    };
    near(format!("{what}: value"), &ours, &plain);
    let upstream = Draw::new().tensor(ours.dims());
    let backward = |y: &Tensor| (y * &upstream).unwrap().sum_all().unwrap().backward().unwrap();
    let (our_store, plain_store) = (backward(&ours), backward(&plain));
    for (index, var) in vars.iter().enumerate() {
        let gradient = our_store.get(var).unwrap_or_else(|| panic!("{what}: no gradient {index}"));
        near(format!("{what}: gradient {index}"), gradient, plain_store.get(var).unwrap());
    }
}

/// A small odd shape, one row, one column, and one that is worth threads.
const SHAPES: [&[usize]; 5] = [&[3, 7, 13], &[1, 1], &[5, 1], &[1, 37], &[3, 47, 257]];

#[test]
fn rms_norm_equals_its_composition() {
    let mut draw = Draw::new();
    for shape in SHAPES {
        let (x, weight) = (draw.var(shape), draw.var(&shape[shape.len() - 1..]));
        for eps in [1e-6, 0.3] {
            compare(
                &format!("rms_norm {shape:?}"),
                &[&x, &weight],
                || ops::rms_norm(&x, &weight, eps),
                || {
                    let mean = x.sqr()?.mean_keepdim(D::Minus1)?;
                    x.broadcast_div(&(mean + eps)?.sqrt()?)?.broadcast_mul(&weight)
                },
            );
        }
    }
}

#[test]
fn swiglu_equals_its_composition() {
    let mut draw = Draw::new();
    for shape in SHAPES {
        let (gate, up) = (draw.var(shape), draw.var(shape));
        let plain = || gate.silu()? * up.as_tensor();
        compare(&format!("swiglu {shape:?}"), &[&gate, &up], || ops::swiglu(&gate, &up), plain);
    }
}

#[test]
fn rope_equals_its_composition() {
    let mut draw = Draw::new();
    for [batch, heads, seq, width] in [[1, 1, 1, 2], [2, 3, 5, 14], [2, 3, 67, 98]] {
        let x = draw.var(&[batch, heads, seq, width]);
        let (cos, sin) = (draw.tensor(&[seq, width / 2]), draw.tensor(&[seq, width / 2]));
        let plain = || {
            let half = width / 2;
            let (low, high) = (x.narrow(3, 0, half)?, x.narrow(3, half, half)?);
            let turned = |a: &Tensor, b: &Tensor| a.broadcast_mul(&cos)? + b.broadcast_mul(&sin)?;
            Tensor::cat(&[turned(&low, &high.neg()?)?, turned(&high, &low)?], 3)
        };
        compare(&format!("rope of {seq}"), &[&x], || ops::rope(&x, &cos, &sin), plain);
        // As the decoder calls it: heads transposed, so not contiguous.
        let y = draw.var(&[batch, seq, heads, width]);
        let strided = || ops::rope(&y.transpose(1, 2)?, &cos, &sin);
        let dense = || ops::rope(&y.transpose(1, 2)?.contiguous()?, &cos, &sin);
        compare("rope, strided", &[&y], strided, dense);
    }
}

#[test]
fn causal_softmax_equals_its_composition() {
    let mut draw = Draw::new();
    for (batch, heads, groups, seq, past) in
        [(1, 1, 1, 1, 0), (1, 2, 3, 1, 6), (2, 2, 3, 5, 0), (1, 2, 2, 4, 9), (2, 2, 3, 31, 82)]
    {
        let (rows, keys) = (groups * seq, seq + past);
        let scores = draw.var(&[batch, heads, rows, keys]);
        let hidden = |row: usize, key: usize| key > past + row % seq;
        let mask: Vec<f32> = (0..rows * keys)
            .map(|i| if hidden(i / keys, i % keys) { f32::NEG_INFINITY } else { 0.0 })
            .collect();
        let mask = Tensor::from_vec(mask, (rows, keys), &Device::Cpu).unwrap();
        let plain = || softmax(&(scores.as_tensor() * 0.37)?.broadcast_add(&mask)?, D::Minus1);
        let what = format!("causal_softmax of {seq} after {past}");
        compare(&what, &[&scores], || ops::causal_softmax(&scores, 0.37, seq), plain);
        let probs = values(&ops::causal_softmax(&scores, 0.37, seq).unwrap());
        for (i, p) in probs.iter().enumerate() {
            assert_eq!(*p == 0.0, hidden(i / keys % rows, i % keys), "{what}: {i}");
        }
    }
}

#[test]
fn large_scores_do_not_overflow() {
    let scores = Tensor::new(&[[[[3e4f32, 2e4, 1e4]]]], &Device::Cpu).unwrap();
    assert_eq!(values(&ops::causal_softmax(&scores, 1.0, 1).unwrap()), [1.0, 0.0, 0.0]);
    let logits = Tensor::new(&[[3e4f32, -3e4]], &Device::Cpu).unwrap();
    let loss = cross_entropy(&logits, &[1], &[1.0]).unwrap().to_scalar::<f32>().unwrap();
    assert_eq!(loss, 6e4);
}

#[test]
fn a_frozen_projection_passes_the_gradient_of_its_input_alone() {
    let mut draw = Draw::new();
    for (tokens, input, output) in [(1, 1, 1), (5, 13, 7), (129, 65, 258)] {
        let (x, weight) = (draw.var(&[tokens, input]), draw.tensor(&[output, input]));
        let bias = draw.tensor(&[output]);
        let frozen = Linear::new(weight.clone(), Some(bias.clone()));
        let plain = || x.matmul(&weight.t()?)?.broadcast_add(&bias);
        compare(&format!("frozen {tokens}"), &[&x], || frozen.forward(&x), plain);
        let store =
            frozen.forward(&x).unwrap().sqr().unwrap().sum_all().unwrap().backward().unwrap();
        assert!(store.get(&weight).is_none(), "nobody reads the frozen weight's gradient");
        // A gradient that comes back transposed is no different.
        let turned = || Linear::new(weight.clone(), None).forward(&x)?.t();
        compare("frozen, transposed", &[&x], turned, || x.matmul(&weight.t()?)?.t());
        let trained = draw.var(&[output, input]);
        let layer = Linear::new(trained.as_tensor().clone(), None);
        compare("trained", &[&x, &trained], || layer.forward(&x), || x.matmul(&trained.t()?));
    }
}

#[test]
fn cross_entropy_equals_its_composition() {
    let mut draw = Draw::new();
    for (tokens, vocab) in [(1, 2), (7, 31), (67, 1021)] {
        let logits = draw.var(&[tokens, vocab]);
        let targets: Vec<u32> = (0..tokens).map(|i| (i * 7 % vocab) as u32).collect();
        let weights: Vec<f32> = (0..tokens).map(|i| i as f32 * 0.3 + 0.1).collect();
        let plain = || {
            let index = Tensor::from_slice(&targets, (tokens, 1), &Device::Cpu)?;
            let weights = Tensor::from_slice(&weights, tokens, &Device::Cpu)?;
            let picked = log_softmax(&logits, D::Minus1)?.gather(&index, 1)?.squeeze(1)?;
            (picked * weights)?.sum_all()?.neg()
        };
        let what = format!("cross_entropy of {vocab}");
        compare(&what, &[&logits], || cross_entropy(&logits, &targets, &weights), plain);
    }
}

#[test]
fn kl_equals_its_composition_and_vanishes_at_the_base() {
    let mut draw = Draw::new();
    for (tokens, vocab) in [(1, 2), (7, 31), (67, 1021)] {
        let (base, adapted) = (draw.tensor(&[tokens, vocab]), draw.var(&[tokens, vocab]));
        let plain = || {
            let (p, q) = (log_softmax(&base, D::Minus1)?, log_softmax(&adapted, D::Minus1)?);
            (p.exp()? * (&p - q)?)?.sum_all()
        };
        compare(&format!("kl of {vocab}"), &[&adapted], || kl_from_base(&base, &adapted), plain);
        let none = kl_from_base(&base, &base).unwrap().to_scalar::<f32>().unwrap();
        assert!(none.abs() < 1e-6, "{none}");
    }
}

#[test]
fn shapes_that_do_not_fit_are_errors() {
    let mut draw = Draw::new();
    let x = draw.tensor(&[2, 3, 4, 6]);
    let wrong = [
        ops::rms_norm(&x, &draw.tensor(&[5]), 1e-6),
        ops::swiglu(&x, &draw.tensor(&[2, 3, 4, 5])),
        ops::rope(&x, &draw.tensor(&[4, 2]), &draw.tensor(&[4, 2])),
        ops::rope(&draw.tensor(&[1, 1, 4, 5]), &draw.tensor(&[4, 2]), &draw.tensor(&[4, 2])),
        ops::causal_softmax(&x, 1.0, 3),
        ops::causal_softmax(&x, 1.0, 8),
        ops::causal_softmax(&x, 1.0, 0),
        cross_entropy(&draw.tensor(&[2, 5]), &[0], &[1.0]),
        cross_entropy(&draw.tensor(&[1, 5]), &[5], &[1.0]),
        kl_from_base(&draw.tensor(&[2, 5]), &draw.tensor(&[2, 6])),
    ];
    for (index, result) in wrong.into_iter().enumerate() {
        assert!(result.is_err(), "case {index} is refused");
    }
}
