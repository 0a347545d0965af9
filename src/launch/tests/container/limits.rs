//! Limits of real containers, on whichever cgroup version each controller of this host has.

use std::os::unix::fs::PermissionsExt as _;

use crate::harness::{Fixture, pidfd};
use cowl_launch::sandbox::Limits;
use cowl_tests::skip::skip;
use rustix::process::{Signal, pidfd_send_signal};

/// Prints the memory limit as a program in a container reads it.
const SHOW_MEMORY: &str =
    "cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max";
const SHOW_PIDS: &str =
    "cat /sys/fs/cgroup/pids/pids.max 2>/dev/null || cat /sys/fs/cgroup/pids.max";

#[test]
fn limits_are_seen_inside() {
    let fixture = Fixture::new("seen");
    let mut plan = fixture.sh(&format!(
        "{SHOW_MEMORY}; {SHOW_PIDS}; cat /proc/1/cgroup | cut -d: -f3 | sort -u"
    ));
    for applet in ["cut", "sort"] {
        std::os::unix::fs::symlink("busybox", fixture.path("bin").join(applet)).unwrap();
    }
    plan.sandbox.limits = Limits {
        memory: Some(512 << 20),
        pids: Some(40),
        ..Limits::default()
    };
    // The container's own cgroup is the root of what it sees.
    assert_eq!(fixture.run(&plan).output, "536870912\n40\n/\n");
}

/// The monitor's umask is 0, whatever the caller's is.
#[test]
fn cgroups_are_writable_by_their_owner_only() {
    let fixture = Fixture::new("cgroupmode");
    let mut plan = fixture.plan(&["sleep", "1000"]);
    plan.sandbox.limits.pids = Some(40);
    let running = fixture.start(&plan).unwrap();
    let cgroups = fixture.cgroups();
    assert!(!cgroups.is_empty());
    for cgroup in cgroups {
        let mode = std::fs::metadata(&cgroup).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o755, "{}", cgroup.display());
    }
    pidfd_send_signal(pidfd(running.pid), Signal::KILL).unwrap();
    fixture.finish(running);
}

#[test]
fn limits_cannot_be_raised_from_inside() {
    let fixture = Fixture::new("raise");
    let mut plan = fixture.sh("cd /sys/fs/cgroup; for f in memory/memory.limit_in_bytes memory.max; do [ -e $f ] && echo 1000000000 > $f; done; exit 0");
    plan.sandbox.limits.memory = Some(64 << 20);
    assert!(fixture.run(&plan).output.contains("Read-only file system"));
}

#[test]
fn a_process_that_takes_more_memory_dies_with_137() {
    let fixture = Fixture::new("hog");
    // dd allocates its block: 256 MiB in one piece, written by read(2).
    let mut plan = fixture.plan(&["dd", "if=/dev/zero", "of=/dev/null", "bs=256M", "count=1"]);
    assert_eq!(fixture.run(&plan).exited.exit_code, 0);
    plan.sandbox.limits.memory = Some(32 << 20);
    let outcome = fixture.run(&plan);
    assert_eq!(
        (
            outcome.exited.exit_code,
            outcome.exited.signal,
            outcome.exited.oom_killed
        ),
        (137, Some(9), true)
    );
    assert!(
        outcome.record.contains("\"oom_killed\":true"),
        "{}",
        outcome.record
    );
    // A child that dies is the container's, too, and its first process can say so.
    plan.process.argv = vec![
        b"sh".to_vec(),
        b"-c".to_vec(),
        b"dd if=/dev/zero of=/dev/null bs=256M count=1; echo $?".to_vec(),
    ];
    let outcome = fixture.run(&plan);
    assert_eq!(
        (outcome.exited.exit_code, outcome.exited.oom_killed),
        (0, true)
    );
    assert!(outcome.output.ends_with("137\n"), "{}", outcome.output);
}

/// A negative score takes CAP_SYS_RESOURCE, so where it is missing there is none to be inherited.
#[test]
fn the_oom_score_of_the_caller_is_not_the_containers() {
    const OWN: &str = "/proc/self/oom_score_adj";
    let fixture = Fixture::new("oomscore");
    let plan = fixture.plan(&["cat", OWN]);
    if std::fs::write(OWN, "-500").is_ok() {
        assert_eq!(fixture.run(&plan).output, "0\n");
    }
    std::fs::write(OWN, "300").unwrap();
    assert_eq!(fixture.run(&plan).output, "0\n");
}

#[test]
fn pids_limit_refuses_further_processes() {
    let fixture = Fixture::new("pids");
    let mut plan = fixture.sh("for i in 1 2 3 4 5 6 7 8; do sleep 100 & done; true");
    plan.sandbox.limits.pids = Some(5);
    let outcome = fixture.run(&plan);
    assert!(outcome.output.contains("can't fork"), "{}", outcome.output);
}

#[test]
fn a_node_of_a_host_disk_cannot_be_opened() {
    let fixture = Fixture::new("devices");
    let disk = std::fs::read_to_string("/proc/partitions").unwrap();
    let Some(disk) = disk.lines().nth(2) else {
        return skip("/proc/partitions lists no disk");
    };
    let numbers: Vec<&str> = disk.split_whitespace().take(2).collect();
    let script = format!(
        "mknod /disk b {} {} && dd if=/disk of=/dev/null count=1; mknod /n c 1 3 && echo x > /n && echo null",
        numbers[0], numbers[1]
    );
    let output = fixture.run(&fixture.sh(&script)).output;
    assert!(
        output.contains("can't open '/disk': Operation not permitted")
            && output.ends_with("null\n"),
        "{output}"
    );
}

