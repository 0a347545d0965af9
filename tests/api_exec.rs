//! Further programs in a container, and its output, through `cowl serve`: `docker exec` and `docker
//! logs`, and raw requests for what the command cannot do.

use std::io::{Read as _, Write as _};
use std::process::Stdio;

use cowl_tests::busybox::shop;
use cowl_tests::profile::root;
use cowl_tests::pty::InTerminal;
use cowl_tests::server::{Server, frame, status, streams, until};

fn docker_exec_runs_further_programs() {
    let store = shop("store");
    let server = Server::start(&store);
    server.ok(["run", "-di", "--name", "web", "-e", "OWN=1", "shop", "cat"]);
    let script = "echo $OWN $X; pwd; echo err >&2; exit 9";
    let both = server.run(["exec", "-e", "X=2", "-w", "/tmp", "web", "sh", "-c", script]);
    assert_eq!(both.code(), 9, "{both}");
    assert_eq!(both.stdout, "1 2\n/tmp\n");
    assert_eq!(both.stderr, "err\n");
    let user = server.ok(["exec", "-u", "0:7", "web", "id", "-g"]);
    assert_eq!(user, "7\n");
    let counted = server.with_input(&vec![b'x'; 300_000], &["exec", "-i", "web", "wc", "-c"]);
    assert_eq!(counted.stdout, b"300000\n");
    for (program, code, why) in [
        ("nosuch", 127, "executable file not found in $PATH"),
        ("/etc", 126, "permission denied"),
    ] {
        let refused = server.run(["exec", "web", program]);
        assert_eq!(refused.code(), code, "{refused}");
        let text = format!(
            "OCI runtime exec failed: exec failed: unable to start container process: exec: \"{program}\": {why}\r\n"
        );
        assert_eq!(refused.stdout, text);
        assert_eq!(store.run(["exec", "web", program]).code(), code);
    }
    server.ok(["exec", "-d", "web", "touch", "/tmp/done"]);
    until(|| {
        server
            .run(["exec", "web", "test", "-e", "/tmp/done"])
            .code()
            == 0
    });
    // A program that ends with its container.
    let mut docker = server.docker(["exec", "-i", "web", "sh", "-c", "echo on; cat"]);
    let mut docker = docker
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut on = [0; 3];
    docker.stdout.as_mut().unwrap().read_exact(&mut on).unwrap();
    server.ok(["kill", "web"]);
    assert_eq!(docker.wait().unwrap().code(), Some(137));
}

#[test]
fn docker_exec_runs_further_programs_as_root() {
    root(|| docker_exec_runs_further_programs());
}

#[test]
fn docker_exec_it_has_a_terminal_of_its_own() {
    root(|| {
        let store = shop("store");
        let server = Server::start(&store);
        server.ok(["run", "-di", "--name", "web", "shop", "cat"]);
        let mut docker = server.docker(["exec", "-it", "--privileged", "web", "sh"]);
        let mut terminal = InTerminal::start(&mut docker, 30, 100);
        // Docker 20.10 sets the size when the program already runs.
        terminal.send(b"until stty size | grep -x '30 100'; do :; done 2>/dev/null\n");
        terminal.expect("\n30 100\r\n");
        terminal.send(b"grep CapEff /proc/self/status; echo\n");
        // All that the server has.
        let own = std::fs::read_to_string("/proc/self/status").unwrap();
        let own = own.lines().find(|line| line.starts_with("CapPrm")).unwrap();
        let own = own.split_whitespace().nth(1).unwrap();
        terminal.expect(&format!("CapEff:\t{own}\r\n"));
        terminal.send(b"exit 6\n");
        assert_eq!(terminal.end().0, Some(6));
        assert_eq!(server.ok(["ps", "--format", "{{.Names}}"]), "web\n");
        server.ok(["rm", "-f", "web"]);
    });
}

