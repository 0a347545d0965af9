//! Many clients run many containers while processes of cowl are killed at random: existing
//! containers stay, and removed ones leave nothing. Every other client is the real `docker`, over a
//! server that is not killed and leaks nothing.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use cowl_tests::busybox::{cgroups, containers, shop};
use cowl_tests::profile::{processes, root, user};
use cowl_tests::random::Random;
use cowl_tests::sample::{self, Point};
use cowl_tests::server::{Server, until};
use cowl_tests::store::Store;
use rustix::process::{Pid, Signal, kill_process};

const CLIENTS: usize = 20;
/// Containers of each client, before the scale.
const ROUNDS: u64 = 2;

/// The clients' shared state.
#[derive(Default)]
struct Known {
    /// Containers that a command reported as created, and that no command was asked to remove.
    kept: Mutex<BTreeSet<String>>,
    killed: AtomicUsize,
    done: AtomicBool,
}

/// Of one client: `cowl`, or `docker` over a server.
enum Door<'a> {
    Cowl(&'a Store),
    Docker(&'a Server),
}

/// Runs a command that may be killed, or fail because another was. Returns its output, if it
/// succeeded.
fn attempt(door: &Door<'_>, arguments: &[&str]) -> Option<String> {
    let mut command = match door {
        Door::Cowl(store) => store.command(arguments),
        Door::Docker(server) => server.docker(arguments),
    };
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!said.contains("panicked"), "{arguments:?}: {said}");
    output
        .status
        .success()
        .then(|| String::from_utf8(output.stdout).unwrap())
}

/// One client: containers with names, volumes and policies of its own.
fn client(door: &Door<'_>, known: &Known, me: usize, mut random: Random) {
    for round in 0..ROUNDS * sample::scale() {
        let name = format!("c-{me}-{round}");
        let volume = format!("v-{me}:/data");
        let policy = random.pick(&["no", "always", "on-failure:2"]);
        let program = random.pick(&["exec sleep 1000", "exit 3", "echo x; sleep 0.1"]);
        let options = ["--name", &name, "-v", &volume, "--restart", policy];
        let create = [&["create"][..], &options, &["shop", "sh", "-c", program]].concat();
        if let Some(id) = attempt(door, &create) {
            known.kept.lock().unwrap().insert(id.trim().to_owned());
        }
        for _step in 0..4 {
            let command: &[&str] = match random.below(8) {
                0..=2 => &["start"],
                3 => &["stop", "-t", "0"],
                4 => &["restart", "-t", "0"],
                5 => &["logs"],
                6 => &["inspect"],
                _ => &["kill"],
            };
            attempt(door, &[command, &[&name]].concat());
        }
        attempt(door, &["run", "--rm", "shop", "true"]);
        if random.below(2) == 0 {
            // It may be removed although the command fails.
            if let Some(id) = attempt(door, &["inspect", "--format", "{{.Id}}", &name]) {
                known.kept.lock().unwrap().remove(id.trim());
                attempt(door, &["rm", "-f", &name]);
            }
        }
    }
}

/// Kills processes of cowl, except the server, one after the other until the clients are done.
fn killer(known: &Known, spared: Pid, mut random: Random) {
    while !known.done.load(Ordering::Relaxed) {
        let mut ours = processes();
        ours.retain(|(pid, line)| {
            *pid != spared && (line.starts_with("cowl") || line.contains("/cowl"))
        });
        if ours.is_empty() {
            std::thread::yield_now();
            continue;
        }
        let (pid, _) = random.pick(&ours);
        if kill_process(pid, Signal::KILL).is_ok() {
            known.killed.fetch_add(1, Ordering::Relaxed);
        }
        // Number of new processes between two kills, so that most commands complete.
        let end = newest() + 5 + i32::from(random.byte() % 60);
        while newest() < end && !known.done.load(Ordering::Relaxed) {
            std::thread::yield_now();
        }
    }
}

/// The highest pid; pids are allocated in order.
fn newest() -> i32 {
    let pids = processes();
    let pids = pids.iter().map(|(pid, _)| pid.as_raw_nonzero().get());
    pids.max().unwrap_or_default()
}

fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    let name = |entry: std::io::Result<std::fs::DirEntry>| {
        entry.unwrap().file_name().into_string().unwrap()
    };
    entries.map(name).collect()
}

/// The mount points of our namespace.
fn mounts() -> Vec<String> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let point = |line: &str| line.split(' ').nth(4).unwrap().to_owned();
    table.lines().map(point).collect()
}

fn random_kills_lose_no_container_and_leave_nothing(point: &Point) {
    let store = shop("store");
    let server = Server::start(&store);
    // Descriptors that the server opens at its first container stay open.
    server.ok(["run", "--rm", "shop", "true"]);
    let (mounted, descriptors) = (mounts(), server.descriptors());
    let before = names(&store.root().join("pins"));
    let known = Known::default();
    std::thread::scope(|scope| {
        scope.spawn(|| killer(&known, server.pid(), Random::new(point.number())));
        let clients: Vec<_> = (0..CLIENTS)
            .map(|me| {
                let random = Random::new(point.number() * 1000 + u64::try_from(me).unwrap());
                let door = match me % 2 {
                    0 => Door::Cowl(&store),
                    _ => Door::Docker(&server),
                };
                let known = &known;
                scope.spawn(move || client(&door, known, me, random))
            })
            .collect();
        let ended: Vec<_> = clients
            .into_iter()
            .map(std::thread::ScopedJoinHandle::join)
            .collect();
        known.done.store(true, Ordering::Relaxed);
        for client in ended {
            client.unwrap();
        }
    });
    eprintln!("{} processes killed", known.killed.load(Ordering::Relaxed));
    let left = containers(&store);
    for id in known.kept.lock().unwrap().iter() {
        assert!(left.contains(id), "{id} is lost");
    }
    for id in &left {
        store.ok(["rm", "-f", id]);
        assert_eq!(cgroups(id), "", "{id}");
    }
    assert_eq!(containers(&store), [""; 0]);
    store.ok(["volume", "ls"]);
    for directory in ["containers", "names"] {
        let left = names(&store.root().join(directory));
        assert_eq!(left, [""; 0], "{directory}");
    }
    let mut after = names(&store.root().join("pins"));
    after.retain(|name| !before.contains(name));
    assert_eq!(after, [""; 0], "pins");
    assert_eq!(mounts(), mounted);
    // It closes a connection when it has seen its end.
    until(|| server.descriptors() <= descriptors);
    // The image is whole.
    store.ok(["check"]);
    store.ok(["run", "--rm", "shop", "true"]);
}

#[test]
fn random_kills_lose_no_container_and_leave_nothing_as_root() {
    for point in sample::seeds(1).take(1) {
        root(|| random_kills_lose_no_container_and_leave_nothing(&point));
    }
}

#[test]
fn random_kills_lose_no_container_and_leave_nothing_as_user() {
    for point in sample::seeds(1).take(1) {
        user(|| random_kills_lose_no_container_and_leave_nothing(&point));
    }
}
