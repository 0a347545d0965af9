//! What the monitor does for a container while it runs: streams, log, control socket, exec.

use std::fs::File;
use std::io::{PipeReader, PipeWriter, Read as _, Write as _, pipe};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, symlink};

use crate::harness::{Fixture, Running, pidfd, wait_for, wait_for_end};
use cowl_launch::control::{Control, ControlError, Streams, Target};
use cowl_launch::message::{After, Event, LogOptions, Start};
use cowl_launch::process::{Process, WindowSize};
use cowl_launch::sandbox::Limits;
use cowl_tests::skip::skip;
use rustix::process::Signal;

fn exec(id: &str) -> Target {
    Target::Exec(id.to_owned())
}

fn program(argv: &[&str]) -> Process {
    let argv = argv.iter().map(|argument| argument.as_bytes().to_vec());
    Process::new(argv.collect())
}

fn sh(script: &str) -> Process {
    program(&["sh", "-c", script])
}

/// A running container that waits for `/go`, as its monitor's clients see it.
fn waiting(fixture: &Fixture) -> Running {
    let script = "touch /ready; while [ ! -e /go ]; do sleep 0.01; done; exit 7";
    let running = fixture.start(&fixture.sh(script)).unwrap();
    wait_for(&fixture.path("ready"));
    running
}

/// Lets it end.
fn end(fixture: &Fixture, running: Running) {
    File::create(fixture.path("go")).unwrap();
    assert_eq!(fixture.finish(running).exited.exit_code, 7);
}

/// Runs a process in the container and gives what it writes, and its exit code.
fn output_of(control: &Control, id: &str, process: &Process) -> (String, u8) {
    let (mut read, write) = pipe().unwrap();
    let streams = Streams {
        stdin: None,
        stdout: Some(write.as_fd()),
        stderr: Some(write.as_fd()),
    };
    control.exec(id, process, false, streams).unwrap();
    drop(write);
    let mut output = String::new();
    read.read_to_string(&mut output).unwrap();
    (output, control.wait(exec(id)).unwrap().exit_code)
}

fn attach(control: &Control, target: Target) -> (PipeWriter, PipeReader) {
    let (stdin, feed) = pipe().unwrap();
    let (read, write) = pipe().unwrap();
    let streams = Streams {
        stdin: Some(stdin.as_fd()),
        stdout: Some(write.as_fd()),
        stderr: None,
    };
    control.attach(target, streams).unwrap();
    (feed, read)
}

fn read_line(from: &mut PipeReader) -> String {
    let mut line = Vec::new();
    let mut byte = [0];
    while !line.ends_with(b"\n") && from.read(&mut byte).unwrap() == 1 {
        line.push(byte[0]);
    }
    String::from_utf8(line).unwrap()
}

fn interactive(fixture: &Fixture) -> Start {
    let mut start = fixture.sh("while read line; do echo \"got $line\"; done; echo end");
    start.monitor.open_stdin = true;
    start
}

#[test]
fn several_clients_attach_and_detach() {
    let fixture = Fixture::new("attach");
    let running = fixture.start(&interactive(&fixture)).unwrap();
    let control = fixture.control();
    let (mut first_in, mut first) = attach(&control, Target::Program);
    let (mut second_in, mut second) = attach(&control, Target::Program);
    first_in.write_all(b"one\n").unwrap();
    for reader in [&mut first, &mut second] {
        assert_eq!(read_line(reader), "got one\n");
    }
    // One that goes away takes neither the container nor the other with it.
    drop((first_in, first));
    second_in.write_all(b"two\n").unwrap();
    assert_eq!(read_line(&mut second), "got two\n");
    drop((second_in, second));
    let (mut third_in, mut third) = attach(&control, Target::Program);
    third_in.write_all(b"three\n").unwrap();
    assert_eq!(read_line(&mut third), "got three\n");
    control.signal(Target::Program, 9).unwrap();
    assert_eq!(read_line(&mut third), "");
    let outcome = fixture.finish(running);
    assert_eq!(outcome.exited.exit_code, 137);
    assert_eq!(outcome.output, "got one\ngot two\ngot three\n");
}

