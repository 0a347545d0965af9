//! `reset` in a process that inherits all that a caller can leave it.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test that can't look at /proc fails"
)]

use std::process::Command;

/// Set in the process that is the victim.
const VICTIM: &str = "COWL_TEST_STARTUP";

/// What a caller may have done, in its own words. 2147483647 is more than any limit here can lift
/// to by chance.
const CALLER: &str = r#"
cd /tmp; umask 077; ulimit -S -n 40; ulimit -n 64; ulimit -f 1; ulimit -t 1000; ulimit -v 2000000
trap '' TERM INT HUP USR1 RTMIN; exec 7</dev/null 33<.
echo 300 >/proc/self/oom_score_adj
exec env --block-signal=TERM --block-signal=USR2 "$0" --exact reset_drops_what_the_caller_left --test-threads=1
"#;

fn field(name: &str) -> String {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap().trim().to_owned()
}

/// Soft and hard.
fn limit(name: &str) -> [String; 2] {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap();
    let line = limits.lines().find_map(|line| line.strip_prefix(name));
    let mut words = line.unwrap().split_whitespace();
    [
        words.next().unwrap().to_owned(),
        words.next().unwrap().to_owned(),
    ]
}

#[test]
fn reset_drops_what_the_caller_left() {
    if std::env::var_os(VICTIM).is_some() {
        return check();
    }
    let own = std::env::current_exe().unwrap();
    let mut command = Command::new("bash");
    command.arg("-c").arg(CALLER).arg(own).env(VICTIM, "1");
    assert!(command.status().unwrap().success());
}

fn check() {
    assert_eq!(field("SigBlk:"), "0000000000004800", "env blocks signals");
    assert_eq!(limit("Max open files")[1], "64");

    cowl_sys::startup::reset(1024).unwrap();

    assert_eq!(field("SigBlk:"), "0000000000000000");
    // SIGPIPE alone, which Rust's start-up ignores.
    assert_eq!(field("SigIgn:"), "0000000000001000");
    cowl_sys::startup::survive_file_size_limit().unwrap();
    assert_eq!(field("SigIgn:"), "0000000001001000", "SIGXFSZ beside it");
    assert_eq!(field("Umask:"), "0000");
    assert_eq!(std::env::current_dir().unwrap().as_os_str(), "/");
    for number in 3..64 {
        let open = std::fs::read_link(format!("/proc/self/fd/{number}"));
        assert!(open.is_err(), "{number} is {open:?}");
    }
    let may_raise = u64::from_str_radix(&field("CapEff:"), 16).unwrap() & 1 << 24 != 0;
    let score = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap();
    assert_eq!(limit("Max file size")[0], limit("Max file size")[1]);
    if may_raise {
        assert_eq!(limit("Max file size"), ["unlimited", "unlimited"]);
        assert_eq!(limit("Max cpu time"), ["unlimited", "unlimited"]);
        assert_eq!(limit("Max address space"), ["unlimited", "unlimited"]);
        assert_eq!(limit("Max open files"), ["1024", "524288"]);
        assert_eq!(score, "0\n");
    } else {
        assert_eq!(limit("Max open files"), ["64", "64"]);
    }
}