#[test]
fn exec_is_refused_as_dockerd_does() {
    root(|| {
        let store = shop("store");
        let server = Server::start(&store);
        let id = server.ok(["create", "-i", "--name", "web", "shop", "cat"]);
        let id = id.trim();
        let refused = |head: &str, body: &str, code: &str, text: &str| {
            let reply = server.request(head, body);
            assert!(status(&reply).contains(code), "{head}: {reply}");
            assert!(reply.contains(text), "{head}: {reply}");
        };
        let create = "POST /v1.51/containers/web/exec";
        let body = "{\"Cmd\": [\"true\"], \"User\": null}";
        refused(
            "POST /v1.51/containers/absent/exec",
            body,
            "404",
            "No such container: absent",
        );
        refused(
            create,
            body,
            "409",
            &format!("container {id} is not running"),
        );
        server.ok(["start", "web"]);
        refused(create, "{}", "400", "No exec command specified");
        let relative = "{\"Cmd\": [\"true\"], \"WorkingDir\": \"tmp\"}";
        refused(
            create,
            relative,
            "400",
            "the working directory 'tmp' is invalid",
        );
        refused(
            "GET /v1.51/exec/absent/json",
            "",
            "404",
            "No such exec instance: absent",
        );
        let exec = server.create_exec("web", body);
        let inspected = server.request(&format!("GET /v1.51/exec/{exec}/json"), "");
        assert!(
            inspected.contains("\"Running\":false,\"ExitCode\":null"),
            "{inspected}"
        );
        let start = format!("POST /v1.51/exec/{exec}/start");
        server.ok(["pause", "web"]);
        refused(
            &start,
            "{\"Detach\": true}",
            "409",
            &format!("Container {id} is paused"),
        );
        server.ok(["unpause", "web"]);
        let started = server.request(&start, "{\"Detach\": true}");
        assert!(status(&started).contains("200"), "{started}");
        until(|| {
            let inspected = server.request(&format!("GET /v1.51/exec/{exec}/json"), "");
            inspected.contains("\"ExitCode\":0")
        });
        refused(
            &start,
            "{\"Detach\": true}",
            "409",
            &format!("Error: Exec command {exec} has already run"),
        );
        server.ok(["rm", "-f", "web"]);
    });
}

/// dockerd hijacks the connection even if the client asks for no upgrade.
#[test]
fn attach_and_exec_start_without_an_upgrade_get_a_200_and_raw_bytes() {
    root(|| {
        let store = shop("store");
        let server = Server::start(&store);
        let script = "read -r line; echo got $line; read -r line; echo $line >&2";
        server.ok(["run", "-di", "--name", "web", "shop", "sh", "-c", script]);
        let is_raw = |head: &str| {
            assert!(status(head).contains("200"), "{head}");
            let kind = "content-type: application/vnd.docker.raw-stream\r\n";
            assert!(head.contains(kind), "{head}");
            assert!(!head.contains("transfer-encoding"), "{head}");
            assert!(!head.contains("content-length"), "{head}");
        };
        // The exec's input follows the request's body in the same write.
        let asked = "{\"Cmd\": [\"cat\"], \"AttachStdin\": true, \"AttachStdout\": true}";
        let exec = server.create_exec("web", asked);
        let start = format!("POST /v1.51/exec/{exec}/start");
        let (head, mut client) = server.open(&start, "Content-Length: 2\r\n", "{}early\n");
        is_raw(&head);
        client.write_all(b"late\n").unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(streams(client), ["", "early\nlate\n", ""]);

        let attach = "POST /v1.51/containers/web/attach?stream=1&stdin=1&stdout=1&stderr=1";
        let (head, mut client) = server.open(attach, "Content-Length: 0\r\n", "one\n");
        is_raw(&head);
        assert_eq!(frame(&mut client), (1, b"got one\n".to_vec()));
        client.write_all(b"two\n").unwrap();
        assert_eq!(streams(client), ["", "", "two\n"]);
    });
}

#[test]
fn exec_starts_with_the_console_size_of_its_creation() {
    root(|| {
        let store = shop("store");
        let server = Server::start(&store);
        server.ok(["run", "-di", "--name", "web", "shop", "cat"]);
        let asked = "{\"Cmd\": [\"stty\", \"size\"], \"Tty\": true, \"AttachStdout\": true, \"ConsoleSize\": [40, 120]}";
        let exec = server.create_exec("web", asked);
        let lines = "Connection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 2\r\n";
        let (_head, mut client) =
            server.open(&format!("POST /v1.51/exec/{exec}/start"), lines, "{}");
        let mut output = String::new();
        client.read_to_string(&mut output).unwrap();
        assert_eq!(output, "40 120\r\n");
        server.ok(["rm", "-f", "web"]);
    });
}

