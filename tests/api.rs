//! `cowl serve` answers Docker's clients: the real `docker` command, and raw requests.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::process::Stdio;

use cowl_tests::busybox::shop;
use cowl_tests::command::{run, shell};
use cowl_tests::profile::{directory, root, user};
use cowl_tests::server::Server;
use cowl_tests::store::Store;
use rustix::process::Signal;

/// A docker archive of an image, written by another program.
fn saved_image() -> std::path::PathBuf {
    let archive = directory().join("saved.tar");
    let content = directory().join("content");
    std::fs::create_dir_all(&content).unwrap();
    std::fs::write(content.join("hello"), "hello").unwrap();
    let layer = directory().join("layer.tar");
    cowl_tests::store::pack(&content, &layer);
    cowl_tests::store::make_image("docker", &archive, "saved:1", &[], &[&layer]);
    archive
}

fn docker_manages_images() {
    let store = Store::new("store");
    let server = Server::start(&store);
    let archive = saved_image();
    let archive = archive.to_str().unwrap();
    assert_eq!(
        server.ok(["load", "-i", archive]),
        "Loaded image: saved:1\n"
    );
    // `cowl` shows the same.
    assert_eq!(
        server.ok(["images", "-q", "--no-trunc"]),
        store.ok(["images", "-q", "--no-trunc"])
    );
    let history = server.ok(["history", "saved:1"]);
    assert_eq!(history.lines().count(), 2, "{history}");

    // Both clients save the same archive, and it loads again.
    let (here, there) = (directory().join("here.tar"), directory().join("there.tar"));
    server.ok(["save", "-o", here.to_str().unwrap(), "saved:1"]);
    store.ok(["save", "-o", there.to_str().unwrap(), "saved:1"]);
    assert_eq!(
        std::fs::read(&here).unwrap(),
        std::fs::read(&there).unwrap()
    );
    let other = Store::new("other");
    assert_eq!(other.load(&here), "Loaded image: saved:1\n");
    let absent = server.run(["save", "-o", here.to_str().unwrap(), "absent"]);
    assert!(absent.refused(1).contains("No such image: absent"));

    let content = directory().join("content");
    shell(&content, "tar -cf ../plain.tar .", [""; 0]);
    let plain = directory().join("plain.tar");
    let id = server.ok(["import", plain.to_str().unwrap(), "plain:2"]);
    assert!(store.ok(["images", "--no-trunc"]).contains(id.trim()));

    let layer = server.ok(["inspect", "-f", "{{index .RootFS.Layers 0}}", "plain:2"]);
    // An archive that cannot be written is an error of the request, not a truncated reply.
    let recipe = layer.trim().strip_prefix("sha256:").unwrap();
    let recipe = store.root().join("layers").join(recipe).join("recipe-v2");
    shell(
        store.root(),
        "chmod u+w \"$1\"; printf x >> \"$1\"",
        [&recipe],
    );
    let damaged = server.run(["save", "-o", here.to_str().unwrap(), "plain:2"]);
    let message = format!(
        "Error response from daemon: the recipe of layer {}",
        layer.trim()
    );
    let damaged = damaged.refused(1);
    assert!(damaged.starts_with(&message), "{damaged}");
    let removed = server.ok(["rmi", "plain:2"]);
    let expected = format!("Untagged: plain:2\nDeleted: {id}Deleted: {layer}");
    assert_eq!(removed, expected);
    let missing = server.run(["rmi", "plain:2"]).refused(1);
    assert!(missing.contains("No such image: plain:2"), "{missing}");
    let pulled = server.run(["pull", "plain:2"]).refused(1);
    assert!(pulled.contains("pull access denied"), "{pulled}");
}

#[test]
fn docker_manages_images_as_root() {
    root(|| docker_manages_images());
}

#[test]
fn docker_manages_images_as_user() {
    user(|| docker_manages_images());
}

