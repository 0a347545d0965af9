//! The process that acts writes the event; both clients read it.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};

use cowl_tests::busybox::{in_shop, shop};
use cowl_tests::command::run;
use cowl_tests::profile::{directory, processes, root, user};
use cowl_tests::server::{Server, until};
use cowl_tests::store::Store;
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Signal, kill_process};

/// All events as both clients show them, without times and with `ID` for the container's id.
#[track_caller]
fn shown_events(store: &Store, server: &Server, filters: &[&str], id: &str) -> Vec<String> {
    let until = next_second();
    let mut arguments = vec!["events", "--since", "1", "--until", &until];
    for filter in filters {
        arguments.extend(["--filter", filter]);
    }
    let dockers = run(server.docker(&arguments).env("TZ", "UTC")).ok();
    assert_eq!(store.ok(&arguments), dockers);
    let mut times = Vec::new();
    let events = dockers.lines().map(|line| {
        let (time, event) = line.split_once(' ').unwrap();
        times.push(time.to_owned());
        event.replace(id, "ID")
    });
    let events = events.collect();
    assert!(times.is_sorted(), "{times:?}");
    events
}

fn run_writes_dockers_events() {
    let store = shop("store");
    let server = Server::start(&store);
    let id = store.ok([
        "create",
        "--name",
        "ev",
        "--label",
        "a=b",
        "-v",
        "notes:/data",
        "shop",
        "true",
    ]);
    let id = id.trim();
    store.ok(["start", "-a", "ev"]);
    store.ok(["rename", "ev", "other"]);
    server.ok(["rm", "other"]);
    let events = shown_events(&store, &server, &["type=container", "type=volume"], id);
    // The seconds it ran depend on the machine.
    let without_duration = events
        .iter()
        .map(|event| match event.split_once("execDuration=") {
            Some((before, after)) => {
                let after = after.trim_start_matches(|digit: char| digit.is_ascii_digit());
                format!("{before}execDuration=SECONDS{after}")
            }
            None => event.clone(),
        });
    assert_eq!(
        without_duration.collect::<Vec<_>>(),
        [
            "volume create notes (driver=local)",
            "container create ID (a=b, image=shop, name=ev)",
            "container attach ID (a=b, image=shop, name=ev)",
            "volume mount notes (container=ID, destination=/data, driver=local, propagation=, read/write=true)",
            "container start ID (a=b, image=shop, name=ev)",
            "volume unmount notes (container=ID, driver=local)",
            "container die ID (a=b, execDuration=SECONDS, exitCode=0, image=shop, name=ev)",
            "container rename ID (a=b, image=shop, name=other, oldName=/ev)",
            "container destroy ID (a=b, image=shop, name=other)",
        ]
    );
    assert_eq!(
        shown_events(&store, &server, &["container=other", "event=destroy"], id),
        ["container destroy ID (a=b, image=shop, name=other)"]
    );
}

#[test]
fn run_writes_dockers_events_as_root() {
    root(|| run_writes_dockers_events());
}

#[test]
fn run_writes_dockers_events_as_user() {
    user(|| run_writes_dockers_events());
}

/// A detached container has no client: a command run by its monitor writes its end.
#[test]
fn the_end_of_a_detached_container_is_one_event() {
    root(|| {
        let store = shop("store");
        let server = Server::start(&store);
        let script = "trap 'exit 3' TERM; echo ready; while :; do sleep 0.1; done";
        let id = store.ok(["run", "-d", "--name", "long", "shop", "sh", "-c", script]);
        let id = id.trim();
        // The signal must not come before the trap is set.
        until(|| store.ok(["logs", "long"]) == "ready\n");
        store.ok(["exec", "long", "true"]);
        store.ok(["pause", "long"]);
        server.ok(["unpause", "long"]);
        server.ok(["stop", "-t", "600", "long"]);
        server.ok(["start", "long"]);
        store.ok(["rm", "-f", "long"]);
        let events = shown_events(&store, &server, &["type=container"], id);
        let words = events.iter().map(|event| {
            let mut words = event.split(' ');
            words.nth(1).unwrap().to_owned()
        });
        let mut words: Vec<String> = words.collect();
        // Each command writes its own events; the command that the monitor runs writes the end.
        words[7..10].sort();
        words[11..13].sort();
        assert_eq!(
            words,
            [
                "create",
                "start",
                "exec_create:",
                "exec_start:",
                "exec_die",
                "pause",
                "unpause",
                "die",
                "kill",
                "stop",
                "start",
                "die",
                "kill",
                "destroy",
            ]
        );
        assert!(
            events.contains(&"container kill ID (image=shop, name=long, signal=15)".to_owned())
        );
        let ends = events.iter().filter(|event| event.contains(" die "));
        let codes: Vec<_> = ends.map(|event| event.contains("exitCode=3,")).collect();
        assert_eq!(codes, [true, false], "{events:?}");
    });
}