/// A client that resizes right after the 101 may be faster than the start.
#[test]
fn resize_waits_for_the_start_of_an_exec() {
    root(|| {
        let store = shop("store");
        let server = Server::start(&store);
        server.ok(["run", "-di", "--name", "web", "shop", "cat"]);
        let asked = "{\"Cmd\": [\"sh\", \"-c\", \"read -r line; stty size\"], \"Tty\": true, \"AttachStdin\": true, \"AttachStdout\": true}";
        let exec = server.create_exec("web", asked);
        let path = format!("POST /v1.51/exec/{exec}");
        let resized = std::thread::scope(|scope| {
            let resize = scope.spawn(|| server.request(&format!("{path}/resize?h=33&w=99"), ""));
            let lines = "Connection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 2\r\n";
            let (_head, mut client) = server.open(&format!("{path}/start"), lines, "{}");
            let resized = resize.join().unwrap();
            client.write_all(b"\n").unwrap();
            let mut output = String::new();
            client.read_to_string(&mut output).unwrap();
            assert!(output.contains("33 99\r\n"), "{output}");
            resized
        });
        assert!(status(&resized).contains("200"), "{resized}");
        let ended = server.request(&format!("{path}/resize?h=1&w=1"), "");
        assert!(status(&ended).contains("409"), "{ended}");
        server.ok(["rm", "-f", "web"]);
    });
}

#[test]
fn docker_logs_prints_what_cowl_logs_prints() {
    root(|| {
        let store = shop("store");
        let server = Server::start(&store);
        let script = "echo one; echo two >&2; read -r line; echo got $line; read -r line";
        server.ok(["run", "-di", "--name", "web", "shop", "sh", "-c", script]);
        until(|| store.run(["logs", "web"]).stderr == "two\n");
        let both = server.run(["logs", "web"]);
        assert_eq!(
            (both.stdout.as_str(), both.stderr.as_str()),
            ("one\n", "two\n")
        );
        let timed = server.ok(["logs", "-t", "web"]);
        assert_eq!(timed, store.ok(["logs", "-t", "web"]));
        assert!(timed.ends_with("Z one\n"), "{timed}");
        assert_eq!(server.ok(["logs", "--tail", "0", "web"]), "");
        assert_eq!(server.ok(["logs", "--details", "web"]), " one\n");
        assert_eq!(
            server.ok(["logs", "--since", "2099-01-01T00:00:00Z", "web"]),
            ""
        );
        assert_eq!(
            server.ok(["logs", "--until", "2001-01-01T00:00:00Z", "web"]),
            ""
        );
        let before = server.descriptors();
        let mut follower = server.docker(["logs", "-f", "--tail", "1", "web"]);
        let follower = follower.stdout(Stdio::piped()).stderr(Stdio::null());
        let mut follower = follower.spawn().unwrap();
        let mut gone = server.docker(["logs", "-f", "web"]);
        let mut gone = gone.stdout(Stdio::piped()).spawn().unwrap();
        gone.stdout
            .as_mut()
            .unwrap()
            .read_exact(&mut [0; 4])
            .unwrap();
        gone.kill().unwrap();
        gone.wait().unwrap();
        // Earlier output, and new output.
        let mut client = server.hijack("web/attach?logs=1&stream=1&stdin=1&stdout=1");
        assert_eq!(frame(&mut client), (1, b"one\n".to_vec()));
        client.write_all(b"word\n").unwrap();
        assert_eq!(frame(&mut client), (1, b"got word\n".to_vec()));
        client.write_all(b"end\n").unwrap();
        assert_eq!(streams(client), [""; 3]);
        let mut rest = String::new();
        follower
            .stdout
            .take()
            .unwrap()
            .read_to_string(&mut rest)
            .unwrap();
        assert_eq!(rest, "got word\n");
        assert!(follower.wait().unwrap().success());
        until(|| server.descriptors() <= before);
        let none = server.request("GET /v1.51/containers/web/logs", "");
        assert!(
            none.contains("Bad parameters: you must choose at least one stream"),
            "{none}"
        );
        server.ok([
            "create",
            "--name",
            "mute",
            "--log-driver",
            "none",
            "shop",
            "true",
        ]);
        let mute = server.run(["logs", "mute"]).refused(1);
        assert!(
            mute.contains("configured logging driver does not support reading"),
            "{mute}"
        );
    });
}

