//! The life cycle of a container's directory. The tests play the monitor: they lock `lock` and
//! write its record.

mod damaged;

use super::kill::kill_program;
use super::*;
use crate::engine::Engine;
use crate::engine::docker::{ContainerConfig, HostConfig};
use config::{Mount, MountSource, VERSION};
use cowl_core::digest::{ImageId, Sha256Digest};
use cowl_launch::identity::Identity;
use cowl_launch::status;
use jiff::Timestamp;
use rustix::fs::{CWD, FileType, FlockOperation, flock};
use state::{Exit, Status};
use std::fs::File;
use std::os::unix::fs::symlink;

struct Store {
    temp: tempfile::TempDir,
    containers: Containers,
}

impl Store {
    fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        let containers = Containers::new(temp.path());
        Self { temp, containers }
    }

    fn make(&self, id: &str, name: &str) -> PendingContainer {
        self.make_of(config(id, name))
    }

    fn make_of(&self, config: Config) -> PendingContainer {
        let guard = self.containers.guard().unwrap();
        let name = &config.name;
        let claim = self.containers.claim_name(&guard, name, &config.id, false);
        assert_eq!(claim.unwrap(), Claim::Made);
        self.containers.create(&guard, config).unwrap()
    }

    fn remove(&self, container: &Container) {
        container.wait_released().unwrap();
        container.wait_unmounted().unwrap();
        let guard = self.containers.guard().unwrap();
        self.containers
            .mark_removed(&guard, container, true)
            .unwrap();
    }

    /// Names of the containers that the sweep would remove.
    fn disposable(&self) -> Vec<String> {
        let containers = self.containers.list().unwrap().items.into_iter();
        containers
            .filter(|container| container.is_disposable(&container.status().unwrap()))
            .map(|container| container.config.name)
            .collect()
    }

    /// Names in `containers/`.
    fn names(&self) -> Vec<String> {
        files::names(files::open_dir(&self.temp.path().join("containers")).unwrap()).unwrap()
    }

    /// Names in the index.
    fn index(&self) -> Vec<String> {
        files::names(self.containers.index.get().unwrap()).unwrap()
    }
}

fn config(id: &str, name: &str) -> Config {
    let volume = MountSource::Volume {
        subpath: String::new(),
        name: format!("anonymous-{name}"),
        anonymous: true,
        no_copy: false,
    };
    Config {
        version: VERSION,
        id: id.repeat(64 / id.len()),
        name: name.into(),
        created: Timestamp::now(),
        image_id: ImageId(Sha256Digest::of(b"")),
        layers: vec![],
        asked: ContainerConfig::default(),
        config: ContainerConfig::default(),
        host: HostConfig::default(),
        mounts: vec![Mount {
            bind: config::BindMode::default(),
            source: volume,
            destination: "/data".into(),
            read_only: false,
            mode: String::new(),
        }],
    }
}

/// A pid that no process can have: the kernel's limit is 2^22 (PID_MAX_LIMIT in linux/threads.h).
const NO_PROCESS: i32 = (1 << 22) + 1;

/// Takes the monitor's lock and writes its record.
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
fn status_is_created_then_running_then_exited() {
    let store = Store::new();
    let pending = store.make("ab", "web");
    assert_eq!(pending.container.status().unwrap(), Status::Starting);
    let lock = monitor(&pending.container, NO_PROCESS);
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
    assert_eq!(store.disposable(), [""; 0]);
}

#[test]
fn status_after_a_kill_is_exited_or_created() {
    let store = Store::new();
    // The monitor is killed after it recorded that the program runs.
    let container = store.make("ab", "one").release();
    drop(monitor(&container, NO_PROCESS));
    assert!(matches!(
        container.status().unwrap(),
        Status::Exited(Exit {
            exit_code: state::LOST,
            ..
        })
    ));
    // The engine is killed before it starts a monitor.
    let container = store.make("cd", "two").release();
    assert_eq!(container.status().unwrap(), Status::Created(None));
    assert_eq!(store.disposable(), [""; 0]);
}

#[test]
fn find_takes_an_id_a_name_or_an_unambiguous_prefix() {
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
    assert_eq!(
        find("").unwrap_err().to_string(),
        "invalid container name or ID: value is empty"
    );
    assert_eq!(find("b").unwrap_err().to_string(), "No such container: b");
}

