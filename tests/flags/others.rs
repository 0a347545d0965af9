//! Flags about the image, labels, stopping and the log.

use std::io::{BufRead as _, BufReader, Lines};
use std::process::{Child, ChildStdout, Command, Stdio};

use cowl_tests::busybox::{in_shop, shop};
use cowl_tests::command::python;
use cowl_tests::host::has_docker_28;
use cowl_tests::profile::{directory, root};
use cowl_tests::server::until;
use cowl_tests::skip::skip;
use rustix::process::{Pid, Signal, kill_process};

use crate::support::{Detached, Doors};

#[test]
fn platform_must_be_the_images() {
    root(|| {
        let doors = Doors::open();
        let own = match std::env::consts::ARCH {
            "x86_64" => "linux/amd64",
            _ => "linux/arm64",
        };
        assert_eq!(doors.out(&["--platform", own], "echo runs"), "runs\n");
        let other = doors
            .store
            .run(["create", "--platform", "linux/s390x", "shop", "true"])
            .refused(1);
        assert!(
            other.contains("does not match the specified platform (linux/s390x)"),
            "{other}"
        );
        let other = doors.server.request(
            "POST /v1.51/containers/create?platform=linux/s390x",
            "{\"Image\": \"shop\", \"Cmd\": [\"true\"]}",
        );
        assert!(
            other.starts_with("HTTP/1.1 404") && other.contains("linux/s390x"),
            "{other}"
        );
        // Docker's client looks up the container before it checks the platform.
        let create = ["create", "--platform", "a/b/c/d", "shop", "true"];
        let codes = [
            (doors.store.run(create), 125),
            (doors.server.run(create), 1),
        ];
        for (refused, code) in codes {
            let refused = refused.refused(code);
            assert!(refused.contains("a/b/c/d"), "{refused}");
        }
    });
}

#[test]
fn image_inspect_and_history_take_the_platform_of_the_image() {
    if !has_docker_28() {
        return skip("docker is older than 28");
    }
    root(|| {
        let doors = Doors::open();
        let own = match std::env::consts::ARCH {
            "x86_64" => "linux/amd64",
            _ => "linux/arm64",
        };
        for command in [
            &["image", "inspect", "-f", "{{.Id}}", "--platform"][..],
            &["history", "--format", "{{.CreatedBy}}", "--platform"],
        ] {
            let asked = |platform| [command, &[platform, "shop"]].concat();
            assert_eq!(doors.store.ok(asked(own)), doors.server.ok(asked(own)));
            let (cowl, docker) = (
                doors.store.run(asked("linux/s390x")),
                doors.server.run(asked("linux/s390x")),
            );
            for refused in [&cowl, &docker] {
                assert_eq!(refused.code(), 1, "{refused}");
                assert!(refused.stderr.contains("linux/s390x"), "{refused}");
            }
        }
    });
}

#[test]
fn version_format_has_dockers_fields() {
    if !has_docker_28() {
        return skip("docker is older than 28");
    }
    root(|| {
        let doors = Doors::open();
        for format in [
            "{{.Server.Version}} {{.Server.APIVersion}} {{.Server.MinAPIVersion}} {{.Server.Platform.Name}}",
            "{{.Server.Os}} {{.Server.Arch}} {{.Server.KernelVersion}} {{.Client.Os}} {{.Client.Arch}}",
            "{{range .Server.Components}}{{.Name}} {{.Version}}{{end}}",
        ] {
            let arguments = ["version", "--format", format];
            assert_eq!(doors.store.ok(arguments), doors.server.ok(arguments));
        }
        let client = ["version", "-f", "{{.Client.Version}}"];
        let plain = doors.store.ok(["version"]);
        assert_eq!(format!("cowl {}", doors.store.ok(client)), plain);
        let script = "import json, sys; print(*sorted(json.loads(sys.argv[1])['Client']))";
        let json = |shown: String| python(&directory(), script, [shown]);
        let own = json(doors.store.ok(["version", "--format", "json"]));
        assert_eq!(own, json(doors.server.ok(["version", "--format", "json"])));
    });
}

#[test]
fn pull_uses_local_images_only() {
    root(|| {
        let store = shop("store");
        for when in ["missing", "never"] {
            let out = in_shop(&store, &["--rm", "--pull", when], &["echo", "runs"]).ok();
            assert_eq!(out, "runs\n");
        }
        let always = in_shop(&store, &["--pull", "always"], &["true"]).refused(125);
        assert!(always.contains("cowl does not pull"), "{always}");
        let wrong = in_shop(&store, &["--pull", "x"], &["true"]).refused(125);
        let why = "invalid pull option: 'x': must be one of \"always\", \"missing\" or \"never\"";
        assert!(wrong.contains(why), "{wrong}");
    });
}

