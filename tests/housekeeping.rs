//! Volumes, prunes and disk usage: `cowl` and the real `docker` command over `cowl serve` print the
//! same for one store.

use cowl_tests::busybox::{in_shop, shop};
use cowl_tests::host::has_docker_28;
use cowl_tests::profile::{directory, root, user};
use cowl_tests::server::Server;
use cowl_tests::skip::skip;
use cowl_tests::store::Store;

/// Both clients print the same; returns it.
#[track_caller]
fn same(store: &Store, server: &Server, arguments: &[&str]) -> String {
    let (ours, dockers) = (store.ok(arguments), server.ok(arguments));
    assert_eq!(ours, dockers, "{arguments:?}");
    ours
}

/// Both clients refuse with the same text; returns it. Docker's client may add a line of its own.
#[track_caller]
fn same_refusal(store: &Store, server: &Server, arguments: &[&str]) -> String {
    let ours = store.run(arguments).refused(1);
    let dockers = server.run(arguments);
    assert_eq!(dockers.code(), 1, "{dockers}");
    let dockers = dockers.stderr.lines().next().unwrap().to_owned();
    let ours = ours.strip_prefix("cowl: ").unwrap();
    let dockers = dockers.strip_prefix("Error response from daemon: ");
    assert_eq!(Some(ours), dockers, "{arguments:?}");
    ours.to_owned()
}

fn volume_create_keeps_labels_and_options() {
    let store = shop("store");
    let server = Server::start(&store);
    let device = directory().join("device");
    std::fs::create_dir(&device).unwrap();
    let option = format!("device={}", device.display());
    let options = ["--opt", "type=none", "--opt", "o=bind", "--opt", &option];
    for (name, by_docker) in [("ours", false), ("dockers", true)] {
        let mut words = vec!["volume", "create", "--label", "a=b"];
        words.extend(options);
        words.push(name);
        let made = if by_docker {
            server.ok(&words)
        } else {
            store.ok(&words)
        };
        assert_eq!(made, format!("{name}\n"));
        let shown = same(&store, &server, &["volume", "inspect", name]);
        for expected in ["\"a\": \"b\"", "\"o\": \"bind\"", "\"type\": \"none\""] {
            assert!(shown.contains(expected), "{shown}");
        }
    }
    server.ok(["volume", "create", "plain"]);
    for arguments in [
        &["volume", "ls"][..],
        &["volume", "ls", "-q", "--filter", "label=a=b"],
        &["volume", "ls", "-q", "--filter", "name=our"],
        &["volume", "ls", "-q", "--filter", "dangling=false"],
        &[
            "volume",
            "ls",
            "--format",
            "{{.Name}} {{.Labels}} {{.Mountpoint}}",
        ],
        &["volume", "ls", "--format", "json", "--filter", "name=plain"],
        &[
            "volume",
            "inspect",
            "-f",
            "{{json .Options}} {{.Driver}}",
            "ours",
            "plain",
        ],
    ] {
        same(&store, &server, arguments);
    }
    assert_eq!(
        store.ok(["volume", "ls", "-q", "-f", "label=a"]),
        "dockers\nours\n"
    );
    // The volume is the directory, filled from the image as any new volume is.
    in_shop(
        &store,
        &["--rm", "-v", "ours:/srv"],
        &["sh", "-c", "echo written > /srv/note"],
    )
    .ok();
    assert_eq!(
        std::fs::read_to_string(device.join("note")).unwrap(),
        "written\n"
    );
    assert!(device.join("catalogue.txt").exists());
    store.ok(["volume", "rm", "ours"]);
    assert!(
        device.join("note").exists(),
        "the directory is not the volume's"
    );
    std::fs::remove_dir_all(&device).unwrap();
    let gone = in_shop(&store, &["--rm", "-v", "dockers:/srv"], &["true"]).refused(125);
    assert!(
        gone.contains("failed to mount local volume: mount"),
        "{gone}"
    );
}

