//! A job's outcome: a directory that appears under its name whole and durable, or not at all.

use std::io;
use std::path::{Path, PathBuf};

use fs_err as fs;

use crate::crash;

/// Begins and ends the name of a directory that is still being written; no adapter's id begins with a dot.
const UNFINISHED: (&str, &str) = (".", ".partial");

/// An outcome that is still being written, beside its place.
pub struct Unfinished {
    place: PathBuf,
    directory: PathBuf,
}

impl Unfinished {
    /// Makes an empty directory beside `place`; what a killed worker left there goes.
    ///
    /// # Errors
    /// When `place` has no name, or the directory cannot be made.
    pub fn begin(place: &Path) -> io::Result<Self> {
        let name = place.file_name().and_then(|name| name.to_str()).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{} is no place for a result", place.display()),
            )
        })?;
        let directory = place.with_file_name(format!("{}{name}{}", UNFINISHED.0, UNFINISHED.1));
        remove(&directory)?;
        fs::create_dir_all(&directory)?;
        Ok(Self { place: place.to_owned(), directory })
    }

    /// Where the job writes.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Makes the files durable and moves the directory to its place; an outcome of an earlier attempt gives way.
    ///
    /// # Errors
    /// When a file cannot be made durable or the directory cannot be moved; then the place is as it was, or empty.
    pub fn finish(self) -> io::Result<()> {
        for entry in fs::read_dir(&self.directory)? {
            fs::File::open(entry?.path())?.sync_all()?;
            crash::point("after a file of the outcome was synced");
        }
        fs::File::open(&self.directory)?.sync_all()?;
        crash::point("after the outcome was synced");
        remove(&self.place)?;
        crash::point("after an earlier outcome was removed");
        fs::rename(&self.directory, &self.place)?;
        crash::point("after the outcome was moved");
        if let Some(parent) = self.place.parent().filter(|p| !p.as_os_str().is_empty()) {
            fs::File::open(parent)?.sync_all()?;
        }
        crash::point("after the outcome's place was synced");
        Ok(())
    }
}

fn remove(directory: &Path) -> io::Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outcome_appears_whole_and_replaces_an_earlier_one() {
        let root = tempfile::tempdir().unwrap();
        let place = root.path().join("job-1").join("outcome");
        let abandoned = Unfinished::begin(&place).unwrap();
        fs::write(abandoned.directory().join("half"), "x").unwrap();
        for text in ["first", "second"] {
            let unfinished = Unfinished::begin(&place).unwrap();
            fs::write(unfinished.directory().join("weights"), text).unwrap();
            assert_ne!(unfinished.directory(), place);
            unfinished.finish().unwrap();
            assert_eq!(fs::read_to_string(place.join("weights")).unwrap(), text);
            let names: Vec<_> = fs::read_dir(place.parent().unwrap()).unwrap().collect();
            assert_eq!((names.len(), place.join("half").exists()), (1, false));
        }
        assert!(Unfinished::begin(Path::new("/")).is_err());
    }

    fn publish(place: &Path, text: &str) {
        let unfinished = Unfinished::begin(place).unwrap();
        fs::write(unfinished.directory().join("weights"), text).unwrap();
        fs::write(unfinished.directory().join("config"), text).unwrap();
        unfinished.finish().unwrap();
    }

    #[test]
    #[ignore = "the test below starts it"]
    fn crash_child() {
        if let Some((_, at)) = crash::kit::asked() {
            publish(&at.join("job-1/outcome"), "second");
        }
    }

    #[test]
    fn an_outcome_is_whole_or_absent_wherever_the_worker_dies() {
        let points = crash::kit::at_each_point(
            "worker::outcome::tests::crash_child",
            "publish",
            |root| publish(&root.join("job-1/outcome"), "first"),
            |root, _| {
                let place = root.join("job-1/outcome");
                if place.exists() {
                    let read = |name: &str| fs::read_to_string(place.join(name)).unwrap();
                    assert_eq!(read("weights"), read("config"), "no mixture");
                }
                publish(&place, "third");
                assert_eq!(
                    fs::read_dir(root.join("job-1")).unwrap().count(),
                    1,
                    "nothing is left over"
                );
            },
        );
        assert_eq!(points.len(), 6, "{points:?}");
    }
}