#[test]
fn the_end_of_the_first_input_ends_the_programs_if_asked_for() {
    let fixture = Fixture::new("stdin-once");
    let mut start = interactive(&fixture);
    start.monitor.stdin_once = true;
    let running = fixture.start(&start).unwrap();
    let control = fixture.control();
    let (mut feed, mut read) = attach(&control, Target::Program);
    feed.write_all(b"one\n").unwrap();
    drop(feed);
    let mut output = String::new();
    read.read_to_string(&mut output).unwrap();
    assert_eq!(output, "got one\nend\n");
    assert_eq!(fixture.finish(running).exited.exit_code, 0);
}

#[test]
fn large_input_and_output_pass_whole() {
    let fixture = Fixture::new("large");
    let mut start = fixture.plan(&["cat"]);
    start.monitor.open_stdin = true;
    start.monitor.stdin_once = true;
    let monitor = fixture.spawn_with(&start, Streams::default());
    monitor.wait_started().unwrap();
    let (mut feed, mut read) = attach(&fixture.control(), Target::Program);
    let sent: Vec<u8> = (0..1_000_000_u32).flat_map(u32::to_le_bytes).collect();
    let writer = {
        let sent = sent.clone();
        std::thread::spawn(move || feed.write_all(&sent).unwrap())
    };
    let mut received = Vec::new();
    read.read_to_end(&mut received).unwrap();
    writer.join().unwrap();
    assert!(received == sent);
    assert!(matches!(monitor.next_event().unwrap(), Event::Exited(_)));
    monitor.reap().unwrap();
}

/// The reader takes nothing until the container has ended.
#[test]
fn a_slow_reader_does_not_block_the_container_and_loses_nothing() {
    const BYTES: usize = 4 << 20;
    let fixture = Fixture::new("slow");
    let (mut read, write) = pipe().unwrap();
    let mut start = fixture.plan(&["dd", "if=/dev/zero", "bs=65536", "count=64"]);
    start.monitor.log = Some(LogOptions {
        max_size: 0,
        max_file: 1,
    });
    let streams = Streams {
        stdin: None,
        stdout: Some(write.as_fd()),
        stderr: None,
    };
    let monitor = fixture.spawn_with(&start, streams);
    drop(write);
    monitor.wait_started().unwrap();
    match monitor.next_event().unwrap() {
        Event::Exited(exited) => assert_eq!(exited.exit_code, 0),
        other => panic!("{other:?}"),
    }
    // Its lock is free, though it stays for the reader.
    assert!(!cowl_launch::status::is_running(fixture.status().as_fd()).unwrap());
    let mut received = Vec::new();
    read.read_to_end(&mut received).unwrap();
    assert_eq!(received.len(), BYTES);
    monitor.reap().unwrap();
}

/// It takes ten seconds: the patience with a reader that makes no progress.
#[test]
fn a_reader_that_takes_nothing_is_cut_off() {
    let fixture = Fixture::new("stuck");
    let (mut read, write) = pipe().unwrap();
    let start = fixture.plan(&["dd", "if=/dev/zero", "bs=1048576", "count=64"]);
    let streams = Streams {
        stdin: None,
        stdout: Some(write.as_fd()),
        stderr: None,
    };
    let monitor = fixture.spawn_with(&start, streams);
    drop(write);
    monitor.wait_started().unwrap();
    assert!(matches!(monitor.next_event().unwrap(), Event::Exited(_)));
    let mut received = Vec::new();
    read.read_to_end(&mut received).unwrap();
    assert!(received.len() < 64 << 20);
    monitor.reap().unwrap();
}

#[test]
fn output_is_logged_with_nobody_attached() {
    let fixture = Fixture::new("log");
    let mut start = fixture.plan(&["sh", "-c", "echo out; echo error >&2; printf rest"]);
    start.monitor.log = Some(LogOptions {
        max_size: 1 << 20,
        max_file: 3,
    });
    let monitor = fixture.spawn_with(&start, Streams::default());
    monitor.wait_started().unwrap();
    assert!(matches!(monitor.next_event().unwrap(), Event::Exited(_)));
    monitor.reap().unwrap();
    // Judged by another reader of JSON than our own.
    let path = fixture.directory.path().join("status/log");
    let script = "import json,sys,datetime\n\
        for line in open(sys.argv[1]):\n \
        e = json.loads(line); datetime.datetime.fromisoformat(e['time'][:26]); print(e['stream'], repr(e['log']))";
    let output = std::process::Command::new("python3")
        .args(["-c", script])
        .arg(&path)
        .output()
        .unwrap();
    let mut lines: Vec<String> = String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(str::to_owned)
        .collect();
    lines.sort();
    assert_eq!(
        lines,
        ["stderr 'error\\n'", "stdout 'out\\n'", "stdout 'rest'"]
    );
    assert_eq!(std::fs::metadata(path).unwrap().mode() & 0o777, 0o640);
}

