//! The command line: help, options, names, the default store.

use std::fs;
use std::process::{Command, Stdio};

use cowl_tests::busybox::{layers, shop};
use cowl_tests::command::{binary, python, run};
use cowl_tests::profile::{directory, root, user};
use cowl_tests::store::Store;

/// `cowl help NAME` is `cowl NAME --help`: a line of usage, every argument, an example, the exit
/// codes.
#[test]
fn help_explains_each_command() {
    root(|| {
        let store = Store::new("store");
        for (command, words) in [
            (
                "dedup",
                [
                    "IMAGE is a name",
                    "ARCHIVE is what",
                    "--fail-if",
                    "cowl dedup ./app.tar",
                ],
            ),
            (
                "layers",
                [
                    "IMAGE is a name",
                    "ARCHIVE is what",
                    "--json",
                    "cowl layers shop",
                ],
            ),
            (
                "diff",
                [
                    "CONTAINER",
                    "ARCHIVE that need",
                    "--json",
                    "cowl diff shop:1 shop:2",
                ],
            ),
            (
                "tree",
                [
                    "<FILE>",
                    "An index in the store",
                    "--help",
                    "cowl tree /var",
                ],
            ),
        ] {
            let help = store.ok(["help", command]);
            assert_eq!(help, store.ok([command, "--help"]), "{command}");
            assert!(help.contains(&format!("Usage: cowl {command} ")), "{help}");
            assert!(help.contains("Exit codes: 0; 1 for an error"), "{help}");
            for word in words {
                assert!(help.contains(word), "{command}: {word}: {help}");
            }
        }
        let help = store.ok(["help", "layers"]);
        assert!(
            !help.contains("--tui") && !help.contains("--objects"),
            "{help}"
        );
    });
}

/// An option that the chosen output does not use is refused by name.
#[test]
fn options_that_would_change_nothing_are_refused() {
    root(|| {
        let store = shop("store");
        for (arguments, named) in [
            (["dedup", "--tui", "--fail-if", "waste>1%"], "--fail-if"),
            (["dedup", "--diff", "--html", "page.html"], "--html"),
            (["dedup", "--objects", "--waste", "shop"], "--waste"),
            (["layers", "shop", "--ladder", "--bytes"], "--ladder"),
            (["tree", "FILE", "--html", "page.html"], "--html"),
            (["dedup", "--json", "--layers", "shop"], "--layers"),
            (["dedup", "--html", "-", "shop"], "./-"),
            (["layers", "shop", "--html", "page.html"], "'cowl layers'"),
            (["dedup", "shop", "--bytes", "--no-zstd"], "--ladder"),
            (
                ["layers", "shop", "--fail-if", "packages>0"],
                "of two images",
            ),
            (
                ["diff", "shop", "blog", "--fail-if=waste>5%"],
                "of one image",
            ),
            (
                ["diff", "shop", "blog", "--fail-if=files>5%"],
                "a whole number",
            ),
            (
                ["diff", "shop", "blog", "--upper=dir"],
                "cannot be used with",
            ),
            (["diff", "--json", "--bytes", "shop"], "--bytes"),
        ] {
            let line = store.run(arguments).refused(125);
            assert!(line.contains(named), "{arguments:?}: {line}");
        }
        // Of a group of options, only those given are named.
        let line = store
            .run(["dedup", "--json", "--layers", "shop"])
            .refused(125);
        assert!(
            line.contains("'--json' cannot be used with '--layers'; see"),
            "{line}"
        );
        // A missing argument, as in Docker.
        let line = store
            .run(["diff", "shop", "--fail-if", "files>0"])
            .refused(1);
        assert!(line.contains("<B>"), "{line}");
        assert!(!directory().join("page.html").exists());
    });
}

/// Missing or surplus arguments: exit code 1, as in `cowl`'s own commands.
#[test]
fn wrong_arguments_exit_with_1_and_wrong_options_with_125() {
    root(|| {
        let store = shop("store");
        for (arguments, named) in [
            (&["tree"][..], "<FILE>"),
            (&["tree", "one", "other"], "'other'"),
            (
                &["dedup", "--diff", "one"],
                "give two images to compare, not 1",
            ),
            (&["dedup", "--diff", "one", "two", "three"], "not 3"),
            (&["layers", "-", "-"], "only once"),
            (&["diff", "shop", "blog", "more"], "more"),
        ] {
            let line = store.run(arguments).refused(1);
            assert!(line.contains(named), "{arguments:?}: {line}");
        }
    });
}

/// No store, a store of a newer format, an unknown name: one line each.
#[test]
fn mistakes_are_answered_in_one_line() {
    root(|| {
        let store = shop("store");
        let line = store.run(["dedup", "shop:none"]).refused(1);
        assert!(line.contains("no image shop:none in the store"), "{line}");
        let line = store.run(["dedup", "nothere.tar"]).refused(1);
        assert!(
            line.contains("no image nothere.tar:latest in the store")
                && line.contains("./nothere.tar"),
            "{line}"
        );
        // A directory that is not an image, by path and by name.
        fs::create_dir(directory().join("plain")).unwrap();
        for (name, expected) in [
            ("./plain", "./plain is not an image archive"),
            ("plain", "an archive is read as ./plain"),
        ] {
            let mut diff = Command::new(binary("cowl"));
            diff.arg("--root").arg(store.root());
            diff.args(["diff", "shop", name]).current_dir(directory());
            let line = run(diff.stdin(Stdio::null())).refused(1);
            assert!(line.contains(expected), "{line}");
        }
        let empty = Store::new("nothing");
        let line = run(Command::new(binary("cowl-dedup"))
            .arg("--root")
            .arg(empty.root())
            .stdin(Stdio::null()))
        .refused(1);
        assert!(line.contains("nothing"), "{line}");
        store.ok(["rmi", "shop"]);
        for command in ["dedup", "layers"] {
            let report = store.ok([command]);
            let first = report.lines().next();
            assert_eq!(first, Some("There are no images in the store."));
        }
        let all = store.ok(["dedup", "--all"]);
        for header in ["ADDED", "FREED"] {
            assert!(!all.contains(header), "a table of nothing: {all}");
        }
        let format = store.root().join("format.json");
        let newer = "
import json, sys
format = json.load(open(sys.argv[1]))
json.dump({**format, 'version': 99}, open(sys.argv[1], 'w'))
";
        python(&directory(), newer, [&format]);
        let line = store.run(["dedup"]).refused(1);
        assert!(line.contains("99"), "{line}");
    });
}

/// Without --root and COWL_ROOT, `cowl-dedup` reads `cowl`'s default store.
#[test]
fn the_default_store_of_a_user_is_that_of_cowl() {
    user(|| {
        let here = |name: &str| {
            let mut command = Command::new(binary(name));
            command.env_remove("COWL_ROOT").stdin(Stdio::null());
            command
        };
        let archive = layers().join("shop.image.tar");
        for (variable, store) in [("XDG_DATA_HOME", "cowl"), ("HOME", ".local/share/cowl")] {
            let home = directory().join(variable);
            fs::create_dir(&home).unwrap();
            let at_home = |mut command: Command| {
                command.env_remove("XDG_DATA_HOME").env(variable, &home);
                command
            };
            run(at_home(here("cowl"))
                .arg("load")
                .arg("--input")
                .arg(&archive))
            .ok();
            assert!(home.join(store).is_dir(), "{variable}");
            let report = run(&mut at_home(here("cowl-dedup"))).ok();
            assert!(report.contains("shop:latest"), "{variable}: {report}");
        }
    });
}