#[test]
fn volume_create_keeps_labels_and_options_as_root() {
    if !has_docker_28() {
        return skip("docker is older than 28");
    }
    root(|| volume_create_keeps_labels_and_options());
}

#[test]
fn volume_create_keeps_labels_and_options_as_user() {
    if !has_docker_28() {
        return skip("docker is older than 28");
    }
    user(|| volume_create_keeps_labels_and_options());
}

#[test]
fn volume_commands_refuse_as_docker_does() {
    if !has_docker_28() {
        return skip("docker is older than 28");
    }
    root(|| {
        let store = shop("store");
        let server = Server::start(&store);
        in_shop(&store, &["--name", "user", "-v", "used:/data"], &["true"]).ok();
        let id = store.ok(["ps", "-a", "-q", "--no-trunc"]);
        let in_use = format!("remove used: volume is in use - [{}]", id.trim());
        let option = |text| vec!["volume", "create", "--opt", text, "new"];
        let shared = ["type=tmpfs", "--opt", "device=tmpfs", "--opt", "o=rshared"];
        let shared = [&["volume", "create", "--opt"], &shared[..], &["new"]].concat();
        for (arguments, text) in [
            (vec!["volume", "rm", "used"], in_use.as_str()),
            (vec!["volume", "rm", "no"], "get no: no such volume"),
            (
                option("colour=red"),
                "create new: invalid option: \"colour\"",
            ),
            (
                option("type=nfs"),
                "create new: missing required option: \"device\"",
            ),
            (shared, "create new: option o=rshared is not supported"),
            (
                vec!["volume", "create", "--driver", "other", "new"],
                "error looking up volume plugin other: plugin \"other\" not found",
            ),
            (
                vec!["volume", "ls", "--filter", "colour=red"],
                "invalid filter 'colour'",
            ),
        ] {
            assert_eq!(same_refusal(&store, &server, &arguments), text);
        }
        assert_eq!(store.ok(["volume", "ls", "-q"]), "used\n");
    });
}

/// The same objects twice, one set to remove for each client.
fn litter(store: &Store) {
    for name in ["one", "two"] {
        in_shop(
            store,
            &["--name", name, "-v", "/data"],
            &["sh", "-c", "echo 12345 > /new"],
        )
        .ok();
    }
    store.ok(["volume", "create", "named"]);
}

fn prune_removes_what_is_unused() {
    let store = shop("store");
    let server = Server::start(&store);
    litter(&store);
    let ids = store.ok(["ps", "-a", "-q", "--no-trunc"]);
    // A filter keeps them.
    let spared = ["container", "prune", "-f", "--filter", "until=1h"];
    assert_eq!(
        same(&store, &server, &spared),
        "Total reclaimed space: 0B\n"
    );
    let expected = format!("Deleted Containers:\n{ids}\nTotal reclaimed space: 12B\n");
    assert_eq!(server.ok(["container", "prune", "-f"]), expected);
    let anonymous = store.ok([
        "volume",
        "ls",
        "-q",
        "-f",
        "label=com.docker.volume.anonymous",
    ]);
    let expected = format!("Deleted Volumes:\n{anonymous}\nTotal reclaimed space: 0B\n");
    assert_eq!(server.ok(["volume", "prune", "-f"]), expected);
    assert_eq!(store.ok(["volume", "ls", "-q"]), "named\n");

    litter(&store);
    let ids = store.ok(["ps", "-a", "-q", "--no-trunc"]);
    let expected = format!("Deleted Containers:\n{ids}\nTotal reclaimed space: 12B\n");
    assert_eq!(store.ok(["container", "prune", "-f"]), expected);
    let pruned = store.ok(["volume", "prune", "-a", "-f"]);
    assert!(pruned.starts_with("Deleted Volumes:\n"), "{pruned}");
    assert!(pruned.contains("\nnamed\n"), "{pruned}");
    assert_eq!(store.ok(["volume", "ls", "-q"]), "");

    // As in Docker, without an answer nothing is removed; both ask the same question.
    store.ok(["volume", "create", "kept"]);
    for arguments in [
        &["container", "prune"][..],
        &["image", "prune"],
        &["image", "prune", "-a"],
        &["volume", "prune"],
        &["volume", "prune", "-a"],
    ] {
        let (ours, dockers) = (store.run(arguments), server.run(arguments));
        assert_eq!(ours.stdout.trim(), dockers.stdout.trim(), "{arguments:?}");
        assert_eq!(ours.code(), dockers.code(), "{arguments:?}");
    }
    assert_eq!(store.ok(["volume", "ls", "-q"]), "kept\n");
}