fn docker_manages_volumes() {
    let store = shop("store");
    let server = Server::start(&store);
    assert_eq!(server.ok(["volume", "create", "notes"]), "notes\n");
    assert_eq!(store.ok(["volume", "ls", "-q"]), "notes\n");
    assert_eq!(server.ok(["volume", "ls", "-q"]), "notes\n");
    let mountpoint = server.ok(["volume", "inspect", "-f", "{{.Mountpoint}}", "notes"]);
    assert_eq!(
        mountpoint.trim(),
        store.root().join("volumes/notes/_data").to_str().unwrap()
    );
    let anonymous = server.ok(["volume", "create"]);
    assert_eq!(anonymous.trim().len(), 64);
    assert_eq!(server.ok(["volume", "rm", "notes"]), "notes\n");
    assert_eq!(store.ok(["volume", "ls", "-q"]), anonymous);
    // Docker 20.10 has words of its own for a 404.
    let missing = server.run(["volume", "rm", "notes"]).refused(1);
    let missing = missing.to_lowercase();
    assert!(missing.contains("no such volume"), "{missing}");
    let missing = server.request("DELETE /v1.51/volumes/notes", "");
    assert!(missing.contains("get notes: no such volume"), "{missing}");
}

#[test]
fn docker_manages_volumes_as_root() {
    root(|| docker_manages_volumes());
}

#[test]
fn docker_info_names_the_storage_driver_as_root() {
    root(|| {
        let store = shop("store");
        let server = Server::start(&store);
        let info = server.ok(["info"]);
        assert!(info.contains("Storage Driver: cowl\n"), "{info}");
        assert!(info.contains(" Images: 1\n"), "{info}");
        let root_dir = format!("Docker Root Dir: {}\n", store.root().display());
        assert!(info.contains(&root_dir), "{info}");
        let version = server.ok(["version", "-f", "{{.Server.APIVersion}}"]);
        assert_eq!(version, "1.51\n");
    });
}

#[test]
fn versions_and_unknown_pages_are_answered_as_docker_does() {
    root(|| {
        let server = Server::start(&Store::new("store"));
        let too_new = server.request("GET /v1.99/version", "");
        assert!(too_new.starts_with("HTTP/1.1 400"), "{too_new}");
        assert!(
            too_new.ends_with("{\"message\":\"client version 1.99 is too new. Maximum supported API version is 1.51\"}\n"),
            "{too_new}"
        );
        let too_old = server.request("GET /v1.10/version", "");
        assert!(too_old.starts_with("HTTP/1.1 400"), "{too_old}");
        assert!(too_old.contains("content-type: text/plain"), "{too_old}");
        for head in ["GET /v1.51/nothing", "PUT /v1.51/version", "GET /"] {
            let unknown = server.request(head, "");
            assert!(unknown.starts_with("HTTP/1.1 404"), "{unknown}");
            assert!(
                unknown.ends_with("{\"message\":\"page not found\"}\n"),
                "{unknown}"
            );
        }
        let ping = server.request("HEAD /_ping", "");
        for header in ["api-version: 1.51", "ostype: linux", "builder-version: 1"] {
            assert!(ping.contains(header), "{ping}");
        }
        assert!(ping.ends_with("\r\n\r\n"), "{ping}");
        for body in ["", "{", "{} {}", "[]"] {
            let refused = server.request("POST /v1.51/volumes/create", body);
            assert!(refused.starts_with("HTTP/1.1 400"), "{body}: {refused}");
            assert!(
                refused.contains("{\"message\":\"invalid JSON: "),
                "{refused}"
            );
        }
    });
}

/// A client that disconnects during an upload leaves no partial image.
#[test]
fn import_of_a_cut_off_upload_keeps_nothing() {
    root(|| {
        let store = Store::new("store");
        let server = Server::start(&store);
        let content = directory().join("content");
        std::fs::create_dir_all(&content).unwrap();
        std::fs::write(content.join("whole"), "whole").unwrap();
        let tar = directory().join("plain.tar");
        cowl_tests::store::pack(&content, &tar);
        let tar = std::fs::read(tar).unwrap();
        let head = "POST /v1.51/images/create?fromSrc=-&repo=half HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
        let mut client = UnixStream::connect(server.socket()).unwrap();
        write!(client, "{head}{:x}\r\n", tar.len()).unwrap();
        client.write_all(&tar).unwrap();
        // The last chunk never comes.
        write!(client, "\r\n").unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        let mut reply = String::new();
        client.read_to_string(&mut reply).unwrap();
        assert!(!reply.contains("sha256:"), "{reply}");
        assert_eq!(store.ok(["images", "-q"]), "");
        // The same with its end.
        let mut client = UnixStream::connect(server.socket()).unwrap();
        write!(client, "{head}{:x}\r\n", tar.len()).unwrap();
        client.write_all(&tar).unwrap();
        write!(client, "\r\n0\r\n\r\n").unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        let mut reply = String::new();
        client.read_to_string(&mut reply).unwrap();
        assert!(reply.contains("sha256:"), "{reply}");
        assert!(store.ok(["images"]).contains("half"));
    });
}

