//! A container's life from `create` to `rm`, with Docker's states, names and options.

use cowl_tests::busybox::{containers, in_shop, shop};
use cowl_tests::profile::{directory, root, user};
use cowl_tests::store::Store;

/// The line of `ps -a` for the container with this name.
fn listed(store: &Store, name: &str) -> String {
    let all = store.ok(["ps", "-a"]);
    let line = all.lines().find(|line| line.ends_with(name));
    line.unwrap_or_else(|| panic!("no {name}: {all}"))
        .to_owned()
}

fn a_created_container_stays_until_it_is_removed() {
    let store = shop("store");
    let id = store.ok(["create", "--name", "first", "shop", "true"]);
    assert_eq!(containers(&store), [id.trim()]);
    assert!(listed(&store, "first").contains("Created"));
    assert_eq!(store.ok(["ps"]).lines().count(), 1, "it does not run");
    // Commands that clean up after others do not touch it.
    in_shop(&store, &["--rm"], &["true"]).ok();
    store.ok(["create", "--rm", "--name", "second", "shop", "true"]);
    store.ok(["rm", "second"]);
    assert_eq!(containers(&store), [id.trim()]);
    store.ok(["rm", "first"]);
    assert_eq!(containers(&store), [""; 0]);
}

#[test]
fn a_created_container_stays_until_it_is_removed_as_root() {
    root(|| a_created_container_stays_until_it_is_removed());
}

#[test]
fn a_created_container_stays_until_it_is_removed_as_user() {
    user(|| a_created_container_stays_until_it_is_removed());
}

fn a_start_that_fails_leaves_a_created_container_unless_removed() {
    let store = shop("store");
    assert_eq!(
        in_shop(&store, &["--name", "wrong"], &["no-such-program"]).code(),
        127
    );
    assert!(listed(&store, "wrong").contains("Created"));
    assert_eq!(
        in_shop(&store, &["--rm", "--name", "gone"], &["/etc/motd"]).code(),
        126
    );
    assert_eq!(containers(&store).len(), 1);
    store.ok(["rm", "wrong"]);
}

#[test]
fn a_start_that_fails_leaves_a_created_container_unless_removed_as_root() {
    root(|| a_start_that_fails_leaves_a_created_container_unless_removed());
}

#[test]
fn a_start_that_fails_leaves_a_created_container_unless_removed_as_user() {
    user(|| a_start_that_fails_leaves_a_created_container_unless_removed());
}

fn rename_frees_the_old_name_and_refuses_a_used_one() {
    let store = shop("store");
    let id = store.ok(["create", "--name", "one", "shop", "true"]);
    store.ok(["create", "--name", "two", "shop", "true"]);
    let refusal = store.run(["rename", "one", "two"]).refused(1);
    assert!(
        refusal.contains("The container name \"/two\" is already in use by container"),
        "{refusal}"
    );
    let refusal = store.run(["rename", "one", "no/slash"]).refused(1);
    assert!(
        refusal.contains("Invalid container name (no/slash)"),
        "{refusal}"
    );
    store.ok(["rename", "one", "three"]);
    assert!(listed(&store, "three").starts_with(&id[..12]));
    let refusal = store.run(["rm", "one"]).refused(1);
    assert!(refusal.contains("No such container: one"), "{refusal}");
    store.ok(["create", "--name", "one", "shop", "true"]);
    store.ok(["rm", "one", "two", "three"]);
}

#[test]
fn rename_frees_the_old_name_and_refuses_a_used_one_as_root() {
    root(|| rename_frees_the_old_name_and_refuses_a_used_one());
}

#[test]
fn rename_frees_the_old_name_and_refuses_a_used_one_as_user() {
    user(|| rename_frees_the_old_name_and_refuses_a_used_one());
}