#[test]
fn prune_removes_what_is_unused_as_root() {
    if !has_docker_28() {
        return skip("docker is older than 28");
    }
    root(|| prune_removes_what_is_unused());
}

#[test]
fn prune_removes_what_is_unused_as_user() {
    if !has_docker_28() {
        return skip("docker is older than 28");
    }
    user(|| prune_removes_what_is_unused());
}

#[test]
fn image_prune_and_rmi_name_what_they_delete() {
    root(|| {
        let store = shop("store");
        let server = Server::start(&store);
        let content = directory().join("content");
        std::fs::create_dir(&content).unwrap();
        let import = |name: &str| {
            std::fs::write(content.join("own"), name).unwrap();
            store.import_directory(&content, name);
            let id = store.ok(["image", "inspect", "-f", "{{.Id}}", name]);
            // With one layer its chain is its diffID.
            let layer = "{{index .RootFS.Layers 0}}";
            (id, store.ok(["image", "inspect", "-f", layer, name]))
        };
        let (id, layer) = import("one:1");
        let deleted = format!("Untagged: one:1\nDeleted: {id}Deleted: {layer}");
        assert_eq!(store.ok(["rmi", "one:1"]), deleted);
        let (id, layer) = import("two:1");
        let deleted = format!("Untagged: two:1\nDeleted: {id}Deleted: {layer}");
        assert_eq!(server.ok(["rmi", "two:1"]), deleted);

        // Dangling: its name moves to another image.
        let (id, layer) = import("three:1");
        import("four:1");
        store.ok(["tag", "four:1", "three:1"]);
        let pruned = store.ok(["image", "prune", "-f"]);
        let expected = format!("Deleted Images:\ndeleted: {id}deleted: {layer}\nTotal reclaimed");
        assert!(pruned.starts_with(&expected), "{pruned}");
        in_shop(&store, &["--name", "user"], &["true"]).ok();
        let pruned = server.ok(["image", "prune", "-a", "-f"]);
        for expected in ["untagged: three:1\n", "untagged: four:1\n"] {
            assert!(pruned.contains(expected), "{pruned}");
        }
        assert!(!pruned.contains("shop"), "{pruned}");
        let listed = same(&store, &server, &["images", "--format", "{{.Repository}}"]);
        assert_eq!(listed, "shop\n");
        // All that is left, at once.
        let all = ["system", "prune", "-a", "-f", "--volumes"];
        let pruned = store.ok(all);
        let expected = [
            "Deleted Containers:\n",
            "\nDeleted Images:\nuntagged: shop:latest\n",
        ];
        assert!(
            expected.iter().all(|part| pruned.contains(part)),
            "{pruned}"
        );
        assert_eq!(server.ok(all), "Total reclaimed space: 0B\n");
    });
}

