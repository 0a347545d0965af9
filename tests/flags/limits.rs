//! Limits, read in the control groups that the container sees.

use cowl_tests::busybox::cgroups;
use cowl_tests::command::system;
use cowl_tests::profile::{directory, root};

use crate::support::{Detached, Doors};

/// The file of a limit, on version 1 and on version 2, as the container sees it.
pub(crate) fn cgroup(legacy: &str, unified: &str) -> String {
    let (controller, _) = legacy.split_once('.').unwrap();
    format!("cat /sys/fs/cgroup/{controller}/{legacy} 2>/dev/null || cat /sys/fs/cgroup/{unified}")
}

fn is_legacy(controller: &str) -> bool {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().any(|line| {
        let is_legacy = line.contains(" - cgroup ");
        is_legacy && line.rsplit(',').any(|option| option == controller)
    })
}

/// The expected content of a limit's file.
pub(crate) fn expected<'a>(controller: &str, legacy: &'a str, unified: &'a str) -> &'a str {
    if is_legacy(controller) {
        legacy
    } else {
        unified
    }
}

const SIZE: &str = "33554432\n";

#[test]
fn memory_and_swap_are_limited() {
    root(|| {
        let doors = Doors::open();
        let memory = cgroup("memory.limit_in_bytes", "memory.max");
        assert_eq!(doors.out(&["-m", "32m"], &memory), SIZE);
        let swap = cgroup("memory.memsw.limit_in_bytes", "memory.swap.max");
        let twice = expected("memory", "67108864\n", SIZE);
        assert_eq!(
            doors.out(&["-m", "32m"], &swap),
            twice,
            "as much swap as memory"
        );
        assert_eq!(
            doors.out(&["-m", "32m", "--memory-swap", "64m"], &swap),
            twice
        );
        let none = doors.out(&["-m", "32m", "--memory-swap", "-1"], &swap);
        assert!(none.len() > 15 || none == "max\n", "{none}");
        doors.refused(&["-m", "1m"], "Minimum memory limit allowed is 6MB");
        doors.refused(&["-m", "-5"], "invalid size: '-5'");
        doors.refused(
            &["-m", "64m", "--memory-swap", "32m"],
            "Minimum memoryswap limit should be larger than memory limit, see usage",
        );
        doors.refused(
            &["--memory-swap", "32m"],
            "You should always set the Memory limit when using Memoryswap limit, see usage",
        );
    });
}

#[test]
fn memory_reservation_and_swappiness_are_set() {
    root(|| {
        let doors = Doors::open();
        let reservation = cgroup("memory.soft_limit_in_bytes", "memory.low");
        assert_eq!(
            doors.out(&["--memory-reservation", "32m"], &reservation),
            SIZE
        );
        if is_legacy("memory") {
            let swappiness = "cat /sys/fs/cgroup/memory/memory.swappiness";
            assert_eq!(doors.out(&["--memory-swappiness", "7"], swappiness), "7\n");
        } else {
            let created = doors
                .store
                .run(["create", "--memory-swappiness", "7", "shop", "true"]);
            assert!(
                created.stderr.contains("Memory swappiness discarded"),
                "{created}"
            );
        }
        doors.refused(
            &["--memory-swappiness", "101"],
            "invalid value: 101. Valid memory swappiness range is 0-100",
        );
    });
}

#[test]
fn oom_kill_disable_lets_processes_wait() {
    root(|| {
        let doors = Doors::open();
        let flags = ["-m", "32m", "--oom-kill-disable"];
        let warning = |flags: &[&str], text: &str| {
            let created = doors
                .store
                .run([&["create"], flags, &["shop", "true"]].concat());
            assert!(created.stderr.contains(text), "{created}");
        };
        if is_legacy("memory") {
            let script = "head -n1 /sys/fs/cgroup/memory/memory.oom_control";
            assert_eq!(doors.out(&flags, script), "oom_kill_disable 1\n");
            warning(&["--oom-kill-disable"], "OOM");
        } else {
            // cgroup v2 has no such switch.
            warning(&flags, "OomKillDisable discarded");
            warning(&["--oom-kill-disable"], "OomKillDisable discarded");
        }
    });
}

