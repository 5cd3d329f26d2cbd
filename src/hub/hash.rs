//! The hash that a blob of the cache is named by.

use std::io::{self, Read};
use std::ops::ControlFlow;

use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::{HubError, is_hash};
use crate::models::hex;

/// Digits of a SHA-256, which names large files.
const SHA256_DIGITS: usize = 64;
/// Digits of a SHA-1, which names small ones: git's, or, on some mirrors, that of the bytes alone.
const SHA1_DIGITS: usize = 40;
/// Bytes that are read at a time.
const PIECE: usize = 1 << 20;

/// Computes what a blob's name should be.
pub(super) enum BlobHash {
    Sha256(Sha256),
    Sha1 {
        git: Sha1,
        plain: Sha1,
    },
    /// The name is no hash that is known: nothing can be compared.
    Unknown,
}

impl BlobHash {
    /// Begins for a blob of a name and so many bytes.
    pub fn of(name: &str, size: u64) -> Self {
        match name.len() {
            SHA256_DIGITS if is_hash(name) => Self::Sha256(Sha256::new()),
            SHA1_DIGITS if is_hash(name) => Self::Sha1 {
                git: Sha1::new().chain_update(format!("blob {size}\0")),
                plain: Sha1::new(),
            },
            _ => Self::Unknown,
        }
    }

    /// Adds the blob's next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hash) => hash.update(bytes),
            Self::Sha1 { git, plain } => {
                git.update(bytes);
                plain.update(bytes);
            }
            Self::Unknown => {}
        }
    }

    /// Adds all that can be read, and asks before each piece whether to go on.
    pub fn read(
        &mut self,
        input: &mut impl Read,
        go_on: &mut dyn FnMut() -> ControlFlow<()>,
    ) -> Result<(), HubError> {
        if matches!(self, Self::Unknown) {
            return Ok(());
        }
        let mut piece = vec![0; PIECE];
        loop {
            if go_on().is_break() {
                return Err(HubError::Interrupted);
            }
            match input.read(&mut piece) {
                Ok(0) => return Ok(()),
                Ok(read) => self.update(&piece[..read]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Compares with the name; fails with the hash that was computed.
    pub fn check(self, name: &str) -> Result<(), String> {
        let got = match self {
            Self::Sha256(hash) => hex(&hash.finalize()),
            Self::Sha1 { git, plain } => match hex(&plain.finalize()) {
                plain if plain == name => plain,
                _ => hex(&git.finalize()),
            },
            Self::Unknown => return Ok(()),
        };
        if got == name { Ok(()) } else { Err(got) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, bytes: &[u8]) -> Result<(), String> {
        let mut hash = BlobHash::of(name, bytes.len() as u64);
        hash.read(&mut &*bytes, &mut || ControlFlow::Continue(())).unwrap();
        hash.check(name)
    }

    #[test]
    fn a_blob_is_named_by_its_sha256_by_gits_hash_or_by_its_sha1() {
        // `printf 'hello\n' | git hash-object --stdin`, sha1sum, sha256sum.
        let names = [
            "ce013625030ba8dba906f756967f9e9ca394464a",
            "f572d396fae9206628714fb2ce00f72e94f2258f",
            "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03",
        ];
        for name in names {
            check(name, b"hello\n").unwrap();
            assert_eq!(check(name, b"hallo\n").unwrap_err().len(), name.len());
        }
        check("e69de29bb2d1d6434b8b29ae775ad8c2e48c5391", b"").unwrap();
        check("d41d8cd98f00b204e9800998ecf8427e", b"no hash that is known").unwrap();
    }

    #[test]
    fn hashing_can_be_broken_off_between_two_pieces() {
        let mut pieces = 0;
        let mut go_on = || {
            pieces += 1;
            if pieces == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let mut hash = BlobHash::of(&"0".repeat(64), u64::MAX);
        let broken = hash.read(&mut io::repeat(0), &mut go_on).unwrap_err();
        assert!(matches!(broken, HubError::Interrupted) && pieces == 3);
    }
}
