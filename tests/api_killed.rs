//! `cowl serve` killed while it serves a client: containers keep running, nothing is left half
//! done, and another server can continue.

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::process::Stdio;

use cowl_tests::busybox::{containers, layers, shop};
use cowl_tests::command::shell;
use cowl_tests::profile::{directory, processes, root, user};
use cowl_tests::server::{Server, frame, status, streams, until};
use cowl_tests::store::Store;
use rustix::process::{Signal, kill_process};

/// Kills a server and starts another.
#[track_caller]
fn another(server: Server, store: &Store) -> Server {
    assert_eq!(server.end(Signal::KILL), None);
    Server::start(store)
}

/// The rest of a connection that has ended, by a reset if its server had not read everything.
fn rest(mut client: UnixStream) -> String {
    let mut rest = String::new();
    match client.read_to_string(&mut rest) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
    }
    rest
}

fn attach_continues_over_another_server() {
    let store = shop("store");
    let server = Server::start(&store);
    let script = "while read -r line; do echo got $line; done; exit 6";
    server.ok(["run", "-di", "--name", "web", "shop", "sh", "-c", script]);
    let path = "web/attach?stream=1&stdin=1&stdout=1&stderr=1";
    let mut client = server.hijack(path);
    client.write_all(b"one\n").unwrap();
    assert_eq!(frame(&mut client), (1, b"got one\n".to_vec()));
    let server = another(server, &store);
    assert_eq!(rest(client), "");
    let mut client = server.hijack(path);
    client.write_all(b"two\n").unwrap();
    assert_eq!(frame(&mut client), (1, b"got two\n".to_vec()));
    assert_eq!(server.ok(["logs", "web"]), "got one\ngot two\n");
    server.ok(["rm", "-f", "web"]);
    assert_eq!(streams(client), [""; 3]);
}

#[test]
fn attach_continues_over_another_server_as_root() {
    root(|| attach_continues_over_another_server());
}

#[test]
fn attach_continues_over_another_server_as_user() {
    user(|| attach_continues_over_another_server());
}

/// The server holds no state of an exec: neither its configuration nor its phase nor its exit code.
#[test]
fn exec_continues_over_another_server_in_each_phase() {
    root(|| {
        let store = shop("store");
        let server = Server::start(&store);
        server.ok(["run", "-di", "--name", "web", "shop", "cat"]);
        let inspect = |server: &Server, exec: &str| {
            let told = server.request(&format!("GET /v1.51/exec/{exec}/json"), "");
            assert!(status(&told).contains("200"), "{told}");
            told
        };
        let script = "touch /begun; until [ -e /go ]; do sleep 0.01; done; echo out; exit 4";
        let body = format!(
            "{{\"Cmd\": [\"sh\", \"-c\", \"{script}\"], \"AttachStdout\": true, \"User\": \"0\"}}"
        );
        let created = server.create_exec("web", &body);
        let running = server.create_exec("web", &body);
        let start = |exec: &str| format!("POST /v1.51/exec/{exec}/start");
        let upgrade = "Connection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 2\r\n";
        let (_head, client) = server.open(&start(&running), upgrade, "{}");
        until(|| store.run(["exec", "web", "test", "-e", "/begun"]).code() == 0);

        let server = another(server, &store);
        assert_eq!(rest(client), "");
        let told = inspect(&server, &running);
        assert!(
            told.contains("\"Running\":true,\"ExitCode\":null"),
            "{told}"
        );
        assert!(told.contains("\"user\":\"0\""), "{told}");
        let ids = server.ok(["inspect", "-f", "{{json .ExecIDs}}", "web"]);
        assert_eq!(ids, format!("[\"{running}\"]\n"));
        let twice = server.request(&start(&running), "{}");
        assert!(status(&twice).contains("409"), "{twice}");
        store.ok(["exec", "web", "touch", "/go"]);
        until(|| inspect(&server, &running).contains("\"ExitCode\":4"));
        // The other server starts the exec that was only created.
        let told = inspect(&server, &created);
        assert!(
            told.contains("\"Running\":false,\"ExitCode\":null"),
            "{told}"
        );
        let (_head, client) = server.open(&start(&created), upgrade, "{}");
        assert_eq!(streams(client), ["", "out\n", ""]);
        assert!(inspect(&server, &created).contains("\"ExitCode\":4"));

        // The codes are also kept after the container's end.
        let lost = server.create_exec("web", "{\"Cmd\": [\"cat\"]}");
        let begun = server.request(&start(&lost), "{\"Detach\": true}");
        assert!(status(&begun).contains("200"), "{begun}");
        let server = another(server, &store);
        server.ok(["stop", "-t", "0", "web"]);
        for (exec, code) in [(&running, 4), (&created, 4)] {
            let told = inspect(&server, exec);
            assert!(told.contains(&format!("\"ExitCode\":{code},")), "{told}");
        }
        // And dropped at its next start.
        server.ok(["start", "web"]);
        let gone = server.request(&format!("GET /v1.51/exec/{running}/json"), "");
        assert!(status(&gone).contains("404"), "{gone}");
        server.ok(["rm", "-f", "web"]);
    });
}

