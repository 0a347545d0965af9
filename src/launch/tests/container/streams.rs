//! A program's standard streams: clients that attach, slow readers, the log.

use std::fs::File;
use std::io::{PipeReader, PipeWriter, Read as _, Write as _, pipe};
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;

use cowl_launch::control::{Control, Streams, Target};
use cowl_launch::message::{Event, LogOptions, Start};
use cowl_launch::process::WindowSize;

use crate::harness::{Fixture, pidfd, wait_for, wait_for_end};

pub(super) fn attach(control: &Control, target: Target) -> (PipeWriter, PipeReader) {
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

pub(super) fn read_line(from: &mut PipeReader) -> String {
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
