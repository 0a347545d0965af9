//! A hundred concurrent clients of one `cowl serve`, each over connections of its own: all are
//! answered, nothing is lost and none blocks for ever.

use std::io::{Read as _, Write as _};
use std::sync::Barrier;

use cowl_tests::busybox::{containers, shop};
use cowl_tests::profile::root;
use cowl_tests::server::{Server, status, streams, until};

const UPGRADE: &str = "Connection: Upgrade\r\nUpgrade: tcp\r\n";
/// Clients of each kind.
const EACH: usize = 20;

/// A client's reply must have this status; returns the reply.
#[track_caller]
fn asked(server: &Server, request: &str, body: &str, code: &str) -> String {
    let reply = server.request(request, body);
    assert!(status(&reply).contains(code), "{request}: {reply}");
    reply
}

/// A container from its creation to its removal.
fn life(server: &Server, number: usize) {
    let script = format!("seq {number} 1000; exit {number}");
    let body = format!("{{\"Image\": \"shop\", \"Cmd\": [\"sh\", \"-c\", \"{script}\"]}}");
    let name = format!("life{number}");
    let create = format!("POST /v1.51/containers/create?name={name}");
    asked(server, &create, &body, "201");
    let client = server.hijack(&format!("{name}/attach?stream=1&stdout=1&stderr=1"));
    let verb = |verb: &str| format!("POST /v1.51/containers/{name}/{verb}");
    asked(server, &verb("start"), "", "204");
    let expected = lines_from(number);
    assert_eq!(streams(client), ["", &expected, ""], "{name}");
    let waited = asked(server, &verb("wait"), "", "200");
    let code = format!("{{\"StatusCode\":{number}}}");
    assert!(waited.contains(&code), "{name}: {waited}");
    let remove = format!("DELETE /v1.51/containers/{name}");
    asked(server, &remove, "", "204");
}

/// What `seq NUMBER 1000` prints.
fn lines_from(number: usize) -> String {
    let lines = (number..=1000).map(|line| line.to_string());
    lines.collect::<Vec<_>>().join("\n") + "\n"
}

/// Runs a program in the shared container.
fn exec(server: &Server, number: usize) {
    let script = format!("seq {number} 1000; exit {number}");
    let body = format!("{{\"Cmd\": [\"sh\", \"-c\", \"{script}\"], \"AttachStdout\": true}}");
    let id = server.create_exec("web", &body);
    let lines = format!("{UPGRADE}Content-Length: 2\r\n");
    let (_head, client) = server.open(&format!("POST /v1.51/exec/{id}/start"), &lines, "{}");
    let expected = lines_from(number);
    assert_eq!(streams(client), ["", &expected, ""], "exec {number}");
    let told = asked(server, &format!("GET /v1.51/exec/{id}/json"), "", "200");
    let code = format!("\"ExitCode\":{number},");
    assert!(told.contains(&code), "exec {number}: {told}");
}

#[test]
fn a_hundred_clients_at_once_are_all_served() {
    root(|| {
        let store = shop("store");
        let server = Server::start(&store);
        server.ok(["run", "-di", "--name", "web", "shop", "cat"]);
        let before = server.descriptors();
        // Clients that stay until the shared container ends have started when this is passed.
        let begun = Barrier::new(3 * EACH + 1);
        std::thread::scope(|scope| {
            let (server, begun) = (&server, &begun);
            let short: Vec<_> = (0..EACH)
                .flat_map(|number| {
                    let life = scope.spawn(move || life(server, number));
                    [life, scope.spawn(move || exec(server, number))]
                })
                .collect();
            let staying: Vec<_> = (0..EACH)
                .flat_map(|_number| {
                    let attached = scope.spawn(move || {
                        let client = server.hijack("web/attach?stream=1&stdout=1");
                        begun.wait();
                        assert_eq!(streams(client), ["", "to all\n", ""]);
                    });
                    let of_reply = |request: &'static str, expected: &'static str| {
                        scope.spawn(move || {
                            let close = "Connection: close\r\n";
                            let (head, mut client) = server.open(request, close, "");
                            assert!(status(&head).contains("200"), "{head}");
                            begun.wait();
                            let mut body = Vec::new();
                            client.read_to_end(&mut body).unwrap();
                            let body = String::from_utf8_lossy(&body);
                            assert!(body.contains(expected), "{request}: {body}");
                        })
                    };
                    let logs = "GET /v1.51/containers/web/logs?stdout=1&follow=1";
                    let wait = "POST /v1.51/containers/web/wait?condition=next-exit";
                    let code = "{\"StatusCode\":137}";
                    [attached, of_reply(logs, "to all\n"), of_reply(wait, code)]
                })
                .collect();
            for client in short {
                client.join().unwrap();
            }
            begun.wait();
            let mut writer = server.hijack("web/attach?stream=1&stdin=1&stdout=1");
            writer.write_all(b"to all\n").unwrap();
            until(|| store.ok(["logs", "web"]) == "to all\n");
            asked(server, "POST /v1.51/containers/web/kill", "", "204");
            for client in staying {
                client.join().unwrap();
            }
        });
        assert_eq!(containers(&store).len(), 1, "those of the lives are gone");
        let told = |action: &str| {
            let filter = format!("event={action}");
            let events = [
                "events", "--since", "1h", "--until", "0s", "--filter", &filter,
            ];
            store.ok(events).lines().count()
        };
        // A command run by the monitor writes the event of the shared container's end.
        until(|| told("die") > EACH);
        assert_eq!(
            (told("create"), told("die"), told("destroy")),
            (EACH + 1, EACH + 1, EACH)
        );
        assert_eq!(told("exec_die"), EACH);
        until(|| server.descriptors() <= before);
    });
}
