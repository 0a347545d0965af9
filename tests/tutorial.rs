//! A Docker tutorial, typed once as `cowl ...` and once as `docker ...` over `cowl serve`.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

use cowl_tests::busybox::layers;
use cowl_tests::command::{Outcome, binary, program, run, shell};
use cowl_tests::profile::{directory, root};
use cowl_tests::pty::InTerminal;
use cowl_tests::server::Server;
use cowl_tests::store::{Store, make_image, pack};

/// The command that is typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Typed {
    Cowl,
    Docker,
}

/// A store, its server, and which of the two clients is used.
struct Door {
    typed: Typed,
    store: Store,
    server: Server,
}

impl Door {
    fn open(typed: Typed) -> Self {
        let store = Store::new("store");
        let server = Server::start(&store);
        Self {
            typed,
            store,
            server,
        }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        match self.typed {
            Typed::Cowl => self.store.command(arguments),
            Typed::Docker => self.server.docker(arguments),
        }
    }

    #[track_caller]
    fn run(&self, arguments: &[&str]) -> Outcome {
        run(&mut self.command(arguments))
    }

    #[track_caller]
    fn ok(&self, arguments: &[&str]) -> String {
        self.run(arguments).ok()
    }

    /// A shell command line that begins with the client's name.
    #[track_caller]
    fn line(&self, rest: &str) -> String {
        let name = match self.typed {
            Typed::Cowl => binary("cowl").display().to_string(),
            Typed::Docker => "docker".to_owned(),
        };
        let socket = format!("unix://{}", self.server.socket().display());
        let mut typed = program("sh", ["-c", &format!("{name} {rest}")]);
        let typed = typed
            .env("COWL_ROOT", self.store.root())
            .env("DOCKER_HOST", socket)
            .env("HOME", directory());
        run(typed).ok()
    }
}

/// The archives of `ubuntu`, with the host's bash on top of busybox, and of `web`, with one more
/// layer.
fn archives() -> [PathBuf; 2] {
    let content = directory().join("bash");
    std::fs::create_dir(&content).unwrap();
    // The libraries at the paths that the dynamic linker names, with links resolved.
    let script = "mkdir bin; cp -L /bin/bash bin/bash
        ldd /bin/bash | grep -o '/[^ ]*' | while read library; do
            mkdir -p \".${library%/*}\"; cp -L \"$library\" \".$library\"
        done";
    shell(&content, script, [""; 0]);
    let bash = directory().join("bash.tar");
    pack(&content, &bash);
    let made = layers();
    let stack = [made.join("base.tar"), bash, made.join("shop.tar")];
    let stack: Vec<_> = stack.iter().map(PathBuf::as_path).collect();
    let options = ["--cmd", "bash", "--env", "PATH=/bin:/usr/bin"];
    ["ubuntu", "web"].map(|name| {
        let archive = directory().join(format!("{name}.image.tar"));
        let own = if name == "ubuntu" {
            &stack[..2]
        } else {
            &stack
        };
        make_image("docker", &archive, name, &options, own);
        archive
    })
}

/// The rows of `ps aux`, each with its pid.
fn rows(shown: &str) -> Vec<(u32, &str)> {
    let pid = |line: &str| line.split_whitespace().next()?.parse().ok();
    let lines = shown.lines().map(str::trim_end);
    lines.filter_map(|line| Some((pid(line)?, line))).collect()
}