#[test]
fn docker_top_shows_the_hosts_ps_of_the_container() {
    root(|| {
        let store = shop("store");
        let server = Server::start(&store);
        server.ok([
            "create", "-i", "--name", "web", "shop", "cat", "-", "one  two",
        ]);
        let stopped = server.run(["top", "web"]).refused(1);
        assert!(stopped.contains("is not running"), "{stopped}");
        server.ok(["start", "web"]);
        // Once it answers, its arguments are visible: exec(2) sets them after it has closed the
        // pipe that tells the monitor of the start.
        let mut client = server.hijack("web/attach?stream=1&stdin=1&stdout=1");
        client.write_all(b"here\n").unwrap();
        assert_eq!(frame(&mut client), (1, b"here\n".to_vec()));
        let pid = server.ok(["inspect", "-f", "{{.State.Pid}}", "web"]);
        let pid = pid.trim();
        let shown = server.ok(["top", "web", "-o", "pid,args"]);
        let lines: Vec<Vec<&str>> = shown
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(
            lines,
            [vec!["PID", "COMMAND"], vec![pid, "cat", "-", "one", "two"]]
        );
        assert_eq!(store.ok(["top", "web", "-o", "pid,args"]), shown);
        assert_eq!(store.ok(["top", "web"]).lines().count(), 2);
        let forged = server.run(["top", "web", "-o", "ppid=PID"]).refused(1);
        assert!(
            forged.contains("specifying \"ppid=PID\" is not allowed"),
            "{forged}"
        );
        let wrong = server.run(["top", "web", "-o", "nosuch"]).refused(1);
        assert!(wrong.contains("error running ps"), "{wrong}");
        server.ok(["rm", "-f", "web"]);
    });
}

#[test]
fn docker_stats_shows_what_the_control_groups_count() {
    root(|| {
        let store = shop("store");
        let server = Server::start(&store);
        server.ok([
            "run",
            "-di",
            "-m",
            "64m",
            "--pids-limit",
            "9",
            "--name",
            "web",
            "shop",
            "cat",
        ]);
        server.ok(["create", "--name", "rests", "shop", "true"]);
        let format = "{{.Name}} {{.PIDs}} {{.MemUsage}}";
        let shown = server.ok(["stats", "--no-stream", "--format", format, "web"]);
        assert!(shown.starts_with("web 1 "), "{shown}");
        assert!(shown.ends_with(" / 64MiB\n"), "{shown}");
        let rests = server.ok(["stats", "--no-stream", "--format", format, "rests"]);
        assert_eq!(rests, "rests 0 0B / 0B\n");
        let one = server.request("GET /v1.51/containers/web/stats?stream=0&one-shot=1", "");
        assert!(
            one.contains("\"pids_stats\":{\"current\":1,\"limit\":9}"),
            "{one}"
        );
        assert!(one.contains("\"limit\":67108864,"), "{one}");
        assert!(
            one.contains("\"preread\":\"0001-01-01T00:00:00Z\""),
            "{one}"
        );
        let absent = server.request("GET /v1.51/containers/absent/stats", "");
        assert!(status(&absent).contains("404"), "{absent}");
        // The stream ends with the container.
        let mut follower = server.docker(["stats", "--format", "{{.Name}}", "web"]);
        let mut follower = follower.stdout(Stdio::null()).spawn().unwrap();
        server.ok(["rm", "-f", "web"]);
        follower.kill().unwrap();
        follower.wait().unwrap();
    });
}