/// What the image commands of the API take beside names.
#[test]
fn image_commands_honour_their_parameters() {
    if !has_docker_28() {
        return skip("docker is older than 28");
    }
    root(|| {
        let store = shop("store");
        let server = Server::start(&store);
        let content = directory().join("content");
        std::fs::create_dir(&content).unwrap();
        let tar = directory().join("plain.tar");
        cowl_tests::store::pack(&content, &tar);
        let tar = tar.to_str().unwrap();
        let change = "CMD [\"run\"]";
        let options = ["-m", "a word", "-c", change, "--platform", "linux/arm64"];
        let words = [&["import"], &options[..], &[tar, "arm:1"]].concat();
        let id = server.ok(&words);
        let format = "{{.Architecture}} {{json .Config.Cmd}} {{.Comment}}";
        let told = same(
            &store,
            &server,
            &["image", "inspect", "-f", format, "arm:1"],
        );
        assert_eq!(told, "arm64 [\"run\"] a word\n");
        let unnamed = server.ok(["import", tar]);
        assert_eq!(unnamed.len(), id.len(), "{unnamed}");
        same(&store, &server, &["image", "inspect", "shop"]);
        // In the same repository: docker does not sort repositories.
        store.ok(["tag", "shop", "shop:again"]);
        for arguments in [
            &["images", "-q"][..],
            &["images", "-q", "--filter", "reference=a*"],
            &["images", "-q", "--filter", "dangling=true", "--no-trunc"],
            &["images", "--format", "{{.Repository}} {{.Tag}} {{.Size}}"],
            &[
                "info",
                "-f",
                "{{.Driver}} {{.Images}} {{.DockerRootDir}} {{.MemoryLimit}}",
            ],
        ] {
            same(&store, &server, arguments);
        }
        assert!(store.ok(["info"]).contains("Storage Driver: cowl\n"));
        let refused = server.run(["history", "--platform", "linux/riscv64", "shop"]);
        let refused = refused.refused(1);
        assert!(
            refused.contains("does not provide the platform linux/riscv64"),
            "{refused}"
        );
        let archive = directory().join("arm.tar");
        let archive = archive.to_str().unwrap();
        store.ok(["save", "-o", archive, "arm:1"]);
        let refused = server.run(["load", "--platform", "linux/amd64", "-i", archive]);
        assert_ne!(refused.code(), 0, "{refused}");
        let loaded = server.ok(["load", "--platform", "linux/arm64", "-i", archive]);
        assert_eq!(loaded, "Loaded image: arm:1\n");
        for path in ["images/search?term=x", "distribution/shop/json"] {
            let refused = server.request(&format!("GET /v1.51/{path}"), "");
            assert!(refused.starts_with("HTTP/1.1 501"), "{refused}");
        }
        let networks = server.ok(["network", "ls", "--format", "{{.Name}} {{.Driver}}"]);
        assert_eq!(networks, "bridge bridge\nhost host\nnone null\n");
        let filtered = server.ok(["network", "ls", "-q", "--filter", "driver=host"]);
        assert_eq!(filtered.lines().count(), 1);
    });
}

/// The cells of tables, except those that change every second.
fn without_ages(tables: &str) -> Vec<Vec<&str>> {
    let cells = |line| {
        let cells = str::split(line, "   ").map(str::trim);
        cells
            .filter(|cell| !cell.is_empty() && !cell.ends_with(" ago"))
            .collect()
    };
    tables.lines().map(cells).collect()
}