#[test]
fn logs_follow_again_from_the_first_line() {
    root(|| {
        let store = shop("store");
        let server = Server::start(&store);
        let script = "echo one; while read -r line; do echo got $line; done; exit 6";
        server.ok(["run", "-di", "--name", "web", "shop", "sh", "-c", script]);
        let follow = |server: &Server| {
            let mut docker = server.docker(["logs", "-f", "web"]);
            docker
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .unwrap()
        };
        let mut first = follow(&server);
        let mut begun = [0; 4];
        let output = first.stdout.as_mut().unwrap();
        output.read_exact(&mut begun).unwrap();
        assert_eq!(&begun, b"one\n");
        let server = another(server, &store);
        assert!(!first.wait().unwrap().success());
        let second = follow(&server);
        let mut client = server.hijack("web/attach?stream=1&stdin=1&stdout=1");
        client.write_all(b"two\n").unwrap();
        assert_eq!(frame(&mut client), (1, b"got two\n".to_vec()));
        server.ok(["stop", "-t", "0", "web"]);
        let told = second.wait_with_output().unwrap();
        assert!(told.status.success());
        assert_eq!(told.stdout, b"one\ngot two\n");
    });
}

#[test]
fn wait_is_cut_off_and_another_server_gives_the_code() {
    root(|| {
        let store = shop("store");
        let server = Server::start(&store);
        let script = "trap 'exit 7' TERM; echo ready; while :; do read -r line; done";
        server.ok([
            "run", "-di", "--rm", "--name", "web", "shop", "sh", "-c", script,
        ]);
        until(|| store.ok(["logs", "web"]) == "ready\n");
        let waits = |server: &Server| {
            ["next-exit", "removed", "not-running"].map(|condition| {
                let path = format!("POST /v1.51/containers/web/wait?condition={condition}");
                let (head, client) = server.open(&path, "", "");
                assert!(status(&head).contains("200"), "{head}");
                client
            })
        };
        let cut = waits(&server);
        let server = another(server, &store);
        for client in cut {
            assert_eq!(rest(client), "");
        }
        let told = waits(&server);
        store.ok(["kill", "-s", "TERM", "web"]);
        for client in told {
            let mut client = client;
            let mut body = Vec::new();
            while !body.ends_with(b"0\r\n\r\n") {
                let mut byte = [0];
                client.read_exact(&mut byte).unwrap();
                body.extend(byte);
            }
            let body = String::from_utf8(body).unwrap();
            assert!(body.contains("{\"StatusCode\":7}"), "{body}");
        }
        until(|| containers(&store).is_empty());
    });
}

/// The killed monitor would have run the removal: the server does it for a waiting client.
#[test]
fn run_rm_ends_when_the_monitor_is_killed() {
    root(|| {
        let store = shop("store");
        let server = Server::start(&store);
        let run = ["run", "--rm", "--name", "web", "shop", "sleep", "1000"];
        let mut client = server.docker(run).spawn().unwrap();
        let running = ["inspect", "-f", "{{.State.Running}}", "web"];
        until(|| store.run(running).stdout == "true\n");
        for (pid, line) in processes() {
            if line.contains("cowl-runtime") {
                kill_process(pid, Signal::KILL).unwrap();
            }
        }
        assert_eq!(client.wait().unwrap().code(), Some(255));
        assert_eq!(containers(&store), [""; 0]);
    });
}

/// A partial upload leaves no image, and its remains do not prevent a new load.
#[test]
fn load_that_is_cut_off_leaves_nothing_and_can_be_repeated() {
    root(|| {
        let store = Store::new("store");
        let server = Server::start(&store);
        let archive = std::fs::read(layers().join("shop.image.tar")).unwrap();
        let length = format!("Content-Length: {}\r\n", archive.len());
        let mut client = UnixStream::connect(server.socket()).unwrap();
        write!(
            client,
            "POST /v1.51/images/load HTTP/1.1\r\nHost: x\r\n{length}\r\n"
        )
        .unwrap();
        // When the pipes are full, the store has read most of it.
        client.write_all(&archive[..archive.len() * 3 / 4]).unwrap();
        let server = another(server, &store);
        assert!(!rest(client).contains("Loaded image"));
        assert_eq!(store.ok(["images", "-q"]), "");
        let path = layers().join("shop.image.tar");
        let loaded = server.ok(["load", "-i", path.to_str().unwrap()]);
        assert_eq!(loaded, "Loaded image: shop:latest\n");
        store.ok(["check", "--deep"]);
        assert_eq!(
            server.ok(["run", "--rm", "shop", "echo", "works"]),
            "works\n"
        );
    });
}

/// Containers end as fast as possible while servers are killed and started.
#[test]
fn runs_complete_while_servers_are_killed() {
    root(|| {
        let store = shop("store");
        let mut server = Server::start(&store);
        let names: Vec<String> = (0..10).map(|number| format!("c{number}")).collect();
        for name in &names {
            let script = "echo $0; exit 5";
            server.ok([
                "run", "-d", "--name", name, "shop", "sh", "-c", script, name,
            ]);
            server = another(server, &store);
        }
        for name in &names {
            assert_eq!(server.ok(["wait", name]), "5\n");
            assert_eq!(server.ok(["logs", name]), format!("{name}\n"));
        }
        assert_eq!(containers(&store).len(), names.len());
        server.ok(["container", "prune", "-f"]);
        shell(&directory(), "test -z \"$(ls store/containers)\"", [""; 0]);
    });
}
