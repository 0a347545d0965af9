//! The life of a container's directory, with the monitor played by whoever locks `lock`.

use super::*;
use crate::engine::process::Process;
use config::{Mount, MountSource, VERSION};
use cowl_core::digest::{ImageId, Sha256Digest};
use jiff::Timestamp;
use rustix::fs::{FlockOperation, flock};
use std::fs::File;

struct Store {
    temp: tempfile::TempDir,
    containers: Containers,
}

impl Store {
    fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        let containers = Containers::open(temp.path()).unwrap();
        Self { temp, containers }
    }

    fn make(&self, id: &str, name: &str) -> PendingContainer {
        let guard = self.containers.guard().unwrap();
        self.containers.create(&guard, config(id, name)).unwrap()
    }

    fn remove(&self, container: &Container) {
        container.wait_unwatched().unwrap();
        container.wait_unmounted().unwrap();
        let guard = self.containers.guard().unwrap();
        self.containers.vanish(&guard, container, true).unwrap();
    }

    /// Names of the containers that are to go.
    fn forsaken(&self) -> Vec<String> {
        let containers = self.containers.list().unwrap().items.into_iter();
        containers
            .filter(|container| container.is_forsaken(&container.status().unwrap()))
            .map(|container| container.config.name)
            .collect()
    }

    /// Names in `containers/`.
    fn names(&self) -> Vec<String> {
        files::names(files::open_dir(&self.temp.path().join("containers")).unwrap()).unwrap()
    }
}

fn config(id: &str, name: &str) -> Config {
    let process = Process {
        argv: vec!["true".into()],
        env: vec![],
        cwd: "/".into(),
        user: String::new(),
    };
    let volume = MountSource::Volume {
        name: format!("anonymous-{name}"),
        anonymous: true,
        no_copy: false,
    };
    Config {
        version: VERSION,
        id: id.repeat(64 / id.len()),
        name: name.into(),
        created: Timestamp::now(),
        image: "app".into(),
        image_id: ImageId(Sha256Digest::of(b"")),
        layers: vec![],
        process,
        hostname: "h".into(),
        tty: false,
        open_stdin: false,
        memory: None,
        seccomp_unconfined: false,
        auto_remove: false,
        mounts: vec![Mount {
            source: volume,
            destination: "/data".into(),
            read_only: false,
        }],
    }
}

/// Locks and writes what the monitor locks and writes.
fn monitor(container: &Container, pid: i32) -> File {
    let number = std::os::fd::AsRawFd::as_raw_fd(&container.dir);
    let path = |name| format!("/proc/self/fd/{number}/{name}");
    let known = Identity::of(pid.cast_unsigned()).unwrap();
    let (boot, start_time) =
        known.map_or((String::new(), 0), |known| (known.boot, known.start_time));
    let monitor = std::process::id();
    let text = format!(
        "{{\"monitor\":{monitor},\"pid\":{pid},\"boot\":\"{boot}\",\"start_time\":{start_time},\"started_at\":\"now\"}}"
    );
    std::fs::write(path(".new"), text).unwrap();
    rustix::fs::rename(path(".new"), path(status::RUNNING)).unwrap();
    let lock = File::create(path(status::LOCK)).unwrap();
    flock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();
    lock
}

#[test]
fn a_container_is_created_then_runs_then_is_over() {
    let store = Store::new();
    let pending = store.make("ab", "web");
    assert_eq!(pending.container.status().unwrap(), Status::Created);
    let lock = monitor(&pending.container, 4_000_000);
    let container = pending.release();
    assert_eq!(container.status().unwrap(), Status::Running);
    std::fs::write(
        format!(
            "{}/containers/{}/exit.json",
            store.temp.path().display(),
            container.config.id
        ),
        r#"{"exit_code":3,"oom_killed":false,"finished_at":"2026-01-01T00:00:00Z"}"#,
    )
    .unwrap();
    drop(lock);
    assert!(matches!(
        container.status().unwrap(),
        Status::Exited(Exit { exit_code: 3, .. })
    ));
    assert_eq!(store.forsaken(), [""; 0]);
}

#[test]
fn whoever_was_killed_the_status_is_true() {
    let store = Store::new();
    // The monitor: it had said that the program runs.
    let container = store.make("ab", "one").release();
    drop(monitor(&container, 4_000_000));
    assert!(matches!(
        container.status().unwrap(),
        Status::Exited(Exit {
            exit_code: state::LOST,
            ..
        })
    ));
    // The engine, before there was a monitor.
    let container = store.make("cd", "two").release();
    assert_eq!(container.status().unwrap(), Status::Abandoned);
    assert_eq!(store.forsaken(), ["two"]);
}

#[test]
fn a_container_is_found_by_id_name_or_an_unambiguous_beginning() {
    let store = Store::new();
    let _held = (store.make("ab", "web"), store.make("ac", "abacus"));
    let find = |needle: &str| {
        store
            .containers
            .find(needle)
            .map(|container| container.config.name)
    };
    assert_eq!(find(&"ab".repeat(32)).unwrap(), "web");
    assert_eq!(find("/web").unwrap(), "web");
    assert_eq!(find("abab").unwrap(), "web");
    assert_eq!(find("abacus").unwrap(), "abacus");
    assert_eq!(
        find("a").unwrap_err().to_string(),
        "multiple IDs found with provided prefix: a"
    );
    assert_eq!(find("").unwrap_err().to_string(), "No such container: ");
    assert_eq!(find("b").unwrap_err().to_string(), "No such container: b");
}

