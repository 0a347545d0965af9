//! What the monitor answers its clients, and what it does at the end.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;

use crate::harness::{Fixture, end, pidfd, sh, wait_for, wait_for_end, waiting};
use cowl_launch::control::{Control, ControlError, Streams, Target};
use cowl_launch::message::After;
use cowl_launch::sandbox::Limits;
use cowl_tests::skip::skip;
use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};

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

/// A process that is stopped, and goes on when this is dropped: also in a test that fails.
struct Stopped<'p>(BorrowedFd<'p>);

impl<'p> Stopped<'p> {
    fn stop(process: &'p impl AsFd) -> Self {
        let process = process.as_fd();
        pidfd_send_signal(process, Signal::STOP).unwrap();
        let stopped = WaitIdOptions::STOPPED | WaitIdOptions::NOWAIT;
        waitid(WaitId::PidFd(process), stopped).unwrap();
        Self(process)
    }
}

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        pidfd_send_signal(self.0, Signal::CONT).unwrap();
    }
}

/// The monitor finds their connections and the end of the program in one look.
#[test]
fn wait_answers_all_who_asked_before_the_end() {
    let fixture = Fixture::new("wait-late");
    let running = waiting(&fixture);
    let (monitor, init) = (pidfd(running.monitor.pid()), pidfd(running.pid));
    let stopped = Stopped::stop(&monitor);
    let clients = [fixture.control(), fixture.control(), fixture.control()];
    for client in &clients {
        client.request_wait(Target::Program).unwrap();
    }
    File::create(fixture.path("go")).unwrap();
    wait_for_end(&init);
    drop(stopped);
    for client in clients {
        assert_eq!(client.finish_wait().unwrap().exit_code, 7);
    }
    fixture.finish(running);
}

#[test]
fn pause_freezes_all_processes() {
    let fixture = Fixture::new("pause");
    let script = "n=0; echo $n > /count; touch /ready; while [ ! -e /go ]; do n=$((n+1)); echo $n > /count; done; exit 7";
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
    pidfd_send_signal(&monitor, Signal::KILL).unwrap();
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
