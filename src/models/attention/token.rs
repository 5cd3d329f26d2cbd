//! Attention of one token, without copying the cache.

use super::Heads;
use crate::models::kernels::math::{self, vectorised};
use crate::models::kernels::product;
use crate::models::kernels::team::Team;

/// Multiplications of a token's attention below which threads cost more than they bring.
const PARALLEL_TOKEN: usize = 1 << 15;
/// Elements of a value that are summed at a time: eight vector registers.
const LANES: usize = 64;

/// Attention of one token over the keys and values of a cache, `[keys, capacity, dim]`, of which `seen` are filled.
///
/// `q` is `[queries · dim]`, rotated already; returns what `q` is.
pub(in crate::models) fn token(
    team: &Team<'_>,
    q: &[f32],
    keys: &[f32],
    values: &[f32],
    seen: usize,
    heads: Heads,
) -> Vec<f32> {
    let Heads { dim, .. } = heads;
    let capacity = keys.len() / (heads.keys * dim).max(1);
    let first = heads.first_seen(seen.saturating_sub(1));
    let mut y = vec![0f32; q.len()];
    let one = |(head, y): (usize, &mut [f32])| {
        let own = head / heads.groups();
        let part = (own * capacity + first) * dim..(own * capacity + seen) * dim;
        let q = &q[head * dim..][..dim];
        head_of_token(q, &keys[part.clone()], &values[part], heads.scale, y);
    };
    let parts = y.chunks_mut(dim).enumerate();
    if q.len() * (seen - first) < PARALLEL_TOKEN {
        parts.for_each(one);
    } else {
        team.each(parts.collect(), one);
    }
    y
}

/// One head of the queries.
fn head_of_token(q: &[f32], keys: &[f32], values: &[f32], scale: f32, y: &mut [f32]) {
    let dim = q.len();
    let seen = keys.len() / dim;
    let mut scores = vec![0f32; seen];
    product::row_products(keys.into(), q, &mut scores);
    vectorised!({
        let most = scale * math::max(&scores);
        scores.iter_mut().for_each(|score| *score = math::exp(scale * *score - most));
        let sum = 1.0 / math::sum_map(seen, |at| scores[at]);
        scores.iter_mut().for_each(|score| *score *= sum);
        weighted_sum(&scores, values, y);
    });
}

/// Writes `y [dim] = Σ probs[at] · values[at]`.
#[inline(always)]
fn weighted_sum(probs: &[f32], values: &[f32], y: &mut [f32]) {
    let dim = y.len();
    let mut blocks = y.chunks_exact_mut(LANES);
    for (block, y) in blocks.by_ref().enumerate() {
        let mut sums = [0f32; LANES];
        for (prob, value) in probs.iter().zip(values.chunks_exact(dim)) {
            let value = &value[block * LANES..][..LANES];
            sums.iter_mut().zip(value).for_each(|(sum, v)| *sum += prob * v);
        }
        y.copy_from_slice(&sums);
    }
    let rest = blocks.into_remainder();
    let from = dim - rest.len();
    for (prob, value) in probs.iter().zip(values.chunks_exact(dim)) {
        rest.iter_mut().zip(&value[from..]).for_each(|(sum, v)| *sum += prob * v);
    }
}