#[test]
fn system_df_is_dockers_and_counts_shared_files_once() {
    if !has_docker_28() {
        return skip("docker is older than 28");
    }
    root(|| {
        let store = shop("store");
        let server = Server::start(&store);
        litter(&store);
        let content = directory().join("content");
        std::fs::create_dir(&content).unwrap();
        std::fs::write(content.join("own"), vec![7; 4096]).unwrap();
        std::fs::copy("/bin/busybox", content.join("busybox")).unwrap();
        store.import_directory(&content, "other");
        let table = same(&store, &server, &["system", "df"]);
        assert!(
            table.contains("Containers      2         0         12B       12B (100%)"),
            "{table}"
        );
        same(&store, &server, &["system", "df", "--format", "json"]);
        let verbose = store.ok(["system", "df", "-v"]);
        let dockers = server.ok(["system", "df", "-v"]);
        assert_eq!(without_ages(&verbose), without_ages(&dockers));
        assert_eq!(
            store.ok(["system", "df", "-v", "--format", "table"]),
            verbose
        );
        let formatted = |format: &str| {
            let arguments = ["system", "df", "-v", "--format", format];
            let doors = [store.ok(arguments), server.ok(arguments)];
            doors.map(|shown| shown.trim_end().to_owned())
        };
        let lasting_fields = |json: String| {
            let aged = ["CreatedSince", "RunningFor", "Status"];
            let is_age = |field: &&str| aged.iter().any(|age| field.contains(age));
            // Go escapes what HTML would.
            json.replace("\\u003e", ">")
                .split(',')
                .filter(|field| !is_age(field))
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        let [ours, dockers] = formatted("json").map(lasting_fields);
        assert_eq!(ours, dockers);
        let template = "{{range .Images}}{{.ID}} {{.UniqueSize}}/{{end}}{{len .BuildCache}}";
        let [ours, dockers] = formatted(template);
        assert_eq!(ours, dockers);
        // The other image has busybox too: unique to `other` is only its own file.
        let row = verbose.lines().find(|line| line.starts_with("other"));
        let unique = row.unwrap().split_whitespace().rev().nth(1);
        assert_eq!(unique, Some("4.096kB"), "{verbose}");
    });
}

/// dockerd 28's texts, as recorded. Both clients print them after a prefix of their own.
#[test]
fn errors_have_dockerds_texts() {
    if !has_docker_28() {
        return skip("docker is older than 28");
    }
    root(|| {
        let store = shop("store");
        let server = Server::start(&store);
        in_shop(&store, &["--name", "one"], &["true"]).ok();
        let script = "trap 'exit 0' TERM; while :; do sleep 0.1; done";
        let runs = store.ok(["run", "-d", "--name", "web", "shop", "sh", "-c", script]);
        let rests = store.ok(["inspect", "-f", "{{.Id}}", "one"]);
        let (runs, rests) = (runs.trim(), rests.trim());
        let image = store.ok(["images", "-q"]);
        let (user, image) = (&runs[..12], image.trim());
        let missing = "No such container: nosuch";
        for verb in [
            "start", "stop", "kill", "restart", "pause", "unpause", "wait", "rm", "logs",
        ] {
            assert_eq!(
                same_refusal(&store, &server, &[verb, "nosuch"]),
                missing,
                "{verb}"
            );
        }
        for (arguments, text) in [
            (&["rename", "nosuch", "other"][..], missing.to_owned()),
            (&["exec", "nosuch", "true"], missing.to_owned()),
            (&["diff", "nosuch"], missing.to_owned()),
            (&["commit", "nosuch"], missing.to_owned()),
            (
                &["kill", "one"],
                format!("cannot kill container: one: container {rests} is not running"),
            ),
            (&["exec", "one", "true"], format!("container {rests} is not running")),
            (&["pause", "one"], format!("container {rests} is not running")),
            (&["unpause", "web"], format!("Container {runs} is not paused")),
            (
                &["rm", "web"],
                "cannot remove container \"web\": container is running: stop the container before removing or force remove".to_owned(),
            ),
            (
                &["rename", "one", "web"],
                format!("Conflict. The container name \"/web\" is already in use by container \"{runs}\". You have to remove (or rename) that container to be able to reuse that name."),
            ),
            (&["tag", "nosuch", "x:y"], "No such image: nosuch:latest".to_owned()),
            (&["rmi", "nosuch"], "No such image: nosuch:latest".to_owned()),
            (&["history", "nosuch"], "No such image: nosuch:latest".to_owned()),
            (
                &["rmi", "shop"],
                format!("conflict: unable to remove repository reference \"shop\" (must force) - container {user} is using its referenced image {image}"),
            ),
        ] {
            assert_eq!(same_refusal(&store, &server, arguments), text, "{arguments:?}");
        }
        store.ok(["pause", "web"]);
        let paused = format!("Container {runs} is already paused");
        assert_eq!(same_refusal(&store, &server, &["pause", "web"]), paused);
        let paused = format!("Container {runs} is paused, unpause the container before exec");
        assert_eq!(
            same_refusal(&store, &server, &["exec", "web", "true"]),
            paused
        );
        store.ok(["rm", "-f", "web"]);
    });
}