/// Python reads the messages: `docker` requests none if its output is not a terminal.
#[test]
fn the_api_sends_dockers_progress_of_a_load() {
    root(|| {
        let archive = directory().join("image.tar");
        let parts = cowl_tests::busybox::layers();
        let (base, shop) = (parts.join("base.tar"), parts.join("shop.tar"));
        let options = ["--compress", "gzip"];
        cowl_tests::store::make_image("docker", &archive, "told:1", &options, &[&base, &shop]);
        let store = Store::new("store");
        let server = Server::start(&store);
        let script = "
import hashlib, http.client, json, socket, sys
path, archive, *layers = sys.argv[1:]
def load(quiet):
    client = http.client.HTTPConnection('x')
    client.sock = socket.socket(socket.AF_UNIX)
    client.sock.connect(path)
    with open(archive, 'rb') as body:
        client.request('POST', '/v1.51/images/load?quiet=' + quiet, body)
    return [json.loads(line) for line in client.getresponse().read().splitlines()]
*steps, last = load('0')
assert last == {'stream': 'Loaded image: told:1\\n'}, last
ids = {hashlib.sha256(open(layer, 'rb').read()).hexdigest()[:12] for layer in layers}
assert {step['id'] for step in steps} == ids, (steps, ids)
for step in steps:
    assert step['status'] == 'Loading layer' and step['progress'].startswith('['), step
whole = {step['id'] for step in steps if step['progressDetail']['current'] == step['progressDetail']['total']}
assert whole == ids, steps
assert load('1') == [last]";
        let socket = server.socket().to_owned();
        cowl_tests::command::python(&directory(), script, [&socket, &archive, &base, &shop]);
    });
}

/// An image that the index names but the archive lacks is reported before the loaded images, even
/// if no progress is requested.
#[test]
fn load_over_the_api_reports_what_it_leaves_out() {
    root(|| {
        let layout = directory().join("layout");
        let base = cowl_tests::busybox::layers().join("base.tar");
        cowl_tests::store::make_image("oci", &layout, "told:1", &[], &[&base]);
        let store = Store::new("store");
        let server = Server::start(&store);
        let script = "
import http.client, io, json, socket, sys, tarfile
path, layout = sys.argv[1:]
index = json.load(open(layout + '/index.json'))
[there] = index['manifests']
there['platform'] = {'os': 'linux', 'architecture': 'amd64'}
index['manifests'].append({**there, 'digest': 'sha256:' + '0' * 64, 'platform': {'os': 'linux', 'architecture': 's390x'}})
json.dump(index, open(layout + '/index.json', 'w'))
archive = io.BytesIO()
with tarfile.open(fileobj=archive, mode='w') as tar: tar.add(layout, '')
for quiet in '01':
    client = http.client.HTTPConnection('x')
    client.sock = socket.socket(socket.AF_UNIX)
    client.sock.connect(path)
    client.request('POST', '/v1.51/images/load?quiet=' + quiet, archive.getvalue())
    lines = [json.loads(line) for line in client.getresponse().read().splitlines()]
    told = 'image told:1 for linux/s390x is left out: the archive has no blobs/sha256/' + '0' * 64
    assert [line['stream'] for line in lines if 'stream' in line] == ['Warning: ' + told + '\\n', 'Loaded image: told:1\\n'], lines";
        let socket = server.socket().to_owned();
        cowl_tests::command::python(&directory(), script, [&socket, &layout]);
    });
}

