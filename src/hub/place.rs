//! Names in the cache that come to be all at once: whoever looks finds what was there before, or what is there now.

use std::io::{self, Write};
use std::path::Path;

use fs_err::File;

use super::HubError;

/// Makes a link of what is there or not; another process may do the same at the same time.
pub(super) fn link(target: &Path, link: &Path) -> Result<(), HubError> {
    let folder = folder_of(link)?;
    let symlink = |path: &Path| fs_err::os::unix::fs::symlink(target, path);
    let made = tempfile::Builder::new().make_in(folder, symlink)?;
    Ok(made.into_temp_path().persist(link).map_err(|error| error.error)?)
}

/// Writes a file that survives a loss of power once this returns: the whole of it, or what was there before.
pub(super) fn file(path: &Path, content: &str) -> Result<(), HubError> {
    let folder = folder_of(path)?;
    let mut made = tempfile::NamedTempFile::new_in(folder)?;
    made.write_all(content.as_bytes())?;
    made.as_file().sync_all()?;
    made.persist(path).map_err(|error| error.error)?;
    Ok(File::open(folder)?.sync_all()?)
}

/// Makes the folder of a path.
fn folder_of(path: &Path) -> io::Result<&Path> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs_err::create_dir_all(folder)?;
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn links_and_files_of_one_name_are_made_by_many_at_once_and_are_never_missing() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join("a/b").join(name);
        let target = folder.path().join("blob");
        fs_err::write(&target, "x").unwrap();
        link(&target, &path("link")).unwrap();
        file(&path("file"), "0").unwrap();
        thread::scope(|scope| {
            for i in 0..4 {
                let (path, target) = (&path, &target);
                scope.spawn(move || {
                    for _ in 0..100 {
                        link(target, &path("link")).unwrap();
                        file(&path("file"), &i.to_string()).unwrap();
                        assert_eq!(fs_err::read_to_string(path("link")).unwrap(), "x");
                        assert_eq!(fs_err::read_to_string(path("file")).unwrap().len(), 1);
                    }
                });
            }
        });
        let left = fs_err::read_dir(folder.path().join("a/b")).unwrap().count();
        assert_eq!(left, 2, "nothing else is left");
    }
}
