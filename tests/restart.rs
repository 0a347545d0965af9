//! Restart policies: a container that ends by itself is started again, and one that is stopped is
//! not.

use std::path::PathBuf;

use cowl_tests::busybox::{in_shop, shop};
use cowl_tests::profile::{directory, processes, root, user};
use cowl_tests::server::Server;
use cowl_tests::store::Store;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::{Pid, Signal, kill_process};

/// A FIFO on which a container says that its program runs.
struct Starts(PathBuf);

impl Starts {
    fn new(name: &str) -> Self {
        let path = directory().join(name);
        std::fs::create_dir(&path).unwrap();
        let mode = Mode::from_raw_mode(0o666);
        mknodat(CWD, path.join("started"), FileType::Fifo, mode, 0).unwrap();
        Self(path)
    }

    /// The option that shows the FIFO to a container.
    fn volume(&self) -> String {
        format!("{}:/starts", self.0.display())
    }

    /// Waits until the program runs.
    fn wait(&self) {
        let text = std::fs::read_to_string(self.0.join("started")).unwrap();
        assert_eq!(text, "started\n");
    }
}

/// Runs a container in the background whose program reports its start and then goes on so.
fn run(store: &Store, name: &str, policy: &str, then: &str) -> Starts {
    let starts = Starts::new(name);
    let script = format!("echo started >/starts/started; {then}");
    let options = ["-d", "--name", name, "--restart", policy, "-v"];
    let volume = starts.volume();
    let options = [&options[..], &[&volume]].concat();
    in_shop(store, &options, &["sh", "-c", &script]).ok();
    starts
}

fn inspected(store: &Store, name: &str, template: &str) -> String {
    let text = store.ok(["inspect", "--format", template, name]);
    text.trim().to_owned()
}

const STATE: &str = "{{.State.Status}} {{.State.ExitCode}} {{.RestartCount}}";

fn restart_on_failure_ends_after_its_retries() {
    let store = shop("store");
    let starts = run(&store, "fails", "on-failure:2", "exit 3");
    for _start in 0..3 {
        starts.wait();
    }
    store.ok(["wait", "fails"]);
    assert_eq!(inspected(&store, "fails", STATE), "exited 3 2");

    let starts = run(&store, "succeeds", "on-failure", "exit 0");
    starts.wait();
    store.ok(["wait", "succeeds"]);
    assert_eq!(inspected(&store, "succeeds", STATE), "exited 0 0");
    store.ok(["rm", "fails", "succeeds"]);
}

#[test]
fn restart_on_failure_ends_after_its_retries_as_root() {
    root(|| restart_on_failure_ends_after_its_retries());
}

#[test]
fn restart_on_failure_ends_after_its_retries_as_user() {
    user(|| restart_on_failure_ends_after_its_retries());
}

fn stop_and_kill_end_restart_always() {
    let store = shop("store");
    let starts = run(&store, "again", "always", "exit 3");
    for _start in 0..4 {
        starts.wait();
    }
    // Whether it runs at this moment or waits for its next start.
    let refusal = store.run(["rm", "again"]).refused(1);
    assert!(
        refusal.contains("stop the container before removing or force remove"),
        "{refusal}"
    );
    assert!(store.ok(["ps"]).contains("again"));
    store.ok(["stop", "again"]);
    assert_eq!(inspected(&store, "again", "{{.State.Status}}"), "exited");
    store.ok(["start", "again"]);
    starts.wait();
    store.ok(["rm", "-f", "again"]);

    let starts = run(
        &store,
        "sleeps",
        "unless-stopped",
        "trap 'exit 4' USR1; sleep 1000 & wait",
    );
    starts.wait();
    store.ok(["kill", "sleeps"]);
    store.ok(["wait", "sleeps"]);
    assert_eq!(inspected(&store, "sleeps", STATE), "exited 137 0");
    // A signal that asks for something else.
    store.ok(["start", "sleeps"]);
    starts.wait();
    store.ok(["kill", "-s", "USR1", "sleeps"]);
    starts.wait();
    assert_eq!(inspected(&store, "sleeps", STATE), "running 0 1");
    store.ok(["restart", "-t", "0", "sleeps"]);
    starts.wait();
    assert_eq!(inspected(&store, "sleeps", STATE), "running 0 0");
    store.ok(["rm", "-f", "sleeps"]);
}