#[test]
fn wait_answers_all_who_ask() {
    let fixture = Fixture::new("wait");
    let running = waiting(&fixture);
    let clients = [fixture.control(), fixture.control()];
    for client in &clients {
        client.request_wait(Target::Program).unwrap();
    }
    File::create(fixture.path("go")).unwrap();
    for client in &clients {
        assert_eq!(client.finish_wait().unwrap().exit_code, 7);
    }
    fixture.finish(running);
    let gone = Control::connect(fixture.status().as_fd());
    assert!(matches!(gone, Err(ControlError::NotRunning)));
}

#[test]
fn exec_runs_in_the_containers_namespaces_and_cgroups() {
    let fixture = Fixture::new("exec");
    for applet in ["readlink", "grep"] {
        symlink("busybox", fixture.path("bin").join(applet)).unwrap();
    }
    let running = waiting(&fixture);
    let control = fixture.control();
    let show = "for n in pid ipc uts net cgroup mnt; do readlink /proc/self/ns/$n; done; cat /proc/self/cgroup";
    let (output, code) = output_of(&control, "e1", &sh(show));
    let of_init = |kind: &str| {
        let link = std::fs::read_link(format!("/proc/{}/ns/{kind}", running.pid)).unwrap();
        link.to_str().unwrap().to_owned()
    };
    let expected: Vec<String> = ["pid", "ipc", "uts", "net", "cgroup", "mnt"]
        .into_iter()
        .map(of_init)
        .collect();
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(
        (&lines[..6], code),
        (
            &expected.iter().map(String::as_str).collect::<Vec<_>>()[..],
            0
        )
    );
    let inside = std::fs::read_to_string(format!("/proc/{}/cgroup", running.pid)).unwrap();
    // The container's cgroups are the roots of what it sees.
    assert_eq!(lines.len(), 6 + inside.lines().count(), "{output}");

    // Its own user, directory, environment, privileges and exit code.
    let mut process = sh(
        "id -u; pwd; echo $A; grep -E '^(CapEff|Seccomp|NoNewPrivs):' /proc/self/status; exit 9",
    );
    process.user = b"app".to_vec();
    process.cwd = b"/etc".to_vec();
    process.env.push(b"A=b".to_vec());
    process.no_new_privileges = true;
    let (output, code) = output_of(&control, "e2", &process);
    let status = "CapEff:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\n";
    assert_eq!((output, code), (format!("1000\n/etc\nb\n{status}"), 9));

    let state = control.inspect().unwrap();
    assert_eq!((state.pid, state.paused), (running.pid, false));
    // What has ended has no descriptors left.
    let open = |pid: u32| {
        std::fs::read_dir(format!("/proc/{pid}/fd"))
            .unwrap()
            .count()
    };
    let before = open(running.monitor.pid());
    output_of(&control, "e3", &sh("true"));
    assert_eq!(open(running.monitor.pid()), before);
    let codes: Vec<_> = state
        .execs
        .iter()
        .map(|exec| (exec.id.as_str(), exec.exited.unwrap().exit_code))
        .collect();
    assert_eq!(codes, [("e1", 0), ("e2", 9)]);
    assert!(
        control
            .exec("e1", &sh("true"), false, Streams::default())
            .is_err()
    );
    end(&fixture, running);
}

