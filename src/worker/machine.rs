//! What the kernel says about memory: of the machine, and of the control groups that this process is in.

use std::path::Path;

/// Bytes in a kibibyte, the unit of the kernel's figures.
const KIBIBYTE: u64 = 1024;
/// Where control groups are mounted.
const GROUPS: &str = "/sys/fs/cgroup";

/// Returns the memory that this process can still take, bytes: what the machine has available, or less where a control
/// group (a container, a service) limits it; unknown where there is no `/proc`.
pub fn available_memory() -> Option<u64> {
    let machine = figure(&fs_err::read_to_string("/proc/meminfo").ok()?, "MemAvailable:")?;
    let groups = fs_err::read_to_string("/proc/self/cgroup").unwrap_or_default();
    Some(room_in_groups(Path::new(GROUPS), &groups).map_or(machine, |room| room.min(machine)))
}

/// Reads a line like `VmHWM:     1234 kB`, in bytes.
pub(super) fn figure(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(KIBIBYTE)
}

/// The files of one version of control groups: limit, usage, and the lines of `memory.stat` with what can be given back:
/// pages of files, used lately (weights are mapped) or not.
struct Files {
    limit: &'static str,
    usage: &'static str,
    reclaimable: [&'static str; 2],
}

const VERSION_1: Files = Files {
    limit: "memory.limit_in_bytes",
    usage: "memory.usage_in_bytes",
    reclaimable: ["total_inactive_file ", "total_active_file "],
};
const VERSION_2: Files = Files {
    limit: "memory.max",
    usage: "memory.current",
    reclaimable: ["inactive_file ", "active_file "],
};

/// Returns the least room in any group that limits this process; `groups` is the text of `/proc/self/cgroup`.
fn room_in_groups(mount: &Path, groups: &str) -> Option<u64> {
    let mut least: Option<u64> = None;
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(kinds), Some(group)) = (parts.next(), parts.next()) else { continue };
        let (mount, files) = match kinds {
            "" => (mount.to_owned(), &VERSION_2),
            kinds if kinds.split(',').any(|kind| kind == "memory") => {
                (mount.join("memory"), &VERSION_1)
            }
            _ => continue,
        };
        let group = Path::new(group.trim_start_matches('/'));
        let rooms = group.ancestors().filter_map(|group| room(&mount.join(group), files));
        least = rooms.chain(least).min();
    }
    least
}

fn room(group: &Path, files: &Files) -> Option<u64> {
    let read = |name: &str| std::fs::read_to_string(group.join(name)).ok();
    let number = |name: &str| read(name)?.trim().parse::<u64>().ok();
    let (limit, usage) = (number(files.limit)?, number(files.usage)?);
    let stat = read("memory.stat").unwrap_or_default();
    let bytes = |key| {
        let line = stat.lines().find_map(|line| line.strip_prefix(key));
        line.and_then(|n| n.trim().parse::<u64>().ok()).unwrap_or(0)
    };
    let reclaimable = files.reclaimable.into_iter().map(bytes).sum();
    Some(limit.saturating_sub(usage.saturating_sub(reclaimable)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_figures_are_read_in_bytes() {
        let text = "Name:\tx\nVmHWM:\t    2048 kB\nMemAvailable: 5 kB\n";
        assert_eq!(figure(text, "VmHWM:"), Some(2 << 20));
        assert_eq!(figure(text, "VmPeak:"), None);
        assert_eq!(figure("VmHWM: x kB", "VmHWM:"), None);
    }

    #[test]
    fn the_narrowest_group_around_the_process_counts_without_what_it_can_give_back() {
        let folder = tempfile::tempdir().unwrap();
        let put = |group: &str, files: &[(&str, &str)]| {
            let group = folder.path().join(group);
            fs_err::create_dir_all(&group).unwrap();
            files.iter().for_each(|(name, text)| fs_err::write(group.join(name), text).unwrap());
        };
        put(
            "a",
            &[
                ("memory.max", "1000\n"),
                ("memory.current", "700\n"),
                ("memory.stat", "anon 1\ninactive_file 60\nactive_file 40\n"),
            ],
        );
        put("a/b", &[("memory.max", "max\n"), ("memory.current", "10\n")]);
        let room = |groups: &str| room_in_groups(folder.path(), groups);
        assert_eq!(room("0::/a/b\n"), Some(400), "the limit of the group above");
        put("a/b", &[("memory.max", "50\n")]);
        assert_eq!(room("0::/a/b\n"), Some(40));
        assert_eq!(room("0::/elsewhere\n"), None);
        put("memory/c", &[("memory.limit_in_bytes", "9\n"), ("memory.usage_in_bytes", "4\n")]);
        assert_eq!(room("3:cpu,memory:/c\n2:cpuset:/a\n"), Some(5));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_machine_has_memory() {
        assert!(available_memory().is_some_and(|bytes| bytes > 1 << 20));
    }
}
