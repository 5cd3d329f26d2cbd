//! What Linux tells of processes.
#![allow(dead_code)]

use rustix::process::Pid;

/// The child of `parent` that trains, by the kernel's list.
pub fn worker_of(parent: u32) -> Option<Pid> {
    let tasks = std::fs::read_dir(format!("/proc/{parent}/task")).ok()?;
    let children =
        tasks.flatten().filter_map(|t| std::fs::read_to_string(t.path().join("children")).ok());
    let all: Vec<i32> = children
        .flat_map(|line| line.split_whitespace().filter_map(|p| p.parse().ok()).collect::<Vec<_>>())
        .collect();
    let is_worker = |pid: &i32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|b| *b == 0).any(|arg| arg == b"worker")
    };
    all.into_iter().find(is_worker).and_then(Pid::from_raw)
}

/// What a process takes up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Memory that is resident now, mapped files included, KiB.
    pub resident_kib: u64,
    /// Of it what no file backs: heap, stacks, buffers, KiB.
    pub private_kib: u64,
    /// The most that was ever resident, KiB.
    pub peak_kib: u64,
    /// Open descriptors.
    pub descriptors: usize,
    pub threads: usize,
}

/// Measures a process; `None` where it is gone.
pub fn size_of(pid: u32) -> Option<Size> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let field = |name: &str| -> Option<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse().ok()
    };
    Some(Size {
        resident_kib: field("VmRSS:")?,
        private_kib: field("RssAnon:")?,
        peak_kib: field("VmHWM:")?,
        descriptors: std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count(),
        threads: usize::try_from(field("Threads:")?).ok()?,
    })
}
