//! Products of activations with frozen weights, tile by tile: a tile is widened to f32, used, and forgotten.

use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

use super::dot::{self, Activations};
use super::gemm::{View, ViewMut, product};
use super::math::vectorised;
use super::team::Team;
use super::{Format, Rows};

/// Elements of a widened tile: half a mebibyte, so that it stays in the second-level cache while it is used.
const TILE_ELEMENTS: usize = 1 << 17;
/// Up to so many rows of activations every weight is read once and used at once: decoding.
const FEW: usize = 4;
/// Bytes of weights of a task while decoding: long enough for a stream, short enough to share the work evenly.
const TASK_BYTES: usize = 1 << 16;
/// Columns of a task of [`times`]; wide enough that packing the activations again is cheap.
const BLOCK_COLS: usize = 448;
/// Products below this many multiplications are done by the calling thread.
const PARALLEL_WORK: usize = 1 << 18;
/// The same while decoding, where memory is read once for each multiplication.
const PARALLEL_READ: usize = 1 << 15;

thread_local! {
    static TILE: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Runs `f` with a buffer of `len` elements that this thread keeps for the next time.
fn with_tile<R>(len: usize, f: impl FnOnce(&mut [f32]) -> R) -> R {
    TILE.with_borrow_mut(|tile| {
        if tile.len() < len {
            tile.resize(len, 0.0);
        }
        f(&mut tile[..len])
    })
}

/// Runs `f` over `tasks`, in parallel if there is `work` enough.
fn run<T: Send>(tasks: Vec<T>, work: usize, f: impl Fn(T) + Sync + Send) {
    if work < PARALLEL_WORK || tasks.len() < 2 {
        tasks.into_iter().for_each(f);
    } else {
        tasks.into_par_iter().for_each(f);
    }
}

/// Returns rows of a tile of `cols` columns: a multiple of 16, the width of a kernel.
fn tile_rows(cols: usize) -> usize {
    (TILE_ELEMENTS / cols.max(1) / 16 * 16).max(16)
}

/// Widens rows of weights of `cols` columns.
///
/// # Panics
/// If the rows are beyond the weights, or `out` is too short.
pub fn widen(w: Rows<'_>, rows: Range<usize>, cols: usize, out: &mut [f32]) {
    vectorised!(w.widen(rows, 0..cols, cols, out));
}

/// Writes `out [n, rows] = x [n, cols] Wᵀ` for the weights `w [rows, cols]`.
///
/// # Panics
/// If the lengths do not fit.
pub fn times_transposed(x: &[f32], w: Rows<'_>, rows: usize, cols: usize, out: &mut [f32]) {
    let n = out.len() / rows.max(1);
    assert!(n * rows == out.len() && n * cols == x.len(), "activations do not fit the weights");
    if n <= FEW {
        return few(x, w, rows, cols, out);
    }
    let x = View::whole(x, cols);
    if let Some(data) = w.as_f32() {
        return dense(out, (n, rows), x, View::whole(data, cols).t(), 1.0, false);
    }
    let height = tile_rows(cols);
    let blocks = ViewMut::whole(out, rows).col_blocks(height);
    run(blocks, n * rows * cols, |(from, mut out)| {
        let range = from..(from + height).min(rows);
        with_tile(range.len() * cols, |tile| {
            vectorised!(w.widen(range, 0..cols, cols, tile));
            product(&mut out, x, View::whole(tile, cols).t(), 1.0, false);
        });
    });
}

/// The same for a few rows of activations: bound by the reading of the weights.
fn few(x: &[f32], w: Rows<'_>, rows: usize, cols: usize, out: &mut [f32]) {
    let x: Vec<_> = x.chunks(cols).map(|x| Activations::new(x, w.format())).collect();
    let height = (TASK_BYTES / w.format().bytes(cols).max(1)).clamp(1, rows.max(1));
    let blocks = ViewMut::whole(out, rows).col_blocks(height);
    run(blocks, rows * cols, |(from, mut out)| {
        // The rows of a task stay in the cache for the next activations.
        for (n, x) in x.iter().enumerate() {
            dot::dots(w, from, x, out.row(n));
        }
    });
}

/// Writes the products of all rows `w [out, x]` with `x`, on the calling thread.
///
/// # Panics
/// If the lengths do not fit.
pub fn row_products(w: Rows<'_>, x: &[f32], out: &mut [f32]) {
    dot::dots(w, 0, &Activations::new(x, w.format()), out);
}

/// Something added to a product: `scale · B (A x)`.
#[derive(Debug, Clone, Copy)]
pub struct LowRank<'a> {
    /// `[rank, cols]`.
    pub a: Rows<'a>,
    /// `[rows, rank]`.
    pub b: Rows<'a>,
    /// Length of what lies between the two.
    pub rank: usize,
    /// What it counts.
    pub scale: f32,
}

