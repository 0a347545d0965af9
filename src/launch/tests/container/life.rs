//! A container's life with and without its monitor and engine.

use std::os::fd::AsFd as _;

use cowl_launch::message::Event;
use cowl_launch::status::is_running;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::Timespec;
use rustix::process::Signal;

use crate::harness::{Fixture, PARENT, pidfd, wait_for, wait_for_end};

#[test]
fn signal_reaches_the_program_and_the_exit_record() {
    let fixture = Fixture::new("signals");
    let running = fixture
        .start(&fixture.sh("trap 'exit 9' TERM; touch /ready; while :; do sleep 0.01; done"))
        .unwrap();
    wait_for(&fixture.path("ready"));
    assert!(is_running(fixture.status().as_fd()).unwrap());
    running.monitor.signal(15).unwrap();
    let outcome = fixture.finish(running);
    assert_eq!((outcome.exited.exit_code, outcome.exited.signal), (9, None));

    // Real-time signals have no names; a number that is no signal is passed over.
    let script = "trap 'exit 8' 40; touch /ready40; while :; do sleep 0.01; done";
    let running = fixture.start(&fixture.sh(script)).unwrap();
    wait_for(&fixture.path("ready40"));
    running.monitor.signal(99).unwrap();
    running.monitor.signal(40).unwrap();
    assert_eq!(fixture.finish(running).exited.exit_code, 8);

    let running = fixture.start(&fixture.plan(&["sleep", "1000"])).unwrap();
    running.monitor.signal(9).unwrap();
    let outcome = fixture.finish(running);
    assert_eq!(
        (
            outcome.exited.exit_code,
            outcome.exited.signal,
            outcome.exited.oom_killed
        ),
        (137, Some(9), false)
    );
    assert!(
        outcome
            .record
            .contains("\"exit_code\":137,\"signal\":9,\"oom_killed\":false"),
        "{}",
        outcome.record
    );
}

#[test]
fn children_of_the_program_die_with_it() {
    let fixture = Fixture::new("zombies");
    let running = fixture
        .start(&fixture.sh(
            "for i in 1 2 3; do (sleep 1000 &) ; done; touch /ready; while [ ! -e /go ]; do sleep 0.01; done",
        ))
        .unwrap();
    wait_for(&fixture.path("ready"));
    let reaped = [running.monitor.pid(), running.pid].map(pidfd);
    let mut children = fixture.processes();
    std::fs::write(fixture.path("go"), "").unwrap();
    let outcome = fixture.finish(running);
    assert_eq!(outcome.exited.exit_code, 0);
    // Nobody else reaps them, so they are gone altogether.
    children.extend(reaped);
    for process in children {
        let gone = rustix::process::pidfd_send_signal(&process, Signal::CONT);
        assert_eq!(gone, Err(rustix::io::Errno::SRCH));
    }
}

#[test]
fn the_container_outlives_its_engine_and_leaves_a_record() {
    let fixture = Fixture::new("orphan");
    let running = fixture
        .start(&fixture.sh("while [ ! -e /go ]; do sleep 0.01; done; exit 3"))
        .unwrap();
    let monitor = pidfd(running.monitor.pid());
    // Closes the control socket, as the engine's death does.
    drop(running);
    assert!(is_running(fixture.status().as_fd()).unwrap());
    std::fs::write(fixture.path("go"), "").unwrap();
    wait_for_end(&monitor);
    assert!(
        fixture.record().contains("\"exit_code\":3,"),
        "{}",
        fixture.record()
    );
    fixture.assert_no_cgroups();
}

#[test]
fn the_container_dies_with_its_monitor() {
    let fixture = Fixture::new("killed");
    let running = fixture
        .start(&fixture.sh("sleep 1000 & touch /ready; sleep 1000"))
        .unwrap();
    wait_for(&fixture.path("ready"));
    let (init, monitor) = (pidfd(running.pid), pidfd(running.monitor.pid()));
    rustix::process::pidfd_send_signal(&monitor, Signal::KILL).unwrap();
    wait_for_end(&init);
    assert!(running.monitor.next_event().is_err());
    running.monitor.reap().unwrap();
    assert!(!is_running(fixture.status().as_fd()).unwrap());
    assert_eq!(fixture.record(), "");
    // What a killed monitor can't do is left to the engine.
    let id = &fixture.plan(&[]).sandbox.id;
    cowl_launch::cgroup::remove_leftovers(PARENT, id).unwrap();
    fixture.assert_no_cgroups();
}

#[test]
fn a_monitor_killed_at_any_moment_leaves_nothing_running() {
    let fixture = Fixture::new("anymoment");
    let plan = fixture.plan(&["sleep", "1000"]);
    let output = tempfile::tempfile().unwrap();
    for step in 0..40 {
        let monitor = fixture.spawn(&plan, &output);
        // Answers when the program runs, which ends the wait early: the last rounds kill after the
        // start.
        let mut answered = [PollFd::new(&monitor, PollFlags::IN)];
        let moment = Timespec {
            tv_sec: 0,
            tv_nsec: step * 200_000,
        };
        poll(&mut answered, Some(&moment)).unwrap();
        rustix::process::pidfd_send_signal(pidfd(monitor.pid()), Signal::KILL).unwrap();
        monitor.reap().unwrap();
        for process in fixture.processes() {
            wait_for_end(&process);
        }
        // What had no cgroup yet holds the monitor's lock until it sees that the monitor is gone.
        let lock = std::fs::File::open(fixture.directory.path().join("status/lock"));
        if let Ok(lock) = lock {
            rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockShared).unwrap();
        }
        assert!(!is_running(fixture.status().as_fd()).unwrap());
        cowl_launch::cgroup::remove_leftovers(PARENT, &plan.sandbox.id).unwrap();
        fixture.assert_no_cgroups();
    }
}

#[test]
fn a_second_monitor_in_a_status_directory_is_refused() {
    let fixture = Fixture::new("twice");
    let running = fixture.start(&fixture.plan(&["sleep", "1000"])).unwrap();
    assert_eq!(
        fixture
            .start(&fixture.plan(&["true"]))
            .err()
            .unwrap()
            .to_string(),
        "the container is running already"
    );
    running.monitor.signal(9).unwrap();
    assert!(matches!(
        running.monitor.next_event().unwrap(),
        Event::Exited(_)
    ));
}

/// As on a full disk.
#[test]
fn exited_is_sent_even_if_the_record_cannot_be_written() {
    let fixture = Fixture::new("no-record");
    let running = fixture.start(&fixture.plan(&["sleep", "1000"])).unwrap();
    let status = fixture.directory.path().join("status");
    // Nothing can be renamed onto a directory.
    std::fs::create_dir(status.join("exit.json")).unwrap();
    running.monitor.signal(9).unwrap();
    match running.monitor.next_event().unwrap() {
        Event::Exited(exited) => assert_eq!(exited.exit_code, 137),
        other => panic!("{other:?}"),
    }
    running.monitor.reap().unwrap();
    assert!(!status.join(".exit.json.new").exists());
    fixture.assert_no_cgroups();
}
