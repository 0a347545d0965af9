//! Runs a test in namespaces of its own: [`root`] with all privileges, [`user`] with none outside a
//! user namespace.
//!
//! The test's process re-executes itself inside new mount and pid namespaces, for that one test,
//! and waits for it. So whatever a failing or hanging test leaves ends with its namespaces, and
//! leaks are detected exactly: the pid namespace must be empty and the mounts as before, or the
//! test fails.
//!
//! `/dev/fuse` may have mode 0600 on this machine. The user profile therefore runs in a mount
//! namespace with a node of mode 0666 in its place; the machine's own node is not changed.

use std::any::type_name;
use std::fs::{self, File, Permissions};
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::command::{binary, docker_py, fixture};

/// The user and group of the user profile: nobody, nogroup.
pub const USER: u32 = 65534;
/// A test that takes longer hangs. This is below the limits in .config/nextest.toml, which would
/// leave the namespaces behind. `COWL_TEST_SLOWNESS` is a factor for slow machines.
const LIMIT: Duration = Duration::from_mins(9);
const LONG_LIMIT: Duration = Duration::from_mins(17);
/// A timeout that means never, for events that must happen: a busy or emulated machine may take
/// many seconds.
pub const NEVER: Duration = Duration::from_mins(2);
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The user that a test runs as.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub enum Privilege {
    /// Root of the initial user namespace.
    Root,
    /// An ordinary user, as the only id of a user namespace of its own.
    User,
}

/// The profile of the running test.
pub fn current() -> Privilege {
    match std::env::var("COWL_TEST_PROFILE").as_deref() {
        Ok("root") => Privilege::Root,
        Ok("user") => Privilege::User,
        other => panic!("not inside root(|| ...) or user(|| ...): COWL_TEST_PROFILE is {other:?}"),
    }
}

/// The running test's own directory: empty at its start, removed after its end.
pub fn directory() -> PathBuf {
    PathBuf::from(std::env::var_os("COWL_TEST_DIR").expect("inside root(|| ...) or user(|| ...)"))
}

/// The running test, as its runner names it.
pub fn test_path() -> String {
    std::env::var("COWL_TEST_INNER")
        .or_else(|_| std::env::var("NEXTEST_TEST_NAME"))
        .ok()
        .or_else(|| std::thread::current().name().map(str::to_owned))
        .expect("inside a test")
}

/// Runs the body as root.
pub fn root<F: FnOnce()>(body: F) {
    enter(Privilege::Root, body);
}

/// Runs the body as an ordinary user.
pub fn user<F: FnOnce()>(body: F) {
    enter(Privilege::User, body);
}

fn enter<F: FnOnce()>(privilege: Privilege, body: F) {
    let test = test_name::<F>();
    if std::env::var("COWL_TEST_INNER").as_deref() == Ok(test) {
        inner(body);
    } else {
        outer(privilege, test);
    }
}

/// `posix::as_ext4::{{closure}}` -> `as_ext4`, the name that the test runner knows.
fn test_name<F>() -> &'static str {
    let full = type_name::<F>();
    let path = full
        .strip_suffix("::{{closure}}")
        .unwrap_or_else(|| panic!("{full} is no closure written inside a test"));
    path.split_once("::").map_or(path, |(_, name)| name)
}

// Inside the namespaces.

fn inner<F: FnOnce()>(body: F) {
    let mounts = mount_points();
    body();
    let left: Vec<String> = mount_points()
        .into_iter()
        .filter(|mount| !mounts.contains(mount))
        .collect();
    assert!(left.is_empty(), "mounts left behind: {left:?}");
    await_processes();
    fs::write(done_file(), "").unwrap();
}

/// Waits until all other processes of this pid namespace have ended. umount(2) does not wait for
/// those that served a mount, which have files of other mounts open.
pub fn await_processes() {
    for (pid, line) in processes() {
        if let Some(pidfd) = open_process(pid) {
            assert!(readable(&pidfd, NEVER), "process left behind: {pid} {line}");
        }
    }
}

