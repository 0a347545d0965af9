//! Signals to `cowl run`: all that can be caught reach the container, and interrupts end a start at
//! once.

use std::fs::File;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Stdio};

use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use cowl_tests::busybox::{Running, containers, shop};
use cowl_tests::command::{fixture, system};
use cowl_tests::profile::{NEVER, directory, readable, root, user};
use cowl_tests::store::Store;

fn every_signal_reaches_the_container() {
    let store = shop("store");
    let signals = [
        ("HUP", Signal::HUP),
        ("INT", Signal::INT),
        ("QUIT", Signal::QUIT),
        ("USR1", Signal::USR1),
        ("ALRM", Signal::ALARM),
        ("TERM", Signal::TERM),
        ("CONT", Signal::CONT),
        ("TSTP", Signal::TSTP),
        ("VTALRM", Signal::VTALARM),
        ("WINCH", Signal::WINCH),
        ("IO", Signal::IO),
        ("PWR", Signal::POWER),
        ("XFSZ", Signal::XFSZ),
    ];
    for (name, signal) in signals {
        let script = format!("trap 'exit 9' {name}; sleep 1000 & ready; while :; do wait; done");
        let running = Running::start(&store, &["--rm"], &script);
        running.signal(signal);
        assert_eq!(running.end(), 9, "{name}");
    }
    assert_eq!(containers(&store), [""; 0]);
}

#[test]
fn every_signal_reaches_the_container_as_root() {
    root(|| every_signal_reaches_the_container());
}

#[test]
fn every_signal_reaches_the_container_as_user() {
    user(|| every_signal_reaches_the_container());
}

/// An image with nothing but the program of fixtures/sigwait.c.
fn sigwait_image(store: &Store) {
    let content = directory().join("sigwait");
    std::fs::create_dir(&content).unwrap();
    let source = fixture("sigwait.c");
    let program = content.join("init");
    system(
        "gcc",
        [
            "-static".as_ref(),
            "-o".as_ref(),
            program.as_os_str(),
            source.as_os_str(),
        ],
    );
    store.import_directory(&content, "sigwait");
}

fn a_signal_reaches_a_first_process_that_waits_for_it() {
    let store = Store::new("store");
    sigwait_image(&store);
    for way in ["sigwait", "signalfd"] {
        for signal in [Signal::TERM, Signal::INT] {
            let mut client = store
                .command(["run", "--rm", "sigwait", "/init", way])
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            assert!(readable(client.stdout.as_ref().unwrap(), NEVER), "ready");
            send(&client, signal);
            assert_eq!(ended(&mut client).code(), Some(7), "{way} {signal:?}");
        }
    }
}

#[test]
fn a_signal_reaches_a_first_process_that_waits_for_it_as_root() {
    root(|| a_signal_reaches_a_first_process_that_waits_for_it());
}

#[test]
fn a_signal_reaches_a_first_process_that_waits_for_it_as_user() {
    user(|| a_signal_reaches_a_first_process_that_waits_for_it());
}

