//! Programs that join a running container.

use std::io::{Read as _, Write as _, pipe};
use std::os::fd::AsFd as _;
use std::os::unix::fs::symlink;

use cowl_launch::control::{Control, ControlError, Streams, Target};
use cowl_launch::process::{Process, WindowSize};

use crate::harness::{Fixture, end, program, sh, waiting};
use crate::streams::read_line;

fn exec(id: &str) -> Target {
    Target::Exec(id.to_owned())
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

#[test]
fn exec_runs_in_the_containers_namespaces_and_cgroups() {
    let fixture = Fixture::new("exec");
    symlink("busybox", fixture.path("bin/readlink")).unwrap();
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
    end(&fixture, running);
}

#[test]
fn exec_has_its_own_user_directory_environment_and_privileges() {
    let fixture = Fixture::new("exec-own");
    symlink("busybox", fixture.path("bin/grep")).unwrap();
    let running = waiting(&fixture);
    let control = fixture.control();
    let mut process = sh(
        "id -u; pwd; echo $A; grep -E '^(CapEff|Seccomp|NoNewPrivs):' /proc/self/status; exit 9",
    );
    process.user = b"app".to_vec();
    process.cwd = b"/etc".to_vec();
    process.env.push(b"A=b".to_vec());
    process.no_new_privileges = true;
    let (output, code) = output_of(&control, "e", &process);
    let status = "CapEff:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\n";
    assert_eq!((output, code), (format!("1000\n/etc\nb\n{status}"), 9));
    end(&fixture, running);
}

#[test]
fn inspect_lists_ended_execs_and_the_monitor_keeps_no_descriptor_of_them() {
    let fixture = Fixture::new("exec-inspect");
    let running = waiting(&fixture);
    let control = fixture.control();
    let open = || {
        std::fs::read_dir(format!("/proc/{}/fd", running.monitor.pid()))
            .unwrap()
            .count()
    };
    assert_eq!(output_of(&control, "e1", &sh("true")).1, 0);
    let before = open();
    assert_eq!(output_of(&control, "e2", &sh("exit 9")).1, 9);
    assert_eq!(open(), before);

    let state = control.inspect().unwrap();
    assert_eq!((state.pid, state.paused), (running.pid, false));
    let codes: Vec<_> = state
        .execs
        .iter()
        .map(|exec| (exec.id.as_str(), exec.exited.unwrap().exit_code))
        .collect();
    assert_eq!(codes, [("e1", 0), ("e2", 9)]);
    let again = control.exec("e1", &sh("true"), false, Streams::default());
    assert!(again.is_err());
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
