//! Stores and command lines.

use cowl_tests::busybox::{containers, in_shop, layers, shop};
use cowl_tests::command::shell;
use cowl_tests::profile::{directory, root, user};
use cowl_tests::store::{Store, mounted_kind};

use crate::{point, refusal};

/// Root would leave files in it that the user could not read or remove.
#[test]
fn root_changes_nothing_in_a_users_store() {
    root(|| {
        let store = shop("store");
        let (archive, base) = (layers().join("blog.image.tar"), layers().join("base.tar"));
        let ended = in_shop(&store, &["--name", "ended"], &["true"]);
        assert_eq!(ended.code(), 0, "{ended}");
        shell(&directory(), "chown -R 65534:65534 store", [""; 0]);
        let everything = || {
            let list = "find . -printf '%p %s %u %m\n' | sort";
            shell(store.root(), list, [""; 0])
        };
        let before = everything();
        let (archive, base) = (archive.to_str().unwrap(), base.to_str().unwrap());
        let mount_point = point();
        let commands: [&[&str]; 8] = [
            &["load", "-i", archive],
            &["import", base, "base"],
            &["mount", "shop", mount_point.to_str().unwrap()],
            &["run", "--rm", "shop", "true"],
            &["rmi", "-f", "shop"],
            &["rm", "ended"],
            &["volume", "create", "data"],
            &["volume", "rm", "data"],
        ];
        for command in commands {
            let code = if command[0] == "run" { 125 } else { 1 };
            let owner = format!("{} belongs to user 65534", store.root().display());
            refusal(store.run(command), code, &owner, "sudo -u '#65534' cowl");
        }
        assert_eq!(everything(), before);
        for command in [&["images"][..], &["history", "shop"], &["check"], &["ps"]] {
            store.ok(command);
        }
        assert_eq!(everything(), before);
        assert_eq!(mounted_kind(&mount_point), None);
    });
}

/// Commands that do not need the damaged part work; none hangs or follows a symbolic link.
fn a_damaged_part() {
    let store = shop("store");
    in_shop(&store, &["--name", "ended"], &["true"]).ok();
    let run = &["run", "--rm", "shop", "true"][..];
    let archive = layers().join("blog.image.tar");
    let load = &["load", "-q", "-i", archive.to_str().unwrap()][..];
    let (images, ps, volumes) = (&["images"][..], &["ps", "-a"][..], &["volume", "ls"][..]);
    let history = &["history", "shop"][..];
    let parts = [
        (
            "merged",
            vec![images, ps, volumes, history],
            vec![run, load],
        ),
        (
            "volumes",
            vec![images, ps, run, load, history],
            vec![volumes],
        ),
        (
            "mountd.log",
            vec![images, ps, volumes, load, history],
            vec![run],
        ),
    ];
    let damages = [
        "mkfifo \"$1\"",
        "mkdir -p elsewhere; ln -s elsewhere \"$1\"",
        "ln -s nowhere \"$1\"",
        "echo > \"$1\"",
    ];
    for (part, works, fails) in parts {
        for damage in damages {
            // A log may have any content.
            let damage = if part == "mountd.log" {
                damage.replace("echo >", "mkdir")
            } else {
                damage.to_owned()
            };
            shell(store.root(), "mv \"$1\" ../aside", [part]);
            shell(store.root(), &damage, [part]);
            for command in &works {
                store.ok(*command);
            }
            for command in &fails {
                let code = if *command == run { 125 } else { 1 };
                let path = store.root().join(part);
                let why = if part == "mountd.log" {
                    "not a regular file"
                } else {
                    "Not a directory"
                };
                refusal(store.run(*command), code, path.to_str().unwrap(), why);
            }
            let check = store.run(["check"]);
            assert_eq!(check.code(), 1, "{check}");
            let named = format!("{}: damaged", store.root().join(part).display());
            assert!(check.stdout.contains(&named), "{check}");
            shell(
                store.root(),
                "rm -r \"$1\"; mv ../aside \"$1\"; if [ -e elsewhere ]; then rmdir elsewhere; fi; ! ls nowhere 2>/dev/null",
                [part],
            );
        }
    }
    for command in [run, load, volumes] {
        store.ok(command);
    }
    store.ok(["rm", "ended"]);
    store.ok(["check", "--deep"]);
}

#[test]
fn a_damaged_part_stops_only_the_commands_that_need_it_as_root() {
    root(|| a_damaged_part());
}

#[test]
fn a_damaged_part_stops_only_the_commands_that_need_it_as_user() {
    user(|| a_damaged_part());
}

fn a_wrong_command_line() {
    let store = Store::new("store");
    refusal(store.run(["images", "--nosuch"]), 125, "--nosuch", "--help");
    refusal(
        store.run(["run", "--nosuch", "shop"]),
        125,
        "--nosuch",
        "--help",
    );
    // As in Docker, errors other than option errors exit with 1.
    refusal(store.run(["nosuch"]), 1, "nosuch", "cowl --help");
    refusal(store.run(["pull", "a"]), 1, "pull", "cowl load");
    refusal(store.run(["volume", "nosuch"]), 1, "nosuch", "--help");
    refusal(store.run(["rm"]), 1, "CONTAINER", "--help");
    refusal(store.run(["images", "a", "b"]), 1, "b", "--help");
    refusal(store.run(["exec", "a"]), 1, "COMMAND", "--help");
    let line = store.run(["dedup", "--nosuch"]).refused(125);
    assert!(
        line.contains("--nosuch") && line.contains("cowl dedup --help"),
        "{line}"
    );
    refusal(store.run(["run"]), 1, "IMAGE", "--help");
    refusal(
        store.run(["run", "-m", "lots", "shop"]),
        125,
        "lots",
        "--help",
    );
    assert!(
        !store.root().exists(),
        "a wrong command line makes no store"
    );
}

#[test]
fn wrong_command_lines_are_refused() {
    root(|| a_wrong_command_line());
}

fn a_name_in_use() {
    let store = shop("store");
    in_shop(&store, &["--name", "taken"], &["true"]).ok();
    let before = containers(&store);
    refusal(
        in_shop(&store, &["--name", "taken"], &["true"]),
        125,
        "taken",
        "You have to remove (or rename) that container",
    );
    assert_eq!(containers(&store), before);
    refusal(
        in_shop(&store, &["--name", "no/slash"], &["true"]),
        125,
        "no/slash",
        "",
    );
    refusal(store.run(["rm", "nosuch"]), 1, "nosuch", "");
    assert_eq!(containers(&store), before);
}

#[test]
fn a_name_in_use_is_refused_as_root() {
    root(|| a_name_in_use());
}

#[test]
fn a_name_in_use_is_refused_as_user() {
    user(|| a_name_in_use());
}
