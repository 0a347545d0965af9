//! The filter of system calls as a program in a container meets it. What each answer is,
//! `src/launch/seccomp` tests without a container.

use std::os::unix::fs::symlink;
use std::path::Path;

use cowl_launch::message::Start;
use cowl_launch::process::{DEFAULT_CAPABILITIES, Seccomp};

use crate::harness::Fixture;

const CAP_SYS_ADMIN: u64 = 1 << 21;

/// Perl, which every Debian has, makes any system call; its files come from the host.
fn with_perl(name: &str) -> Fixture {
    let fixture = Fixture::new(name);
    for library in ["lib", "lib64"] {
        symlink(format!("usr/{library}"), fixture.path(library)).unwrap();
    }
    fixture
}

/// A plan that makes each call and prints its errno, 0 for success.
fn errnos(fixture: &mut Fixture, calls: &[&str]) -> Start {
    let print = |call: &&str| format!("print syscall({call}) == -1 ? $!+0 : 0, qq( );");
    let script = calls.iter().map(print).collect::<Vec<_>>().concat();
    let mut plan = fixture.plan(&["/usr/bin/perl", "-e", &script]);
    fixture.volume(&mut plan, Path::new("/usr"), "/usr", true);
    plan
}

/// A call as Perl makes it, its errno under the filter and without one.
#[cfg(target_arch = "x86_64")]
const CALLS: [(&str, &str, &str); 9] = [
    // unshare(CLONE_NEWUSER): no privilege needed, so it is the filter that refuses it.
    ("272, 1 << 28", "1", "0"),
    // add_key of nothing.
    ("248, 0, 0, 0, 0, 0", "1", "14"),
    // clone3 of nothing: libc takes this for an old kernel.
    ("435, 0, 0", "38", "22"),
    // ptrace(PTRACE_ATTACH) to a process that isn't there.
    ("101, 16, 999999, 0, 0", "3", "3"),
    // personality(ADDR_NO_RANDOMIZE), personality(PER_LINUX).
    ("135, 0x40000", "1", "0"),
    ("135, 0", "0", "0"),
    // socket(AF_UNIX, SOCK_STREAM, 0); socket(AF_ALG, 99, 0) in a register whose high half the
    // kernel ignores: there is no type 99.
    ("41, 1, 1, 0", "0", "0"),
    ("41, 38 | 1 << 32, 99, 0", "1", "22"),
    // None of that number.
    ("1000", "38", "38"),
];

#[test]
#[cfg(target_arch = "x86_64")]
fn system_calls_get_dockers_answers() {
    let mut fixture = with_perl("seccomp");
    let mut plan = errnos(&mut fixture, &CALLS.map(|(call, ..)| call));
    let joined = |errnos: [&str; 9]| errnos.map(|errno| format!("{errno} ")).concat();
    let filtered = joined(CALLS.map(|(_, filtered, _)| filtered));
    assert_eq!(fixture.run(&plan).output, filtered);
    // Who has no privileges has them no more when the filter is loaded.
    plan.process.user = b"app".to_vec();
    assert_eq!(fixture.run(&plan).output, filtered);
    plan.process.capabilities = 0;
    plan.process.no_new_privileges = true;
    assert_eq!(fixture.run(&plan).output, filtered);

    plan.process.seccomp = Seccomp::Unconfined;
    assert_eq!(
        fixture.run(&plan).output,
        joined(CALLS.map(|(.., unconfined)| unconfined))
    );
}

/// Docker's profile opens with the capability that the calls are for.
#[test]
#[cfg(target_arch = "x86_64")]
fn cap_sys_admin_allows_mount() {
    let mut fixture = with_perl("seccomp-admin");
    // unshare(CLONE_NEWNS), then clone3 of nothing.
    let mut plan = errnos(&mut fixture, &["272, 1 << 17", "435, 0, 0"]);
    assert_eq!(fixture.run(&plan).output, "1 38 ");
    plan.process.capabilities = DEFAULT_CAPABILITIES | CAP_SYS_ADMIN;
    assert_eq!(fixture.run(&plan).output, "0 22 ");
}

#[test]
fn proc_status_shows_the_filter() {
    let fixture = Fixture::new("seccomp-status");
    symlink("busybox", fixture.path("bin/grep")).unwrap();
    let plan = fixture.sh("grep -E '^(Seccomp|Speculation_Store_Bypass):' /proc/self/status");
    let host = std::fs::read_to_string("/proc/self/status").unwrap();
    let bypass = host
        .lines()
        .find(|line| line.starts_with("Speculation_Store_Bypass:"));
    let expected = ["Seccomp:\t2"].into_iter().chain(bypass);
    let output = fixture.run(&plan).output;
    assert_eq!(
        output.lines().collect::<Vec<_>>(),
        expected.collect::<Vec<_>>()
    );
}