#[test]
fn oom_score_adj_is_the_programs() {
    root(|| {
        let doors = Doors::open();
        let script = "cat /proc/self/oom_score_adj";
        assert_eq!(doors.out(&["--oom-score-adj", "123"], script), "123\n");
        doors.refused(
            &["--oom-score-adj", "1001"],
            "Invalid value 1001, range for oom score adj is [-1000, 1000]",
        );
    });
}

#[test]
fn cpus_are_a_quota() {
    root(|| {
        let doors = Doors::open();
        let quota = cgroup("cpu.cfs_quota_us", "cpu.max");
        assert_eq!(
            doors.out(&["--cpus", "0.5"], &quota),
            expected("cpu", "50000\n", "50000 100000\n")
        );
        let both = ["--cpu-period", "50000", "--cpu-quota", "20000"];
        let period = cgroup("cpu.cfs_period_us", "cpu.max");
        assert_eq!(
            doors.out(&both, &format!("{quota}; {period}")),
            expected("cpu", "20000\n50000\n", "20000 50000\n20000 50000\n")
        );
        doors.refused(&["--cpus", "1000"], "Range of CPUs is from 0.01 to");
        doors.refused(
            &["--cpus", "1", "--cpu-quota", "20000"],
            "Conflicting options: Nano CPUs and CPU Quota cannot both be set",
        );
    });
}

#[test]
fn cpu_shares_are_a_weight() {
    root(|| {
        let doors = Doors::open();
        let shares = cgroup("cpu.shares", "cpu.weight");
        assert_eq!(
            doors.out(&["--cpu-shares", "512"], &shares),
            expected("cpu", "512\n", "20\n")
        );
    });
}

#[test]
fn cpusets_are_where_it_runs() {
    root(|| {
        let doors = Doors::open();
        let flags = ["--cpuset-cpus", "0", "--cpuset-mems", "0"];
        let script = "grep -E '^(Cpus|Mems)_allowed_list' /proc/self/status";
        assert_eq!(
            doors.out(&flags, script),
            "Cpus_allowed_list:\t0\nMems_allowed_list:\t0\n"
        );
        doors.refused(
            &["--cpuset-cpus", "60000"],
            "Requested CPUs are not available - requested 60000, available: 0",
        );
    });
}

#[test]
fn pids_limit_counts_processes() {
    root(|| {
        let doors = Doors::open();
        assert_eq!(
            doors.out(&["--pids-limit", "17"], &cgroup("pids.max", "pids.max")),
            "17\n"
        );
    });
}

#[test]
fn blkio_weight_and_rates_are_set_or_discarded_by_name() {
    root(|| {
        let doors = Doors::open();
        let devices = std::fs::read_dir("/sys/class/block").unwrap();
        let mut names = devices.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let name = names.find(|name| std::path::Path::new("/dev").join(name).exists());
        let device = format!("/dev/{}", name.expect("a block device"));
        let number = std::fs::read_to_string(format!("/sys/class/block/{}/dev", &device[5..]));
        let number = number.unwrap().trim().to_owned();
        for (flag, file, key) in [
            (
                "--device-read-bps",
                "blkio.throttle.read_bps_device",
                "rbps",
            ),
            (
                "--device-write-bps",
                "blkio.throttle.write_bps_device",
                "wbps",
            ),
            (
                "--device-read-iops",
                "blkio.throttle.read_iops_device",
                "riops",
            ),
            (
                "--device-write-iops",
                "blkio.throttle.write_iops_device",
                "wiops",
            ),
        ] {
            let out = doors.out(&[flag, &format!("{device}:4096")], &cgroup(file, "io.max"));
            let legacy = format!("{number} 4096\n");
            assert!(
                out == legacy || out.contains(&format!("{key}=4096")),
                "{flag}: {out}"
            );
        }
        doors.refused(
            &["--device-read-bps", "sda:1"],
            "bad format for device path: sda:1",
        );
        let weight = doors.store.run([
            "run",
            "--rm",
            "--blkio-weight",
            "300",
            "shop",
            "sh",
            "-c",
            "cat /sys/fs/cgroup/blkio/*weight /sys/fs/cgroup/io.*weight 2>/dev/null || true",
        ]);
        let set = weight.stdout.contains("300");
        let discarded = weight.stderr.contains("Weight discarded");
        assert!(set != discarded, "{weight}");
        doors.refused(
            &["--blkio-weight", "5"],
            "Range of blkio weight is from 10 to 1000",
        );
    });
}

