//! Containers without a client: `run -d`, `start`, `stop`, `kill`, `wait`, `logs`, `exec`,
//! `attach`, `pause`.

use std::io::{Read as _, Write as _};
use std::process::Stdio;

use rustix::process::{Pid, Signal};

use cowl_tests::busybox::{Running, containers, shop};
use cowl_tests::profile::{directory, processes, readable, root, user};
use cowl_tests::requests::keepers_and_workers;
use cowl_tests::store::Store;

/// Starts `script` in the background. /host is a directory of the host with the FIFOs `ready` and
/// `never`; returns when the script has written to the first.
fn start(store: &Store, options: &[&str], script: &str) -> String {
    let host = directory().join("host");
    std::fs::create_dir_all(&host).unwrap();
    cowl_tests::command::shell(&host, "rm -f ready never; mkfifo ready never", [""; 0]);
    let ready = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(host.join("ready"))
        .unwrap();
    let volume = format!("{}:/host", host.display());
    let script = format!("ready() {{ echo > /host/ready; }}; {script}");
    let arguments = [
        &["run", "-d", "-v", &volume],
        options,
        &["shop", "sh", "-c", &script],
    ];
    let id = store.ok(arguments.concat());
    assert!(
        readable(&ready, std::time::Duration::from_mins(2)),
        "the container does not start"
    );
    id.trim().to_owned()
}

const FOREVER: &str = "read -r line < /host/never";

fn status(store: &Store, name: &str) -> String {
    let shown = store.ok([
        "inspect",
        "-f",
        "{{.State.Status}} {{.State.ExitCode}}",
        name,
    ]);
    shown.trim().to_owned()
}

fn a_detached_container_runs_until_it_is_stopped() {
    let store = shop("store");
    let script = "trap 'echo stopping; exit 7' TERM; echo out; echo err >&2; ready; while :; do read -r line < /host/never; done";
    let id = start(&store, &["--name", "web"], script);
    assert_eq!(containers(&store), [id.as_str()]);
    assert_eq!(status(&store, "web"), "running 0");
    assert!(store.ok(["ps"]).contains(" Up "));
    // Starting a running container changes nothing.
    assert_eq!(store.ok(["start", "web"]), "web\n");
    assert_eq!(store.ok(["stop", "-t", "600", "web"]), "web\n");
    assert_eq!(status(&store, &id), "exited 7");
    assert_eq!(store.ok(["wait", "web"]), "7\n");
    assert_eq!(store.ok(["stop", "web"]), "web\n", "stopped already");
    let refusal = store.run(["kill", "web"]).refused(1);
    assert!(
        refusal.contains("cannot kill container: web: container")
            && refusal.contains("is not running"),
        "{refusal}"
    );
    let logs = store.run(["logs", "web"]);
    assert_eq!(logs.stdout, "out\nstopping\n");
    assert!(logs.stderr.starts_with("err\n"), "{logs}");
    store.ok(["rm", "web"]);
    assert_eq!(containers(&store), [""; 0]);
}

#[test]
fn a_detached_container_runs_until_it_is_stopped_as_root() {
    root(|| a_detached_container_runs_until_it_is_stopped());
}

#[test]
fn a_detached_container_runs_until_it_is_stopped_as_user() {
    user(|| a_detached_container_runs_until_it_is_stopped());
}

fn a_stopped_container_starts_again_with_its_files() {
    let store = shop("store");
    // The FIFO has a reader only at the first start.
    let script = "test -e /count || first=yes; echo again >> /count; test -z $first || ready; cat /count; exit 3";
    let id = start(&store, &["--name", "twice"], script);
    assert_eq!(store.ok(["wait", "twice"]), "3\n");
    let again = store.run(["start", "-a", "twice"]);
    assert_eq!(again.code(), 3);
    assert_eq!(again.stdout, "again\nagain\n");
    assert_eq!(store.ok(["logs", "--tail", "2", &id]), "again\nagain\n");
    assert_eq!(store.ok(["logs", "twice"]).lines().count(), 3);
    let stamped = store.ok(["logs", "-t", "-n", "1", "twice"]);
    let time = stamped.split(' ').next().unwrap();
    assert!(
        time.starts_with("20") && time.ends_with('Z') && stamped.ends_with(" again\n"),
        "{stamped}"
    );
    assert_eq!(
        store.ok(["logs", "--until", time, "twice"]).lines().count(),
        3
    );
    assert_eq!(
        store
            .ok(["logs", "--since", "0.5", "twice"])
            .lines()
            .count(),
        3
    );
    store.ok(["rm", "twice"]);
}

#[test]
fn a_stopped_container_starts_again_with_its_files_as_root() {
    root(|| a_stopped_container_starts_again_with_its_files());
}

#[test]
fn a_stopped_container_starts_again_with_its_files_as_user() {
    user(|| a_stopped_container_starts_again_with_its_files());
}