#[test]
fn label_and_label_file_are_kept() {
    root(|| {
        let doors = Doors::open();
        let file = directory().join("labels");
        std::fs::write(&file, "# none\na=from file\nb=from file\nc\n").unwrap();
        let flags = [
            "create",
            "--label-file",
            file.to_str().unwrap(),
            "-l",
            "b=given",
            "shop",
            "true",
        ];
        let template = "{{json .Config.Labels}}";
        for id in [doors.store.ok(flags), doors.server.ok(flags)] {
            let shown = doors.store.ok(["inspect", "-f", template, id.trim()]);
            assert_eq!(shown, "{\"a\":\"from file\",\"b\":\"given\"}\n");
        }
    });
}

#[test]
fn stop_signal_and_stop_timeout_are_those_of_stop() {
    root(|| {
        let doors = Doors::open();
        let flags = ["--stop-signal", "USR1", "--stop-timeout", "600"];
        let script = "trap 'exit 5' USR1; echo ready; while :; do sleep 1; done";
        let polite = Detached::start(&doors.store, "polite", &flags, script);
        wait_for_log(&doors, "polite", "ready");
        doors.store.ok(["stop", "polite"]);
        assert_eq!(polite.field("{{.State.ExitCode}}"), "5");
        assert_eq!(
            polite.field("{{.Config.StopSignal}} {{.Config.StopTimeout}}"),
            "USR1 600"
        );
        // A program that ignores the signal is killed after its own timeout.
        let flags = ["--stop-timeout", "0"];
        let script = "trap '' TERM; echo ready; while :; do sleep 1; done";
        let deaf = Detached::start(&doors.store, "deaf", &flags, script);
        wait_for_log(&doors, "deaf", "ready");
        doors.server.ok(["stop", "deaf"]);
        assert_eq!(deaf.field("{{.State.ExitCode}}"), "137");
    });
}

/// Follows the log until it has a line.
#[track_caller]
fn wait_for_log(doors: &Doors, name: &str, line: &str) {
    let mut command = doors.store.command(["logs", "-f", name]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let found = lines.map_while(Result::ok).any(|one| one == line);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(found, "{name} did not say {line}");
}

#[test]
fn log_driver_and_log_opt_control_the_log() {
    root(|| {
        let doors = Doors::open();
        let say = [
            "sh",
            "-c",
            "for n in 1 2 3 4 5 6 7 8 9; do echo line $n; done",
        ];
        in_shop(
            &doors.store,
            &["--name", "silent", "--log-driver", "none"],
            &say,
        )
        .ok();
        let logs = doors.store.run(["logs", "silent"]);
        assert_eq!(logs.stdout, "", "{logs}");
        let flags = [
            "--name",
            "short",
            "--log-opt",
            "max-size=200",
            "--log-opt",
            "max-file=2",
        ];
        in_shop(&doors.store, &flags, &say).ok();
        let kept = doors.store.ok(["logs", "short"]);
        assert!(
            kept.ends_with("line 9\n") && !kept.contains("line 1\n"),
            "{kept}"
        );
        doors.refused(
            &["--log-driver", "syslog"],
            "no log driver named 'syslog' is registered",
        );
        doors.refused(
            &["--log-opt", "colour=red"],
            "unknown log opt 'colour' for json-file log driver",
        );
        doors.store.ok(["rm", "silent", "short"]);
    });
}

#[test]
fn exec_has_its_own_user_directory_terminal_and_privileges() {
    root(|| {
        let doors = Doors::open();
        let running = Detached::start(&doors.store, "running", &["-u", "1000"], "sleep 1000");
        let exec = |flags: &[&str], script: &str| {
            let arguments = [&["exec"], flags, &["running", "sh", "-c", script]].concat();
            let own = doors.store.ok(&arguments);
            assert_eq!(own, doors.server.ok(&arguments), "cowl and docker differ");
            own
        };
        assert_eq!(exec(&["-u", "33:44"], "id -u; id -g"), "33\n44\n");
        assert_eq!(
            exec(&["-w", "/etc", "-e", "A=b"], "pwd; echo $A"),
            "/etc\nb\n"
        );
        let all = std::fs::read_to_string("/proc/self/status").unwrap();
        let all = all.lines().find(|line| line.starts_with("CapBnd")).unwrap();
        assert_eq!(
            exec(&["--privileged"], "grep CapBnd /proc/self/status"),
            format!("{all}\n")
        );
        let why = "OCI runtime exec failed: exec failed: unable to start container process: \
                   chdir to cwd (\"/none\") set in config.json failed: no such file or directory";
        for (flags, code, why) in [
            (["-w", "/none"], 127, why),
            (
                ["-u", "nobody-here"],
                126,
                "unable to find user nobody-here: no matching entries in passwd file",
            ),
        ] {
            let arguments = [&["exec"], &flags[..], &["running", "true"]].concat();
            let own = doors.store.run(&arguments).refused(code);
            assert!(own.contains(why), "{own}");
            // Docker's command prints it with the output.
            let docker = doors.server.run(&arguments);
            assert_eq!(docker.code(), code, "{docker}");
            assert!(docker.stdout.contains(why), "{docker}");
        }
        assert_eq!(running.exec("ls -d /none || true"), "", "it is not created");
        let terminal = doors.store.ok(["exec", "-t", "running", "tty"]);
        assert_eq!(terminal.trim(), "/dev/pts/0");
        // Detached: it continues by itself.
        let detached = doors.store.ok([
            "exec",
            "-d",
            "-u",
            "7",
            "running",
            "sh",
            "-c",
            "id -u > /tmp/id; mv /tmp/id /tmp/got",
        ]);
        assert_eq!(detached, "");
        let script = "until test -e /tmp/got; do usleep 10000; done; cat /tmp/got";
        assert_eq!(running.exec(script), "7\n");
    });
}

/// Starts `cowl attach FLAGS NAME`, and waits for the container's next line.
fn attach(
    doors: &Doors,
    flags: &[&str],
    name: &str,
    input: Stdio,
) -> (Child, Lines<BufReader<ChildStdout>>) {
    let arguments = [&["attach"], flags, &[name]].concat();
    let mut command = doors.store.command(arguments);
    let mut child = command.stdin(input).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "tick");
    (child, lines)
}