#[test]
fn serve_replaces_the_socket_of_a_killed_server_only() {
    root(|| {
        let store = Store::new("store");
        let server = Server::start(&store);
        let socket = server.socket().to_owned();
        let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o660);
        let host = format!("unix://{}", socket.display());
        let second = store.run(["serve", "--host", &host]).refused(1);
        assert!(second.contains("another server answers there"), "{second}");
        assert_eq!(server.end(Signal::KILL), None);
        assert!(std::fs::metadata(&socket).unwrap().file_type().is_socket());
        let server = Server::start(&store);
        server.ok(["version"]);
        assert_eq!(server.end(Signal::TERM), Some(0));
        assert!(!socket.exists());
        std::fs::write(&socket, "mine").unwrap();
        let taken = store.run(["serve", "--host", &host]).refused(1);
        assert!(taken.contains("not a socket"), "{taken}");
        assert_eq!(std::fs::read_to_string(&socket).unwrap(), "mine");
    });
}

/// Many clients at once, each over a connection of its own.
#[test]
fn clients_in_parallel_are_all_answered() {
    root(|| {
        let store = shop("store");
        let server = Server::start(&store);
        let expected = store.ok(["images", "-q", "--no-trunc"]);
        std::thread::scope(|scope| {
            let clients: Vec<_> = (0..100)
                .map(|number| {
                    let server = &server;
                    scope.spawn(move || {
                        let name = format!("{{\"Name\": \"v{number}\"}}");
                        let made = server.request("POST /v1.51/volumes/create", &name);
                        assert!(made.starts_with("HTTP/1.1 201"), "{made}");
                        server.request("GET /v1.51/images/json", "")
                    })
                })
                .collect();
            for client in clients {
                let images = client.join().unwrap();
                assert!(images.contains(expected.trim()), "{images}");
            }
        });
        assert_eq!(store.ok(["volume", "ls", "-q"]).lines().count(), 100);
    });
}

#[test]
fn docker_load_reads_standard_input() {
    root(|| {
        let store = Store::new("store");
        let server = Server::start(&store);
        let archive = std::fs::File::open(saved_image()).unwrap();
        let mut load = server.docker(["load"]);
        let loaded = run(load.stdin(Stdio::from(archive))).ok();
        assert_eq!(loaded, "Loaded image: saved:1\n");
        let garbage = directory().join("garbage");
        std::fs::write(&garbage, vec![7; 1 << 20]).unwrap();
        let refused = server.run(["load", "-i", garbage.to_str().unwrap()]);
        assert_ne!(refused.code(), 0, "{refused}");
        assert!(refused.stderr.contains("the request's body"), "{refused}");
    });
}

/// Network settings of a create request are applied or refused, never ignored.
#[test]
fn create_refuses_endpoints_by_their_names() {
    root(|| {
        let store = shop("store");
        let server = Server::start(&store);
        let create = |endpoints: &str| {
            let config = format!("{{\"EndpointsConfig\": {endpoints}}}");
            let body = format!("{{\"Image\": \"shop\", \"NetworkingConfig\": {config}}}");
            server.request("POST /v1.51/containers/create", &body)
        };
        for harmless in [
            "null",
            "{}",
            "{\"default\": null}",
            "{\"bridge\": {\"Aliases\": null, \"MacAddress\": \"\"}}",
        ] {
            let created = create(harmless);
            assert!(created.starts_with("HTTP/1.1 201"), "{harmless}: {created}");
        }
        let refused = create("{\"bridge\": {\"Aliases\": [\"db\"]}}");
        assert!(refused.starts_with("HTTP/1.1 400"), "{refused}");
        let text = "NetworkingConfig.EndpointsConfig.bridge.Aliases is not supported";
        assert!(refused.contains(text), "{refused}");
        let refused = create("{\"mine\": {}}");
        assert!(refused.starts_with("HTTP/1.1 404"), "{refused}");
        assert!(refused.contains("network mine not found"), "{refused}");
    });
}

