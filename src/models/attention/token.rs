//! Attention of one token, without copying the cache.

use rayon::prelude::*;

use super::Heads;
use crate::models::kernels::math;

/// Attention of one token over the keys and values of a cache, `[keys, capacity, dim]`, of which `seen` are filled.
///
/// `q` is `[queries · dim]`, rotated already; returns what `q` is.
pub(in crate::models) fn token(
    q: &[f32],
    keys: &[f32],
    values: &[f32],
    seen: usize,
    heads: Heads,
) -> Vec<f32> {
    let Heads { dim, .. } = heads;
    let group = heads.groups() * dim;
    let capacity = keys.len() / (heads.keys * dim).max(1);
    let first = heads.first_seen(seen.saturating_sub(1));
    let mut y = vec![0f32; q.len()];
    let one = |(head, y): (usize, &mut [f32])| {
        let part = (head * capacity + first) * dim..(head * capacity + seen) * dim;
        let (keys, values) = (&keys[part.clone()], &values[part]);
        let q = &q[head * group..][..group];
        math::vectorised(|| group_of_token(q, keys, values, dim, heads.scale, y));
    };
    let parts = y.chunks_mut(group).enumerate();
    if q.len() * (seen - first) < PARALLEL_TOKEN {
        parts.for_each(one);
    } else {
        parts.par_bridge().for_each(one);
    }
    y
}

/// Multiplications of a token's attention below which threads cost more than they bring.
const PARALLEL_TOKEN: usize = 1 << 16;

/// The heads of queries that share a head of keys and values.
#[inline(always)]
fn group_of_token(q: &[f32], keys: &[f32], values: &[f32], dim: usize, scale: f32, y: &mut [f32]) {
    let seen = keys.len() / dim;
    let mut scores = vec![0f32; q.len() / dim * seen];
    for (at, key) in keys.chunks_exact(dim).enumerate() {
        for (q, scores) in q.chunks_exact(dim).zip(scores.chunks_exact_mut(seen)) {
            scores[at] = scale * math::dot(q, key);
        }
    }
    for scores in scores.chunks_exact_mut(seen) {
        let most = math::max(scores);
        scores.iter_mut().for_each(|score| *score = math::exp(*score - most));
        let sum = 1.0 / math::sum_map(seen, |at| scores[at]);
        scores.iter_mut().for_each(|score| *score *= sum);
    }
    for (at, value) in values.chunks_exact(dim).enumerate() {
        for (y, probs) in y.chunks_exact_mut(dim).zip(scores.chunks_exact(seen)) {
            let prob = probs[at];
            y.iter_mut().zip(value).for_each(|(y, v)| *y += prob * v);
        }
    }
}
