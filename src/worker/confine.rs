//! What the worker may reach: Landlock, by which a process of Linux gives up access to files and network for good.
//!
//! A job reads the model and the adapter it goes on from, and writes among its checkpoints; a model file or an adapter that
//! makes it do anything else meets a closed door.

use std::path::PathBuf;

use crate::domain::Confinement;

/// What is said of a build for accelerators whose job may use one.
const ACCELERATOR: &str = "files and network open (a job that may use an accelerator)";
/// What is said of a closed network.
const TCP: &str = "TCP closed";

/// Files that a job works with, besides its own directories.
#[derive(Debug, Default)]
pub struct Needs {
    /// Files and directories that it reads.
    pub read: Vec<PathBuf>,
    /// Directories that it writes in.
    pub write: Vec<PathBuf>,
    /// Whether it computes on an accelerator, whose driver opens what it likes.
    pub accelerator: bool,
}

/// Confines this thread and those that it makes later to what `needs` names; returns what is in force.
///
/// # Errors
/// When it is required and not possible, or when the kernel has it and refuses.
pub fn confine(wanted: Confinement, needs: &Needs) -> Result<String, String> {
    let open = match wanted {
        Confinement::Off => {
            return Ok("files and network open (worker.landlock = \"off\")".to_owned());
        }
        _ if needs.accelerator => ACCELERATOR.to_owned(),
        _ => match system::restrict(needs)? {
            system::Status::Closed(what)
                if wanted == Confinement::Require && !what.contains(TCP) =>
            {
                format!("{what}, network open (Linux before 6.7)")
            }
            system::Status::Closed(what) => return Ok(what),
            system::Status::Open(why) => format!("files and network open ({why})"),
        },
    };
    match wanted {
        Confinement::Require => Err(format!(
            "worker.landlock = \"require\", but {open}: set it to \"try\", or use another kernel"
        )),
        _ => Ok(open),
    }
}

#[cfg(target_os = "linux")]
mod system {
    use std::fmt::Display;

    use landlock::{
        ABI, Access, AccessFs, AccessNet, LandlockStatus, Ruleset, RulesetAttr, RulesetCreatedAttr,
        RulesetStatus, Scope, path_beneath_rules,
    };

    use super::Needs;

    /// The newest interface that was looked at; an older kernel enforces what it knows of it.
    const KNOWN: ABI = ABI::V6;

    /// What libraries and the pool of threads read: never another process's `/proc`, nor anything of the user's.
    const SYSTEM: [&str; 13] = [
        "/proc/self",
        "/proc/meminfo",
        "/proc/cpuinfo",
        "/proc/stat",
        "/sys/fs/cgroup",
        "/sys/devices/system/cpu",
        "/dev/null",
        "/dev/urandom",
        "/etc/ld.so.cache",
        "/usr/lib",
        "/usr/lib64",
        "/lib",
        "/lib64",
    ];

    pub enum Status {
        Closed(String),
        Open(&'static str),
    }

    pub fn restrict(needs: &Needs) -> Result<Status, String> {
        let failed = |e: &dyn Display| format!("could not confine the process: {e}");
        let read = AccessFs::ReadFile | AccessFs::ReadDir;
        let write = AccessFs::from_all(KNOWN) & !(AccessFs::Execute | AccessFs::IoctlDev);
        let ruleset = Ruleset::default()
            .handle_access(AccessFs::from_all(KNOWN))
            .and_then(|r| r.handle_access(AccessNet::from_all(KNOWN)))
            .and_then(|r| r.scope(Scope::from_all(KNOWN)))
            .and_then(Ruleset::create)
            .and_then(|r| r.add_rules(path_beneath_rules(SYSTEM, read)))
            .and_then(|r| r.add_rules(path_beneath_rules(&needs.read, read)))
            .and_then(|r| r.add_rules(path_beneath_rules(&needs.write, write)));
        let status = ruleset.and_then(|r| r.restrict_self()).map_err(|e| failed(&e))?;
        Ok(match (status.ruleset, status.landlock) {
            (RulesetStatus::NotEnforced, LandlockStatus::NotImplemented) => {
                Status::Open("no Landlock: the kernel has none, or a sandbox forbids it")
            }
            (RulesetStatus::NotEnforced, _) => {
                Status::Open("Landlock is switched off in this kernel")
            }
            (_, LandlockStatus::Available { effective_abi, .. }) => {
                Status::Closed(closed(effective_abi))
            }
            _ => Status::Open("the kernel does not say whether it enforces Landlock"),
        })
    }

    fn closed(abi: ABI) -> String {
        let mut what = "files closed".to_owned();
        if abi >= ABI::V4 {
            what.push_str(", ");
            what.push_str(super::TCP);
        }
        if abi >= ABI::V6 {
            what.push_str(", signals and abstract sockets closed");
        }
        format!("{what} (Landlock {abi:?})")
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    use super::Needs;

    pub enum Status {
        #[expect(dead_code, reason = "only Linux can")]
        Closed(String),
        Open(&'static str),
    }

    pub fn restrict(_: &Needs) -> Result<Status, String> {
        Ok(Status::Open("this system has no Landlock"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_required_and_cannot_be_is_an_error_with_its_remedy() {
        let needs = Needs { accelerator: true, ..Needs::default() };
        let open = confine(Confinement::Try, &needs).unwrap();
        assert_eq!(open, ACCELERATOR);
        let error = confine(Confinement::Require, &needs).unwrap_err();
        assert!(error.contains("accelerator") && error.contains("\"try\""), "{error}");
        assert!(confine(Confinement::Off, &needs).unwrap().contains("worker.landlock"));
    }
}
