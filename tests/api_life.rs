//! A container's whole life cycle through `cowl serve`: the real `docker` command, and raw requests
//! for what the command cannot do.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::process::{Child, Stdio};

use cowl_tests::busybox::{containers, shop};
use cowl_tests::command::run;
use cowl_tests::profile::{root, user};
use cowl_tests::pty::InTerminal;
use cowl_tests::server::{Server, frame, status, streams, until};
use cowl_tests::store::Store;
use rustix::process::Signal;

fn docker_run_gives_the_output_and_exit_code() {
    let store = shop("store");
    let server = Server::start(&store);
    assert_eq!(
        server.ok(["run", "--rm", "shop", "echo", "hello"]),
        "hello\n"
    );
    let both = server.run([
        "run",
        "--rm",
        "shop",
        "sh",
        "-c",
        "echo out; echo err >&2; exit 7",
    ]);
    assert_eq!(both.code(), 7, "{both}");
    assert_eq!(
        (both.stdout.as_str(), both.stderr.as_str()),
        ("out\n", "err\n")
    );
    // The end of input is passed on, and later output still arrives.
    let counted = server.with_input(
        &vec![b'x'; 300_000],
        &["run", "--rm", "-i", "shop", "wc", "-c"],
    );
    assert_eq!(counted.stdout, b"300000\n");
    // No byte is lost of a container that writes and ends at once.
    let long = server.ok(["run", "--rm", "shop", "seq", "1", "100000"]);
    assert!(
        long.lines()
            .eq((1..=100_000).map(|number| number.to_string()))
    );
    assert_eq!(containers(&store), [""; 0], "--rm removes");
    for (program, code, why) in [
        (
            "nosuch",
            127,
            "exec: \"nosuch\": executable file not found in $PATH",
        ),
        ("/etc", 126, "exec: \"/etc\": permission denied"),
    ] {
        let refused = server.run(["run", "--rm", "shop", program]);
        assert_eq!(refused.code(), code, "{refused}");
        assert!(refused.stderr.contains(why), "{refused}");
        let own = store.run(["run", "--rm", "shop", program]);
        assert!(own.stderr.contains(why), "{own}");
    }
    until(|| containers(&store).is_empty());
}

#[test]
fn docker_run_gives_the_output_and_exit_code_as_root() {
    root(|| docker_run_gives_the_output_and_exit_code());
}

#[test]
fn docker_run_gives_the_output_and_exit_code_as_user() {
    user(|| docker_run_gives_the_output_and_exit_code());
}

#[test]
fn docker_run_it_has_a_terminal_and_detaches_by_its_keys() {
    root(|| {
        let store = shop("store");
        let server = Server::start(&store);
        let mut docker = server.docker(["run", "-it", "--name", "it", "shop", "sh"]);
        let mut terminal = InTerminal::start(&mut docker, 31, 97);
        // Docker 20.10 sets the size when the program already runs.
        terminal.send(b"until stty size | grep -x '31 97'; do :; done 2>/dev/null; tty\n");
        terminal.expect("\n31 97\r\n");
        terminal.expect("/dev/pts/0\r\n");
        terminal.send(b"\x10\x11");
        terminal.end();
        assert_eq!(store.ok(["ps", "--format", "{{.Names}}"]), "it\n");
        let mut docker = server.docker(["attach", "it"]);
        let mut terminal = InTerminal::start(&mut docker, 40, 90);
        terminal.send(b"echo $((6 * 7)) again\n");
        terminal.expect("42 again\r\n");
        terminal.send(b"exit 5\n");
        assert_eq!(terminal.end().0, Some(5));
        // Attach to the same terminal again.
        let mut docker = server.docker(["start", "-ai", "it"]);
        let mut terminal = InTerminal::start(&mut docker, 20, 60);
        terminal.send(b"exit 4\n");
        assert_eq!(terminal.end().0, Some(4));
    });
}

#[test]
fn verbs_answer_with_dockers_codes_and_texts_as_root() {
    root(|| verbs_answer_with_dockers_codes_and_texts());
}