/// Each option with its effect inside.
fn options_have_their_effect() {
    let store = shop("store");
    let out = |options: &[&str], script: &str| {
        let options = [&["--rm"], options].concat();
        in_shop(&store, &options, &["sh", "-c", script]).ok()
    };
    let status = |field: &str| format!("grep ^{field}: /proc/self/status");
    assert_eq!(
        out(&["--cap-add", "NET_ADMIN"], &status("CapEff")),
        "CapEff:\t00000000a80435fb\n"
    );
    assert_eq!(
        out(
            &["--cap-drop", "all", "--cap-add", "cap_chown"],
            &status("CapBnd")
        ),
        "CapBnd:\t0000000000000001\n"
    );
    assert_eq!(
        out(
            &["--security-opt", "no-new-privileges"],
            &status("NoNewPrivs")
        ),
        "NoNewPrivs:\t1\n"
    );
    assert_eq!(out(&["-h", "web.example"], "hostname"), "web.example\n");
    assert_eq!(
        out(
            &["--read-only", "-v", "notes:/notes"],
            "echo x > /notes/x && ! echo x 2> /dev/null > /x && echo refused"
        ),
        "refused\n"
    );
    let file = directory().join("env");
    std::fs::write(&file, "# a comment\nA=from file\nB=from file\n").unwrap();
    let file = file.to_str().unwrap();
    assert_eq!(
        out(&["--env-file", file, "-e", "B=given"], "echo $A, $B"),
        "from file, given\n"
    );
    // The file of a container that was not created is removed.
    let cidfile = directory().join("cid");
    for _ in 0..2 {
        let create = ["create", "--cidfile", cidfile.to_str().unwrap(), "nosuch"];
        let refusal = store.run(create).refused(1);
        assert!(refusal.contains("No such image"), "{refusal}");
    }
    let cidfile = cidfile.to_str().unwrap();
    let id = store.ok(["create", "--cidfile", cidfile, "shop", "true"]);
    assert_eq!(std::fs::read_to_string(cidfile).unwrap(), id.trim());
    let refusal = store
        .run(["create", "--cidfile", cidfile, "shop", "true"])
        .refused(1);
    assert!(refusal.contains("container ID file found"), "{refusal}");
    store.ok(["rm", id.trim()]);
}

#[test]
fn options_have_their_effect_as_root() {
    root(|| options_have_their_effect());
}

#[test]
fn options_have_their_effect_as_user() {
    user(|| options_have_their_effect());
}

fn mounts_of_another_container_and_of_mount_options() {
    let store = shop("store");
    let script = "echo kept > /data/note";
    let mount = "source=notes,target=/data";
    in_shop(
        &store,
        &["--name", "writer", "--mount", mount],
        &["sh", "-c", script],
    )
    .ok();
    let read = ["cat", "/data/note"];
    assert_eq!(
        in_shop(&store, &["--rm", "--volumes-from", "writer"], &read).ok(),
        "kept\n"
    );
    let host = directory().join("shared");
    std::fs::create_dir(&host).unwrap();
    std::fs::write(host.join("note"), "of the host\n").unwrap();
    let bind = format!("type=bind,src={},dst=/data,readonly", host.display());
    assert_eq!(
        in_shop(&store, &["--rm", "--mount", &bind], &read).ok(),
        "of the host\n"
    );
    let write = ["sh", "-c", script];
    assert_ne!(
        in_shop(&store, &["--rm", "--mount", &bind], &write).code(),
        0
    );
    for read_only in ["--volumes-from", "writer:ro"].chunks(2) {
        let options = [&["--rm"], read_only].concat();
        assert_ne!(in_shop(&store, &options, &write).code(), 0);
    }
    let missing = format!("type=bind,src={}/no,dst=/data", host.display());
    let refusal = in_shop(&store, &["--mount", &missing], &["true"]).refused(125);
    assert!(
        refusal.contains("bind source path does not exist"),
        "{refusal}"
    );
    store.ok(["rm", "writer"]);
}

#[test]
fn mounts_of_another_container_and_of_mount_options_as_root() {
    root(|| mounts_of_another_container_and_of_mount_options());
}

#[test]
fn mounts_of_another_container_and_of_mount_options_as_user() {
    user(|| mounts_of_another_container_and_of_mount_options());
}

#[test]
fn a_limit_of_processes_holds() {
    root(|| {
        let store = shop("store");
        let script = "cat /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max 2>/dev/null; true";
        assert_eq!(
            in_shop(
                &store,
                &["--rm", "--pids-limit", "9"],
                &["sh", "-c", script]
            )
            .ok(),
            "9\n"
        );
        let fork = "for i in 1 2 3 4; do sleep 100 & done; echo all";
        let refused = in_shop(&store, &["--rm", "--pids-limit", "3"], &["sh", "-c", fork]);
        assert!(!refused.stdout.contains("all"), "{refused}");
    });
}

