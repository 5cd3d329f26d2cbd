//! Every operation of our own against the same composed of candle's: value and gradient.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may fall")]

mod reference;

use std::sync::Arc;

use candle_core::{D, DType, Device, Result, Tensor, Var};
use candle_nn::ops::{log_softmax, softmax};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use reference::values;
use shammah::lora::loss::{HeadLoss, cross_entropy, head_cross_entropy, head_kl};
use shammah::models::attention::{self, Heads};
use shammah::models::{Activation, Gated, Linear, Packing, Span, ops};

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
fn gated_activations_equal_their_composition() {
    let mut draw = Draw::new();
    let root = (2.0 / std::f64::consts::PI).sqrt();
    for shape in SHAPES {
        let (gate, up) = (draw.var(shape), draw.var(shape));
        for activation in [Activation::Silu, Activation::GeluTanh] {
            let plain = || match activation {
                Activation::Silu => gate.silu()? * up.as_tensor(),
                Activation::GeluTanh => {
                    let inner = ((&*gate + (gate.powf(3.0)? * 0.044715)?)? * root)?;
                    ((inner.tanh()? + 1.0)? * 0.5)? * gate.as_tensor() * up.as_tensor()
                }
            };
            let ours = || Gated { gate: &gate, up: &up, activation }.product();
            compare(&format!("{activation:?} {shape:?}"), &[&gate, &up], ours, plain);
        }
    }
}

#[test]
fn rope_equals_its_composition() {
    let mut draw = Draw::new();
    for [tokens, heads, width] in [[1, 1, 2], [5, 3, 14], [67, 6, 98]] {
        let x = draw.var(&[tokens, heads, width]);
        let (cos, sin) = (draw.tensor(&[tokens, width / 2]), draw.tensor(&[tokens, width / 2]));
        let plain = || {
            let half = width / 2;
            let (low, high) = (x.narrow(2, 0, half)?, x.narrow(2, half, half)?);
            let (cos, sin) = (cos.unsqueeze(1)?, sin.unsqueeze(1)?);
            let turned = |a: &Tensor, b: &Tensor| a.broadcast_mul(&cos)? + b.broadcast_mul(&sin)?;
            Tensor::cat(&[turned(&low, &high.neg()?)?, turned(&high, &low)?], 2)
        };
        compare(&format!("rope of {tokens}"), &[&x], || ops::rope(&x, &cos, &sin), plain);
        // Strided as a slice of a wider projection is.
        let y = draw.var(&[tokens, heads, 2 * width]);
        let strided = || ops::rope(&y.narrow(2, 1, width)?, &cos, &sin);
        let dense = || ops::rope(&y.narrow(2, 1, width)?.contiguous()?, &cos, &sin);
        compare("rope, strided", &[&y], strided, dense);
        // Of a wider head the first numbers are turned.
        let first = || {
            let turned = ops::rope(&y.narrow(2, 0, width)?, &cos, &sin)?;
            Tensor::cat(&[turned, y.narrow(2, width, width)?], 2)
        };
        compare("rope, a part", &[&y], || ops::rope(&y, &cos, &sin), first);
    }
}

#[test]
fn causal_softmax_equals_its_composition() {
    let mut draw = Draw::new();
    for (batch, heads, groups, seq, past, window) in [
        (1, 1, 1, 1, 0, None),
        (1, 2, 3, 1, 6, None),
        (2, 2, 3, 5, 0, Some(2)),
        (1, 2, 2, 4, 9, Some(1)),
        (1, 2, 2, 4, 9, Some(100)),
        (2, 2, 3, 31, 82, None),
        (2, 2, 3, 31, 82, Some(17)),
    ] {
        let (rows, keys) = (groups * seq, seq + past);
        let scores = draw.tensor(&[batch, heads, rows, keys]);
        let hidden = |row: usize, key: usize| {
            let own = past + row % seq;
            key > own || window.is_some_and(|window| key + window <= own)
        };
        let mask: Vec<f32> = (0..rows * keys)
            .map(|i| if hidden(i / keys, i % keys) { f32::NEG_INFINITY } else { 0.0 })
            .collect();
        let mask = Tensor::from_vec(mask, (rows, keys), &Device::Cpu).unwrap();
        let plain = || softmax(&(&scores * 0.37)?.broadcast_add(&mask)?, D::Minus1);
        let what = format!("causal_softmax of {seq} after {past} in {window:?}");
        let ours = || ops::causal_softmax(&scores, 0.37, seq, window);
        compare(&what, &[], ours, plain);
        for (i, p) in values(&ours().unwrap()).iter().enumerate() {
            assert_eq!(*p == 0.0, hidden(i / keys % rows, i % keys), "{what}: {i}");
        }
    }
    // Training goes another way; whoever would differentiate this one is told.
    let scores = draw.var(&[1, 1, 2, 2]);
    let sum = ops::causal_softmax(&scores, 1.0, 2, None).unwrap().sum_all().unwrap();
    assert!(sum.backward().is_err());
}

