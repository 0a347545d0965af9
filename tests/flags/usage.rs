//! `stats` and `port`: resource usage and published ports; and the help of command groups.

use cowl_tests::busybox::shop;
use cowl_tests::host::has_docker_28;
use cowl_tests::profile::{root, user};
use cowl_tests::pty::InTerminal;
use cowl_tests::skip::skip;

use crate::support::{Detached, Doors};

/// Columns that are the same in two readings of a container that does nothing.
const STEADY: &str =
    "{{.Container}} {{.ID}} {{.Name}} {{.CPUPerc}} {{.NetIO}} {{.BlockIO}} {{.PIDs}}";

#[test]
fn stats_shows_what_the_control_groups_count() {
    if !has_docker_28() {
        return skip("docker is older than 28");
    }
    root(|| {
        let doors = Doors::open();
        let flags = ["-m", "64m", "--tmpfs", "/mem"];
        let script = "head -c 20000000 /dev/zero > /mem/file; while :; do :; done";
        let busy = Detached::start(&doors.store, "busy", &flags, script);
        busy.exec("until test \"$(stat -c %s /mem/file)\" = 20000000; do usleep 10000; done");
        let idle = Detached::start(&doors.store, "idle", &[], "cat /dev/zero | sleep 1000");
        idle.exec("true");
        doors.store.ok(["pause", "idle"]);
        doors
            .store
            .ok(["create", "--name", "rests", "shop", "true"]);
        let stats = |words: &[&str]| {
            let words = [&["stats", "--no-stream"], words].concat();
            (doors.store.ok(&words), doors.server.ok(&words))
        };
        for names in [&["idle", "rests"][..], &["--no-trunc", "rests"]] {
            let (own, dockers) = stats(&[&["--format", STEADY], names].concat());
            assert_eq!(own, dockers, "{names:?}");
        }
        for (words, expected) in [(&[][..], "busy idle"), (&["-a"], "busy idle rests")] {
            let (own, dockers) = stats(&[&["--format", "{{.Name}}"], words].concat());
            let sorted = |shown: &str| {
                let mut names: Vec<&str> = shown.split_whitespace().collect();
                names.sort_unstable();
                names.join(" ")
            };
            assert_eq!(sorted(&own), expected);
            assert_eq!(sorted(&dockers), expected);
        }
        let (own, dockers) = stats(&["rests"]);
        assert_eq!(own, dockers);
        let (own, dockers) = stats(&["--format", "json", "rests"]);
        assert_eq!(own, dockers);

        let shown = doors.store.ok([
            "stats",
            "--no-stream",
            "--format",
            "{{.CPUPerc}} {{.MemUsage}} {{.MemPerc}}",
            busy.name,
        ]);
        let words: Vec<&str> = shown.split_whitespace().collect();
        let [processor, used, "/", limit, part] = words[..] else {
            panic!("{shown}");
        };
        let percent = |text: &str| text.strip_suffix('%').unwrap().parse::<f64>().unwrap();
        assert!(percent(processor) > 0.0, "{shown}");
        assert_eq!(limit, "64MiB");
        let used: f64 = used.strip_suffix("MiB").unwrap().parse().unwrap();
        assert!((19.0..40.0).contains(&used), "{shown}");
        assert!((percent(part) - used / 0.64).abs() < 0.1, "{shown}");

        let missing = doors.store.run(["stats", "--no-stream", "idle", "none"]);
        let missing = missing.refused(1);
        assert!(missing.contains("No such container: none"), "{missing}");
    });
}

#[test]
fn stats_goes_on_until_the_container_is_gone() {
    user(|| {
        let store = shop("store");
        let web = Detached::start(&store, "web", &[], "sleep 1000");
        let mut terminal = InTerminal::start(&mut store.command(["stats", "web"]), 30, 100);
        for _ in 0..2 {
            terminal.expect("\x1b[HCONTAINER ID ");
            terminal.expect(" web ");
        }
        drop(web);
        assert_eq!(terminal.end().0, Some(0));
    });
}