/// One of the products of a token: `y = W x + bias + Σ scale · B (A x)`.
#[derive(Debug)]
pub struct Product<'a> {
    /// `[rows, cols]`.
    pub weight: Rows<'a>,
    /// `[rows]`.
    pub bias: Option<&'a [f32]>,
    /// What is added.
    pub low_rank: Vec<LowRank<'a>>,
    /// `[rows]`.
    pub y: &'a mut [f32],
}

/// Rows `first..` of a product, and what is added to them.
struct Task<'a> {
    weight: Rows<'a>,
    first: usize,
    bias: Option<&'a [f32]>,
    added: &'a [(LowRank<'a>, Vec<f32>)],
    y: &'a mut [f32],
}

/// Computes the products of one token's activations `x` `[cols]` together: the threads meet once for all of them, twice
/// if something is added.
///
/// # Panics
/// If the lengths do not fit.
pub fn token_products(team: &Team<'_>, x: &[f32], products: Vec<Product<'_>>) {
    let formats = products.iter().map(|product| product.weight.format());
    let x = Activations::new(x, formats.max_by_key(|format| format.block()).unwrap_or(Format::F32));
    let inner = |term: LowRank<'_>| vec![0f32; term.rank];
    let mut added: Vec<Vec<_>> = products
        .iter()
        .map(|product| product.low_rank.iter().map(|&term| (term, inner(term))).collect())
        .collect();
    let mut tasks = Vec::new();
    for (term, u) in added.iter_mut().flatten() {
        split(&mut tasks, &x, Task { weight: term.a, first: 0, bias: None, added: &[], y: u });
    }
    each_rows(team, &x, tasks);
    let mut tasks = Vec::new();
    for (Product { weight, bias, y, .. }, added) in products.into_iter().zip(&added) {
        split(&mut tasks, &x, Task { weight, first: 0, bias, added, y });
    }
    each_rows(team, &x, tasks);
}

/// Splits rows into tasks of a length that depends on their shape alone.
fn split<'a>(tasks: &mut Vec<Task<'a>>, x: &Activations<'_>, whole: Task<'a>) {
    let Task { weight, bias, added, y, .. } = whole;
    let bytes = weight.format().bytes(x.wide.len()).max(1);
    // Small matrices, as adapters are, are shared by the threads as well.
    let height = (TASK_BYTES.min((y.len() * bytes).div_ceil(4)) / bytes).max(1);
    for (task, y) in y.chunks_mut(height).enumerate() {
        tasks.push(Task { weight, first: task * height, bias, added, y });
    }
}

fn each_rows(team: &Team<'_>, x: &Activations<'_>, tasks: Vec<Task<'_>>) {
    let rows: usize = tasks.iter().map(|task| task.y.len()).sum();
    if rows * x.wide.len() < PARALLEL_READ {
        tasks.into_iter().for_each(|task| task.run(x));
    } else {
        team.each(tasks, |task| task.run(x));
    }
}

impl Task<'_> {
    fn run(self, x: &Activations<'_>) {
        /// Rows whose addition is computed at a time.
        const PART: usize = 64;
        let Task { weight, first, bias, added, y } = self;
        dot::dots(weight, first, x, y);
        if let Some(bias) = bias {
            y.iter_mut().zip(&bias[first..]).for_each(|(y, bias)| *y += bias);
        }
        for (term, u) in added {
            let u = Activations::new(u, term.b.format());
            let mut delta = [0f32; PART];
            for (part, y) in y.chunks_mut(PART).enumerate() {
                let delta = &mut delta[..y.len()];
                dot::dots(term.b, first + part * PART, &u, delta);
                y.iter_mut().zip(delta).for_each(|(y, delta)| *y += term.scale * *delta);
            }
        }
    }
}