/// The kernel drops a signal whose action in a first process is the default (pid_namespaces(7)).
fn a_first_process_without_handlers_is_left_running_by_the_third_interrupt() {
    let store = Store::new("store");
    sigwait_image(&store);
    let mut client = store
        .command(["run", "--name", "deaf", "sigwait", "/init", "pause"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    assert!(readable(client.stdout.as_ref().unwrap(), NEVER), "ready");
    // Pending signals of one number merge into one; those of two numbers do not.
    send(&client, Signal::INT);
    send(&client, Signal::TERM);
    until_none_is_pending(&client);
    assert_eq!(client.try_wait().unwrap(), None);
    send(&client, Signal::TERM);
    assert_eq!(ended(&mut client).code(), Some(1));
    let mut told = String::new();
    std::io::Read::read_to_string(client.stderr.as_mut().unwrap(), &mut told).unwrap();
    assert_eq!(
        told,
        "cowl: got 3 SIGTERM/SIGINTs, forcefully exiting; the container runs on: cowl rm -f deaf\n"
    );
    assert_eq!(store.ok(["ps", "-q"]).lines().count(), 1, "it runs on");
    store.ok(["rm", "-f", "deaf"]);
    assert_eq!(containers(&store), [""; 0]);
}

#[test]
fn a_first_process_without_handlers_is_left_running_by_the_third_interrupt_as_root() {
    root(|| a_first_process_without_handlers_is_left_running_by_the_third_interrupt());
}

#[test]
fn a_first_process_without_handlers_is_left_running_by_the_third_interrupt_as_user() {
    user(|| a_first_process_without_handlers_is_left_running_by_the_third_interrupt());
}

/// Another process holds a lock that the start needs, and still holds it when the start has ended.
fn interrupts_end_a_start_that_waits() {
    let store = shop("store");
    store.ok(["volume", "create", "shared"]);
    for lock in ["containers", "lock", "volumes/shared"] {
        for signal in [Signal::INT, Signal::TERM, Signal::HUP, Signal::QUIT] {
            let held = File::open(store.root().join(lock)).unwrap();
            flock(&held, FlockOperation::LockExclusive).unwrap();
            let mut client = store
                .command(["run", "--rm", "-v", "shared:/srv", "-v", "/new"])
                .args(["-v", "other:/bin", "shop", "true"])
                .spawn()
                .unwrap();
            until_it_waits(&client);
            send(&client, signal);
            let status = ended(&mut client);
            let by = status.signal().or(status.code().map(|code| code - 128));
            assert_eq!(by, Some(signal.as_raw()), "{lock}: {status}");
            // Before the lock is free.
            assert_eq!(names(&store, "pins"), [""; 0], "{lock} {signal:?}");
            assert_eq!(names(&store, "tmp"), [""; 0], "{lock} {signal:?}");
            assert_eq!(names(&store, "containers"), [""; 0], "{lock} {signal:?}");
            assert_eq!(names(&store, "volumes"), ["shared"], "{lock} {signal:?}");
            assert_eq!(names(&store, "volumes/shared/_data"), [""; 0]);
            drop(held);
        }
    }
}

#[test]
fn interrupts_end_a_start_that_waits_as_root() {
    root(|| interrupts_end_a_start_that_waits());
}

#[test]
fn interrupts_end_a_start_that_waits_as_user() {
    user(|| interrupts_end_a_start_that_waits());
}

fn send(client: &Child, signal: Signal) {
    kill_process(Pid::from_child(client), signal).unwrap();
}

#[track_caller]
fn ended(client: &mut Child) -> std::process::ExitStatus {
    let pidfd = pidfd_open(Pid::from_child(client), PidfdFlags::empty()).unwrap();
    assert!(readable(&pidfd, NEVER), "cowl run does not end");
    client.wait().unwrap()
}

/// Waits until `cowl run` waits for a lock (proc_locks(5)).
fn until_it_waits(client: &Child) {
    let pid = client.id().to_string();
    let waits = |line: &str| {
        let mut words = line.split_whitespace().skip(1);
        words.next() == Some("->") && words.nth(3) == Some(&pid)
    };
    while !std::fs::read_to_string("/proc/locks")
        .unwrap()
        .lines()
        .any(waits)
    {
        std::thread::yield_now();
    }
}

/// Waits until `cowl run` has taken every signal that was sent to it.
fn until_none_is_pending(client: &Child) {
    let status = format!("/proc/{}/status", client.id());
    let pending = |line: &str| {
        let set = line.strip_prefix("ShdPnd:\t");
        set.is_some_and(|set| !set.trim_matches('0').is_empty())
    };
    while std::fs::read_to_string(&status)
        .unwrap()
        .lines()
        .any(pending)
    {
        std::thread::yield_now();
    }
}

/// What is in a directory of the store, in order.
fn names(store: &Store, directory: &str) -> Vec<String> {
    let entries = std::fs::read_dir(store.root().join(directory)).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}