#[test]
fn an_exec_that_cannot_start_says_why() {
    let fixture = Fixture::new("exec-fail");
    fixture.write("bin/data", b"not a program", 0o644);
    let running = waiting(&fixture);
    let control = fixture.control();
    for (id, argv, code, text) in [
        (
            "a",
            "no-such",
            127,
            "exec \"no-such\": No such file or directory (os error 2)",
        ),
        (
            "b",
            "/bin/data",
            126,
            "exec \"/bin/data\": Permission denied (os error 13)",
        ),
    ] {
        match control.exec(id, &program(&[argv]), false, Streams::default()) {
            Err(ControlError::Failed(failed)) => {
                assert_eq!(
                    (failed.exit_code, failed.to_string().as_str()),
                    (code, text)
                );
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(control.wait(exec(id)).unwrap().exit_code, code);
    }
    let mut process = program(&["true"]);
    process.user = b"nobody".to_vec();
    assert!(
        control
            .exec("c", &process, false, Streams::default())
            .is_err()
    );
    assert!(matches!(
        control.wait(exec("none")),
        Err(ControlError::Failed(_))
    ));
    end(&fixture, running);
}

#[test]
fn an_exec_has_its_own_terminal_and_input() {
    let fixture = Fixture::new("exec-tty");
    let running = waiting(&fixture);
    let control = fixture.control();
    let (stdin, mut feed) = pipe().unwrap();
    let (mut read, write) = pipe().unwrap();
    let streams = Streams {
        stdin: Some(stdin.as_fd()),
        stdout: Some(write.as_fd()),
        stderr: None,
    };
    let mut process = sh("tty; stty size; read line; stty size; echo \"got $line\"; exit 3");
    process.terminal = Some(WindowSize {
        rows: 33,
        columns: 77,
    });
    control.exec("t", &process, true, streams).unwrap();
    drop((stdin, write));
    assert_eq!(read_line(&mut read), "/dev/pts/0\r\n");
    assert_eq!(read_line(&mut read), "33 77\r\n");
    let size = WindowSize {
        rows: 5,
        columns: 6,
    };
    control.resize(exec("t"), size).unwrap();
    feed.write_all(b"hello\n").unwrap();
    let mut rest = String::new();
    read.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "hello\r\n5 6\r\ngot hello\r\n");
    assert_eq!(control.wait(exec("t")).unwrap().exit_code, 3);
    assert!(control.resize(Target::Program, size).is_err());

    // Without a terminal, through a pipe, to its end.
    let (stdin, mut feed) = pipe().unwrap();
    let (mut read, write) = pipe().unwrap();
    let streams = Streams {
        stdin: Some(stdin.as_fd()),
        stdout: Some(write.as_fd()),
        stderr: None,
    };
    control
        .exec("p", &program(&["cat"]), true, streams)
        .unwrap();
    drop((stdin, write));
    feed.write_all(b"piped").unwrap();
    drop(feed);
    let mut text = String::new();
    read.read_to_string(&mut text).unwrap();
    assert_eq!(text, "piped");
    end(&fixture, running);
}

#[test]
fn execs_get_signals_and_end_with_their_container() {
    let fixture = Fixture::new("exec-kill");
    let running = waiting(&fixture);
    let control = fixture.control();
    let sleep = program(&["sleep", "1000"]);
    let first = control
        .exec("a", &sleep, false, Streams::default())
        .unwrap();
    control
        .exec("b", &sleep, false, Streams::default())
        .unwrap();
    let pids = control.pids().unwrap();
    assert!(
        pids.contains(&first) && pids.contains(&running.pid),
        "{pids:?}"
    );
    control.signal(exec("a"), 15).unwrap();
    assert_eq!(control.wait(exec("a")).unwrap().exit_code, 143);
    let other = fixture.control();
    other.request_wait(exec("b")).unwrap();
    end(&fixture, running);
    assert_eq!(other.finish_wait().unwrap().exit_code, 137);
}

#[test]
fn the_container_outlives_a_client_that_is_killed() {
    for terminal in [false, true] {
        let fixture = Fixture::new(if terminal { "client-tty" } else { "client" });
        let mut start = fixture.sh(
            "trap 'touch /hup' HUP; touch /ready; while [ ! -e /go ]; do sleep 0.01; done; echo still here; touch /done",
        );
        start.process.terminal = terminal.then_some(WindowSize {
            rows: 1,
            columns: 1,
        });
        start.monitor.log = Some(LogOptions {
            max_size: 0,
            max_file: 1,
        });
        let (stdin, feed) = pipe().unwrap();
        let (read, write) = pipe().unwrap();
        let streams = Streams {
            stdin: Some(stdin.as_fd()),
            stdout: Some(write.as_fd()),
            stderr: None,
        };
        start.monitor.open_stdin = true;
        let monitor = fixture.spawn_with(&start, streams);
        monitor.wait_started().unwrap();
        wait_for(&fixture.path("ready"));
        let process = pidfd(monitor.pid());
        // All that a client has.
        drop((monitor, stdin, feed, read, write));
        // Answered after the monitor has seen that: requests are served one after the other.
        let control = fixture.control();
        control.inspect().unwrap();
        let (_feed, mut shown) = attach(&control, Target::Program);
        File::create(fixture.path("go")).unwrap();
        assert_eq!(read_line(&mut shown).trim_end(), "still here");
        wait_for_end(&process);
        assert!(!fixture.path("hup").exists() && fixture.path("done").exists());
        let log = std::fs::read_to_string(fixture.directory.path().join("status/log")).unwrap();
        assert!(log.contains("still here"), "{log}");
    }
}

#[test]
fn pause_freezes_all_processes() {
    let fixture = Fixture::new("pause");
    let script =
        "touch /ready; n=0; while [ ! -e /go ]; do n=$((n+1)); echo $n > /count; done; exit 7";
    let running = fixture.start(&fixture.sh(script)).unwrap();
    wait_for(&fixture.path("ready"));
    let control = fixture.control();
    if let Err(error) = control.pause() {
        assert!(
            error.to_string().starts_with("freeze the container's"),
            "{error}"
        );
        control.signal(Target::Program, 9).unwrap();
        fixture.finish(running);
        return skip("no freezer on this host");
    }
    assert!(control.inspect().unwrap().paused);
    let described = std::fs::read_to_string(fixture.directory.path().join("status/running.json"));
    assert!(described.unwrap().contains("\"paused\":true"));
    // It writes without a pause, and writes nothing now.
    let before = std::fs::metadata(fixture.path("count")).unwrap();
    File::create(fixture.path("go")).unwrap();
    assert!(control.pause().is_err());
    assert!(
        control
            .exec("e", &sh("true"), false, Streams::default())
            .is_err()
    );
    let after = std::fs::metadata(fixture.path("count")).unwrap();
    let stamp = |status: &std::fs::Metadata| (status.mtime(), status.mtime_nsec());
    assert_eq!(stamp(&before), stamp(&after));
    control.unpause().unwrap();
    assert!(control.unpause().is_err());
    assert_eq!(fixture.finish(running).exited.exit_code, 7);
}

#[test]
fn a_paused_container_can_be_killed() {
    let fixture = Fixture::new("pause-kill");
    let running = waiting(&fixture);
    let control = fixture.control();
    if control.pause().is_ok() {
        control.signal(Target::Program, 9).unwrap();
        assert_eq!(fixture.finish(running).exited.exit_code, 137);
    } else {
        end(&fixture, running);
        skip("no freezer on this host");
    }
}

#[test]
fn limits_can_be_changed_and_counters_read() {
    let fixture = Fixture::new("update");
    let mut start = fixture.sh(
        "touch /ready; while [ ! -e /go ]; do sleep 0.01; done; cat /sys/fs/cgroup/pids/pids.max || cat /sys/fs/cgroup/pids.max; exit 7",
    );
    start.sandbox.limits.memory = Some(64 << 20);
    start.sandbox.limits.pids = Some(40);
    let running = fixture.start(&start).unwrap();
    wait_for(&fixture.path("ready"));
    let control = fixture.control();
    let stats = control.stats().unwrap();
    let memory = stats.memory.unwrap();
    assert_eq!((memory.limit, stats.pids_limit), (Some(64 << 20), Some(40)));
    assert!(memory.usage > 0 && stats.pids.unwrap() >= 1 && !memory.details.is_empty());
    assert!(stats.cpu.total > 0);

    let limits = Limits {
        memory: Some(128 << 20),
        pids: Some(50),
        ..Limits::default()
    };
    assert_eq!(control.update(&limits).unwrap(), Vec::<String>::new());
    let stats = control.stats().unwrap();
    assert_eq!(stats.memory.unwrap().limit, Some(128 << 20));
    File::create(fixture.path("go")).unwrap();
    let outcome = fixture.finish(running);
    assert_eq!(outcome.exited.exit_code, 7);
    assert!(outcome.output.ends_with("50\n"), "{}", outcome.output);
}

#[test]
fn root_and_namespaces_are_given_to_clients() {
    let fixture = Fixture::new("root");
    let running = waiting(&fixture);
    let control = fixture.control();
    let root = control.root().unwrap();
    let passwd = rustix::fs::statat(&root, "etc/passwd", rustix::fs::AtFlags::empty()).unwrap();
    assert_eq!(
        passwd.st_ino,
        std::fs::metadata(fixture.path("etc/passwd")).unwrap().ino()
    );
    // Through the container's own mounts, too.
    assert!(rustix::fs::statat(&root, "proc/1/status", rustix::fs::AtFlags::empty()).is_ok());
    let namespaces = control.namespaces().unwrap();
    let inode = |descriptor: &OwnedFd| rustix::fs::fstat(descriptor).unwrap().st_ino;
    for (descriptor, kind) in [
        (&namespaces.pid, "pid"),
        (&namespaces.ipc, "ipc"),
        (&namespaces.uts, "uts"),
        (&namespaces.net, "net"),
    ] {
        let path = format!("/proc/{}/ns/{kind}", running.pid);
        let expected = std::fs::metadata(path).unwrap().ino();
        assert_eq!(inode(descriptor.as_ref().unwrap()), expected, "{kind}");
    }
    end(&fixture, running);
}

#[test]
fn what_is_left_to_do_runs_at_the_end() {
    for (always, client_stays, runs) in [
        (true, true, true),
        (false, true, false),
        (false, false, true),
    ] {
        let fixture = Fixture::new("after");
        let mark = fixture.directory.path().join("mark");
        let script = "echo \"$A $(cat /proc/self/fd/0)\" >> \"$1\"; cat status/exit.json >> \"$1\"";
        let script = script.replace(
            "status/exit.json",
            fixture
                .directory
                .path()
                .join("status/exit.json")
                .to_str()
                .unwrap(),
        );
        let mut start = fixture.sh("touch /ready; while [ ! -e /go ]; do sleep 0.01; done; exit 7");
        let argv = [
            "/bin/busybox",
            "sh",
            "-c",
            &script,
            "sh",
            mark.to_str().unwrap(),
        ];
        start.monitor.after = Some(After {
            argv: argv.iter().map(|word| word.as_bytes().to_vec()).collect(),
            env: vec![b"A=after".to_vec(), b"PATH=/bin".to_vec()],
            always,
        });
        let running = fixture.start(&start).unwrap();
        wait_for(&fixture.path("ready"));
        let monitor = pidfd(running.monitor.pid());
        let client = client_stays.then_some(running);
        File::create(fixture.path("go")).unwrap();
        if runs {
            wait_for(&mark);
        }
        wait_for_end(&monitor);
        drop(client);
        assert_eq!(mark.exists(), runs, "{always} {client_stays}");
    }
}

#[test]
fn the_control_socket_is_its_users_only() {
    let fixture = Fixture::new("socket");
    let running = waiting(&fixture);
    let path = fixture.directory.path().join("status/control");
    let status = std::fs::metadata(&path).unwrap();
    assert_eq!(status.mode() & 0o777, 0o700);
    // Even one who can reach it is not answered.
    let open = |path: &std::path::Path| {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = std::fs::Permissions::from_mode(0o777);
        std::fs::set_permissions(path, mode).unwrap();
    };
    for path in [
        fixture.directory.path(),
        &fixture.directory.path().join("status"),
        &path,
    ] {
        open(path);
    }
    let refused = std::thread::spawn(move || {
        use rustix::net::{
            AddressFamily, RecvFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recv,
            socket_with,
        };
        // Of this thread alone.
        let stranger = rustix::fs::Uid::from_raw(1000);
        rustix::thread::set_thread_res_uid(stranger, stranger, stranger).unwrap();
        let flags = SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        connect(&socket, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        let mut answer = [0; 100];
        recv(&socket, &mut answer, RecvFlags::empty()).map(|(length, _)| length)
    });
    assert_eq!(refused.join().unwrap(), Ok(0));
    end(&fixture, running);
}

#[test]
fn a_stale_socket_of_a_killed_monitor_is_replaced() {
    let fixture = Fixture::new("stale");
    let running = waiting(&fixture);
    let monitor = pidfd(running.monitor.pid());
    rustix::process::pidfd_send_signal(&monitor, Signal::KILL).unwrap();
    running.monitor.reap().unwrap();
    let connected = Control::connect(fixture.status().as_fd());
    assert!(matches!(connected, Err(ControlError::NotRunning)));
    for process in fixture.processes() {
        wait_for_end(&process);
    }
    let running = waiting(&fixture);
    fixture.control().inspect().unwrap();
    end(&fixture, running);
}