fn the_tutorial_works_as_typed(typed: Typed) {
    let [ubuntu, web] = archives();
    let door = Door::open(typed);
    let load = |archive: &PathBuf| door.ok(&["load", "-i", archive.to_str().unwrap()]);
    assert_eq!(load(&ubuntu), "Loaded image: ubuntu:latest\n");

    // A container has its own processes.
    let mut typed = door.command(&["run", "-it", "ubuntu", "bash"]);
    let mut terminal = InTerminal::start(&mut typed, 30, 100);
    terminal.send(b"ps aux; echo seen $((1 + 1))\n");
    let shown = terminal.expect("seen 2\r\n");
    let seen = rows(&shown);
    assert_eq!(seen.len(), 2, "{shown}");
    assert!(seen[0].0 == 1 && seen[0].1.ends_with(" bash"), "{shown}");
    assert!(seen[1].1.ends_with(" ps aux"), "{shown}");
    terminal.send(b"exit 3\n");
    assert_eq!(terminal.end().0, Some(3));

    // A limit is a file of its cgroup.
    let show = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null \
                || cat /sys/fs/cgroup/memory.max";
    let limit = door.ok(&["run", "-m", "512m", "ubuntu", "bash", "-c", show]);
    assert_eq!(limit, "536870912\n");

    // The history lists an image's layers, the last one first.
    let history = door.ok(&["history", "ubuntu"]);
    let mut lines = history.lines();
    let header = lines.next().unwrap().split_whitespace().collect::<Vec<_>>();
    assert_eq!(
        header,
        ["IMAGE", "CREATED", "CREATED", "BY", "SIZE", "COMMENT"]
    );
    let (top, bottom) = (lines.next().unwrap(), lines.next().unwrap());
    assert!(top.contains("bash.tar") && bottom.contains("base.tar"));
    assert_eq!(lines.next(), None, "{history}");

    // A base that two images share is on disk once: the second image adds only its own layer.
    let objects = || -> BTreeSet<String> {
        let objects = door.store.objects_by_name();
        objects.lines().map(str::to_owned).collect()
    };
    let before = objects();
    assert_eq!(load(&web), "Loaded image: web:latest\n");
    let after = objects();
    let added = after.difference(&before).map(|line| {
        let size = line.rsplit(' ').next().unwrap();
        size.parse::<u64>().unwrap()
    });
    let list = "tar -tvf \"$1\" | awk '/^-/ { print $3 }' | sort -n";
    let own = shell(&directory(), list, [layers().join("shop.tar")]);
    let mut added: Vec<_> = added.map(|size| size.to_string()).collect();
    added.sort_by_key(String::len);
    assert_eq!(added.join("\n"), own.trim_end());
    assert!(before.is_subset(&after));

    volumes(&door);
    let driver = door.line("info | grep \"Storage Driver\"");
    assert_eq!(driver.trim(), "Storage Driver: cowl");
    change_the_driver(door);
}

/// Data outlives containers and their restarts.
fn volumes(door: &Door) {
    assert_eq!(door.ok(&["volume", "create", "my_volume"]), "my_volume\n");
    let write = "echo kept > /data/note";
    door.ok(&[
        "run",
        "-v",
        "my_volume:/data",
        "ubuntu",
        "bash",
        "-c",
        write,
    ]);
    let listed = door.ok(&["volume", "ls"]);
    let listed: Vec<Vec<_>> = listed
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(
        listed,
        [vec!["DRIVER", "VOLUME", "NAME"], vec!["local", "my_volume"]]
    );
    let mount = ["--mount", "source=my_volume,target=/data", "ubuntu"];
    let read = [&["run"], &mount[..], &["cat", "/data/note"]].concat();
    assert_eq!(door.ok(&read), "kept\n");

    let named = ["run", "-d", "-it", "--name", "keeps"];
    door.ok(&[&named[..], &mount].concat());
    let append = "echo more >> /data/note";
    door.ok(&["exec", "keeps", "bash", "-c", append]);
    assert_eq!(door.ok(&["restart", "-t", "0", "keeps"]), "keeps\n");
    let note = ["exec", "keeps", "cat", "/data/note"];
    assert_eq!(door.ok(&note), "kept\nmore\n");
    assert_eq!(door.ok(&["rm", "-f", "keeps"]), "keeps\n");
}

/// With another driver in `daemon.json` the restarted server names the supported one. With that it
/// starts, and has the same data.
fn change_the_driver(door: Door) {
    let file = directory().join("daemon.json");
    let Door {
        typed,
        store,
        server,
    } = door;
    drop(server);
    let serve = || {
        let mut serve = store.command(["serve", "--config-file"]);
        serve.arg(&file);
        serve
    };
    std::fs::write(&file, "{\"storage-driver\": \"aufs\"}\n").unwrap();
    let socket = format!("unix://{}", directory().join("cowl.sock").display());
    let refused = run(serve().args(["--host", &socket])).refused(1);
    assert!(
        refused.contains("storage driver aufs: not supported") && refused.contains("use \"cowl\""),
        "{refused}"
    );
    std::fs::write(&file, "{\"storage-driver\": \"cowl\"}\n").unwrap();
    let server = Server::start_by(serve());
    let door = Door {
        typed,
        store,
        server,
    };
    let images = door.ok(&["images", "--format", "{{.Repository}}"]);
    let images: BTreeSet<_> = images.lines().collect();
    assert_eq!(images, BTreeSet::from(["ubuntu", "web"]));
    assert_eq!(door.ok(&["volume", "ls", "-q"]), "my_volume\n");
    let again = [
        "run",
        "-v",
        "my_volume:/data",
        "ubuntu",
        "cat",
        "/data/note",
    ];
    assert_eq!(door.ok(&again), "kept\nmore\n");
}

#[test]
fn the_tutorial_works_as_typed_with_cowl() {
    root(|| the_tutorial_works_as_typed(Typed::Cowl));
}

#[test]
fn the_tutorial_works_as_typed_with_docker() {
    root(|| the_tutorial_works_as_typed(Typed::Docker));
}
