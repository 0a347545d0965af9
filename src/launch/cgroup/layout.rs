//! The mounted cgroup hierarchies of the host.
//!
//! A host has version 1, version 2 or both, and each controller is in one of them. So there is no
//! test for the kind of host: each controller is looked up by itself.

use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use cowl_sys::mountinfo;

/// One mounted version 1 hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Legacy {
    pub(super) mount_point: PathBuf,
    /// Controllers mounted together in it, e.g. `cpu` and `cpuacct`.
    pub(super) controllers: Vec<String>,
}

/// The hierarchies of a host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) legacy: Vec<Legacy>,
    /// Mount point of version 2.
    pub(super) unified: Option<PathBuf>,
}

/// Super block options of a version 1 mount other than controllers (cgroups(7),
/// kernel/cgroup/cgroup-v1.c).
const OPTIONS: [&str; 8] = [
    "rw",
    "ro",
    "xattr",
    "noprefix",
    "clone_children",
    "cpuset_v2_mode",
    "favordynmods",
    "none",
];

impl Layout {
    /// Reads the text of /proc/self/mountinfo.
    pub(super) fn parse(mountinfo: &[u8]) -> Self {
        let mut layout = Self::default();
        for mount in mountinfo::parse(mountinfo) {
            match mount.filesystem.as_bytes() {
                b"cgroup2" if layout.unified.is_none() => layout.unified = Some(mount.point),
                b"cgroup" => layout.push_legacy(mount.point, mount.options.as_bytes()),
                _ => {}
            }
        }
        layout
    }

    fn push_legacy(&mut self, mount_point: PathBuf, options: &[u8]) {
        let controllers: Vec<String> = options
            .split(|byte| *byte == b',')
            .map(|option| String::from_utf8_lossy(option).into_owned())
            .filter(|option| !OPTIONS.contains(&option.as_str()) && !option.contains('='))
            .collect();
        let known = |mounted: &Legacy| {
            mounted
                .controllers
                .iter()
                .any(|controller| controllers.contains(controller))
        };
        // Skip a hierarchy that is mounted twice, and a named one without controllers
        // (name=systemd).
        if !controllers.is_empty() && !self.legacy.iter().any(known) {
            self.legacy.push(Legacy {
                mount_point,
                controllers,
            });
        }
    }

    /// The version 1 hierarchy of a controller.
    pub(super) fn legacy_of(&self, controller: &str) -> Option<&Legacy> {
        self.legacy
            .iter()
            .find(|mounted| mounted.controllers.iter().any(|name| name == controller))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = "\
25 30 0:23 / /sys/fs/cgroup ro,nosuid,nodev,noexec shared:8 - tmpfs tmpfs ro,mode=755
26 25 0:24 / /sys/fs/cgroup/systemd rw,nosuid shared:9 - cgroup cgroup rw,xattr,name=systemd
27 25 0:25 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:10 - cgroup cgroup rw,cpu,cpuacct
28 25 0:26 / /sys/fs/cgroup/memory rw,nosuid shared:11 - cgroup cgroup rw,memory
29 25 0:27 / /sys/fs/cgroup/pids rw,nosuid shared:12 - cgroup cgroup rw,pids
31 25 0:26 / /mnt/second\\040view rw shared:11 - cgroup cgroup rw,memory
";
    const V2: &str = "\
24 30 0:22 / /sys rw,nosuid shared:7 - sysfs sysfs rw
35 24 0:30 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot
";
    const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";

    fn mount_point(layout: &Layout, controller: &str) -> Option<String> {
        layout
            .legacy_of(controller)
            .map(|mounted| mounted.mount_point.display().to_string())
    }

    #[test]
    fn legacy_of_finds_each_controller_where_it_is_mounted() {
        let v1 = Layout::parse(V1.as_bytes());
        assert_eq!(
            mount_point(&v1, "memory").as_deref(),
            Some("/sys/fs/cgroup/memory")
        );
        assert_eq!(
            mount_point(&v1, "cpuacct").as_deref(),
            Some("/sys/fs/cgroup/cpu,cpuacct")
        );
        assert_eq!(mount_point(&v1, "devices"), None);
        assert_eq!(v1.unified, None);
        assert_eq!(v1.legacy.len(), 3);

        let v2 = Layout::parse(V2.as_bytes());
        assert_eq!(
            (v2.legacy.len(), v2.unified),
            (0, Some("/sys/fs/cgroup".into()))
        );

        let hybrid = Layout::parse(HYBRID.as_bytes());
        assert_eq!(
            mount_point(&hybrid, "memory").as_deref(),
            Some("/sys/fs/cgroup/memory")
        );
        assert_eq!(hybrid.unified, Some("/sys/fs/cgroup/unified".into()));
    }

    #[test]
    fn parse_unescapes_mount_points_and_skips_malformed_lines() {
        let layout = Layout::parse(b"1 2 0:1 / /a\\040b\\134c rw - cgroup x rw,pids\n\n- - -\n1 2 3 4\n1 2 3 / /x rw - cgroup\n");
        assert_eq!(mount_point(&layout, "pids").as_deref(), Some("/a b\\c"));
        assert_eq!(layout.legacy.len(), 1);
    }
}
