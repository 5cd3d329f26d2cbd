//! Places at which tests end the process as a kill would: before and after everything that becomes durable.
//!
//! In the program a point is nothing. The tests run a case in a process of its own once for each point that it comes by.

/// A place where a kill is tried.
#[cfg(not(test))]
#[inline(always)]
pub fn point(_name: &str) {}

/// A place where a kill is tried: kills this process if it is the one that [`kit::AT`] asks for.
#[cfg(test)]
pub fn point(name: &str) {
    kit::come_by(name);
}

/// What tests need of it.
#[cfg(test)]
pub(crate) mod kit {
    use std::io::{BufRead, BufReader, Write};
    use std::path::Path;
    use std::process::{Command, Stdio};
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Which point, counted from 1, ends the process.
    pub const AT: &str = "SHAMMAH_TEST_CRASH_AT";
    const CASE: &str = "SHAMMAH_TEST_CRASH_CASE";
    const PLACE: &str = "SHAMMAH_TEST_CRASH_PLACE";
    /// More points than any case has.
    const MANY: usize = 100;
    /// Begins the lines that a case says.
    const SAYS: &str = "case says: ";

    static PASSED: AtomicUsize = AtomicUsize::new(0);

    pub(super) fn come_by(name: &str) {
        let Some(at) = std::env::var(AT).ok().and_then(|at| at.parse::<usize>().ok()) else {
            return;
        };
        if PASSED.fetch_add(1, Ordering::SeqCst) + 1 == at {
            say(&format!("killed at {name}"));
            let _ = rustix::process::kill_process(
                rustix::process::getpid(),
                rustix::process::Signal::KILL,
            );
        }
    }

    /// Tells the test something, of a case's process.
    pub fn say(text: &str) {
        let mut out = std::io::stdout().lock();
        writeln!(out, "{SAYS}{text}").and_then(|()| out.flush()).unwrap();
    }

    /// The case that this process runs, and where; `None` in a process that runs tests.
    pub fn asked() -> Option<(String, std::path::PathBuf)> {
        Some((std::env::var(CASE).ok()?, std::env::var_os(PLACE)?.into()))
    }

    /// Runs a case in the test named `child` once for each point, each time at a place of its own, and lets `check` look at
    /// what is left, with the lines that the case said. Returns the names of the points.
    pub fn at_each_point(
        child: &str,
        case: &str,
        set_up: impl Fn(&Path),
        check: impl Fn(&Path, &[String]),
    ) -> Vec<String> {
        let mut points = Vec::new();
        for at in 1..=MANY {
            let place = tempfile::tempdir().unwrap();
            set_up(place.path());
            let mut process = Command::new(std::env::current_exe().unwrap())
                .args([child, "--exact", "--ignored", "--nocapture", "--test-threads=1"])
                .envs([(AT, at.to_string()), (CASE, case.to_owned())])
                .env(PLACE, place.path())
                .stdout(Stdio::piped())
                .stderr(Stdio::inherit())
                .spawn()
                .unwrap();
            let lines = BufReader::new(process.stdout.take().unwrap()).lines();
            let lines = lines.map(|line| line.unwrap());
            // The harness writes the test's name before its first line.
            let said: Vec<String> = lines
                .filter_map(|line| line.split_once(SAYS).map(|(_, text)| text.to_owned()))
                .collect();
            let status = process.wait().unwrap();
            let killed = said.iter().find_map(|line| line.strip_prefix("killed at "));
            assert_eq!(
                killed.is_none(),
                status.success(),
                "{case} at point {at}: {said:?} {status}"
            );
            check(place.path(), &said);
            match killed {
                Some(name) => points.push(name.to_owned()),
                None => {
                    assert!(at > 1, "{case} comes by no point");
                    return points;
                }
            }
        }
        panic!("{case} has more than {MANY} points");
    }
}
