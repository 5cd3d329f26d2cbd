//! Files that are written whole or not at all.

use std::io::{self, Write};
use std::path::Path;

/// What becomes of a file that is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// It is replaced.
    Replace,
    /// It stays, and writing fails.
    Keep,
}

/// Writes a file that is either whole or, after an error, as it was.
///
/// # Errors
/// When something cannot be written; the error does not name the temporary file, which nobody has asked for.
pub fn write(
    file: &Path,
    existing: Existing,
    fill: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    let folder = match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let mut temporary = tempfile::NamedTempFile::new_in(folder).map_err(|e| plain(&e))?;
    let mut out = io::BufWriter::new(temporary.as_file_mut());
    fill(&mut out)?;
    out.flush()?;
    drop(out);
    temporary.as_file().sync_all()?;
    let placed = match existing {
        Existing::Replace => temporary.persist(file),
        Existing::Keep => temporary.persist_noclobber(file),
    };
    placed.map(drop).map_err(|error| plain(&error.error))
}

/// The error without the path that tempfile adds.
fn plain(error: &io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::NotFound => {
            io::Error::new(io::ErrorKind::NotFound, "its directory does not exist")
        }
        kind => kind.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_do_not_name_the_temporary_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("missing/out");
        let error = write(&file, Existing::Keep, |_| Ok(())).unwrap_err().to_string();
        assert_eq!(error, "its directory does not exist");
        let file = folder.path().join("out");
        let fill = |out: &mut dyn Write| out.write_all(b"x");
        write(&file, Existing::Keep, fill).unwrap();
        let again = write(&file, Existing::Keep, fill).unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
        write(&file, Existing::Replace, |out| out.write_all(b"y")).unwrap();
        assert_eq!(fs_err::read_to_string(&file).unwrap(), "y");
    }
}