#[test]
fn attach_no_stdin_leaves_the_input_alone() {
    root(|| {
        let doors = Doors::open();
        let script = "while ! read -t 1 word; do echo tick; done; echo got $word";
        let _reader = Detached::start(&doors.store, "reader", &["-i"], script);
        let (wrong, right) = (directory().join("wrong"), directory().join("right"));
        std::fs::write(&wrong, "wrong\n").unwrap();
        std::fs::write(&right, "right\n").unwrap();
        let open = |path| Stdio::from(std::fs::File::open(path).unwrap());
        let (mut deaf, lines) = attach(&doors, &["--no-stdin"], "reader", open(&wrong));
        let mut speaks = doors.store.command(["attach", "reader"]);
        let said = cowl_tests::command::run(speaks.stdin(open(&right))).ok();
        assert!(said.ends_with("got right\n"), "{said}");
        assert_eq!(lines.map_while(Result::ok).last().unwrap(), "got right");
        assert!(deaf.wait().unwrap().success());
    });
}

#[test]
fn attach_sig_proxy_controls_who_gets_signals() {
    root(|| {
        let doors = Doors::open();
        let script = "trap 'exit 7' TERM; while :; do echo tick; sleep 1; done";
        let running = Detached::start(&doors.store, "running", &[], script);
        let signalled = |flags: &[&str]| {
            let (mut child, lines) = attach(&doors, flags, "running", Stdio::null());
            kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
            drop(lines.map_while(Result::ok).last());
            child.wait().unwrap()
        };
        let client = signalled(&["--sig-proxy=false"]);
        assert_ne!(client.code(), Some(7), "{client}");
        assert_eq!(running.field("{{.State.Running}}"), "true");
        assert_eq!(signalled(&[]).code(), Some(7));
        assert_eq!(running.field("{{.State.ExitCode}}"), "7");
    });
}

#[test]
fn run_sig_proxy_false_leaves_the_container_running() {
    root(|| {
        let doors = Doors::open();
        let script = "trap 'exit 7' TERM; while :; do echo tick; sleep 1; done";
        let signalled = |flag: &str| {
            let arguments = ["run", flag, "--name", "ticks", "shop", "sh", "-c", script];
            let mut command = doors.store.command(arguments);
            let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
            let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
            assert_eq!(lines.next().unwrap().unwrap(), "tick");
            kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
            drop(lines.map_while(Result::ok).last());
            child.wait().unwrap().code()
        };
        assert_eq!(signalled("--sig-proxy=false"), Some(128 + 15));
        let running = ["inspect", "-f", "{{.State.Running}}", "ticks"];
        assert_eq!(doors.store.ok(running), "true\n");
        doors.store.ok(["rm", "-f", "ticks"]);
        assert_eq!(signalled("--sig-proxy"), Some(7));
        doors.store.ok(["rm", "ticks"]);
    });
}