#[test]
fn purge_completes_a_killed_removal_with_its_volumes() {
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
    // Killed here: it is no longer a container, and the next purge completes the removal.
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
    // A second removal that comes too late succeeds.
    container.wait_released().unwrap();
    container.wait_unmounted().unwrap();
    container.kill().unwrap();
    store
        .containers
        .mark_removed(&store.containers.guard().unwrap(), &container, true)
        .unwrap();
}

#[test]
fn kill_spares_a_reused_pid_and_ends_a_program_without_monitor() {
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
    container.wait_released().unwrap();
    container.kill().unwrap();
    assert!(!child.wait().unwrap().success());
}

/// As a power cut or a bad disk leaves it.
#[test]
fn kill_fails_on_a_damaged_record_while_the_monitor_lives() {
    let store = Store::new();
    let container = store.make("ab", "web").release();
    let lock = monitor(&container, NO_PROCESS);
    let record = format!("containers/{}/{}", container.config.id, status::RUNNING);
    for text in ["", "{\"monitor\":12,\"pid\":1"] {
        std::fs::write(store.temp.path().join(&record), text).unwrap();
        assert_eq!(container.status().unwrap(), Status::Running);
        let error = container.kill().unwrap_err().to_string();
        assert!(error.contains("running.json is damaged"), "{error}");
    }
    drop(lock);
    assert!(container.status().unwrap().is_orphaned());
    container.kill().unwrap();
}