/// The command that writes an end is stopped in the middle; a start waits for it.
#[test]
fn an_end_event_precedes_the_next_start() {
    root(|| {
        let store = shop("store");
        let host = directory().join("host");
        std::fs::create_dir(&host).unwrap();
        let script = "until [ -e /host/go ]; do sleep 0.01; done";
        let volume = format!("{}:/host", host.display());
        let run = ["run", "-d", "--name", "web", "-v", &volume];
        let id = store.ok([&run[..], &["shop", "sh", "-c", script]].concat());
        let id = id.trim();
        let held = File::open(store.root().join("events")).unwrap();
        flock(&held, FlockOperation::LockExclusive).unwrap();
        std::fs::write(host.join("go"), "").unwrap();
        let told = store.root().join("containers").join(id).join("told");
        until(|| told.exists());
        let all = processes();
        let tells = all
            .iter()
            .find(|(_, line)| line.contains("container-ended"));
        let tells = tells.unwrap().0;
        kill_process(tells, Signal::STOP).unwrap();
        let stat = format!("/proc/{}/stat", tells.as_raw_nonzero());
        until(|| std::fs::read_to_string(&stat).unwrap().contains(") T "));
        drop(held);
        let mut start = store.command(["start", "web"]).spawn().unwrap();
        let pid = start.id().to_string();
        until(|| start.try_wait().unwrap().is_some() || waits_for_a_lock(&pid));
        kill_process(tells, Signal::CONT).unwrap();
        assert!(start.wait().unwrap().success());
        store.ok(["rm", "-f", "web"]);
        let filters = ["--filter", "event=start", "--filter", "event=die"];
        let format = ["--format", "{{.Action}}", "--since", "1", "--until", "0s"];
        let events = store.ok([&["events"], &filters[..], &format].concat());
        assert_eq!(events, "start\ndie\nstart\ndie\n");
    });
}

/// Whether a process waits for a lock (proc_locks(5)).
fn waits_for_a_lock(pid: &str) -> bool {
    let locks = std::fs::read_to_string("/proc/locks").unwrap();
    locks.lines().any(|line| {
        let mut words = line.split_whitespace().skip(1);
        words.next() == Some("->") && words.nth(3) == Some(pid)
    })
}

#[test]
fn image_commands_write_dockers_events() {
    root(|| {
        let store = shop("store");
        let server = Server::start(&store);
        let id = store.ok(["image", "inspect", "-f", "{{.Id}}", "shop"]);
        let id = id.trim();
        server.ok(["tag", "shop", "newtag:v1"]);
        store.ok(["rmi", "newtag:v1"]);
        server.ok(["rmi", "shop"]);
        let events = shown_events(&store, &server, &["type=image"], id);
        let tail = &events[events.len() - 4..];
        assert_eq!(
            tail,
            [
                "image tag ID (name=newtag:v1)",
                "image untag ID (name=ID)",
                "image untag ID (name=ID)",
                "image delete ID (name=ID)",
            ]
        );
    });
}

/// A client that follows, killed at the end of its scope.
struct Follower {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
}