fn signals_and_rm_reach_a_detached_container() {
    let store = shop("store");
    let script = format!("trap 'exit 9' USR1; ready; while :; do {FOREVER}; done");
    start(&store, &["--name", "one"], &script);
    assert_eq!(store.ok(["kill", "-s", "USR1", "one"]), "one\n");
    assert_eq!(store.ok(["wait", "one"]), "9\n");
    store.ok(["rm", "one"]);
    start(&store, &["--name", "two"], &format!("ready; {FOREVER}"));
    store.ok(["kill", "two"]);
    assert_eq!(status(&store, "two"), "exited 137");
    store.ok(["rm", "two"]);
    // SIGTERM has no effect on a first process without a handler; SIGKILL follows at once.
    start(&store, &["--name", "three"], &format!("ready; {FOREVER}"));
    store.ok(["stop", "-t", "0", "three"]);
    assert_eq!(status(&store, "three"), "exited 137");
    store.ok(["rm", "three"]);
    let script = format!("trap 'exit 5' INT; ready; while :; do {FOREVER}; done");
    start(
        &store,
        &["--name", "four", "--stop-signal", "SIGINT"],
        &script,
    );
    store.ok(["stop", "-t", "600", "four"]);
    assert_eq!(status(&store, "four"), "exited 5");
    let refusal = store.run(["kill", "-s", "NOSUCH", "four"]).refused(1);
    assert!(refusal.contains("invalid signal: NOSUCH"), "{refusal}");
    store.ok(["rm", "four"]);
    start(&store, &["--name", "five"], &format!("ready; {FOREVER}"));
    store.ok(["rm", "-f", "five"]);
    assert_eq!(containers(&store), [""; 0]);
}

#[test]
fn signals_and_rm_reach_a_detached_container_as_root() {
    root(|| signals_and_rm_reach_a_detached_container());
}

#[test]
fn signals_and_rm_reach_a_detached_container_as_user() {
    user(|| signals_and_rm_reach_a_detached_container());
}

fn rm_removes_a_detached_container_at_its_end() {
    let store = shop("store");
    let script = format!("ready; {FOREVER}");
    start(
        &store,
        &["--rm", "--name", "brief", "-v", "/anonymous"],
        &script,
    );
    store.ok(["kill", "brief"]);
    // The monitor does it, after the client is gone.
    while std::fs::read_dir(store.root().join("containers"))
        .unwrap()
        .count()
        != 0
        || std::fs::read_dir(store.root().join("volumes"))
            .unwrap()
            .count()
            != 0
    {
        std::thread::yield_now();
    }
    // And after the client is killed.
    let killed = Running::start(&store, &["--rm"], &script);
    killed.signal(Signal::KILL);
    killed.end_by_signal();
    let id = containers(&store).remove(0);
    store.ok(["kill", &id]);
    while std::fs::read_dir(store.root().join("containers"))
        .unwrap()
        .count()
        != 0
    {
        std::thread::yield_now();
    }
}

#[test]
fn rm_removes_a_detached_container_at_its_end_as_root() {
    root(|| rm_removes_a_detached_container_at_its_end());
}

#[test]
fn rm_removes_a_detached_container_at_its_end_as_user() {
    user(|| rm_removes_a_detached_container_at_its_end());
}

fn logs_follow_until_the_end() {
    let store = shop("store");
    let script = "echo first; ready; read -r line < /host/never; echo $line";
    let id = start(&store, &[], script);
    let mut follower = store
        .command(["logs", "-f", &id])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 6];
    let output = follower.stdout.as_mut().unwrap();
    output.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"first\n");
    std::fs::write(directory().join("host/never"), "last\n").unwrap();
    let mut rest = String::new();
    output.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "last\n");
    assert!(follower.wait().unwrap().success());
    store.ok(["rm", &id]);
}

#[test]
fn logs_follow_until_the_end_as_root() {
    root(|| logs_follow_until_the_end());
}

#[test]
fn logs_follow_until_the_end_as_user() {
    user(|| logs_follow_until_the_end());
}

