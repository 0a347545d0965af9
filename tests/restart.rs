//! Restart policies: a container that ends by itself is started again, and one that is stopped is
//! not.

use std::path::PathBuf;
use std::process::Command;

use cowl_tests::busybox::{in_shop, shop};
use cowl_tests::command::{binary, fixture, program, run as run_program};
use cowl_tests::profile::{NEVER, directory, processes, readable, root, user, wait_for_lines};
use cowl_tests::server::{Server, until};
use cowl_tests::store::Store;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};

/// A file to which a container appends a line at each start of its program.
struct Starts(PathBuf);

impl Starts {
    fn new(name: &str) -> Self {
        let path = directory().join(name);
        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join("started"), "").unwrap();
        Self(path)
    }

    /// The option that shows the file to a container.
    fn volume(&self) -> String {
        format!("{}:/starts", self.0.display())
    }

    /// How often the program has been started.
    fn count(&self) -> usize {
        let text = std::fs::read_to_string(self.0.join("started")).unwrap();
        text.lines().count()
    }

    /// Waits until the program has been started `count` times.
    fn wait(&self, times: usize) {
        wait_for_lines(&self.0.join("started"), times);
    }
}

/// Runs a container in the background whose program first runs `first`, then reports its start,
/// then runs `then`.
fn run_prepared(store: &Store, name: &str, policy: &str, first: &str, then: &str) -> Starts {
    let starts = Starts::new(name);
    let script = format!("{first}echo started >>/starts/started; {then}");
    let options = ["-d", "--name", name, "--restart", policy, "-v"];
    let volume = starts.volume();
    let options = [&options[..], &[&volume]].concat();
    in_shop(store, &options, &["sh", "-c", &script]).ok();
    starts
}

/// [`run_prepared`] without `first`.
fn run(store: &Store, name: &str, policy: &str, then: &str) -> Starts {
    run_prepared(store, name, policy, "", then)
}

fn inspected(store: &Store, name: &str, template: &str) -> String {
    let text = store.ok(["inspect", "--format", template, name]);
    text.trim().to_owned()
}

const STATE: &str = "{{.State.Status}} {{.State.ExitCode}} {{.RestartCount}}";