fn ps_speaks_dockers_filters_and_formats() {
    let store = shop("store");
    let create = |name: &str, options: &[&str]| {
        let arguments = [
            &["create", "--name", name],
            options,
            &["shop", "sleep", "a b"],
        ];
        store.ok(arguments.concat()).trim().to_owned()
    };
    let first = create("first", &["-l", "kind=one", "-v", "notes:/notes:ro"]);
    let second = create(
        "second",
        &["-l", "kind=two", "-m", "64m", "--cap-add", "NET_ADMIN"],
    );
    let ps =
        |options: &[&str]| store.ok([&["ps", "-a", "--format", "{{.Names}}"], options].concat());
    assert_eq!(ps(&[]), "second\nfirst\n", "newest first");
    assert_eq!(ps(&["-n", "1"]), "second\n");
    assert_eq!(ps(&["-f", "name=^fi"]), "first\n");
    assert_eq!(ps(&["-f", "label=kind=two"]), "second\n");
    assert_eq!(ps(&["-f", "volume=notes"]), "first\n");
    assert_eq!(ps(&["-f", "before=second"]), "first\n");
    assert_eq!(
        ps(&["-f", "ancestor=shop", "-f", "status=created"]),
        "second\nfirst\n"
    );
    assert_eq!(ps(&["-f", "status=running"]), "");
    let refusal = store.run(["ps", "-f", "foo=bar"]).refused(1);
    assert!(refusal.contains("invalid filter 'foo'"), "{refusal}");
    assert_eq!(
        store.ok(["ps", "-a", "--format", "table {{.ID}}\\t{{.Names}}"]),
        format!(
            "CONTAINER ID   NAMES\n{}   second\n{}   first\n",
            &second[..12],
            &first[..12]
        )
    );
    assert_eq!(
        store.ok(["container", "ls", "-aq", "--no-trunc"]),
        format!("{second}\n{first}\n")
    );
    store.ok(["rm", "first", "second"]);
}

fn inspect_speaks_dockers_json_and_templates() {
    let store = shop("store");
    let first = store.ok([
        "create",
        "--name",
        "first",
        "-v",
        "notes:/notes:ro",
        "shop",
        "sleep",
        "a b",
    ]);
    let first = first.trim();
    store.ok([
        "create",
        "--name",
        "second",
        "-l",
        "kind=two",
        "-m",
        "64m",
        "--cap-add",
        "NET_ADMIN",
        "--io",
        "writeback",
        "shop",
    ]);
    let field = |name: &str, template: &str| {
        let shown = store.ok(["inspect", "-f", template, name]);
        shown.trim_end().to_owned()
    };
    assert_eq!(
        field("first", "{{.Id}} {{.Name}}"),
        format!("{first} /first")
    );
    assert_eq!(
        field(&first[..9], "{{.Path}} {{json .Args}}"),
        "sleep [\"a b\"]"
    );
    assert_eq!(
        field("first", "{{.State.Status}} {{.State.Running}}"),
        "created false"
    );
    assert_eq!(
        field(
            "first",
            "{{range .Mounts}}{{.Type}} {{.Name}} {{.Destination}} {{.RW}}{{end}}"
        ),
        "volume notes /notes false"
    );
    assert_eq!(
        field(
            "second",
            "{{.HostConfig.Memory}} {{.HostConfig.CapAdd}} {{.HostConfig.NetworkMode}}"
        ),
        "67108864 [NET_ADMIN] bridge"
    );
    let io_mode = "{{.GraphDriver.Data.IoMode}}";
    assert_eq!(field("first", io_mode), "cached (default)");
    assert_eq!(field("second", io_mode), "writeback");
    let whiteouts = "{{.GraphDriver.Data.Whiteouts}}";
    // The first mount determines it: `first` was mounted to fill its volume.
    assert_eq!(field("second", whiteouts), "");
    assert_eq!(field("first", whiteouts), "devices");
    store.ok(["start", "first"]);
    store.ok(["wait", "first"]);
    assert_eq!(field("second", "{{index .Config.Labels \"kind\"}}"), "two");
    // The output is valid JSON.
    let printed = store.ok(["container", "inspect", "first", "second"]);
    let script = "import json, sys; print([c['Name'] for c in json.load(sys.stdin)])";
    let python = cowl_tests::command::shell(
        &directory(),
        "printf %s \"$1\" | python3 -c \"$2\"",
        [printed.as_str(), script],
    );
    assert_eq!(python, "['/first', '/second']\n");
    let missing = store.run(["inspect", "-f", "{{.Id}}", "nosuch"]);
    // Without results Docker's client prints an empty line (`TemplateInspector.Flush` of
    // docker/cli).
    assert_eq!((missing.code(), missing.stdout.as_str()), (1, "\n"));
    assert!(
        missing.stderr.contains("No such object: nosuch"),
        "{missing}"
    );
    store.ok(["rm", "first", "second"]);
}

#[test]
fn ps_speaks_dockers_filters_and_formats_as_root() {
    root(|| ps_speaks_dockers_filters_and_formats());
}

#[test]
fn ps_speaks_dockers_filters_and_formats_as_user() {
    user(|| ps_speaks_dockers_filters_and_formats());
}

#[test]
fn inspect_speaks_dockers_json_and_templates_as_root() {
    root(|| inspect_speaks_dockers_json_and_templates());
}

#[test]
fn inspect_speaks_dockers_json_and_templates_as_user() {
    user(|| inspect_speaks_dockers_json_and_templates());
}