/// Writes `out [n, cols] = g [n, rows] W` for the weights `w [rows, cols]`: the gradient of [`times_transposed`].
///
/// # Panics
/// If the lengths do not fit.
pub fn times(g: &[f32], w: Rows<'_>, rows: usize, cols: usize, out: &mut [f32]) {
    let n = out.len() / cols.max(1);
    assert!(n * cols == out.len() && n * rows == g.len(), "gradients do not fit the weights");
    let g = View::whole(g, rows);
    if let Some(data) = w.as_f32() {
        return dense(out, (n, cols), g, View::whole(data, cols), 1.0, false);
    }
    let width = BLOCK_COLS.min(cols.div_ceil(2)).next_multiple_of(w.format().block()).max(1);
    let height = tile_rows(width);
    let blocks = ViewMut::whole(out, cols).col_blocks(width);
    run(blocks, n * rows * cols, |(from, mut out)| {
        let columns = from..(from + width).min(cols);
        for start in (0..rows).step_by(height) {
            let range = start..(start + height).min(rows);
            let g = g.cols(range.clone());
            with_tile(range.len() * columns.len(), |tile| {
                vectorised!(w.widen(range, columns.clone(), cols, tile));
                product(&mut out, g, View::whole(tile, columns.len()), 1.0, start > 0);
            });
        }
    });
}

/// Rows of a task of [`dense`].
const DENSE_BLOCK: usize = 128;

/// Writes `out = alpha · lhs rhs`, or adds it, in parallel over blocks of the longer side of `out` `[rows, cols]`.
///
/// # Panics
/// If the shapes do not fit.
pub fn dense(
    out: &mut [f32],
    (rows, cols): (usize, usize),
    lhs: View<'_>,
    rhs: View<'_>,
    alpha: f32,
    accumulate: bool,
) {
    let work = rows * cols * lhs.width();
    let out = ViewMut::new(out, rows, cols, cols);
    if rows >= cols {
        run(out.row_blocks(DENSE_BLOCK), work, |(from, mut out)| {
            let lhs = lhs.rows(from..(from + DENSE_BLOCK).min(rows));
            product(&mut out, lhs, rhs, alpha, accumulate);
        });
    } else {
        run(out.col_blocks(DENSE_BLOCK), work, |(from, mut out)| {
            let rhs = rhs.cols(from..(from + DENSE_BLOCK).min(cols));
            product(&mut out, lhs, rhs, alpha, accumulate);
        });
    }
}

#[cfg(test)]
mod tests {
    use candle_core::quantized::{GgmlDType, QTensor};
    use candle_core::{Device, Tensor};
    use half::{bf16, f16};
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    fn values(n: usize, seed: u64) -> Vec<f32> {
        let mut rng = StdRng::seed_from_u64(seed);
        (0..n).map(|_| rng.random_range(-1.0..1.0f32)).collect()
    }

    fn plain(x: &[f32], w: &[f32], n: usize, rows: usize, cols: usize) -> Vec<f32> {
        let dot = |i: usize, r: usize| -> f64 {
            (0..cols).map(|c| f64::from(x[i * cols + c]) * f64::from(w[r * cols + c])).sum()
        };
        (0..n).flat_map(|i| (0..rows).map(move |r| dot(i, r) as f32)).collect()
    }

    fn near(got: &[f32], expected: &[f32]) {
        near_by(got, expected, 2e-6);
    }

    fn near_by(got: &[f32], expected: &[f32], relative: f32) {
        let norm = |v: &mut dyn Iterator<Item = f32>| v.map(|x| x * x).sum::<f32>().sqrt();
        let error = norm(&mut got.iter().zip(expected).map(|(a, b)| a - b));
        assert!(
            error <= relative * norm(&mut expected.iter().copied()).max(1.0),
            "error {error:e}"
        );
    }

