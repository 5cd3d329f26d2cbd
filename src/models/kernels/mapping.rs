//! Files in memory: pages that the system reads when they are used, and that processes share.

use std::fs::File;
use std::io;

/// Bytes that stay where they are: inside the program, or in a mapped file.
#[derive(Debug)]
pub enum Mapping {
    /// Part of the program.
    Static(&'static [u8]),
    /// A whole file.
    File(memmap2::Mmap),
}

impl Mapping {
    /// Maps a file.
    ///
    /// A file that another process shortens while it is mapped ends this one with SIGBUS: what writes models writes them
    /// anew and renames them.
    ///
    /// # Errors
    /// A file that cannot be mapped.
    pub fn of_file(file: &File) -> io::Result<Self> {
        // SAFETY: the map is private and only read; changes of the file by others are named above.
        unsafe { memmap2::Mmap::map(file) }.map(Self::File)
    }

    /// Returns all bytes.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Static(bytes) => bytes,
            Self::File(map) => map,
        }
    }
}