#[test]
fn run_attach_shows_the_streams_that_it_names() {
    root(|| {
        let doors = Doors::open();
        let run = |flags: &[&str]| {
            let command = [
                "shop",
                "sh",
                "-c",
                "echo out; echo err >&2; read word; echo $word",
            ];
            let arguments = [&["run", "--name", "streams"], flags, &command].concat();
            let mut shown = Vec::new();
            for mut door in [
                doors.store.command(&arguments),
                doors.server.docker(&arguments),
            ] {
                let door = door.stdin(Stdio::null());
                let outcome = cowl_tests::command::run(door);
                let logged = doors.store.run(["logs", "streams"]);
                assert_eq!(
                    (logged.stdout.as_str(), logged.stderr.as_str()),
                    ("out\n\n", "err\n")
                );
                doors.store.ok(["rm", "streams"]);
                shown.push((outcome.stdout, outcome.stderr));
            }
            assert_eq!(shown[0], shown[1], "cowl and docker differ");
            shown.remove(0)
        };
        let text = |out: &str, err: &str| (out.to_owned(), err.to_owned());
        assert_eq!(run(&["-a", "stderr"]), text("", "err\n"));
        assert_eq!(run(&["-a", "STDOUT"]), text("out\n\n", ""));
        assert_eq!(
            run(&["-a", "stdout", "--attach", "stderr"]),
            text("out\n\n", "err\n")
        );
    });
}

/// 125 would say that no container ran.
#[test]
fn exit_codes_are_the_programs_if_standard_output_is_closed_or_full() {
    if !has_docker_28() {
        return skip("docker is older than 28");
    }
    root(|| {
        let doors = Doors::open();
        let _runs = Detached::start(&doors.store, "runs", &[], "sleep 1000");
        let made = ["shop", "sh", "-c", "echo out; exit 7"];
        doors
            .store
            .ok([&["create", "--name", "rests"][..], &made].concat());
        for (to, words, code) in [
            (">&-", [&["run", "--rm"][..], &made].concat(), 7),
            (">&-", [&["container", "run"][..], &made].concat(), 7),
            (">&-", [&["run", "-d"][..], &made].concat(), 0),
            (">&-", [&["create"][..], &made].concat(), 0),
            (">&-", vec!["start", "-a", "rests"], 7),
            (">&-", vec!["start", "rests"], 0),
            (">&-", [&["exec", "runs"][..], &made[1..]].concat(), 7),
            (">/dev/full", [&["run", "--rm"][..], &made].concat(), 1),
            (">/dev/full", vec!["start", "-a", "rests"], 1),
            (
                ">/dev/full",
                [&["exec", "runs"][..], &made[1..]].concat(),
                1,
            ),
        ] {
            for door in [doors.store.command(&words), doors.server.docker(&words)] {
                let mut shell = Command::new("sh");
                shell.args(["-c", &format!("exec \"$0\" \"$@\" {to}")]);
                shell.arg(door.get_program()).args(door.get_args());
                let set = door.get_envs();
                shell.envs(set.filter_map(|(name, value)| Some((name, value?))));
                let shown = cowl_tests::command::run(shell.stdin(Stdio::null()));
                assert_eq!(shown.code(), code, "{to}: {shown}");
                assert_eq!(shown.stderr.is_empty(), code != 1, "{to}: {shown}");
                doors.store.ok(["wait", "rests"]);
            }
        }
        // Only here docker reports nothing, and the ID is lost.
        let words = [&["run", "-d", "--name", "ran"][..], &made].concat();
        let mut detached = doors.store.command(words);
        let full = std::fs::File::options()
            .write(true)
            .open("/dev/full")
            .unwrap();
        assert_eq!(detached.stdout(full).status().unwrap().code(), Some(1));
        assert_eq!(doors.store.ok(["wait", "ran"]), "7\n");
    });
}