/// A file of a container's cgroup on the host, on whichever version has it.
fn of_host(fixture: &Fixture, legacy: &str, unified: &str) -> Option<String> {
    fixture
        .cgroups()
        .iter()
        .flat_map(|cgroup| [cgroup.join(legacy), cgroup.join(unified)])
        .find_map(|path| std::fs::read_to_string(path).ok())
        .map(|text| text.trim().to_owned())
}

/// What this host can't enforce is taken out, with Docker's words, as an engine does it.
fn enforceable(wanted: &Limits) -> Limits {
    let mut limits = wanted.clone();
    let discarded = cowl_launch::cgroup::discard_unsupported(&mut limits).unwrap();
    for text in &discarded {
        assert!(text.starts_with("Your kernel does not support "), "{text}");
    }
    assert_eq!(discarded.is_empty(), limits == *wanted, "{discarded:?}");
    limits
}

type Row = (bool, [&'static str; 2], [&'static str; 2]);

/// Those that are wanted hold the value of their version.
fn shows(fixture: &Fixture, files: &[Row]) {
    for (_, legacy, unified) in files.iter().filter(|(wanted, _, _)| *wanted) {
        let found = of_host(fixture, legacy[0], unified[0]);
        let found = found.unwrap_or_else(|| panic!("{legacy:?} is missing"));
        assert!(
            found == legacy[1] || found == unified[1],
            "{legacy:?}: {found}"
        );
    }
}

/// Raises limits of a running container.
fn change_limits(fixture: &Fixture) {
    let change = enforceable(&Limits {
        memory: Some(128 << 20),
        memory_swap: Some(u64::MAX),
        cpu_shares: Some(2048),
        pids: Some(77),
        ..Limits::default()
    });
    fixture.control().update(&change).unwrap();
    let tasks = ["pids.max", "77"];
    let second = [
        (
            change.memory.is_some(),
            ["memory.limit_in_bytes", "134217728"],
            ["memory.max", "134217728"],
        ),
        (
            change.cpu_shares.is_some(),
            ["cpu.shares", "2048"],
            ["cpu.weight", "79"],
        ),
        (change.pids.is_some(), tasks, tasks),
    ];
    shows(fixture, &second);
}

#[test]
fn limits_of_processors_and_memory_are_set_and_changed() {
    let fixture = Fixture::new("more-limits");
    let wanted = Limits {
        memory: Some(64 << 20),
        memory_swap: Some(96 << 20),
        memory_reservation: Some(32 << 20),
        memory_swappiness: Some(7),
        cpu_shares: Some(512),
        cpu_quota: Some(50_000),
        cpu_period: Some(200_000),
        cpuset_cpus: Some("0".to_owned()),
        cpuset_mems: Some("0".to_owned()),
        ..Limits::default()
    };
    let limits = enforceable(&wanted);
    let mut start = fixture.sh("touch /ready; exec sleep 1000");
    start.sandbox.limits = limits.clone();
    let running = fixture.start(&start).unwrap();
    crate::harness::wait_for(&fixture.path("ready"));
    let (memory, reserved) = (limits.memory.is_some(), limits.memory_reservation.is_some());
    let set = ["cpuset.cpus", "0"];
    let first = [
        (
            memory,
            ["memory.limit_in_bytes", "67108864"],
            ["memory.max", "67108864"],
        ),
        (
            reserved,
            ["memory.soft_limit_in_bytes", "33554432"],
            ["memory.low", "33554432"],
        ),
        (
            limits.memory_swappiness.is_some(),
            ["memory.swappiness", "7"],
            ["none", ""],
        ),
        (
            limits.cpu_shares.is_some(),
            ["cpu.shares", "512"],
            ["cpu.weight", "20"],
        ),
        (
            limits.cpu_quota.is_some(),
            ["cpu.cfs_quota_us", "50000"],
            ["cpu.max", "50000 200000"],
        ),
        (limits.cpuset_cpus.is_some(), set, set),
    ];
    shows(&fixture, &first);
    // The kernel's view of the process itself.
    if limits.cpuset_cpus.is_some() {
        let status = std::fs::read_to_string(format!("/proc/{}/status", running.pid)).unwrap();
        assert!(status.contains("\nCpus_allowed_list:\t0\n"), "{status}");
    }
    change_limits(&fixture);
    running.monitor.signal(9).unwrap();
    fixture.finish(running);
}

/// The container was started without them, and so outside of their hierarchies.
#[test]
fn limits_that_come_later_hold_for_all_processes() {
    let fixture = Fixture::new("late-limits");
    let running = fixture
        // The shell makes the file itself: a `touch` could still be there.
        .start(&fixture.sh("sleep 1000 & : > /ready; exec sleep 1000"))
        .unwrap();
    crate::harness::wait_for(&fixture.path("ready"));
    let control = fixture.control();
    let change = enforceable(&Limits {
        cpuset_cpus: Some("0".to_owned()),
        ..Limits::default()
    });
    control.update(&change).unwrap();
    if change.cpuset_cpus.is_some() {
        let pids = control.pids().unwrap();
        assert_eq!(pids.len(), 2, "{pids:?}");
        for pid in pids {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            assert!(status.contains("\nCpus_allowed_list:\t0\n"), "{status}");
        }
    }
    running.monitor.signal(9).unwrap();
    fixture.finish(running);
}