/// Attention of packed sequences, each by itself, of plain operations.
fn plain_attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    heads: Heads,
    packing: &Packing,
) -> Result<Tensor> {
    let Heads { queries, keys, dim, scale, window } = heads;
    let mut parts = Vec::new();
    for Span { rows, prefix } in packing.spans() {
        let own = |t: &Tensor| t.narrow(0, rows.start, rows.len());
        let seen = |t: &Tensor| Tensor::cat(&[&t.narrow(0, 0, *prefix)?, &own(t)?], 0);
        let (q, k, v) = (own(q)?, seen(k)?, seen(v)?);
        let mask: Vec<f32> = (0..rows.len() * (prefix + rows.len()))
            .map(|i| (i / (prefix + rows.len()), i % (prefix + rows.len())))
            .map(|(row, key)| {
                let own = prefix + row;
                let hidden = key > own || window.is_some_and(|window| key + window <= own);
                if hidden { f32::NEG_INFINITY } else { 0.0 }
            })
            .collect();
        let mask = Tensor::from_vec(mask, (rows.len(), prefix + rows.len()), &Device::Cpu)?;
        let mut outs = Vec::new();
        for head in 0..queries {
            let kv = head / (queries / keys);
            let q = q.narrow(1, head * dim, dim)?;
            let (k, v) = (k.narrow(1, kv * dim, dim)?, v.narrow(1, kv * dim, dim)?);
            let scores = (q.matmul(&k.t()?)? * f64::from(scale))?.broadcast_add(&mask)?;
            outs.push(softmax(&scores, D::Minus1)?.matmul(&v)?);
        }
        parts.push(Tensor::cat(&outs, 1)?);
    }
    Tensor::cat(&parts, 0)
}

#[test]
fn packed_attention_equals_that_of_each_sequence_alone() {
    let mut draw = Draw::new();
    let long: Vec<u32> = (0..150).collect();
    let other: Vec<u32> = (0..100).map(|i| if i < 70 { i } else { 7 }).collect();
    let sets: [&[&[u32]]; 4] = [
        &[&[1]],
        &[&[1, 2, 3], &[1, 2, 4, 5, 6], &[1, 2]],
        &[&long, &other, &long[..71]],
        &[&[3, 4], &[5]],
    ];
    for (queries, keys, dim) in [(1, 1, 2), (4, 2, 6), (6, 2, 18), (3, 3, 8)] {
        let full = Heads::full(queries, keys, dim);
        let narrow = |window| Heads { window: Some(window), scale: 0.3, ..full };
        // Windows within a block of queries, across blocks and prefixes, and beyond all keys.
        let all = [full, narrow(1), narrow(2), narrow(40), narrow(100), narrow(1000)];
        let cases = sets.iter().flat_map(|set| all.map(|heads| (set, heads)));
        for ((set, heads), share) in cases.flat_map(|case| [(case, false), (case, true)]) {
            let packing = Arc::new(Packing::new(set, share).unwrap());
            let rows = packing.len();
            let q = draw.var(&[rows, queries * dim]);
            let (k, v) = (draw.var(&[rows, keys * dim]), draw.var(&[rows, keys * dim]));
            compare(
                &format!("{heads:?}, {rows} rows, shared {share}"),
                &[&q, &k, &v],
                || attention::packed(&q, &k, &v, heads, &packing),
                || plain_attention(&q, &k, &v, heads, &packing),
            );
        }
    }
}