/// A pidfd; `None` if the process has ended. Linux 6.1 says EINVAL then, if its number still names
/// a session.
pub fn open_process(pid: Pid) -> Option<OwnedFd> {
    match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => Some(pidfd),
        Err(Errno::SRCH | Errno::INVAL) => None,
        Err(error) => panic!("pidfd_open of {pid}: {error}"),
    }
}

fn done_file() -> PathBuf {
    directory().join("done")
}

fn mount_points() -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    table
        .lines()
        .map(|line| {
            line.split(' ')
                .skip(2)
                .take(3)
                .collect::<Vec<_>>()
                .join(" ")
        })
        .collect()
}

/// Processes of this pid namespace that are neither its init nor ours, with their command lines.
pub fn processes() -> Vec<(Pid, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap() {
        let entry = entry.unwrap();
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<i32>().ok())
        else {
            continue;
        };
        if pid == 1 || pid == rustix::process::getpid().as_raw_nonzero().get() {
            continue;
        }
        match fs::read(entry.path().join("cmdline")) {
            Ok(line) => found.push((
                Pid::from_raw(pid).unwrap(),
                String::from_utf8_lossy(&line).replace('\0', " "),
            )),
            Err(error)
                if error.kind() == ErrorKind::NotFound
                    || error.raw_os_error() == Some(libc::ESRCH) => {}
            Err(error) => panic!("/proc/{pid}/cmdline: {error}"),
        }
    }
    found
}

/// Waits until a pidfd (or any other descriptor) is readable; false when `limit` passes first.
pub fn readable(descriptor: impl std::os::fd::AsFd, limit: Duration) -> bool {
    let end = Instant::now() + limit;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).unwrap();
        let mut descriptors = [PollFd::new(&descriptor, PollFlags::IN)];
        match poll(&mut descriptors, Some(&timeout)) {
            Ok(0) => return false,
            Ok(_) => return true,
            Err(Errno::INTR) => {}
            Err(error) => panic!("poll: {error}"),
        }
    }
}

/// Waits, by inotify, until a file has this many lines.
pub fn wait_for_lines(file: &Path, lines: usize) {
    use rustix::fs::inotify;
    let events =
        inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK).unwrap();
    inotify::add_watch(&events, file, inotify::WatchFlags::MODIFY).unwrap();
    let mut buffer = [0; 4096];
    while fs::read_to_string(file).unwrap().lines().count() < lines {
        assert!(
            readable(&events, NEVER),
            "no more lines in {}",
            file.display()
        );
        rustix::io::read(&events, &mut buffer).unwrap();
    }
}

// Outside.

fn outer(privilege: Privilege, test: &str) {
    assert!(
        rustix::process::geteuid().is_root(),
        "this test mounts file systems and makes namespaces for an ordinary user: it has to be started by root"
    );
    let base = tempfile::Builder::new()
        .prefix("cowl-test-")
        .permissions(Permissions::from_mode(0o755))
        .tempdir()
        .unwrap();
    let work = base.path().join("work");
    fs::create_dir(&work).unwrap();
    if privilege == Privilege::User {
        chown(&work, Some(USER), Some(USER)).unwrap();
    }
    let output = base.path().join("output");
    let mut child = start(privilege, test, base.path(), &output);
    let ended = wait(&mut child);
    let text = String::from_utf8_lossy(&fs::read(&output).unwrap()).into_owned();
    let status = child.wait().unwrap();
    assert!(
        ended,
        "{text}\nno end after {} s: killed",
        limit().as_secs()
    );
    assert!(status.success(), "{text}\nended with {status}");
    assert!(
        work.join("done").exists(),
        "{text}\nthe test did not run to its end inside its namespaces"
    );
    print!("{text}");
}

