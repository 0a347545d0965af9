//! A store with the busybox images of `fixtures/layers.sh`: a base in common, `shop` and `blog` on
//! top of it.

use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{Child, ExitStatus, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use crate::command::{Outcome, fixture, program, run, shell};
use crate::profile::{NEVER, directory, readable};
use crate::store::Store;

/// Loads `shop:latest` (docker archive) into a store named `name`.
#[track_caller]
pub fn shop(name: &str) -> Store {
    let store = Store::new(name);
    store.load(&layers().join("shop.image.tar"));
    store
}

/// Loads `blog:latest` (OCI layout, gzip) beside it.
#[track_caller]
pub fn add_blog(store: &Store) {
    store.load(&layers().join("blog.image.tar"));
}

/// The directory with base.tar, shop.tar and blog.tar and the archives of both images: that of the
/// whole run, or created here.
pub fn layers() -> PathBuf {
    if let Some(images) = std::env::var_os("COWL_IMAGES") {
        return images.into();
    }
    let images = directory().join("images");
    if !images.exists() {
        run(&mut program(
            fixture("images.sh").to_str().unwrap(),
            [&images],
        ))
        .ok();
    }
    images
}

/// `cowl run OPTIONS shop COMMAND`, to its end.
#[track_caller]
pub fn in_shop(store: &Store, options: &[&str], command: &[&str]) -> Outcome {
    store.run([&["run"], options, &["shop"], command].concat())
}

/// Full ids of all containers.
#[track_caller]
pub fn containers(store: &Store) -> Vec<String> {
    store
        .ok(["ps", "-aq", "--no-trunc"])
        .lines()
        .map(str::to_owned)
        .collect()
}

/// The cgroups with an id in their name, one per line. Those of other tests come and go meanwhile,
/// which would be errors for `find`.
pub fn cgroups(id: &str) -> String {
    let mut found = Vec::new();
    let mut below = vec![PathBuf::from("/sys/fs/cgroup")];
    while let Some(group) = below.pop() {
        let Some(entries) = unless_gone(std::fs::read_dir(&group)) else {
            continue;
        };
        for entry in entries {
            let Some(entry) = unless_gone(entry) else {
                break;
            };
            if !unless_gone(entry.file_type()).is_some_and(|kind| kind.is_dir()) {
                continue;
            }
            if entry.file_name().to_string_lossy().contains(id) {
                found.push(entry.path().display().to_string());
            }
            below.push(entry.path());
        }
    }
    found.join("\n")
}

/// The result for a cgroup; None if it has been removed.
#[track_caller]
fn unless_gone<T>(found: std::io::Result<T>) -> Option<T> {
    match found {
        Ok(found) => Some(found),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => None,
        Err(error) => panic!("/sys/fs/cgroup: {error}"),
    }
}

/// A `cowl run` in the background.
#[derive(Debug)]
pub struct Running {
    child: Child,
}

impl Running {
    /// Starts it, with a directory of the host at /host, and waits until `script` has called
    /// `ready`: what is sent to the container earlier could come before its traps are set. Then
    /// until `cowl run` has written the start event: an earlier signal may end the start. Reading
    /// /host/never blocks for ever.
    #[track_caller]
    pub fn start(store: &Store, options: &[&str], script: &str) -> Self {
        let host = directory().join("host");
        std::fs::create_dir_all(&host).unwrap();
        let fifo = host.join("ready");
        shell(&host, "rm -f ready never; mkfifo ready never", [""; 0]);
        let began = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let mut command = store.command(["run", "-v"]);
        command
            .arg(format!("{}:/host", host.display()))
            .args(options);
        command.args([
            "shop",
            "sh",
            "-c",
            &format!("ready() {{ echo > /host/ready; }}; {script}"),
        ]);
        let child = command.spawn().unwrap();
        let ready = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(fifo)
            .unwrap();
        let this = Self { child };
        assert!(readable(&ready, NEVER), "the container does not start");
        let since = format!("{}.{:09}", began.as_secs(), began.subsec_nanos());
        let follow = ["events", "--since", &since, "--filter", "event=start"];
        let mut told = store
            .command(follow)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let is_told = readable(told.stdout.as_ref().unwrap(), NEVER);
        told.kill().unwrap();
        told.wait().unwrap();
        assert!(is_told, "cowl run does not tell of the start");
        this
    }

    /// Sends a signal to `cowl run`.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for its end; returns the exit code.
    #[track_caller]
    pub fn end(self) -> i32 {
        self.status().code().expect("cowl run ends with a code")
    }

    /// Waits for its end by a signal; returns the signal.
    #[track_caller]
    pub fn end_by_signal(self) -> i32 {
        self.status().signal().expect("cowl run ends by a signal")
    }

    #[track_caller]
    fn status(mut self) -> ExitStatus {
        let pidfd = pidfd_open(Pid::from_child(&self.child), PidfdFlags::empty()).unwrap();
        assert!(readable(&pidfd, NEVER), "cowl run does not end");
        self.child.wait().unwrap()
    }
}