#[test]
fn large_scores_do_not_overflow() {
    let scores = Tensor::new(&[[[[3e4f32, 2e4, 1e4]]]], &Device::Cpu).unwrap();
    assert_eq!(values(&ops::causal_softmax(&scores, 1.0, 1, None).unwrap()), [1.0, 0.0, 0.0]);
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

/// Compares a loss through the head, value and gradient, with its composition. The largest vocabulary is so large that
/// its tokens take two chunks.
fn compare_head(what: &str, hidden: &Var, ours: &HeadLoss, plain: &Tensor) {
    let value = f64::from(plain.to_scalar::<f32>().unwrap());
    assert!(
        (ours.value - value).abs() <= 1e-5 * value.abs() + 1e-6,
        "{what}: {} {value}",
        ours.value
    );
    let store = plain.backward().unwrap();
    let error = reference::relative(ours.grad.as_ref().unwrap(), store.get(hidden).unwrap());
    assert!(error < 1e-5, "{what}: gradient {error:.1e} away");
}

#[test]
fn losses_through_the_head_equal_their_composition() {
    let mut draw = Draw::new();
    for (tokens, width, vocab) in [(1, 3, 2), (7, 5, 31), (40, 8, 1021), (70, 2, 1 << 19)] {
        let weight = draw.tensor(&[vocab, width]);
        let head = Linear::new(weight.clone(), None);
        let (hidden, base) = (draw.var(&[tokens, width]), draw.tensor(&[tokens, width]));
        let targets: Vec<u32> = (0..tokens).map(|i| (i * 7 % vocab) as u32).collect();
        let weights: Vec<f32> = (0..tokens).map(|i| i as f32 * 0.3 + 0.1).collect();
        let ours = head_cross_entropy(&head, &hidden, &targets, &weights, true).unwrap();
        let logits = || hidden.matmul(&weight.t().unwrap()).unwrap();
        let plain = cross_entropy(&logits(), &targets, &weights).unwrap();
        compare_head(&format!("cross-entropy of {vocab}"), &hidden, &ours, &plain);
        let alone = head_cross_entropy(&head, &hidden, &targets, &weights, false).unwrap();
        assert!(alone.grad.is_none() && alone.value == ours.value);

        let ours = head_kl(&head, &base, &hidden, 0.7, true).unwrap();
        // In f64: candle adds up a softmax of half a million terms in one number.
        let log_probs =
            |t: Tensor| log_softmax(&t.to_dtype(DType::F64).unwrap(), D::Minus1).unwrap();
        let p = log_probs(base.matmul(&weight.t().unwrap()).unwrap());
        let q = log_probs(logits());
        let kl = (p.exp().unwrap() * (p - q).unwrap()).unwrap().sum_all().unwrap();
        let kl = (kl * 0.7).unwrap().to_dtype(DType::F32).unwrap();
        compare_head(&format!("kl of {vocab}"), &hidden, &ours, &kl);
        assert!(head_kl(&head, &base, &base, 1.0, false).unwrap().value.abs() < 1e-6);
    }
}

#[test]
fn shapes_that_do_not_fit_are_errors() {
    let mut draw = Draw::new();
    let (x, other) = (draw.tensor(&[2, 3, 4, 6]), draw.tensor(&[2, 3, 4, 5]));
    let wrong = [
        ops::rms_norm(&x, &draw.tensor(&[5]), 1e-6),
        Gated { gate: &x, up: &other, activation: Activation::Silu }.product(),
        ops::rope(&draw.tensor(&[4, 1, 6]), &draw.tensor(&[4, 4]), &draw.tensor(&[4, 4])),
        ops::rope(&draw.tensor(&[4, 1, 5]), &draw.tensor(&[4, 3]), &draw.tensor(&[4, 3])),
        ops::rope(&draw.tensor(&[4, 1, 6]), &draw.tensor(&[3, 2]), &draw.tensor(&[3, 2])),
        ops::rope(&draw.tensor(&[4, 1, 6]), &draw.tensor(&[4, 3]), &draw.tensor(&[4, 2])),
        ops::causal_softmax(&x, 1.0, 3, None),
        ops::causal_softmax(&x, 1.0, 8, None),
        ops::causal_softmax(&x, 1.0, 0, None),
        ops::causal_softmax(&x, 1.0, 2, Some(0)),
        cross_entropy(&draw.tensor(&[2, 5]), &[0], &[1.0]),
        cross_entropy(&draw.tensor(&[1, 5]), &[5], &[1.0]),
        Linear::new(draw.tensor(&[3, 4]), None).forward(&draw.tensor(&[2, 5])),
    ];
    let head = Linear::new(draw.tensor(&[5, 2]), None);
    assert!(head_kl(&head, &draw.tensor(&[2, 2]), &draw.tensor(&[3, 2]), 1.0, false).is_err());
    assert!(head_cross_entropy(&head, &draw.tensor(&[1, 2]), &[5], &[1.0], false).is_err());
    for (index, result) in wrong.into_iter().enumerate() {
        assert!(result.is_err(), "case {index} is refused");
    }
}
