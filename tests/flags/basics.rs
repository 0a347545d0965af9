//! The most common flags: names, detaching, environment, volumes.

use std::fs::File;

use cowl_tests::command::{Outcome, run};
use cowl_tests::profile::{directory, root};

use crate::support::Doors;

/// The output of `run` with these arguments, equal for both clients. The container is removed.
#[track_caller]
fn both(doors: &Doors, flags: &[&str], words: &[&str], input: Option<&str>) -> [Outcome; 2] {
    let arguments = [&["run", "--rm"], flags, &["shop"], words].concat();
    [
        doors.store.command(&arguments),
        doors.server.docker(&arguments),
    ]
    .map(|mut door| {
        if let Some(input) = input {
            let file = directory().join("input");
            std::fs::write(&file, input).unwrap();
            door.stdin(File::open(file).unwrap());
        }
        run(&mut door)
    })
}

#[test]
fn detach_prints_the_id_and_leaves_it_running() {
    root(|| {
        let doors = Doors::open();
        let arguments = ["run", "-d", "shop", "sleep", "1000"];
        for id in [doors.store.ok(arguments), doors.server.ok(arguments)] {
            let id = id.trim();
            assert_eq!(id.len(), 64);
            let state = ["inspect", "-f", "{{.State.Status}}", id];
            assert_eq!(doors.store.ok(state), "running\n");
            doors.store.ok(["rm", "-f", id]);
        }
    });
}

#[test]
fn interactive_has_the_callers_input() {
    root(|| {
        let doors = Doors::open();
        let words = ["sh", "-c", "read word; echo $word"];
        for outcome in both(&doors, &["-i"], &words, Some("hello\n")) {
            assert_eq!(outcome.ok(), "hello\n");
        }
        for outcome in both(&doors, &[], &words, Some("hello\n")) {
            assert_eq!(outcome.stdout, "\n", "{outcome}");
        }
    });
}

#[test]
fn tty_is_a_terminal_for_the_program() {
    root(|| {
        let doors = Doors::open();
        let words = ["sh", "-c", "test -t 1 && echo terminal $TERM; echo err >&2"];
        for outcome in both(&doors, &["-t"], &words, None) {
            assert_eq!(outcome.ok(), "terminal xterm\r\nerr\r\n");
        }
        for outcome in both(&doors, &[], &words, None) {
            assert_eq!(
                (outcome.stdout.as_str(), outcome.stderr.as_str()),
                ("", "err\n")
            );
        }
    });
}

#[test]
fn rm_leaves_no_container_and_no_anonymous_volume() {
    root(|| {
        let doors = Doors::open();
        for outcome in both(
            &doors,
            &["-v", "/anonymous", "-v", "named:/n"],
            &["true"],
            None,
        ) {
            outcome.ok();
        }
        assert_eq!(doors.store.ok(["ps", "-a", "-q"]), "");
        assert_eq!(doors.store.ok(["volume", "ls", "-q"]), "named\n");
        doors.refused(
            &["--rm", "--restart", "always"],
            "cannot specify both --restart and --rm",
        );
    });
}

#[test]
fn name_is_the_containers_and_no_others() {
    root(|| {
        let doors = Doors::open();
        doors.store.ok(["create", "--name", "own", "shop", "true"]);
        doors
            .server
            .ok(["create", "--name", "docker", "shop", "true"]);
        for name in ["own", "docker"] {
            let shown = doors.server.ok(["inspect", "-f", "{{.Name}}", name]);
            assert_eq!(shown, format!("/{name}\n"));
            let taken = format!("The container name \"/{name}\" is already in use by container");
            doors.refused(&["--name", name], &taken);
        }
        doors.refused(&["--name", "a/b"], "Invalid container name (a/b)");
    });
}

#[test]
fn cidfile_has_the_id_and_is_new() {
    root(|| {
        let doors = Doors::open();
        let place = directory();
        for door in ["own", "docker"] {
            let file = place.join(door);
            let arguments = [
                "create",
                "--cidfile",
                file.to_str().unwrap(),
                "shop",
                "true",
            ];
            let id = match door {
                "own" => doors.store.ok(arguments),
                _ => doors.server.ok(arguments),
            };
            assert_eq!(std::fs::read_to_string(&file).unwrap(), id.trim());
            doors.refused(&arguments[1..3], "container ID file found");
        }
    });
}

