//! `docker run --rm` and clients that attach or wait, interrupted by another command, an upgrade or
//! a restart.

use std::process::Command;

use cowl_tests::busybox::{containers, shop};
use cowl_tests::command::{binary, shell};
use cowl_tests::profile::{directory, root};
use cowl_tests::server::{Server, status, streams, until};
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Signal, kill_process};

/// The server is stopped while the container ends and is removed, so that it sees neither.
#[test]
fn wait_removed_gives_the_code_of_a_container_removed_between_two_checks() {
    root(|| {
        let store = shop("store");
        let server = Server::start(&store);
        let script = "trap 'exit 9' TERM; echo ready; while :; do read -r line; done";
        server.ok([
            "run", "-di", "--rm", "--name", "web", "shop", "sh", "-c", script,
        ]);
        until(|| store.ok(["logs", "web"]) == "ready\n");
        let waits = ["removed", "next-exit", "not-running"].map(|condition| {
            let path = format!("POST /v1.51/containers/web/wait?condition={condition}");
            let (head, client) = server.open(&path, "Connection: close\r\n", "");
            assert!(status(&head).contains("200"), "{head}");
            client
        });
        kill_process(server.pid(), Signal::STOP).unwrap();
        store.ok(["kill", "-s", "TERM", "web"]);
        until(|| containers(&store).is_empty());
        kill_process(server.pid(), Signal::CONT).unwrap();
        for mut client in waits {
            let mut told = String::new();
            std::io::Read::read_to_string(&mut client, &mut told).unwrap();
            assert!(told.contains("{\"StatusCode\":9}"), "{told}");
        }
    });
}

/// At the end the container is removed by the program file that is installed then.
#[test]
fn run_rm_removes_after_the_servers_program_was_replaced() {
    root(|| {
        let store = shop("store");
        let bin = directory().join("bin");
        shell(&directory(), "cp -r \"$1\" bin", [binary("")]);
        let mut serve = Command::new(bin.join("cowl"));
        serve.arg("--root").arg(store.root()).arg("serve");
        let server = Server::start_by(serve);
        shell(&bin, "cp cowl new; mv new cowl", [""; 0]);
        assert_eq!(server.ok(["run", "--rm", "shop", "echo", "out"]), "out\n");
        until(|| containers(&store).is_empty());
    });
}

/// A process forked during a creation holds its lock for a moment.
#[test]
fn attach_waits_for_the_start_of_a_container_whose_lock_is_held() {
    root(|| {
        let store = shop("store");
        let server = Server::start(&store);
        let id = server.ok(["create", "shop", "echo", "out"]);
        let path = store.root().join("containers").join(id.trim());
        let held = std::fs::File::open(path).unwrap();
        flock(&held, FlockOperation::LockExclusive).unwrap();
        let path = format!("{}/attach?stream=1&stdout=1&stderr=1", id.trim());
        let client = server.hijack(&path);
        drop(held);
        server.ok(["start", id.trim()]);
        assert_eq!(streams(client), ["", "out\n", ""]);
    });
}

/// Each run ends with another code, when the test allows it.
#[test]
fn wait_next_exit_does_not_take_the_end_before_a_restart() {
    root(|| {
        let store = shop("store");
        let server = Server::start(&store);
        let host = directory().join("host");
        std::fs::create_dir(&host).unwrap();
        let script = "n=$(($(cat /n 2>/dev/null) + 1)); echo $n > /n; echo >> /host/starts; \
                      until [ -e /host/$n ]; do sleep 0.01; done; exit $n";
        let volume = format!("{}:/host", host.display());
        let run = ["run", "-d", "--name", "web", "--restart", "always", "-v"];
        server.ok([&run[..], &[&volume, "shop", "sh", "-c", script]].concat());
        let end = |code: usize| std::fs::write(host.join(code.to_string()), "").unwrap();
        let has_restarted = |code: usize| {
            let starts = std::fs::read_to_string(host.join("starts")).unwrap_or_default();
            starts.lines().count() > code
        };
        let format = "{{.State.Status}} {{.State.ExitCode}}";
        let is_between = |code: usize| {
            let state = store.ok(["inspect", "-f", format, "web"]);
            state == format!("restarting {code}\n")
        };
        let mut code = 1;
        end(code);
        // Repeat until a wait has started between an end and its restart; the delay doubles each
        // time.
        loop {
            until(|| is_between(code) || has_restarted(code));
            let path = "POST /v1.51/containers/web/wait?condition=next-exit";
            let (head, mut client) = server.open(path, "Connection: close\r\n", "");
            assert!(status(&head).contains("200"), "{head}");
            let between = is_between(code);
            code += 1;
            end(code);
            let mut told = String::new();
            std::io::Read::read_to_string(&mut client, &mut told).unwrap();
            let expected = format!("{{\"StatusCode\":{code}}}");
            assert!(told.contains(&expected), "{expected}: {told}");
            if between {
                break;
            }
        }
        server.ok(["rm", "-f", "web"]);
    });
}