/// A loop device, until the end of its scope.
struct LoopDevice {
    path: String,
    sysfs: std::path::PathBuf,
}

impl LoopDevice {
    fn new() -> Self {
        let file = directory().join("disk");
        let made = std::fs::File::create(&file).unwrap();
        made.set_len(1 << 20).unwrap();
        let path = system("losetup", ["--find", "--show", file.to_str().unwrap()]);
        let path = path.trim().to_owned();
        let sysfs = std::path::Path::new("/sys/block").join(&path["/dev/".len()..]);
        Self { path, sysfs }
    }

    /// False if the kernel lacks the scheduler.
    fn schedule(&self, scheduler: &str) -> bool {
        std::fs::write(self.sysfs.join("queue/scheduler"), scheduler).is_ok()
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let reset = self.schedule("none");
        system("losetup", ["--detach", &self.path]);
        assert!(std::thread::panicking() || reset);
    }
}

#[test]
fn blkio_weight_device_is_set_or_discarded_by_name() {
    root(|| {
        let doors = Doors::open();
        let disk = LoopDevice::new();
        let flags = ["--blkio-weight-device", &format!("{}:300", disk.path)];
        let number = std::fs::read_to_string(disk.sysfs.join("dev")).unwrap();
        let show = cgroup("blkio.bfq.weight_device", "io.bfq.weight");
        if disk.schedule("bfq") {
            let shown = doors.out(&flags, &show);
            let line = format!("{} 300", number.trim());
            assert!(shown.lines().any(|shown| shown == line), "{shown}");
        }
        assert!(disk.schedule("none"));
        let create = [&["create"], &flags[..], &["shop", "true"]].concat();
        for made in [doors.store.run(&create), doors.server.run(&create)] {
            assert!(made.stderr.contains("Weight-device discarded."), "{made}");
            doors.store.ok(["start", made.stdout.trim()]);
        }
        for (device, why) in [
            ("sda:300", "bad format for device path: sda:300"),
            ("/dev/sda:9", "invalid weight for device: /dev/sda:9"),
            ("/dev/null:300", "/dev/null is not a block device"),
        ] {
            doors.refused(&["--blkio-weight-device", device], why);
        }
    });
}

#[test]
fn cgroup_parent_is_above_its_control_groups() {
    root(|| {
        let doors = Doors::open();
        // Unique to this test, whose pids are from a namespace of its own.
        let base = directory().parent().unwrap().to_owned();
        let parent = format!("flags-{}", base.file_name().unwrap().display());
        let running = Detached::start(
            &doors.store,
            "below",
            &["--cgroup-parent", &parent],
            "sleep 1000",
        );
        let id = running.field("{{.Id}}");
        let found = cgroups(&id);
        assert!(!found.is_empty());
        assert!(
            found
                .lines()
                .all(|path| path.contains(&format!("/{parent}/{id}"))),
            "{found}"
        );
        drop(running);
        assert_eq!(cgroups(&id), "");
        for path in cgroups(&parent).lines() {
            std::fs::remove_dir(path).unwrap();
        }
        doors.refused(
            &["--cgroup-parent", "/a/../b"],
            "invalid cgroup parent: \"/a/../b\"",
        );
    });
}

#[test]
fn shm_size_is_that_of_dev_shm() {
    root(|| {
        let doors = Doors::open();
        let script = "df -k /dev/shm | tail -n1 | awk '{print $2}'";
        assert_eq!(doors.out(&["--shm-size", "2m"], script), "2048\n");
        assert_eq!(doors.out(&[], script), "65536\n");
    });
}