fn restart_on_failure_ends_after_its_retries() {
    let store = shop("store");
    let starts = run(&store, "fails", "on-failure:2", "exit 3");
    starts.wait(3);
    store.ok(["wait", "fails"]);
    assert_eq!(starts.count(), 3);
    assert_eq!(inspected(&store, "fails", STATE), "exited 3 2");

    let starts = run(&store, "succeeds", "on-failure", "exit 0");
    starts.wait(1);
    store.ok(["wait", "succeeds"]);
    assert_eq!(starts.count(), 1);
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
    starts.wait(4);
    // Whether it runs at this moment or waits for its next start.
    let refusal = store.run(["rm", "again"]).refused(1);
    assert!(
        refusal.contains("stop the container before removing or force remove"),
        "{refusal}"
    );
    assert!(store.ok(["ps"]).contains("again"));
    store.ok(["stop", "again"]);
    assert_eq!(inspected(&store, "again", "{{.State.Status}}"), "exited");
    let before = starts.count();
    store.ok(["start", "again"]);
    starts.wait(before + 1);
    store.ok(["rm", "-f", "again"]);

    let trap = "trap 'exit 4' USR1; ";
    let starts = run_prepared(
        &store,
        "sleeps",
        "unless-stopped",
        trap,
        "sleep 1000 & wait",
    );
    starts.wait(1);
    store.ok(["kill", "sleeps"]);
    store.ok(["wait", "sleeps"]);
    assert_eq!(inspected(&store, "sleeps", STATE), "exited 137 0");
    // A signal that is not a stop.
    store.ok(["start", "sleeps"]);
    starts.wait(2);
    store.ok(["kill", "-s", "USR1", "sleeps"]);
    starts.wait(3);
    assert_eq!(inspected(&store, "sleeps", STATE), "running 0 1");
    store.ok(["restart", "-t", "0", "sleeps"]);
    starts.wait(4);
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

/// Kills the command that waits for a container's next start, once there is one, and waits until it
/// is dead: while it dies it still holds its lock.
fn kill_waiting_command(id: &str) {
    until(|| {
        let processes = processes();
        let found = processes
            .iter()
            .find(|(_, line)| line.contains("container-ended") && line.contains(id));
        // It may have ended since.
        let pidfd = found.and_then(|(pid, _)| pidfd_open(*pid, PidfdFlags::empty()).ok());
        pidfd.is_some_and(|pidfd| {
            let killed = pidfd_send_signal(&pidfd, Signal::KILL).is_ok();
            assert!(readable(&pidfd, NEVER));
            killed
        })
    });
}

#[test]
fn ps_resumes_a_restart_whose_command_was_killed() {
    root(|| {
        let store = shop("store");
        let starts = run(&store, "again", "always", "exit 3");
        let id = inspected(&store, "again", "{{.Id}}");
        // The command may start it at that moment. Each wait is twice as long as the last.
        until(|| {
            kill_waiting_command(&id);
            store.ok(["ps", "--format", "{{.State}}"]) == "restarting\n"
        });
        let before = starts.count();
        starts.wait(before + 1);
        store.ok(["rm", "-f", "again"]);
    });
}

/// The unit of `cowl serve` for systemd.
fn unit() -> PathBuf {
    fixture("../src/cowl/cowl.service")
}

/// Starts a server with the command line of its unit.
fn serve_by_unit(store: &Store) -> Server {
    let unit = std::fs::read_to_string(unit()).unwrap();
    let line = unit
        .lines()
        .find_map(|line| line.strip_prefix("ExecStart="));
    let mut words = line.unwrap().split(' ');
    assert_eq!(words.next(), Some("/usr/local/bin/cowl"));
    let mut command = Command::new(binary("cowl"));
    command.args(words).env("COWL_ROOT", store.root());
    Server::start_by(command)
}

/// As after a crash of the host: the monitors are killed, and their containers with them.
fn serve_starts_containers_by_their_policies(serve: impl Fn(&Store) -> Server) {
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
        starts.wait(1);
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
    let server = serve(&store);
    for (name, starts) in &all {
        let runs = name.starts_with("always") || *name == "unless-stopped";
        if runs {
            starts.wait(2);
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
    // They keep running without it.
    assert_eq!(server.end(Signal::TERM), Some(0));
    assert_eq!(inspected(&store, "always", "{{.State.Status}}"), "running");
    for (name, _starts) in &all {
        store.ok(["rm", "-f", name]);
    }
}

#[test]
fn serve_starts_containers_by_their_policies_as_root() {
    root(|| serve_starts_containers_by_their_policies(serve_by_unit));
}

#[test]
fn serve_starts_containers_by_their_policies_as_user() {
    user(|| serve_starts_containers_by_their_policies(Server::start));
}

#[test]
fn systemd_accepts_the_unit_of_serve() {
    root(|| {
        let unit = std::fs::read_to_string(unit()).unwrap();
        let cowl = binary("cowl").canonicalize().unwrap();
        let unit = unit.replace("/usr/local/bin/cowl", cowl.to_str().unwrap());
        let file = directory().join("cowl.service");
        let verified = |unit: &str| {
            std::fs::write(&file, unit).unwrap();
            let verify = ["verify", file.to_str().unwrap()];
            run_program(&mut program("systemd-analyze", verify))
        };
        let right = verified(&unit);
        assert_eq!((right.code(), right.stderr.as_str()), (0, ""), "{right}");
        // It does report errors.
        let wrong = verified(&unit.replace("KillMode=process", "KillMode=nothing"));
        assert!(wrong.stderr.contains("kill mode"), "{wrong}");
    });
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