#[test]
fn port_finds_nothing_where_nothing_is_published() {
    if !has_docker_28() {
        return skip("docker is older than 28");
    }
    root(|| {
        let doors = Doors::open();
        doors.store.ok(["create", "--name", "web", "shop", "true"]);
        for (words, code, text) in [
            (&["port", "web"][..], 0, ""),
            (
                &["port", "web", "80"],
                1,
                "No public port '80' published for web\n",
            ),
            (
                &["port", "web", "80/udp"],
                1,
                "No public port '80/udp' published for web\n",
            ),
            (&["port", "none"], 1, "No such container: none\n"),
        ] {
            for shown in [doors.store.run(words), doors.server.run(words)] {
                assert_eq!(shown.code(), code, "{shown}");
                assert_eq!(shown.stdout, "", "{shown}");
                assert!(shown.stderr.ends_with(text), "{shown}");
            }
        }
        doors.store.run(["port", "web", "http"]).refused(1);
    });
}

#[test]
fn ps_and_inspect_show_sizes_and_types_as_dockers() {
    if !has_docker_28() {
        return skip("docker is older than 28");
    }
    root(|| {
        let doors = Doors::open();
        let (store, server) = (&doors.store, &doors.server);
        let script = "head -c 1000000 /dev/zero > /file";
        store.ok(["run", "--name", "large", "shop", "sh", "-c", script]);
        store.ok(["create", "--name", "small", "shop", "true"]);
        store.ok(["volume", "create", "shop"]);
        for words in [
            &["ps", "-as", "--format", "table {{.Names}}\\t{{.Size}}"][..],
            &["ps", "-a", "--format", "{{.Names}} {{.Size}}"],
            &[
                "inspect",
                "-s",
                "-f",
                "{{.SizeRw}} {{.SizeRootFs}}",
                "large",
                "small",
            ],
            &["container", "inspect", "-sf", "{{.SizeRw}}", "large"],
            &["inspect", "--type", "container", "-f", "{{.Name}}", "large"],
            &["inspect", "--type=image", "-f", "{{.Id}}", "shop"],
            &[
                "inspect",
                "--type=volume",
                "-f",
                "{{.Name}} {{.Scope}}",
                "shop",
            ],
        ] {
            let own = store.ok(words);
            assert_eq!(own, server.ok(words), "{words:?}");
            assert_ne!(own, "", "{words:?}");
        }
        // The times of two readings differ.
        for shown in [store.ok(["ps", "-as"]), server.ok(["ps", "-a", "--size"])] {
            let titles = shown.lines().next().unwrap();
            assert!(titles.ends_with(" NAMES     SIZE"), "{titles}");
        }
        let sizes = store.ok(["ps", "-a", "--format", "{{.Names}} {{.Size}}"]);
        assert!(sizes.contains("large 1MB (virtual "), "{sizes}");
        for (words, text) in [
            (
                ["inspect", "--type=container", "shop"],
                "No such container: shop",
            ),
            (["inspect", "--type=volume", "large"], "no such volume"),
            (
                ["inspect", "--type=fly", "shop"],
                "unknown type: \"fly\": must be one of ",
            ),
        ] {
            for refused in [store.run(words), server.run(words)] {
                assert_eq!(refused.code(), 1, "{refused}");
                assert!(refused.stderr.contains(text), "{refused}");
            }
        }
    });
}

/// The commands that a group's help lists.
fn listed(help: &str) -> Vec<String> {
    let after = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let commands = after.take_while(|line| line.starts_with("  "));
    let names = commands.filter_map(|line| line.split_whitespace().next());
    names.map(str::to_owned).collect()
}

#[test]
fn groups_list_dockers_commands() {
    root(|| {
        let doors = Doors::open();
        let absent = ["build", "pull", "push"];
        for group in ["container", "image", "system", "volume"] {
            let mut dockers = listed(&doors.server.ok([group, "--help"]));
            dockers.retain(|name| !absent.contains(&name.as_str()));
            // Only for cluster volumes.
            dockers.retain(|name| group != "volume" || name != "update");
            assert!(dockers.len() > 3, "{dockers:?}");
            let own = doors.store.ok([group, "--help"]);
            assert_eq!(listed(&own), dockers, "{group}");
            assert_eq!(doors.store.ok(["help", group]), own);
            for words in [
                &[group][..],
                &[group, "help"],
                &[group, "xyzzy"],
                &[group, "--bad"],
            ] {
                let (cowl, docker) = (doors.store.run(words), doors.server.run(words));
                assert_eq!(cowl.code(), docker.code(), "{cowl} {docker}");
                assert_eq!((cowl.stdout.as_str(), docker.stdout.as_str()), ("", ""));
            }
        }
    });
}