/// The engine is killed right after it has started the monitor.
#[test]
fn kill_waits_for_the_record_of_a_new_monitor() {
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
fn remove_unfinished_removes_a_killed_creation_and_no_other() {
    let store = Store::new();
    let _pending = store.make("ab", "web");
    std::fs::create_dir(store.temp.path().join("containers").join("cd".repeat(32))).unwrap();
    let guard = store.containers.guard().unwrap();
    store.containers.remove_unfinished(&guard).unwrap();
    assert_eq!(store.names(), ["ab".repeat(32)]);
}

/// A container with `--rm` is not synced, so a power cut may leave any of its files empty. After a
/// reboot they are not read.
#[test]
fn remove_unfinished_removes_an_auto_remove_container_of_another_boot() {
    let auto_remove = |id, name| {
        let mut config = config(id, name);
        config.host.auto_remove = true;
        config
    };
    let store = Store::new();
    drop(store.make("ab", "kept").release());
    for (id, name) in [("cd", "now"), ("ef", "whole"), ("12", "torn")] {
        drop(store.make_of(auto_remove(id, name)).release());
    }
    let path = |id: &str| store.temp.path().join("containers").join(id.repeat(32));
    for id in ["ef", "12"] {
        let link = path(id).join("volatile");
        std::fs::remove_file(&link).unwrap();
        symlink("00000000-0000-4000-8000-000000000000", link).unwrap();
    }
    std::fs::write(path("12").join("config.json"), "").unwrap();
    let listed = store.containers.list().unwrap();
    let names = listed.items.iter().map(|container| &container.config.name);
    assert_eq!(names.collect::<Vec<_>>(), ["now", "kept"]);
    assert_eq!(listed.skipped.len(), 0);
    let guard = store.containers.guard().unwrap();
    store.containers.remove_unfinished(&guard).unwrap();
    store.containers.drop_stale_names(&guard).unwrap();
    drop(guard);
    let mut index = store.index();
    index.sort();
    assert_eq!(index, ["kept", "now"]);
    let volumes = std::cell::RefCell::new(Vec::new());
    let note = |config: &Config| {
        volumes.borrow_mut().push(config.name.clone());
        Ok(())
    };
    store.containers.purge(note).unwrap();
    assert_eq!(volumes.into_inner(), ["whole"]);
    let mut left = store.names();
    left.sort();
    assert_eq!(left, ["ab".repeat(32), "cd".repeat(32)]);
}

/// As a guest of systemd-nspawn or LXC sees the host's containers in a shared store.
#[test]
fn an_auto_remove_container_that_names_another_boot_is_kept_while_a_lock_of_it_is_held() {
    let store = Store::new();
    let mut config = config("ab", "web");
    config.host.auto_remove = true;
    let container = store.make_of(config).release();
    let path = store.temp.path().join("containers").join("ab".repeat(32));
    std::fs::remove_file(path.join("volatile")).unwrap();
    symlink(
        "00000000-0000-4000-8000-000000000000",
        path.join("volatile"),
    )
    .unwrap();
    let mount_lock = path.join("work/lock");
    File::create(&mount_lock).unwrap();
    let guard = store.containers.guard().unwrap();
    for held in [path.clone(), path.join("work"), mount_lock] {
        let file = File::open(&held).unwrap();
        flock(&file, FlockOperation::LockExclusive).unwrap();
        store.containers.remove_unfinished(&guard).unwrap();
        let found = store.containers.find("web");
        assert_eq!(found.unwrap().config.id, container.config.id, "{held:?}");
    }
    store.containers.remove_unfinished(&guard).unwrap();
    let error = store.containers.find("web").unwrap_err();
    assert_eq!(error.kind(), crate::engine::error::Kind::NotFound);
}

#[test]
fn status_stays_created_from_engine_to_monitor() {
    let store = Store::new();
    let pending = store.make("ab", "web");
    let status_dir = pending.status_dir().try_clone_to_owned().unwrap();
    // Killed here.
    let container = pending.release();
    assert_eq!(container.status().unwrap(), Status::Starting);
    assert_eq!(store.disposable(), [""; 0]);
    drop(status_dir);
    assert_eq!(container.status().unwrap(), Status::Created(None));
}

#[test]
fn a_name_is_taken_until_its_container_is_removed() {
    let store = Store::new();
    let container = store.make("ab", "web").release();
    let guard = store.containers.guard().unwrap();
    let claim = |name: &str, id: &str| {
        store
            .containers
            .claim_name(&guard, name, id, false)
            .unwrap()
    };
    let other = "cd".repeat(32);
    assert_eq!(claim("web", &other), Claim::Taken("ab".repeat(32)));
    // Killed before its config.json: the link counts for nothing.
    assert_eq!(claim("half", &other), Claim::Made);
    assert_eq!(claim("half", &"ef".repeat(32)), Claim::Made);
    assert!(store.containers.find("half").is_err());
    store.containers.drop_stale_names(&guard).unwrap();
    assert_eq!(store.index(), ["web"]);
    store
        .containers
        .mark_removed(&guard, &container, false)
        .unwrap();
    assert_eq!(store.index(), [""; 0]);
}

#[test]
fn a_renamed_container_is_found_by_its_new_name_only() {
    let store = Store::new();
    let mut container = store.make("ab", "web").release();
    let id = container.config.id.clone();
    {
        let guard = store.containers.guard().unwrap();
        let claim = store
            .containers
            .claim_name(&guard, "shop", &id, false)
            .unwrap();
        assert_eq!(claim, Claim::Made);
        store
            .containers
            .set_name(&guard, &mut container, "shop")
            .unwrap();
    }
    assert_eq!(store.containers.find("shop").unwrap().config.id, id);
    assert!(store.containers.find("web").is_err());
    assert_eq!(store.index(), ["shop"]);
    // As a power cut may leave it.
    store.containers.drop_name("shop").unwrap();
    assert_eq!(store.containers.find("shop").unwrap().config.id, id);
}

/// The others are damaged, so that reading one would fail.
#[test]
fn a_container_is_found_by_id_or_name_without_reading_others() {
    let store = Store::new();
    drop(store.make("ab", "web").release());
    drop(store.make("cd", "hurt").release());
    let hurt = store.temp.path().join("containers").join("cd".repeat(32));
    std::fs::write(hurt.join("config.json"), "{").unwrap();
    std::fs::rename(&hurt, hurt.with_file_name("ef".repeat(32))).unwrap();
    for needle in ["web", "/web", &"ab".repeat(32)] {
        assert_eq!(store.containers.find(needle).unwrap().config.name, "web");
    }
}

#[test]
fn a_removed_container_cannot_be_started() {
    let store = Store::new();
    let container = store.make("ab", "web").release();
    assert_eq!(container.status().unwrap(), Status::Created(None));
    drop(store.containers.take(&container).unwrap());
    store.remove(&container);
    let refused = store.containers.take(&container).unwrap_err();
    assert_eq!(refused.kind(), crate::engine::error::Kind::NotFound);
}