/// Prepares the mount namespace as root, then runs `"$@"` in the profile. `$1` is the test's base
/// directory.
const ENTER_USER: &str = r#"
base=$1; shift
mkdir "$base/bin" "$base/fixtures" "$base/images" "$base/exe" "$base/dev"
mount --bind "$COWL_BIN_DIR" "$base/bin"
mount --bind "$COWL_FIXTURES" "$base/fixtures"
if [ -n "${COWL_IMAGES:-}" ]; then mount --bind "$COWL_IMAGES" "$base/images"; export COWL_IMAGES="$base/images"; fi
if [ -d "$COWL_DOCKER_PY" ]; then
  mkdir "$base/docker-py"
  mount --bind "$COWL_DOCKER_PY" "$base/docker-py"
  export COWL_DOCKER_PY="$base/docker-py"
fi
mount --bind "$(dirname "$1")" "$base/exe"
mount -t tmpfs -o mode=0755 tmpfs "$base/dev"
mknod -m 0666 "$base/dev/fuse" c 10 229
mount --bind "$base/dev/fuse" /dev/fuse
export COWL_BIN_DIR="$base/bin" COWL_FIXTURES="$base/fixtures"
exe="$base/exe/$(basename "$1")"; shift
exec setpriv --reuid 65534 --regid 65534 --clear-groups -- \
  unshare --user --map-root-user --mount --pid --fork --kill-child --mount-proc -- sh -c '"$@"; exit $?' sh "$exe" "$@"
"#;

fn start(privilege: Privilege, test: &str, base: &Path, output: &Path) -> Child {
    assert!(
        Path::new("/dev/fuse").exists(),
        "/dev/fuse is missing: these tests mount FUSE file systems (modprobe fuse)"
    );
    let exe = std::env::current_exe().unwrap();
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private"]);
    match privilege {
        // A shell as init: it reaps orphaned daemons, which a test would not.
        Privilege::Root => {
            command.args([
                "--pid",
                "--fork",
                "--kill-child",
                "--mount-proc",
                "--",
                "sh",
                "-c",
                "\"$@\"; exit $?",
                "sh",
            ]);
        }
        Privilege::User => {
            command
                .args(["--", "sh", "-euc", ENTER_USER, "sh"])
                .arg(base);
        }
    }
    command
        .arg(exe)
        .args(["--exact", test, "--nocapture", "--test-threads=1"]);
    let log = File::create(output).unwrap();
    command
        .env_clear()
        .envs(
            [
                "COWL_ALLOW_SKIP",
                "COWL_IMAGES",
                "COWL_PJDFSTEST",
                "COWL_TEST_REPEAT",
                "COWL_TEST_SCALE",
                "COWL_TEST_SEED",
                "NEXTEST_BINARY_ID",
                "RUST_BACKTRACE",
            ]
            .iter()
            .filter_map(|&name| std::env::var_os(name).map(|value| (name, value))),
        )
        .env("PATH", PATH)
        .env("HOME", base.join("work"))
        .env("TMPDIR", base.join("work"))
        .env("LC_ALL", "C.UTF-8")
        .env("COWL_TEST_INNER", test)
        .env(
            "COWL_TEST_PROFILE",
            if privilege == Privilege::Root {
                "root"
            } else {
                "user"
            },
        )
        .env("COWL_TEST_DIR", base.join("work"))
        .env("COWL_BIN_DIR", binary("").canonicalize().unwrap())
        .env("COWL_FIXTURES", fixture("").canonicalize().unwrap())
        .env("COWL_DOCKER_PY", docker_py())
        .stdin(Stdio::null())
        .stdout(Stdio::from(log.try_clone().unwrap()))
        .stderr(Stdio::from(log))
        .process_group(0);
    command.spawn().expect("unshare (package util-linux)")
}

fn limit() -> Duration {
    let limit = if std::env::var_os("COWL_TEST_SCALE").is_some() {
        LONG_LIMIT
    } else {
        LIMIT
    };
    limit * std::env::var("COWL_TEST_SLOWNESS").map_or(1, |slower| slower.parse().unwrap())
}

/// False if the limit passed first; the whole namespace is killed then.
fn wait(child: &mut Child) -> bool {
    let pidfd = pidfd_open(Pid::from_child(child), PidfdFlags::empty()).unwrap();
    let ended = readable(&pidfd, limit());
    if !ended {
        child.kill().unwrap();
    }
    ended
}