impl Follower {
    fn new(mut command: std::process::Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines }
    }

    fn next(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

#[test]
fn events_are_followed_as_they_happen() {
    root(|| {
        let store = Store::new("store");
        let server = Server::start(&store);
        store.ok(["volume", "create", "first"]);
        let arguments = ["events", "--since", "1", "--format", "{{.Actor.ID}}"];
        let mut followers = [
            Follower::new(server.docker(arguments)),
            Follower::new(store.command(arguments)),
        ];
        for name in ["first", "second", "third"] {
            if name != "first" {
                store.ok(["volume", "create", name]);
            }
            for follower in &mut followers {
                assert_eq!(follower.next(), format!("{name}\n"));
            }
        }
        drop(followers);
        let silent = server.ok(["events", "--filter", "type=daemon", "--until", "0s"]);
        assert_eq!(silent, "");
        let bad = server.request(
            "GET /v1.51/events?filters=%7B%22colour%22:%5B%22red%22%5D%7D",
            "",
        );
        assert!(bad.starts_with("HTTP/1.1 400"), "{bad}");
        assert!(bad.contains("invalid filter 'colour'"), "{bad}");
        let bad = server.request("GET /v1.51/events?since=soon", "");
        assert!(bad.starts_with("HTTP/1.1 400"), "{bad}");
    });
}

/// Clients print and parse times in their own time zone.
#[test]
fn times_are_in_the_callers_time_zone() {
    root(|| {
        let store = shop("store");
        let server = Server::start(&store);
        store.ok(["create", "--name", "one", "shop"]);
        let both = |zone: &str, arguments: &[&str]| {
            let dockers = run(server.docker(arguments).env("TZ", zone)).ok();
            let own = run(store.command(arguments).env("TZ", zone)).ok();
            assert_eq!(own, dockers, "{zone} {arguments:?}");
            own
        };
        let until = next_second();
        for (zone, offset) in [("UTC", "Z "), ("Asia/Kolkata", "+05:30 ")] {
            let all = both(zone, &["events", "--since", "1", "--until", &until]);
            let first = all.lines().next().unwrap();
            assert!(first.contains(offset), "{first}");
            // A time without an offset is in the caller's time zone.
            let (now, _) = first.split_once('.').unwrap();
            let since = both(zone, &["events", "--since", now, "--until", &until]);
            assert_eq!(since, all, "{zone} {now}");
            both(zone, &["ps", "-a", "--format", "{{.CreatedAt}}"]);
            both(zone, &["images", "--format", "{{.CreatedAt}}"]);
            both(zone, &["history", "--format", "{{.CreatedAt}}", "shop"]);
        }
    });
}

#[test]
fn each_member_is_where_older_clients_look_for_it() {
    root(|| {
        let store = shop("store");
        let server = Server::start(&store);
        in_shop(&store, &["--name", "one"], &["true"]).ok();
        let filters = "filters=%7B%22event%22:%5B%22die%22%5D%7D";
        let query = format!("events?since=1&until={}&{filters}", now());
        let old = server.request(&format!("GET /v1.41/{query}"), "");
        let body = old.split("\r\n\r\n").nth(1).unwrap();
        assert!(body.contains("{\"status\":\"die\",\"id\":\""), "{old}");
        assert!(
            body.contains(
                "\"from\":\"shop\",\"Type\":\"container\",\"Action\":\"die\",\"Actor\":{\"ID\":\""
            ),
            "{old}"
        );
        let new = server.request(&format!("GET /v1.53/{query}"), "");
        assert!(!new.contains("\"status\""), "{new}");
        assert!(
            new.contains("{\"Type\":\"container\",\"Action\":\"die\""),
            "{new}"
        );
    });
}

/// A time after all events, in whole seconds: Docker's client sends no fractions.
fn next_second() -> String {
    let now = std::time::SystemTime::now();
    let now = now.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    (now + 1).to_string()
}

/// A time after all events, in nanoseconds.
fn now() -> String {
    let now = std::time::SystemTime::now();
    let now = now.duration_since(std::time::UNIX_EPOCH).unwrap();
    format!("{}.{:09}", now.as_secs(), now.subsec_nanos())
}
