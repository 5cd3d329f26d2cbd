//! Every product of the kernels with operands of exactly their size: run under AddressSanitizer, a read beyond them is seen.
//!
//!     RUSTFLAGS=-Zsanitizer=address cargo +nightly run --release --target x86_64-unknown-linux-gnu

#![allow(dead_code, unused, missing_docs)]
#[path = "../../../src/models"]
mod models {
    pub mod kernels;
}
use models::kernels::*;
use rand::{Rng, RngCore, SeedableRng};
fn main() {
    let mut rng = rand::rngs::StdRng::seed_from_u64(7);
    let mut n = 0;
    for round in 0..400 {
        for f in Format::ALL {
            let cols = f.block() * if f.block() == 256 { rng.random_range(1..5) } else { rng.random_range(1..80) };
            let rows = rng.random_range(1..40);
            // exact allocation: any read beyond is seen
            let mut bytes = vec![0u8; f.bytes(rows * cols)].into_boxed_slice();
            rng.fill_bytes(&mut bytes);
            for b in bytes.chunks_exact_mut(f.block_bytes()) {
                let at: &[usize] = match f {
                    Format::F32 => &[3],
                    Format::Q4K | Format::Q5K => &[1, 3],
                    Format::Q6K => &[209],
                    _ => &[1],
                };
                for &a in at {
                    b[a] = b[a] & 0x80 | 0x3c;
                }
            }
            for tokens in [1usize, 3, 7] {
                let x: Box<[f32]> = (0..tokens * cols).map(|_| rng.random_range(-1.0..1.0f32)).collect();
                let mut y = vec![0f32; tokens * rows].into_boxed_slice();
                product::times_transposed(&x, Rows::new(f, &bytes), rows, cols, &mut y);
                let mut wide = vec![0f32; rows * cols];
                product::widen(Rows::new(f, &bytes), 0..rows, cols, &mut wide);
                for t in 0..tokens {
                    for r in 0..rows {
                        let e: f64 = (0..cols).map(|c| wide[r * cols + c] as f64 * x[t * cols + c] as f64).sum();
                        let nw: f64 = (0..cols).map(|c| (wide[r * cols + c] as f64).powi(2)).sum::<f64>().sqrt();
                        let nx: f64 = (0..cols).map(|c| (x[t * cols + c] as f64).powi(2)).sum::<f64>().sqrt();
                        assert!(
                            (e - y[t * rows + r] as f64).abs() <= 4e-5 * nw * nx + 1e-6,
                            "{f:?} {rows} {cols} {e} {}",
                            y[t * rows + r]
                        );
                    }
                }
                if tokens == 1 {
                    let rank = rng.random_range(1..20);
                    let a: Box<[f32]> = (0..rank * cols).map(|_| 0.1).collect();
                    let b: Box<[f32]> = (0..rank * rows).map(|_| 0.1).collect();
                    let half = |x: &[f32]| x.iter().map(|&x| half::f16::from_f32(x)).collect::<Box<[_]>>();
                    let (short_a, short_b) = (half(&a), half(&b));
                    let bias: Box<[f32]> = (0..rows).map(|_| 0.5).collect();
                    for (a, b) in [
                        (Rows::from(&*a), Rows::from(&*b)),
                        (Rows::from(&*short_a), Rows::from(&*short_b)),
                    ] {
                        let mut y = vec![0f32; rows].into_boxed_slice();
                        let low_rank = vec![product::LowRank { a, b, rank, scale: 2.0 }];
                        let weight = Rows::new(f, &bytes);
                        team::with_team(true, |team| {
                            let y = &mut y;
                            let one = product::Product { weight, bias: Some(&bias), low_rank, y };
                            product::token_products(team, &x, vec![one]);
                        });
                    }
                }
                n += 1;
            }
        }
    }
    println!("{n} products without a finding");
}
