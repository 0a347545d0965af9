//! The same containers on other hosts than this one: in an ordinary user's namespaces, and where no
//! cgroups are mounted. These tests run this very program again, inside.

use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;

use cowl_launch::sandbox::Limits;

use crate::harness::{Fixture, RUNTIME};

/// What needs neither limits nor a second user.
const ANYWHERE: [&str; 17] = [
    "run::a_passwd_that_is_a_fifo_or_too_large_is_refused",
    "run::readonly_root_makes_the_root_read_only",
    "run::a_symlink_as_proc_or_dev_is_refused",
    "run::tty_is_a_terminal_of_the_container",
    "run::exit_codes_are_dockers",
    "run::mounts_are_dockers",
    "run::the_program_inherits_stdio_only",
    "life::signal_reaches_the_program_and_the_exit_record",
    "life::the_container_dies_with_its_monitor",
    "run::the_network_has_loopback_only",
    "run::the_program_sees_only_its_own_processes",
    "run::volumes_are_mounted_where_the_container_sees_them",
    "isolation::namespaces_are_new_unless_the_hosts_are_asked_for",
    "isolation::namespaces_of_another_container_are_joined",
    "isolation::host_and_domain_name_are_the_sandboxes",
    "isolation::rlimits_and_the_oom_score_are_the_processes",
    "isolation::mounts_have_their_size_and_attributes",
];

/// Runs the named tests of this program, and an ignored one, behind another command.
fn run_inside(wrapper: &[&str], inner: &str) {
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    // An ordinary user may not reach the build's own directory.
    let (program, runtime) = (
        directory.path().join("tests"),
        directory.path().join("runtime"),
    );
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    std::fs::copy(Path::new(env!("CARGO_BIN_EXE_cowl-runtime")), &runtime).unwrap();
    let (first, rest) = wrapper.split_first().unwrap();
    let output = Command::new(first)
        .args(rest)
        .arg(&program)
        .args(["--exact", "--include-ignored", "--test-threads", "1", inner])
        .args(ANYWHERE)
        .env("TMPDIR", directory.path())
        .env(RUNTIME, &runtime)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let wanted = format!("{} passed; 0 failed", ANYWHERE.len() + 1);
    assert!(
        text.contains(&wanted),
        "{text}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn refused_limits(fixture: &Fixture) {
    let mut plan = fixture.plan(&["true"]);
    plan.sandbox.limits = Limits {
        memory: Some(64 << 20),
        pids: None,
        ..Limits::default()
    };
    let failed = fixture.fail(&plan);
    assert_eq!(
        (failed.to_string().as_str(), failed.exit_code),
        (
            "a memory limit needs the memory cgroup controller, which is not available here",
            125
        )
    );
    plan.sandbox.limits = Limits {
        memory: None,
        pids: Some(10),
        ..Limits::default()
    };
    assert!(
        fixture
            .fail(&plan)
            .what
            .starts_with("a process limit needs the pids cgroup controller")
    );
}

#[test]
fn an_ordinary_user_in_a_user_namespace() {
    let ordinary = [
        "setpriv",
        "--reuid",
        "1000",
        "--regid",
        "1000",
        "--clear-groups",
    ];
    let namespaces = ["unshare", "--user", "--map-root-user", "--mount"];
    run_inside(
        &[&ordinary[..], &namespaces].concat(),
        "hosts::inside_a_user_namespace",
    );
}

#[test]
#[ignore = "run by an_ordinary_user_in_a_user_namespace"]
fn inside_a_user_namespace() {
    let fixture = Fixture::new("userns");
    symlink("busybox", fixture.path("bin/grep")).unwrap();
    let script =
        "grep CapEff /proc/self/status; echo x > /dev/null && ls /sys/fs/cgroup; mknod /n c 1 3";
    let outcome = fixture.run(&fixture.sh(script));
    assert_eq!(
        outcome.output,
        "CapEff:\t00000000a80425fb\nmknod: /n: Operation not permitted\n"
    );
    refused_limits(&fixture);
    let ports = fixture.run(&fixture.sh("cat /proc/sys/net/ipv4/ip_unprivileged_port_start"));
    assert_eq!(ports.output, "0\n");
    // Only root has a number in this namespace.
    let mut plan = fixture.plan(&["true"]);
    plan.process.user = b"app".to_vec();
    assert_eq!(
        fixture.fail(&plan).to_string(),
        "become user \"app\": this user namespace has no such ids (unshare --map-auto maps more)"
    );
}

#[test]
fn a_host_without_cgroups() {
    let script = "umount --lazy --recursive /sys/fs/cgroup && exec \"$@\"";
    run_inside(
        &["unshare", "--mount", "sh", "-c", script, "sh"],
        "hosts::inside_a_host_without_cgroups",
    );
}

#[test]
#[ignore = "run by a_host_without_cgroups"]
fn inside_a_host_without_cgroups() {
    let fixture = Fixture::new("nocgroups");
    symlink("busybox", fixture.path("bin/grep")).unwrap();
    // Nothing here says which devices may be opened, so none can be made (no MKNOD), and those that
    // an image brings don't work.
    let zero = rustix::fs::makedev(1, 5);
    let path = fixture.path("zero");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        path,
        rustix::fs::FileType::CharacterDevice,
        0o666.into(),
        zero,
    )
    .unwrap();
    let script = "grep CapEff /proc/self/status; dd if=/zero of=/dev/null count=1; mknod /n c 1 3; echo x > /dev/null && echo ok";
    let outcome = fixture.run(&fixture.sh(script));
    assert_eq!(
        outcome.output,
        "CapEff:\t00000000a00425fb\ndd: can't open '/zero': Permission denied\nmknod: /n: Operation not permitted\nok\n"
    );
    refused_limits(&fixture);
}