    #[test]
    fn products_with_every_format_and_tail_equal_the_plain_sum() {
        for (n, rows, cols) in [(1, 5, 7), (3, 33, 65), (5, 130, 300), (17, 1, 900), (9, 470, 33)] {
            let (x, w, g) = (values(n * cols, 1), values(rows * cols, 2), values(n * rows, 3));
            let b: Vec<bf16> = w.iter().map(|&v| bf16::from_f32(v)).collect();
            let h: Vec<f16> = w.iter().map(|&v| f16::from_f32(v)).collect();
            let wide = [
                w.clone(),
                b.iter().map(|v| v.to_f32()).collect(),
                h.iter().map(|v| v.to_f32()).collect(),
            ];
            for (kept, w) in
                [Rows::from(w.as_slice()), Rows::from(b.as_slice()), Rows::from(h.as_slice())]
                    .into_iter()
                    .zip(wide)
            {
                let mut out = vec![f32::NAN; n * rows];
                times_transposed(&x, kept, rows, cols, &mut out);
                near(&out, &plain(&x, &w, n, rows, cols));
                let turned: Vec<f32> = (0..cols)
                    .flat_map(|c| (0..rows).map(move |r| (r, c)))
                    .map(|(r, c)| w[r * cols + c])
                    .collect();
                let mut out = vec![f32::NAN; n * cols];
                times(&g, kept, rows, cols, &mut out);
                near(&out, &plain(&g, &turned, n, cols, rows));
            }
        }
    }

    #[test]
    fn products_with_blocks_equal_those_with_what_the_blocks_hold() {
        let formats = [
            (Format::Q8_0, GgmlDType::Q8_0),
            (Format::Q4_0, GgmlDType::Q4_0),
            (Format::Q5_0, GgmlDType::Q5_0),
            (Format::Q4K, GgmlDType::Q4K),
            (Format::Q5K, GgmlDType::Q5K),
            (Format::Q6K, GgmlDType::Q6K),
        ];
        for (n, rows, cols) in [(1, 5, 256), (3, 40, 512), (19, 300, 768), (7, 33, 1280)] {
            let (x, w, g) = (values(n * cols, 1), values(rows * cols, 2), values(n * rows, 3));
            let tensor = Tensor::from_slice(&w, (rows, cols), &Device::Cpu).unwrap();
            for (format, theirs) in formats {
                let quantised = QTensor::quantize(&tensor, theirs).unwrap();
                let data = quantised.data().unwrap();
                let kept = Rows::new(format, &data);
                let mut wide = vec![0.0; rows * cols];
                widen(kept, 0..rows, cols, &mut wide);
                let distance: f32 =
                    wide.iter().zip(&w).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(distance > 0.0 && distance < 0.2, "{distance}");
                let (mut out, mut expected) = (vec![f32::NAN; n * rows], vec![0.0; n * rows]);
                times_transposed(&x, kept, rows, cols, &mut out);
                times_transposed(&x, Rows::from(wide.as_slice()), rows, cols, &mut expected);
                // Decoding rounds activations to 16 bits.
                near_by(&out, &expected, if n <= FEW { 3e-5 } else { 2e-6 });
                let (mut out, mut expected) = (vec![f32::NAN; n * cols], vec![0.0; n * cols]);
                times(&g, kept, rows, cols, &mut out);
                times(&g, Rows::from(wide.as_slice()), rows, cols, &mut expected);
                near(&out, &expected);
            }
        }
    }

    #[test]
    fn the_number_of_threads_changes_no_bit() {
        let (n, rows, cols) = (70, 600, 700);
        let (x, w) = (values(n * cols, 4), values(rows * cols, 5));
        let with = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let mut out = vec![0.0; n * rows];
            pool.install(|| times_transposed(&x, Rows::from(w.as_slice()), rows, cols, &mut out));
            let mut back = vec![0.0; n * cols];
            pool.install(|| times(&out, Rows::from(w.as_slice()), rows, cols, &mut back));
            (out, back)
        };
        assert_eq!(with(1), with(3));
    }

    #[test]
    fn a_dense_product_is_scaled_and_added() {
        let (m, n, k) = (300, 40, 19);
        let (a, b) = (values(m * k, 6), values(n * k, 7));
        let mut out = vec![1.0; m * n];
        dense(&mut out, (m, n), View::whole(&a, k), View::whole(&b, k).t(), 0.5, true);
        let expected: Vec<f32> = plain(&a, &b, m, n, k).iter().map(|v| 1.0 + 0.5 * v).collect();
        near(&out, &expected);
    }
}
