//! Singular values of a product of thin matrices, in f64 and without a library: thin QR of both, and a small SVD.

/// Rounds of the Jacobi method; a few suffice, as it converges quadratically.
const MAX_SWEEPS: usize = 60;
/// Columns count as orthogonal when their cosine is below this.
const ORTHOGONAL: f64 = 1e-15;
/// A column that loses more than this share of its length to those before it is one of their sums.
const DEPENDENT: f64 = 1e-13;

/// A matrix by columns.
pub type Columns = Vec<Vec<f64>>;

/// `left · diag(values) · rightᵀ`: columns of length 1 (or 0 where the value is 0), the largest value first.
#[derive(Debug)]
pub struct Svd {
    /// One column a value.
    pub left: Columns,
    /// Not negative, falling.
    pub values: Vec<f64>,
    /// One column a value.
    pub right: Columns,
}

/// Decomposes `p · qᵀ`, both by columns, equally many.
///
/// With `p = U₁R₁` and `q = U₂R₂` the product is `U₁ (R₁R₂ᵀ) U₂ᵀ`, and only the small matrix in the middle is decomposed.
pub fn of_product(p: &Columns, q: &Columns) -> Svd {
    let ((u1, r1), (u2, r2)) = (thin_qr(p), thin_qr(q));
    let k = p.len();
    let entry = |i: usize, j: usize| (0..k).map(|l| r1[l][i] * r2[l][j]).sum();
    let middle: Columns = (0..k).map(|j| (0..k).map(|i| entry(i, j)).collect()).collect();
    let Svd { left, values, right } = jacobi(middle);
    let times = |u: &Columns, small: &Columns| small.iter().map(|c| combine(u, c)).collect();
    Svd { left: times(&u1, &left), values, right: times(&u2, &right) }
}

/// Modified Gram-Schmidt, each column twice (Giraud et al. 2005): columns of length 1, or 0 where one depends on those
/// before it, and the upper triangle by columns.
fn thin_qr(columns: &Columns) -> (Columns, Columns) {
    let k = columns.len();
    let (mut q, mut r): (Columns, Columns) = (Vec::with_capacity(k), Vec::with_capacity(k));
    for column in columns {
        let (mut rest, mut coefficients) = (column.clone(), vec![0.0; k]);
        let whole = dot(&rest, &rest).sqrt();
        for _ in 0..2 {
            for (earlier, sum) in q.iter().zip(&mut coefficients) {
                let part = dot(earlier, &rest);
                *sum += part;
                rest.iter_mut().zip(earlier).for_each(|(x, e)| *x -= part * e);
            }
        }
        let length = dot(&rest, &rest).sqrt();
        let kept = if length > DEPENDENT * whole { length } else { 0.0 };
        let scale = if kept > 0.0 { 1.0 / kept } else { 0.0 };
        rest.iter_mut().for_each(|x| *x *= scale);
        coefficients[q.len()] = kept;
        q.push(rest);
        r.push(coefficients);
    }
    (q, r)
}

/// One-sided Jacobi (Hestenes 1958) of a square matrix: turns pairs of columns until all are orthogonal.
fn jacobi(mut columns: Columns) -> Svd {
    let k = columns.len();
    let unit = |j: usize| (0..k).map(|i| if i == j { 1.0 } else { 0.0 }).collect();
    let mut right: Columns = (0..k).map(unit).collect();
    for _ in 0..MAX_SWEEPS {
        let mut turned = false;
        for i in 0..k {
            for j in i + 1..k {
                if let Some((cos, sin)) = rotation(&columns[i], &columns[j]) {
                    rotate(&mut columns, i, j, cos, sin);
                    rotate(&mut right, i, j, cos, sin);
                    turned = true;
                }
            }
        }
        if !turned {
            break;
        }
    }
    let mut triples: Vec<(f64, Vec<f64>, Vec<f64>)> = columns
        .into_iter()
        .zip(right)
        .map(|(mut left, right)| {
            let value = dot(&left, &left).sqrt();
            let scale = if value > 0.0 { 1.0 / value } else { 0.0 };
            left.iter_mut().for_each(|x| *x *= scale);
            (value, left, right)
        })
        .collect();
    triples.sort_by(|a, b| b.0.total_cmp(&a.0));
    let mut svd = Svd { left: Vec::new(), values: Vec::new(), right: Vec::new() };
    for (value, left, right) in triples {
        svd.values.push(value);
        svd.left.push(left);
        svd.right.push(right);
    }
    svd
}