fn verbs_answer_with_dockers_codes_and_texts() {
    let store = shop("store");
    let server = Server::start(&store);
    let id = server.ok([
        "create",
        "-i",
        "--name",
        "web",
        "shop",
        "sh",
        "-c",
        "trap 'exit 3' TERM; echo ready; while :; do read -r line; done",
    ]);
    let id = id.trim();
    let post = |path: &str| server.request(&format!("POST /v1.51/containers/{path}"), "");
    let refused = |path: &str, code: &str, text: &str| {
        let reply = post(path);
        assert!(status(&reply).contains(code), "{path}: {reply}");
        assert!(reply.contains(text), "{path}: {reply}");
    };
    let done = |path: &str, code: &str| {
        let reply = post(path);
        assert!(status(&reply).contains(code), "{path}: {reply}");
    };
    let stopped = format!("container {id} is not running");
    refused(
        "web/kill",
        "409",
        &format!("cannot kill container: web: {stopped}"),
    );
    refused("web/pause", "409", &stopped);
    refused("web/resize?h=1&w=1", "409", &stopped);
    // The signal must not come before the trap is set.
    let ready = |times: usize| until(|| store.ok(["logs", "web"]).lines().count() == times);
    done("web/stop", "304");
    done("web/start", "204");
    ready(1);
    done("web/start", "304");
    refused(
        "web/unpause",
        "409",
        &format!("Container {id} is not paused"),
    );
    done("web/pause", "204");
    refused(
        "web/pause",
        "409",
        &format!("Container {id} is already paused"),
    );
    refused(
        "web/start",
        "409",
        "cannot start a paused container, try unpause instead",
    );
    assert_eq!(
        server.ok(["inspect", "-f", "{{.State.Status}}", "web"]),
        "paused\n"
    );
    done("web/unpause", "204");
    let commit = "POST /v1.51/commit?container=web&repo=live";
    let unpaused = server.request(&format!("{commit}&pause=0"), "{}");
    assert!(status(&unpaused).contains("201"), "{unpaused}");
    let paused = server.request(commit, "{}");
    assert!(status(&paused).contains("201"), "{paused}");
    refused("web/kill?signal=NOSUCH", "400", "nvalid signal: NOSUCH");
    refused("web/stop?t=soon", "400", "invalid t");
    refused("web/resize?h=a&w=1", "400", "invalid h");
    done("web/stop?t=60", "204");
    assert_eq!(
        store.ok(["inspect", "-f", "{{.State.ExitCode}}", "web"]),
        "3\n"
    );
    done("web/restart", "204");
    ready(2);
    done("web/restart?t=0&signal=USR1", "204");
    ready(3);
    done("web/kill?signal=TERM", "204");
    assert_eq!(server.ok(["wait", "web"]), "3\n");
    done("web/start", "204");
    done("web/kill", "204");
    let code = store.ok(["inspect", "-f", "{{.State.ExitCode}}", "web"]);
    assert_eq!(code, "137\n");
}

/// The program ends before the stop sends its signal.
#[test]
fn restart_starts_a_container_that_ends_at_once() {
    root(|| {
        let store = shop("store");
        let server = Server::start(&store);
        let script = "trap 'exit 3' TERM; echo ready; while :; do read -r line; done";
        server.ok(["run", "-di", "--name", "web", "shop", "sh", "-c", script]);
        for starts in 1..20 {
            until(|| store.ok(["logs", "web"]).lines().count() == starts);
            let restarted = server.request("POST /v1.51/containers/web/restart?t=60", "");
            assert!(status(&restarted).contains("204"), "{restarted}");
        }
        server.ok(["rm", "-f", "web"]);
    });
}

#[test]
fn a_verb_of_an_absent_container_is_not_found() {
    root(|| {
        let store = Store::new("store");
        let server = Server::start(&store);
        for verb in [
            "start",
            "stop",
            "restart",
            "kill",
            "pause",
            "unpause",
            "resize?h=1&w=1",
            "wait",
        ] {
            let reply = server.request(&format!("POST /v1.51/containers/absent/{verb}"), "");
            assert!(status(&reply).contains("404"), "{verb}: {reply}");
            let body = "{\"message\":\"No such container: absent\"}\n";
            assert!(reply.ends_with(body), "{verb}: {reply}");
        }
    });
}

#[test]
fn a_killed_server_leaves_containers_running() {
    root(|| {
        let store = shop("store");
        let server = Server::start(&store);
        server.ok([
            "run",
            "-d",
            "--name",
            "web",
            "-i",
            "shop",
            "sh",
            "-c",
            "while read -r line; do echo got $line; done; exit 6",
        ]);
        assert_eq!(server.end(Signal::KILL), None);
        let server = Server::start(&store);
        assert_eq!(server.ok(["ps", "--format", "{{.Names}}"]), "web\n");
        // The stream ends with the program: first the output, then the exit code.
        let mut client = server.hijack("web/attach?stream=1&stdin=1&stdout=1&stderr=1");
        client.write_all(b"word\n").unwrap();
        assert_eq!(frame(&mut client), (1, b"got word\n".to_vec()));
        server.ok(["stop", "-t", "0", "web"]);
        assert_eq!(streams(client), [""; 3]);
    });
}

