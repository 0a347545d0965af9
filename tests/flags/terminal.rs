//! Flags about the caller's terminal.

use std::process::Command;

use cowl_tests::profile::root;
use cowl_tests::pty::InTerminal;

use crate::support::{Detached, Doors};

/// Starts a client in a terminal, waits for the container's shell, types keys, and returns the
/// client's exit code and its output after the keys.
#[track_caller]
fn leave(mut client: Command, keys: &[u8]) -> (Option<i32>, String) {
    let mut terminal = InTerminal::start(&mut client, 30, 100);
    terminal.send(b"echo $((6 * 7)) there\n");
    terminal.expect("42 there\r\n");
    terminal.send(keys);
    terminal.end()
}

#[test]
fn detach_keys_leave_the_program_running() {
    root(|| {
        let doors = Doors::open();
        let usual: &[u8] = b"\x10\x11";
        // Ends, since the keys before the newline go to the shell.
        let ends: &[u8] = b"\x10\x11\x15exit 9\n";
        let of = |door: &str, words: &[&str]| match door {
            "cowl" => doors.store.command(words),
            _ => doors.server.docker(words),
        };
        for door in ["cowl", "docker"] {
            let running = || {
                doors
                    .store
                    .ok(["inspect", "-f", "{{.State.Running}}", door])
            };
            let run = of(door, &["run", "-it", "--name", door, "shop", "sh"]);
            assert_eq!(leave(run, usual).0, Some(0), "{door} run");
            assert_eq!(running(), "true\n", "{door} run");

            for words in [
                &["attach", "--detach-keys", "ctrl-a,x", door][..],
                &["exec", "-it", "--detach-keys=ctrl-a,x", door, "sh"],
            ] {
                let (code, shown) = leave(of(door, words), b"\x01x");
                assert_eq!(code, Some(1), "{door} {words:?}: {shown}");
                assert!(shown.contains("read escape sequence"), "{shown}");
                assert_eq!(running(), "true\n", "{door} {words:?}");
            }
            // With other detach keys the default ones go to the program.
            let exec = of(door, &["exec", "-it", "--detach-keys", "z", door, "sh"]);
            assert_eq!(leave(exec, ends).0, Some(9), "{door} exec");
            let attach = of(door, &["attach", "--detach-keys", "z", door]);
            assert_eq!(leave(attach, ends).0, Some(9), "{door} attach");

            let start = of(door, &["start", "-ai", "--detach-keys", "a,b", door]);
            assert_eq!(leave(start, b"ab").0, Some(0), "{door} start");
            assert_eq!(running(), "true\n", "{door} start");
            doors.store.ok(["rm", "-f", door]);
        }
        let wrong = doors.store.run(["run", "--detach-keys", "ab", "shop"]);
        let wrong = wrong.refused(125);
        assert!(
            wrong.contains("Invalid escape keys (ab) provided"),
            "{wrong}"
        );
    });
}

/// As in Docker's client: a program with a terminal must read from a terminal; `start` does not
/// check.
#[test]
fn tty_refuses_an_input_that_is_not_a_terminal() {
    root(|| {
        let doors = Doors::open();
        let running = Detached::start(&doors.store, "running", &["-it"], "exec sleep 1000");
        doors
            .store
            .ok(["create", "-it", "--name", "rests", "shop", "tty"]);
        let at_both = |words: &[&str]| {
            let (own, docker) = (doors.store.run(words), doors.server.run(words));
            assert_eq!(own.code(), docker.code(), "{own} {docker}");
            (own, docker)
        };
        for words in [
            &["run", "-it", "shop", "true"][..],
            &["run", "-t", "-a", "stdin", "shop", "true"],
            &["exec", "-it", running.name, "true"],
            &["attach", running.name],
        ] {
            let (own, docker) = at_both(words);
            assert_eq!(own.code(), 1, "{own}");
            for refused in [own.refused(1), docker.refused(1)] {
                assert!(
                    refused.contains("the input device is not a TTY"),
                    "{refused}"
                );
            }
        }
        let listed = doors.store.ok(["ps", "-a", "--format", "{{.Names}}"]);
        assert_eq!(listed.lines().count(), 2, "{listed}");
        // The container's state comes first.
        let (own, docker) = at_both(&["attach", "rests"]);
        for refused in [own.refused(1), docker.refused(1)] {
            assert!(
                refused.contains("cannot attach to a stopped container"),
                "{refused}"
            );
        }
        for words in [
            &["exec", "-t", running.name, "tty"][..],
            &["start", "-ai", "rests"],
        ] {
            let (own, docker) = at_both(words);
            let (own, docker) = (own.ok(), docker.ok());
            assert_eq!(own, docker, "{words:?}");
            assert!(own.starts_with("/dev/pts/"), "{own}");
        }
        // Detached, nobody reads.
        at_both(&["exec", "-itd", running.name, "true"]).0.ok();
    });
}
