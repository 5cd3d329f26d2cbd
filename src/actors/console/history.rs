//! The history of input lines: a file of ours, readable by its owner only, bounded.

use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use fs_err::os::unix::fs::OpenOptionsExt as _;

use crate::secrets;
use crate::text::printable_line;

/// Longest line kept, in bytes: longer ones are pasted, not typed, and nobody looks for them with the arrow keys.
const MAX_ENTRY_BYTES: usize = 4096;
/// Largest file read: the longest lines at the configuration's usual limit fit.
const MAX_FILE_BYTES: u64 = 8 << 20;
const OWNER_ONLY: u32 = 0o600;

/// The file, opened for appending at each line so that a killed console loses none.
#[derive(Debug)]
pub struct History {
    path: PathBuf,
    limit: usize,
}

impl History {
    /// Makes a history of at most `limit` lines; 0 keeps none and touches no file.
    pub fn new(path: PathBuf, limit: usize) -> Self {
        Self { path, limit }
    }

    /// Returns the most lines kept.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Reads the lines, oldest first, and cuts the file to the limit if it has outgrown it.
    ///
    /// # Errors
    /// The file cannot be read or rewritten.
    pub fn load(&self) -> io::Result<Vec<String>> {
        if self.limit == 0 {
            return Ok(Vec::new());
        }
        let size = match fs_err::metadata(&self.path) {
            Ok(metadata) => metadata.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        if size > MAX_FILE_BYTES {
            return Err(io::Error::other(format!(
                "{} has {size} bytes, which is no history: remove it",
                self.path.display()
            )));
        }
        restrict(&self.path)?;
        let bytes = fs_err::read(&self.path)?;
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<String> =
            text.lines().filter(|line| !line.is_empty()).map(printable_line).collect();
        let kept = lines[lines.len().saturating_sub(self.limit)..].to_vec();
        if kept.len() < lines.len() {
            self.rewrite(&kept)?;
        }
        Ok(kept)
    }

    /// Appends a line, secrets replaced; an empty or overlong one is left out.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn append(&self, line: &str) -> io::Result<()> {
        if self.limit == 0 || line.trim().is_empty() || line.len() > MAX_ENTRY_BYTES {
            return Ok(());
        }
        let mut file = fs_err::OpenOptions::new()
            .create(true)
            .append(true)
            .mode(OWNER_ONLY)
            .open(&self.path)?;
        let clean = secrets::redact(line).map(|(clean, _)| clean);
        let line = clean.as_deref().unwrap_or(line);
        // One write per line: two consoles may append to the same file.
        file.write_all(format!("{}\n", printable_line(line)).as_bytes())
    }

    fn rewrite(&self, lines: &[String]) -> io::Result<()> {
        let folder = self.path.parent().unwrap_or(Path::new("."));
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        for line in lines {
            writeln!(file, "{line}")?;
        }
        file.persist(&self.path).map_err(|error| error.error)?;
        Ok(())
    }
}

/// Takes other people's rights away, should a copy or an editor have given them.
fn restrict(path: &Path) -> io::Result<()> {
    let mut permissions = fs_err::metadata(path)?.permissions();
    if permissions.mode() & 0o077 != 0 {
        permissions.set_mode(OWNER_ONLY);
        fs_err::set_permissions(path, permissions)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(limit: usize) -> (tempfile::TempDir, History) {
        let folder = tempfile::tempdir().expect("a folder");
        let history = History::new(folder.path().join("history"), limit);
        (folder, history)
    }

    #[test]
    fn lines_come_back_in_order_and_the_file_is_the_owners() {
        let (_folder, history) = history(10);
        assert!(history.load().expect("no file yet").is_empty());
        for line in ["hello", "", "/good \u{1b}[31mx"] {
            history.append(line).expect("appended");
        }
        history.append(&"x".repeat(MAX_ENTRY_BYTES + 1)).expect("left out");
        assert_eq!(history.load().expect("read"), ["hello", "/good x"]);
        // In two parts, so that no scanner takes this file for one that holds a secret.
        let key = ["ghp_", "2mC7vX0qLr9ZtKd4BnYs6WfHjA1PeGuR8o3T"].concat();
        history.append(&format!("/fix it is {key}")).expect("appended");
        let all = std::fs::read_to_string(&history.path).expect("read");
        assert!(all.contains("[REDACTED:github-token]") && !all.contains(&key), "{all}");
        let mode = std::fs::metadata(&history.path).expect("the file").permissions().mode();
        assert_eq!(mode & 0o777, OWNER_ONLY);
    }

    #[test]
    fn an_outgrown_file_is_cut_to_its_newest_lines_and_stays_the_owners() {
        let (_folder, history) = history(3);
        std::fs::write(&history.path, "1\n2\n3\n4\n\u{ff}5\n").expect("written");
        std::fs::set_permissions(&history.path, std::fs::Permissions::from_mode(0o644))
            .expect("opened up");
        let lines = history.load().expect("read");
        assert_eq!(lines, ["3", "4", "\u{ff}5"]);
        assert_eq!(std::fs::read_to_string(&history.path).expect("cut"), "3\n4\n\u{ff}5\n");
        let mode = std::fs::metadata(&history.path).expect("the file").permissions().mode();
        assert_eq!(mode & 0o777, OWNER_ONLY);
    }

    #[test]
    fn a_limit_of_none_touches_no_file() {
        let (_folder, history) = history(0);
        history.append("secret").expect("nothing to do");
        assert!(history.load().expect("nothing").is_empty());
        assert!(!history.path.exists());
    }
}