fn exec_joins_a_running_container() {
    let store = shop("store");
    start(
        &store,
        &["--name", "web", "-e", "OWN=1"],
        &format!("echo mine > /tmp/file; ready; {FOREVER}"),
    );
    let exec = |options: &[&str], command: &[&str]| {
        store.run([&["exec"], options, &["web"], command].concat())
    };
    assert_eq!(exec(&[], &["cat", "/tmp/file"]).ok(), "mine\n");
    assert_eq!(
        exec(
            &["-e", "MORE=2", "-w", "/srv"],
            &["sh", "-c", "echo $OWN $MORE $(pwd)"]
        )
        .ok(),
        "1 2 /srv\n"
    );
    assert_eq!(exec(&[], &["sh", "-c", "exit 6"]).code(), 6);
    assert_eq!(exec(&[], &["no-such-program"]).code(), 127);
    assert_eq!(exec(&[], &["/etc/motd"]).code(), 126);
    let both = exec(&[], &["sh", "-c", "echo out; echo err >&2"]);
    assert_eq!(
        (both.stdout.as_str(), both.stderr.as_str()),
        ("out\n", "err\n")
    );
    let mut child = store
        .command([
            "exec",
            "-i",
            "web",
            "sh",
            "-c",
            "read -r line; echo got $line",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(b"from outside\n")
        .unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        "got from outside\n"
    );
    store.ok(["kill", "web"]);
    let refusal = exec(&[], &["true"]).refused(1);
    assert!(refusal.contains("is not running"), "{refusal}");
    store.ok(["rm", "web"]);
}

#[test]
fn exec_joins_a_running_container_as_root() {
    root(|| exec_joins_a_running_container());
}

#[test]
fn exec_joins_a_running_container_as_user() {
    user(|| exec_joins_a_running_container());
}

fn attach_sees_what_comes_and_gives_the_exit_code() {
    let store = shop("store");
    let script = "ready; read -r line; echo got $line; exit 4";
    start(&store, &["--name", "web", "-i"], script);
    let mut client = store
        .command(["attach", "web"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    client.stdin.take().unwrap().write_all(b"a line\n").unwrap();
    let mut output = String::new();
    client
        .stdout
        .as_mut()
        .unwrap()
        .read_to_string(&mut output)
        .unwrap();
    assert_eq!(output, "got a line\n");
    assert_eq!(client.wait().unwrap().code(), Some(4));
    let refusal = store.run(["attach", "web"]).refused(1);
    assert!(
        refusal.contains("You cannot attach to a stopped container"),
        "{refusal}"
    );
    store.ok(["rm", "web"]);
}

#[test]
fn attach_sees_what_comes_and_gives_the_exit_code_as_root() {
    root(|| attach_sees_what_comes_and_gives_the_exit_code());
}

#[test]
fn attach_sees_what_comes_and_gives_the_exit_code_as_user() {
    user(|| attach_sees_what_comes_and_gives_the_exit_code());
}

#[test]
fn a_paused_container_is_frozen_until_it_is_unpaused() {
    root(|| {
        let store = shop("store");
        start(
            &store,
            &["--name", "web"],
            &format!("ready; {FOREVER}; exit 2"),
        );
        store.ok(["pause", "web"]);
        assert_eq!(status(&store, "web"), "paused 0");
        assert!(store.ok(["ps"]).contains("(Paused)"));
        let refusal = store.run(["pause", "web"]).refused(1);
        assert!(refusal.contains("is already paused"), "{refusal}");
        let refusal = store.run(["exec", "web", "true"]).refused(1);
        assert!(
            refusal.contains("is paused, unpause the container before exec"),
            "{refusal}"
        );
        store.ok(["unpause", "web"]);
        let refusal = store.run(["unpause", "web"]).refused(1);
        assert!(refusal.contains("is not paused"), "{refusal}");
        std::fs::write(directory().join("host/never"), "go\n").unwrap();
        assert_eq!(store.ok(["wait", "web"]), "2\n");
        store.ok(["rm", "web"]);
    });
}

/// Private memory in KiB.
fn private(pid: Pid) -> u64 {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let lines = rollup.lines().filter(|line| line.starts_with("Private_"));
    let size = |line: &str| line.split_whitespace().nth(1)?.parse::<u64>().ok();
    lines.map(|line| size(line).unwrap()).sum()
}

/// The memory of a container beside its program. Two containers run, so that code is shared.
fn an_idle_container_takes_little_memory() {
    let store = shop("store");
    for name in ["one", "two"] {
        store.ok(["run", "-d", "--name", name, "shop", "sleep", "1000"]);
    }
    let (keepers, workers) = keepers_and_workers();
    let processes = processes().into_iter();
    let monitors = processes.filter(|(_, line)| line.contains("cowl-runtime run"));
    let monitors = monitors.map(|(pid, _)| pid).collect();
    for (what, these, most) in [
        ("monitors", monitors, 819),
        ("keepers", keepers, 819),
        ("workers", workers, 1536),
    ] {
        let sizes: Vec<_> = these.into_iter().map(private).collect();
        eprintln!("{what}: {sizes:?} KiB");
        assert_eq!(sizes.len(), 2, "{what}");
        assert!(sizes.iter().all(|size| *size <= most), "{what}: {sizes:?}");
    }
    store.ok(["rm", "-f", "one", "two"]);
}

#[test]
fn an_idle_container_takes_little_memory_as_root() {
    root(|| an_idle_container_takes_little_memory());
}

#[test]
fn an_idle_container_takes_little_memory_as_user() {
    user(|| an_idle_container_takes_little_memory());
}