#[test]
fn the_server_keeps_no_zombies() {
    root(|| {
        let store = shop("store");
        let server = Server::start(&store);
        server.ok([
            "run",
            "-d",
            "-i",
            "--name",
            "web",
            "shop",
            "sh",
            "-c",
            "read -r line",
        ]);
        // A monitor and a keeper.
        until(|| server.children().len() == 2);
        server.ok(["restart", "-t", "0", "web"]);
        server.ok(["run", "--rm", "shop", "true"]);
        assert_eq!(server.run(["run", "--rm", "shop", "nosuch"]).code(), 127);
        until(|| server.children().len() == 2);
        server.ok(["rm", "-f", "web"]);
        until(|| server.children().is_empty());
    });
}

/// All clients that attached before the start get every byte, whichever client starts the
/// container.
#[test]
fn a_start_serves_the_clients_that_attached_before() {
    root(|| {
        let store = shop("store");
        let server = Server::start(&store);
        for door in ["docker", "cowl"] {
            let script = "read -r line; echo out $line; echo err >&2";
            let create = ["create", "-i", "--name", door, "shop", "sh", "-c", script];
            server.ok(create);
            let path = format!("{door}/attach?stream=1&stdin=1&stdout=1&stderr=1");
            let mut one = server.hijack(&path);
            let two = server.hijack(&format!("{door}/attach?stream=1&stdout=1"));
            one.write_all(b"early\n").unwrap();
            if door == "docker" {
                server.ok(["start", door]);
            } else {
                store.ok(["start", door]);
            }
            assert_eq!(streams(one), ["", "out early\n", "err\n"]);
            assert_eq!(streams(two), ["", "out early\n", ""]);
        }
    });
}

/// A disconnected client is noticed without any output, and its resources are freed.
#[test]
fn attach_of_a_killed_client_is_freed() {
    root(|| {
        let store = shop("store");
        let server = Server::start(&store);
        server.ok(["run", "-di", "--name", "web", "shop", "cat"]);
        server.ok(["create", "--name", "rests", "shop", "true"]);
        let before = server.descriptors();
        for name in ["web", "rests"] {
            let clients: Vec<Child> = (0..3)
                .map(|_| {
                    server
                        .docker(["wait", "web"])
                        .stdout(Stdio::null())
                        .spawn()
                        .unwrap()
                })
                .collect();
            let attached: Vec<UnixStream> = (0..3)
                .map(|_| server.hijack(&format!("{name}/attach?stream=1&stdin=1&stdout=1")))
                .collect();
            until(|| server.descriptors() >= before + 6);
            drop(attached);
            for mut client in clients {
                client.kill().unwrap();
                client.wait().unwrap();
            }
            until(|| server.descriptors() <= before);
        }
        let running = server.ok(["inspect", "-f", "{{.State.Running}}", "web"]);
        assert_eq!(running, "true\n");
        server.ok(["rm", "-f", "web"]);
    });
}

#[test]
fn attach_is_refused_as_dockerd_does() {
    root(|| {
        let store = shop("store");
        let server = Server::start(&store);
        server.ok(["create", "--name", "web", "shop", "true"]);
        for (path, code, text) in [
            (
                "absent/attach?stdout=1&stream=1",
                "404",
                "No such container: absent",
            ),
            (
                "web/attach?stream=1",
                "400",
                "Either the stdin, stdout or stderr parameter must be set",
            ),
            (
                "web/attach?stdout=1&detachKeys=ctrl-1",
                "400",
                "Invalid escape keys (ctrl-1) provided",
            ),
        ] {
            let mut client = UnixStream::connect(server.socket()).unwrap();
            write!(client, "POST /v1.51/containers/{path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n").unwrap();
            client.shutdown(std::net::Shutdown::Write).unwrap();
            let mut reply = String::new();
            client.read_to_string(&mut reply).unwrap();
            assert!(status(&reply).contains(code), "{reply}");
            assert!(reply.contains(text), "{reply}");
        }
        let running = run(&mut server.docker(["attach", "web"]));
        assert!(
            running
                .stderr
                .contains("cannot attach to a stopped container"),
            "{running}"
        );
    });
}