#[test]
fn expose_annotation_and_storage_opt_are_kept() {
    if !has_docker_28() {
        return skip("docker is older than 28");
    }
    root(|| {
        let doors = Doors::open();
        let flags = [
            "create",
            "-q",
            "--expose",
            "80",
            "--expose",
            "90-91/udp",
            "--annotation",
            "a=b=c",
            "--storage-opt",
            "io=cached",
            "shop",
            "true",
        ];
        let template = "{{json .Config.ExposedPorts}} {{json .HostConfig.Annotations}} {{json .HostConfig.StorageOpt}}";
        for id in [doors.store.ok(flags), doors.server.ok(flags)] {
            let shown = doors.store.ok(["inspect", "-f", template, id.trim()]);
            assert_eq!(
                shown,
                "{\"80/tcp\":{},\"90/udp\":{},\"91/udp\":{}} {\"a\":\"b=c\"} {\"io\":\"cached\"}\n"
            );
        }
        doors.refused(
            &["--storage-opt", "size=1G"],
            "invalid storage option: \"size\"",
        );
    });
}

#[test]
fn logs_details_precede_each_line() {
    root(|| {
        let doors = Doors::open();
        in_shop(
            &doors.store,
            &["--name", "lines"],
            &["sh", "-c", "echo one; echo two"],
        )
        .ok();
        let arguments = ["logs", "--details", "lines"];
        assert_eq!(doors.store.ok(arguments), " one\n two\n");
        assert_eq!(doors.server.ok(arguments), " one\n two\n");
        let own = doors.store.ok(["logs", "--details", "-t", "lines"]);
        assert_eq!(own, doors.server.ok(["logs", "--details", "-t", "lines"]));
        // What is not a number of lines means all.
        for (tail, shown) in [
            ("x", 2),
            ("-5", 2),
            ("", 2),
            ("1.5", 2),
            ("+1", 1),
            ("0", 0),
        ] {
            let arguments = ["logs", "--tail", tail, "lines"];
            let own = doors.store.ok(arguments);
            assert_eq!(own.lines().count(), shown, "{tail}");
            assert_eq!(own, doors.server.ok(arguments), "{tail}");
        }
        doors.store.ok(["rm", "lines"]);
    });
}

#[test]
fn history_human_false_has_bytes_and_dates() {
    root(|| {
        let doors = Doors::open();
        for format in ["table", "{{.CreatedSince}} {{.Size}}"] {
            let arguments = ["history", "-H=false", "--format", format, "shop"];
            assert_eq!(doors.store.ok(arguments), doors.server.ok(arguments));
        }
        let dates = doors.store.ok([
            "history",
            "--human=false",
            "--format",
            "{{.CreatedSince}}",
            "shop",
        ]);
        assert_eq!(
            dates,
            doors
                .store
                .ok(["history", "--format", "{{.CreatedAt}}", "shop"])
        );
    });
}

#[test]
fn commit_pause_false_works_of_a_running_container() {
    root(|| {
        let doors = Doors::open();
        let running = Detached::start(&doors.store, "running", &[], "sleep 1000");
        running.exec("echo kept > /kept");
        for arguments in [
            ["commit", "--pause=false", "running", "live"],
            ["commit", "-p=false", "running", "live"],
            ["commit", "--pause", "running", "live"],
        ] {
            for docker in [false, true] {
                if docker {
                    doors.server.ok(arguments);
                } else {
                    doors.store.ok(arguments);
                }
                let kept = doors.store.ok(["run", "--rm", "live", "cat", "/kept"]);
                assert_eq!(kept, "kept\n", "{arguments:?} docker {docker}");
            }
        }
    });
}

/// As in Docker: the client is attached to the first run only; later ones belong to the restart
/// policy.
#[test]
fn run_with_restart_ends_with_the_first_run() {
    root(|| {
        let doors = Doors::open();
        let script =
            "echo ran; echo ran >> /runs; test $(wc -l < /runs) -gt 2 && exec sleep 1000; exit 3";
        for docker in [false, true] {
            let arguments = [
                "run",
                "--name",
                "again",
                "--restart",
                "always",
                "shop",
                "sh",
                "-c",
                script,
            ];
            let outcome = if docker {
                doors.server.run(arguments)
            } else {
                doors.store.run(arguments)
            };
            assert_eq!(
                (outcome.code(), outcome.stdout.as_str()),
                (3, "ran\n"),
                "{outcome}"
            );
            let third = "until test $(wc -l < /runs) -gt 2; do usleep 10000; done";
            until(|| {
                doors
                    .store
                    .run(["exec", "again", "sh", "-c", third])
                    .status
                    .success()
            });
            doors.store.ok(["rm", "-f", "again"]);
        }
    });
}