#[test]
fn entrypoint_is_before_the_command() {
    root(|| {
        let doors = Doors::open();
        assert_eq!(doors.out(&["--entrypoint", "/bin/echo"], "x"), "sh -c x\n");
        // An empty entrypoint removes the image's.
        let change = ["commit", "-c", "ENTRYPOINT [\"/bin/false\"]"];
        let id = doors.store.ok(["create", "shop", "true"]);
        doors
            .store
            .ok([&change[..], &[id.trim(), "falsy"]].concat());
        for code in [
            doors.store.run(["run", "--rm", "falsy", "true"]),
            doors.server.run(["run", "--rm", "falsy", "true"]),
        ] {
            assert_eq!(code.code(), 1, "{code}");
        }
        let arguments = ["run", "--rm", "--entrypoint", "", "falsy", "echo", "runs"];
        assert_eq!(doors.store.ok(arguments), "runs\n");
        assert_eq!(doors.server.ok(arguments), "runs\n");
    });
}

#[test]
fn env_and_env_file_set_variables() {
    root(|| {
        let doors = Doors::open();
        let file = directory().join("variables");
        std::fs::write(&file, "# none\nA=file\nB=a word\nNOT_SET_ANYWHERE\n").unwrap();
        let flags = [
            "--env-file",
            file.to_str().unwrap(),
            "-e",
            "A=given",
            "-e",
            "C=",
        ];
        let script = "echo \"$A/$B/${C-unset}/${NOT_SET_ANYWHERE-unset}\"";
        assert_eq!(doors.out(&flags, script), "given/a word//unset\n");
    });
}

#[test]
fn workdir_and_user_are_the_programs() {
    root(|| {
        let doors = Doors::open();
        let flags = ["-w", "/srv/new/place", "-u", "12:34"];
        let script = "pwd; id -u; id -g; stat -c %u:%g .";
        assert_eq!(doors.out(&flags, script), "/srv/new/place\n12\n34\n0:0\n");
    });
}

#[test]
fn volume_is_named_anonymous_or_a_directory_of_the_host() {
    root(|| {
        let doors = Doors::open();
        let place = directory().join("host");
        let bind = format!("{}:/bind:ro", place.display());
        let flags = ["-v", "kept:/kept", "-v", "/anonymous", "-v", &bind];
        // The host directory is created.
        let script = "echo x >> /kept/x; touch /anonymous/y && wc -l < /kept/x; touch /bind/z 2>/dev/null || echo read-only";
        let create = [&["create"], &flags[..], &["shop"]].concat();
        let id = doors.store.ok([create, vec!["true"]].concat());
        let modes = "{{range .Mounts}}{{.Destination}}:{{.Mode}} {{end}}";
        let shown = doors.store.ok(["inspect", "-f", modes, id.trim()]);
        let mut shown: Vec<_> = shown.split_whitespace().collect();
        shown.sort_unstable();
        assert_eq!(shown, ["/anonymous:", "/bind:ro", "/kept:z"]);
        doors.store.ok(["rm", "-v", id.trim()]);
        // Once for each client: the named volume is the same.
        let first = doors
            .store
            .ok([&["run", "--rm"], &flags[..], &["shop", "sh", "-c", script]].concat());
        assert_eq!(first, "1\nread-only\n");
        let second = doors
            .server
            .ok([&["run", "--rm"], &flags[..], &["shop", "sh", "-c", script]].concat());
        assert_eq!(second, "2\nread-only\n");
        assert!(place.is_dir());
        assert_eq!(doors.store.ok(["volume", "ls", "-q"]), "kept\n");
    });
}

#[test]
fn volumes_from_mounts_what_another_container_has() {
    root(|| {
        let doors = Doors::open();
        let from = [
            "run", "--name", "one", "-v", "/data", "--tmpfs", "/scratch", "shop",
        ];
        doors
            .store
            .ok([&from[..], &["sh", "-c", "echo kept > /data/x"]].concat());
        let script = "cat /data/x; touch /data/y 2>/dev/null && echo written; grep -c ' /scratch ' /proc/self/mountinfo || true";
        assert_eq!(
            doors.out(&["--volumes-from", "one"], script),
            "kept\nwritten\n0\n"
        );
        assert_eq!(
            doors.out(&["--volumes-from", "one:ro"], script),
            "kept\n0\n"
        );
        doors.refused(&["--volumes-from", "one:fly"], "fly");
        // Docker's client takes the status "not found" for a missing image.
        doors.refused(&["--volumes-from", "nosuch"], "No such container: nosuch");
    });
}

/// A flag of cowl's own; Docker's equivalent is `--storage-opt`.
#[test]
fn io_is_how_files_are_read_and_written() {
    root(|| {
        let doors = Doors::open();
        let id = doors.store.ok(["create", "--io", "cached", "shop", "true"]);
        let shown = ["inspect", "-f", "{{.HostConfig.StorageOpt}}", id.trim()];
        assert_eq!(doors.server.ok(shown), "map[io:cached]\n");
        doors.store.ok(["start", "-a", id.trim()]);
        let refused = doors
            .store
            .run(["create", "--io", "fast", "shop"])
            .refused(125);
        assert!(refused.contains("fast"), "{refused}");
    });
}
