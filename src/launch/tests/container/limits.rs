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