#[test]
fn stop_and_kill_end_restart_always_as_root() {
    root(|| stop_and_kill_end_restart_always());
}

#[test]
fn stop_and_kill_end_restart_always_as_user() {
    user(|| stop_and_kill_end_restart_always());
}

/// The command that waits for a container's next start.
fn waiting_command(id: &str) -> Pid {
    loop {
        let processes = processes();
        let found = processes
            .iter()
            .find(|(_, line)| line.contains("container-ended") && line.contains(id));
        if let Some((pid, _)) = found {
            return *pid;
        }
        std::thread::yield_now();
    }
}

#[test]
fn ps_resumes_a_restart_whose_command_was_killed() {
    root(|| {
        let store = shop("store");
        let starts = run(&store, "again", "always", "exit 3");
        let id = inspected(&store, "again", "{{.Id}}");
        // The next one comes after 1.6 s.
        for _start in 0..5 {
            starts.wait();
        }
        kill_process(waiting_command(&id), Signal::KILL).unwrap();
        let listed = store.ok(["ps", "--format", "{{.State}}"]);
        assert_eq!(listed, "restarting\n");
        starts.wait();
        store.ok(["rm", "-f", "again"]);
    });
}

/// As after a crash of the host: the monitors are killed, and their containers with them.
fn serve_starts_what_is_to_run() {
    let store = shop("store");
    let all = [
        ("always", "always"),
        ("always-stopped", "always"),
        ("unless-stopped", "unless-stopped"),
        ("stopped", "unless-stopped"),
        ("fails", "on-failure"),
        ("none", "no"),
    ]
    .map(|(name, policy)| (name, run(&store, name, policy, "exec sleep 1000")));
    for (name, starts) in &all {
        starts.wait();
        if name.ends_with("stopped") && *name != "unless-stopped" {
            store.ok(["stop", "-t", "0", name]);
            continue;
        }
        let id = inspected(&store, name, "{{.Id}}");
        let path = store
            .root()
            .join("containers")
            .join(id)
            .join("running.json");
        let record = std::fs::read_to_string(path).unwrap();
        let (_, rest) = record.split_once("\"monitor\":").unwrap();
        let monitor = rest.split(',').next().unwrap().parse().unwrap();
        kill_process(Pid::from_raw(monitor).unwrap(), Signal::KILL).unwrap();
        store.ok(["wait", name]);
    }
    let server = Server::start(&store);
    for (name, starts) in &all {
        let runs = name.starts_with("always") || *name == "unless-stopped";
        if runs {
            starts.wait();
        }
    }
    for (name, _starts) in &all {
        let runs = name.starts_with("always") || *name == "unless-stopped";
        let expected = if runs { "running" } else { "exited" };
        assert_eq!(
            inspected(&store, name, "{{.State.Status}}"),
            expected,
            "{name}"
        );
    }
    assert_eq!(server.end(Signal::TERM), Some(0));
    for (name, _starts) in &all {
        store.ok(["rm", "-f", name]);
    }
}

#[test]
fn serve_starts_what_is_to_run_as_root() {
    root(|| serve_starts_what_is_to_run());
}

#[test]
fn serve_starts_what_is_to_run_as_user() {
    user(|| serve_starts_what_is_to_run());
}

#[test]
fn restart_refuses_what_docker_refuses() {
    user(|| {
        let store = shop("store");
        for (options, text) in [
            (
                &["--restart", "sometimes"][..],
                "unknown policy 'sometimes'",
            ),
            (
                &["--restart", "always:3"],
                "can only be used with 'on-failure'",
            ),
            (
                &["--restart", "on-failure:x"],
                "maximum retry count must be an integer",
            ),
            (
                &["--restart", "on-failure:-1"],
                "maximum retry count cannot be negative",
            ),
            (&["--restart", ":3"], "no policy provided before colon"),
            (
                &["--rm", "--restart", "always"],
                "cannot specify both --restart and --rm",
            ),
        ] {
            let refusal = in_shop(&store, options, &["true"]).refused(125);
            assert!(refusal.contains(text), "{options:?}: {refusal}");
        }
        assert_eq!(cowl_tests::busybox::containers(&store), [""; 0]);
    });
}