/// The turn that makes two columns orthogonal; none where they are.
fn rotation(a: &[f64], b: &[f64]) -> Option<(f64, f64)> {
    let (aa, bb, ab) = (dot(a, a), dot(b, b), dot(a, b));
    if ab == 0.0 || ab.abs() <= ORTHOGONAL * (aa * bb).sqrt() {
        return None;
    }
    let zeta = (bb - aa) / (2.0 * ab);
    let tan = zeta.signum() / (zeta.abs() + (1.0 + zeta * zeta).sqrt());
    let cos = 1.0 / (1.0 + tan * tan).sqrt();
    Some((cos, cos * tan))
}

fn rotate(columns: &mut Columns, i: usize, j: usize, cos: f64, sin: f64) {
    let (head, tail) = columns.split_at_mut(j);
    for (a, b) in head[i].iter_mut().zip(&mut tail[0]) {
        (*a, *b) = (cos * *a - sin * *b, sin * *a + cos * *b);
    }
}

/// The sum of columns, each times its factor.
fn combine(columns: &Columns, factors: &[f64]) -> Vec<f64> {
    let mut sum = vec![0.0; columns.first().map_or(0, Vec::len)];
    for (column, factor) in columns.iter().zip(factors) {
        sum.iter_mut().zip(column).for_each(|(s, x)| *s += factor * x);
    }
    sum
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn columns(rows: usize, count: usize) -> impl Strategy<Value = Columns> {
        // Zeros and repeated values make columns that depend on each other.
        let value = prop_oneof![3 => -2.0..2.0f64, 1 => Just(0.0), 1 => Just(1.0)];
        prop::collection::vec(prop::collection::vec(value, rows), count)
    }

    /// `Σ values[..rank] · left · rightᵀ`, by rows.
    fn product(svd: &Svd, rank: usize, rows: usize, cols: usize) -> Vec<f64> {
        let mut all = vec![0.0; rows * cols];
        for c in 0..rank {
            for i in 0..rows {
                for j in 0..cols {
                    all[i * cols + j] += svd.values[c] * svd.left[c][i] * svd.right[c][j];
                }
            }
        }
        all
    }

    fn norm(values: impl Iterator<Item = f64>) -> f64 {
        values.map(|x| x * x).sum::<f64>().sqrt()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn it_is_the_product_and_its_values_tell_what_is_cut_off(
            (p, q) in (1..7usize).prop_flat_map(|k| (columns(9, k), columns(6, k))),
        ) {
            let (rows, cols, k) = (9, 6, p.len());
            let mut exact = vec![0.0; rows * cols];
            for c in 0..k {
                for i in 0..rows {
                    for j in 0..cols {
                        exact[i * cols + j] += p[c][i] * q[c][j];
                    }
                }
            }
            let svd = of_product(&p, &q);
            prop_assert!(svd.values.windows(2).all(|w| w[0] >= w[1]) && svd.values.iter().all(|v| *v >= 0.0));
            let scale = 1.0 + norm(exact.iter().copied());
            for rank in 0..=k {
                let near = product(&svd, rank, rows, cols);
                let off = norm(near.iter().zip(&exact).map(|(a, b)| a - b));
                let told = norm(svd.values[rank..].iter().copied());
                prop_assert!((off - told).abs() < 1e-9 * scale, "rank {rank}: {off} and {told}");
            }
            for side in [&svd.left, &svd.right] {
                for (i, a) in side.iter().enumerate() {
                    for (j, b) in side.iter().enumerate() {
                        let both = svd.values[i].min(svd.values[j]) > 1e-9 * scale;
                        let want = if i == j { 1.0 } else { 0.0 };
                        prop_assert!(!both || (dot(a, b) - want).abs() < 1e-6, "{i} {j}: {}", dot(a, b));
                    }
                }
            }
        }
    }
}
