//! The numbers of tensors on the CPU as slices.

use std::ops::Range;

use candle_core::{CpuStorage, Layout, Result, Storage, Tensor, bail};
use parking_lot::RwLockReadGuard;

use super::kernels::Rows;

/// Returns the elements of a contiguous f32 storage.
pub(crate) fn elements<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let (start, end) = layout
        .contiguous_offsets()
        .ok_or_else(|| candle_core::Error::Msg("operand is not contiguous".into()))?;
    match storage {
        CpuStorage::F32(data) => Ok(&data[start..end]),
        _ => candle_core::bail!("operand is not f32"),
    }
}

/// The elements of a contiguous f32 tensor on the CPU, held for reading.
pub(crate) struct Elements<'a> {
    storage: RwLockReadGuard<'a, Storage>,
    part: Range<usize>,
}

impl<'a> Elements<'a> {
    /// Holds a tensor.
    ///
    /// # Errors
    /// A tensor that is not contiguous, not f32 or not on the CPU.
    pub fn of(tensor: &'a Tensor) -> Result<Self> {
        let (storage, layout) = tensor.storage_and_layout();
        let part = match &*storage {
            Storage::Cpu(storage) => {
                elements(storage, layout)?;
                layout.contiguous_offsets().map_or(0..0, |(start, end)| start..end)
            }
            _ => bail!("operand is not on the CPU"),
        };
        Ok(Self { storage, part })
    }

    /// Holds a tensor whose elements are read as [`Self::rows`]: f32 or f16.
    ///
    /// # Errors
    /// A tensor that is not contiguous, neither of the two or not on the CPU.
    pub fn of_rows(tensor: &'a Tensor) -> Result<Self> {
        let (storage, layout) = tensor.storage_and_layout();
        let part = match (&*storage, layout.contiguous_offsets()) {
            (Storage::Cpu(CpuStorage::F32(_) | CpuStorage::F16(_)), Some((start, end))) => {
                start..end
            }
            _ => bail!("operand is not contiguous f32 or f16 on the CPU"),
        };
        Ok(Self { storage, part })
    }

    /// Returns them as rows of a matrix.
    pub fn rows(&self) -> Rows<'_> {
        match &*self.storage {
            Storage::Cpu(CpuStorage::F16(data)) => Rows::from(&data[self.part.clone()]),
            _ => Rows::from(self.as_slice()),
        }
    }

    /// Returns them.
    pub fn as_slice(&self) -> &[f32] {
        match &*self.storage {
            Storage::Cpu(CpuStorage::F32(data)) => &data[self.part.clone()],
            // Refused before it was held.
            _ => &[],
        }
    }
}

/// Calls `f` with the elements of contiguous f32 tensors on the CPU.
pub(crate) fn with_elements<const N: usize, R>(
    tensors: [&Tensor; N],
    f: impl FnOnce([&[f32]; N]) -> R,
) -> Result<R> {
    let held = tensors.map(Elements::of);
    let mut slices: [&[f32]; N] = [&[]; N];
    for (slice, held) in slices.iter_mut().zip(&held) {
        match held {
            Ok(held) => *slice = held.as_slice(),
            Err(error) => bail!("{error}"),
        }
    }
    Ok(f(slices))
}