#[test]
fn a_removal_that_was_killed_is_completed_with_what_belongs_to_it() {
    let store = Store::new();
    let container = store.make("ab", "web").release();
    std::fs::write(
        format!(
            "{}/containers/{}/upper/file",
            store.temp.path().display(),
            container.config.id
        ),
        "x",
    )
    .unwrap();
    store.remove(&container);
    // Killed here: it is no container any more, and the next one to purge finishes.
    assert!(store.containers.list().unwrap().items.is_empty());
    assert_eq!(store.names().len(), 1);
    let mut removed = Vec::new();
    let belongings = std::cell::RefCell::new(&mut removed);
    store
        .containers
        .purge(|config| {
            belongings
                .borrow_mut()
                .extend(config.anonymous_volumes().map(str::to_owned));
            Ok(())
        })
        .unwrap();
    assert_eq!(removed, ["anonymous-web"]);
    assert_eq!(store.names(), [""; 0]);
    // A second remover that comes too late is content.
    container.wait_unwatched().unwrap();
    container.wait_unmounted().unwrap();
    container.kill().unwrap();
    store
        .containers
        .vanish(&store.containers.guard().unwrap(), &container, true)
        .unwrap();
}

#[test]
fn only_the_very_process_is_killed_and_also_without_its_monitor() {
    let store = Store::new();
    let container = store.make("ab", "web").release();
    let mut child = std::process::Command::new("sleep")
        .arg("1000")
        .spawn()
        .unwrap();
    let pid = i32::try_from(child.id()).unwrap();
    let known = Identity::of(child.id()).unwrap().unwrap();
    let later = Identity {
        start_time: known.start_time + 1,
        ..known.clone()
    };
    let another_boot = Identity {
        boot: "another".into(),
        ..known
    };
    for other in [later, another_boot] {
        kill_program(pid, &other).unwrap();
        assert!(child.try_wait().unwrap().is_none(), "{other:?}");
    }
    // The monitor is dead.
    drop(monitor(&container, pid));
    container.wait_unwatched().unwrap();
    container.kill().unwrap();
    assert!(!child.wait().unwrap().success());
}

/// As a power cut leaves it, and as a disk that lies does.
#[test]
fn a_damaged_record_is_not_taken_for_nothing_to_kill() {
    let store = Store::new();
    let container = store.make("ab", "web").release();
    let lock = monitor(&container, 4_000_000);
    let record = format!("containers/{}/{}", container.config.id, status::RUNNING);
    for text in ["", "{\"monitor\":12,\"pid\":1"] {
        std::fs::write(store.temp.path().join(&record), text).unwrap();
        assert_eq!(container.status().unwrap(), Status::Running);
        let error = container.kill().unwrap_err().to_string();
        assert!(error.contains("running.json is damaged"), "{error}");
    }
    drop(lock);
    assert!(container.status().unwrap().is_without_record());
    container.kill().unwrap();
}

/// The engine is killed just after it has started the monitor.
#[test]
fn a_monitor_that_has_not_said_what_it_runs_is_waited_for() {
    let store = Store::new();
    let pending = store.make("ab", "web");
    let status_dir = pending.status_dir().try_clone_to_owned().unwrap();
    let container = pending.release();
    let mut child = std::process::Command::new("sleep")
        .arg("1000")
        .spawn()
        .unwrap();
    let pid = i32::try_from(child.id()).unwrap();
    std::thread::scope(|scope| {
        let killing = scope.spawn(|| container.kill());
        let lock = monitor(&container, pid);
        assert!(!child.wait().unwrap().success());
        killing.join().unwrap().unwrap();
        drop((lock, status_dir));
    });
}

#[test]
fn what_a_killed_maker_left_is_removed_and_a_container_in_the_making_is_not() {
    let store = Store::new();
    let _pending = store.make("ab", "web");
    std::fs::create_dir(store.temp.path().join("containers").join("cd".repeat(32))).unwrap();
    let guard = store.containers.guard().unwrap();
    store.containers.remove_unfinished(&guard).unwrap();
    assert_eq!(store.names(), ["ab".repeat(32)]);
}

/// The monitor gets the locked directory itself, so there is no moment at which a container that is about to run looks abandoned.
#[test]
fn a_container_is_not_abandoned_between_its_engine_and_its_monitor() {
    let store = Store::new();
    let pending = store.make("ab", "web");
    let status_dir = pending.status_dir().try_clone_to_owned().unwrap();
    // Killed here.
    let container = pending.release();
    assert_eq!(container.status().unwrap(), Status::Created);
    assert_eq!(store.forsaken(), [""; 0]);
    drop(status_dir);
    assert_eq!(container.status().unwrap(), Status::Abandoned);
}

#[test]
fn a_container_whose_config_is_cut_short_is_skipped_and_can_be_removed() {
    let store = Store::new();
    let good = store.make("ab", "web").release();
    drop(store.make("cd", "hurt").release());
    let id = "cd".repeat(32);
    let path = store.temp.path().join("containers").join(&id);
    std::fs::write(path.join("config.json"), r#"{"version": 1, "id""#).unwrap();
    let listed = store.containers.list().unwrap();
    assert_eq!((listed.items.len(), listed.skipped.len()), (1, 1));
    assert_eq!(listed.items[0].config, good.config);
    let refused = store.containers.find("cdcd").unwrap_err();
    assert!(
        refused.to_string().contains("cowl rm -f cdcdcdcdcdcd"),
        "{refused}"
    );
    assert!(store.containers.find_damaged("ab").unwrap().is_none());
    let (damaged, _) = store.containers.find_damaged("cdcd").unwrap().unwrap();
    store.remove(&damaged);
    assert!(!path.exists());
}