/// The limits of the host, as its own files show them.
#[test]
fn docker_info_reports_what_the_host_supports() {
    root(|| {
        let server = Server::start(&Store::new("store"));
        let exists = |path: &str| std::path::Path::new(path).exists();
        let legacy = !exists("/sys/fs/cgroup/cgroup.controllers");
        let swap = exists("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes");
        let memory = exists("/sys/fs/cgroup/memory/memory.limit_in_bytes");
        let forwards = std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap();
        let forwards = forwards.trim() == "1";
        let format = "{{.IPv4Forwarding}} {{.MemoryLimit}} {{.SwapLimit}} {{.OomKillDisable}}";
        let told = server.ok(["info", "-f", format]);
        if legacy {
            let expected = format!("{forwards} {memory} {swap} {memory}\n");
            assert_eq!(told, expected);
        } else {
            assert!(told.starts_with(&format!("{forwards} true ")), "{told}");
            assert!(told.ends_with(" false\n"), "{told}");
        }
    });
}

/// What one client creates, the other sees, renames and removes.
fn docker_manages_stopped_containers() {
    let store = shop("store");
    let server = Server::start(&store);
    let created = server.ok([
        "create",
        "--name",
        "one",
        "-e",
        "A=1",
        "--label",
        "a=b",
        "-v",
        "notes:/data",
        "shop",
        "sh",
    ]);
    let id = created.trim();
    assert_eq!(store.ok(["ps", "-a", "-q", "--no-trunc"]), created);
    let listed = server.ok(["ps", "-a", "--format", "{{.ID}} {{.Names}} {{.State}}"]);
    assert_eq!(listed, format!("{} one created\n", &id[..12]));
    for (format, expected) in [
        ("{{.Name}}", "/one"),
        ("{{json .Config.Labels}}", "{\"a\":\"b\"}"),
        ("{{json .HostConfig.Binds}}", "[\"notes:/data\"]"),
        ("{{.State.Status}}", "created"),
    ] {
        assert_eq!(server.ok(["inspect", "-f", format, "one"]).trim(), expected);
        assert_eq!(store.ok(["inspect", "-f", format, "one"]).trim(), expected);
    }
    let taken = server.run(["create", "--name", "one", "shop"]).refused(1);
    assert!(
        taken.contains("Conflict. The container name \"/one\" is already in use by container"),
        "{taken}"
    );
    let absent = server
        .run(["create", "--pull", "never", "absent"])
        .refused(1);
    assert!(absent.contains("No such image: absent"), "{absent}");
    server.ok(["rename", "one", "two"]);
    assert_eq!(store.ok(["inspect", "-f", "{{.Name}}", "two"]), "/two\n");
    server.ok(["tag", "shop", "other:1"]);
    assert!(store.ok(["images"]).contains("other"));
    let filter = server
        .run(["ps", "-a", "--filter", "nonsense=1"])
        .refused(1);
    assert!(filter.contains("invalid filter 'nonsense'"), "{filter}");
    // A wait for a stopped container returns at once.
    let waited = server.request(&format!("POST /v1.51/containers/{id}/wait"), "");
    assert!(waited.contains("{\"StatusCode\":0}"), "{waited}");
    assert_eq!(server.ok(["rm", "two"]), "two\n");
    assert_eq!(store.ok(["ps", "-a", "-q"]), "");
    let gone = server.run(["inspect", "--type", "container", "two"]);
    assert_eq!(gone.code(), 1, "{gone}");
    assert!(gone.stderr.contains("No such container: two"), "{gone}");
}

#[test]
fn docker_manages_stopped_containers_as_root() {
    root(|| docker_manages_stopped_containers());
}

#[test]
fn docker_manages_stopped_containers_as_user() {
    user(|| docker_manages_stopped_containers());
}

/// `docker wait`, `diff` and `commit` of a container that `cowl run` left.
#[test]
fn docker_wait_diff_and_commit_see_what_cowl_run_left() {
    root(|| {
        let store = shop("store");
        let server = Server::start(&store);
        let script = "echo x > /made; exit 7";
        assert_eq!(
            store
                .run(["run", "--name", "job", "shop", "sh", "-c", script])
                .code(),
            7
        );
        assert_eq!(server.ok(["wait", "job"]), "7\n");
        assert_eq!(server.ok(["diff", "job"]), "A /made\n");
        server.ok(["commit", "-m", "with a file", "job", "made:1"]);
        assert_eq!(store.ok(["run", "--rm", "made:1", "cat", "/made"]), "x\n");
        server.ok(["rm", "job"]);
    });
}
