//! A busybox root in a temporary directory, and one container over it per test. Needs root.

use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use cowl_launch::client::{Launch, Monitor, StartError};
use cowl_launch::control::{Control, Streams};
use cowl_launch::message::{Event, Exited, Failed, Start};
use cowl_launch::process::Process;
use cowl_launch::sandbox::{Mount, Sandbox};
use cowl_tests::profile::{NEVER, readable};
use rustix::fs::CWD;
use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// Names another `cowl-runtime` than the one just built, to test it on another machine.
pub(crate) const RUNTIME: &str = "COWL_RUNTIME";

/// Of the cgroups of all tests.
pub(crate) const PARENT: &str = "/cowl-test";

pub(crate) struct Fixture {
    pub(crate) directory: tempfile::TempDir,
    id: String,
    /// Of joined namespaces and of mounts.
    pub(crate) descriptors: Vec<OwnedFd>,
}

pub(crate) struct Outcome {
    pub(crate) exited: Exited,
    pub(crate) output: String,
    pub(crate) record: String,
}

pub(crate) struct Running {
    pub(crate) monitor: Monitor,
    pub(crate) pid: u32,
    output: File,
}

impl Drop for Fixture {
    /// A test that fails leaves no cgroups to the next.
    fn drop(&mut self) {
        drop(cowl_launch::cgroup::remove_leftovers(PARENT, &self.id));
    }
}

impl Fixture {
    /// A root of busybox alone: no /proc, /dev or /sys in it.
    pub(crate) fn new(name: &str) -> Self {
        assert!(
            rustix::process::getuid().is_root(),
            "these tests make namespaces and mounts: run them as root"
        );
        let directory = tempfile::tempdir().unwrap();
        for path in ["rootfs/bin", "rootfs/etc", "rootfs/root", "status"] {
            std::fs::create_dir_all(directory.path().join(path)).unwrap();
        }
        let fixture = Self {
            directory,
            id: format!("launch-{name}-{}", std::process::id()),
            descriptors: Vec::new(),
        };
        let busybox = std::fs::read("/bin/busybox").expect("busybox-static is installed");
        fixture.write("bin/busybox", &busybox, 0o755);
        for applet in [
            "sh", "true", "cat", "ps", "sleep", "id", "hostname", "ls", "mount", "touch", "stty",
            "tty", "mknod", "dd", "ip",
        ] {
            symlink("busybox", fixture.path(&format!("bin/{applet}"))).unwrap();
        }
        fixture.write(
            "etc/passwd",
            b"root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n",
            0o644,
        );
        fixture.write(
            "etc/group",
            b"root:x:0:root\nwheel:x:10:app\napp:x:1000:\n",
            0o644,
        );
        fixture
    }

    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.directory.path().join("rootfs").join(path)
    }

    pub(crate) fn write(&self, path: &str, content: &[u8], mode: u32) {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::write(self.path(path), content).unwrap();
        std::fs::set_permissions(self.path(path), std::fs::Permissions::from_mode(mode)).unwrap();
    }

    pub(crate) fn status(&self) -> File {
        File::open(self.directory.path().join("status")).unwrap()
    }

    pub(crate) fn control(&self) -> Control {
        Control::connect(self.status().as_fd()).unwrap()
    }

    pub(crate) fn plan(&self, argv: &[&str]) -> Start {
        let mut sandbox = Sandbox::new(&self.id);
        PARENT.clone_into(&mut sandbox.cgroup_parent);
        let argv = argv.iter().map(|argument| argument.as_bytes().to_vec());
        Start::new(sandbox, Process::new(argv.collect()))
    }

    /// A script whose standard output and error come in their order, through one pipe.
    pub(crate) fn sh(&self, script: &str) -> Start {
        self.plan(&["sh", "-c", &format!("exec 2>&1; {script}")])
    }

    /// Adds a volume to the fixture and its mount to the plan.
    pub(crate) fn volume(
        &mut self,
        plan: &mut Start,
        source: &Path,
        destination: &str,
        read_only: bool,
    ) {
        self.descriptors.push(File::open(source).unwrap().into());
        plan.sandbox
            .mounts
            .push(Mount::descriptor(destination, read_only));
    }

    pub(crate) fn start(&self, plan: &Start) -> Result<Running, StartError> {
        let output = tempfile::tempfile().unwrap();
        let monitor = self.spawn(plan, &output);
        match monitor.wait_started() {
            Ok(started) => Ok(Running {
                monitor,
                pid: started.pid,
                output,
            }),
            Err(error) => {
                monitor.reap().unwrap();
                Err(error)
            }
        }
    }

    /// A monitor that may still be at anything.
    pub(crate) fn spawn(&self, plan: &Start, output: &File) -> Monitor {
        let streams = Streams {
            stdin: None,
            stdout: Some(output.as_fd()),
            stderr: Some(output.as_fd()),
        };
        self.spawn_with(plan, streams)
    }

    /// The same with standard streams of the test's choice.
    pub(crate) fn spawn_with(&self, plan: &Start, streams: Streams<'_>) -> Monitor {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let rootfs = open_tree(CWD, self.path(""), flags).unwrap();
        let status = self.status();
        let descriptors: Vec<_> = self.descriptors.iter().map(OwnedFd::as_fd).collect();
        let runtime = std::env::var_os(RUNTIME)
            .map_or_else(|| env!("CARGO_BIN_EXE_cowl-runtime").into(), PathBuf::from);
        let launch = Launch {
            runtime: &runtime,
            start: plan,
            rootfs: rootfs.as_fd(),
            status: status.as_fd(),
            streams: &[streams],
            descriptors: &descriptors,
        };
        launch.spawn().unwrap()
    }

    /// All that is in the container's cgroups now.
    pub(crate) fn processes(&self) -> Vec<OwnedFd> {
        let mut processes = Vec::new();
        for cgroup in self.cgroups() {
            let text = std::fs::read_to_string(cgroup.join("cgroup.procs")).unwrap();
            for pid in text
                .lines()
                .map(|line| Pid::from_raw(line.parse().unwrap()).unwrap())
            {
                processes.extend(cowl_sys::process::open(pid).unwrap());
            }
        }
        processes
    }

    pub(crate) fn run(&self, plan: &Start) -> Outcome {
        let running = self.start(plan).unwrap();
        self.finish(running)
    }

    pub(crate) fn finish(&self, running: Running) -> Outcome {
        let Running {
            monitor,
            mut output,
            ..
        } = running;
        let exited = match monitor.next_event().unwrap() {
            Event::Exited(exited) => exited,
            other => panic!("{other:?}"),
        };
        monitor.reap().unwrap();
        self.assert_no_cgroups();
        let mut text = String::new();
        output.rewind().unwrap();
        output.read_to_string(&mut text).unwrap();
        Outcome {
            exited,
            output: text,
            record: self.record(),
        }
    }

    /// Runs a plan that must not start.
    pub(crate) fn fail(&self, plan: &Start) -> Failed {
        match self.start(plan) {
            Err(StartError::Failed(failed)) => {
                self.assert_no_cgroups();
                failed
            }
            Err(other) => panic!("{other}"),
            Ok(running) => panic!("started: {:?}", self.finish(running).exited),
        }
    }

    pub(crate) fn record(&self) -> String {
        cowl_launch::status::read_exit(self.status().as_fd())
            .unwrap()
            .unwrap_or_default()
    }

    /// Directories of this fixture's container in any hierarchy.
    pub(crate) fn cgroups(&self) -> Vec<PathBuf> {
        let mut hierarchies = vec![PathBuf::from("/sys/fs/cgroup")];
        let mounted = std::fs::read_dir("/sys/fs/cgroup").unwrap();
        hierarchies.extend(mounted.map(|entry| entry.unwrap().path()));
        hierarchies.retain(|path| path.is_dir());
        hierarchies
            .into_iter()
            .map(|hierarchy| hierarchy.join("cowl-test").join(&self.id))
            .filter(|path| path.try_exists().unwrap())
            .collect()
    }

    pub(crate) fn assert_no_cgroups(&self) {
        assert_eq!(self.cgroups(), Vec::<PathBuf>::new());
    }
}

pub(crate) fn pidfd(pid: u32) -> OwnedFd {
    let pid = Pid::from_raw(pid.cast_signed()).unwrap();
    pidfd_open(pid, PidfdFlags::empty()).unwrap()
}

pub(crate) fn wait_for_end(pidfd: &OwnedFd) {
    assert!(readable(pidfd, NEVER), "still running");
}

pub(crate) fn wait_for(path: &Path) {
    use rustix::fs::inotify;
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC).unwrap();
    inotify::add_watch(&watch, path.parent().unwrap(), inotify::WatchFlags::CREATE).unwrap();
    while !path.try_exists().unwrap() {
        assert!(
            readable(&watch, NEVER),
            "{} does not appear",
            path.display()
        );
        rustix::io::read(&watch, &mut [0; 4096][..]).unwrap();
    }
}

pub(crate) fn program(argv: &[&str]) -> Process {
    let argv = argv.iter().map(|argument| argument.as_bytes().to_vec());
    Process::new(argv.collect())
}

pub(crate) fn sh(script: &str) -> Process {
    program(&["sh", "-c", script])
}

/// A running container that waits for `/go`, as its monitor's clients see it.
pub(crate) fn waiting(fixture: &Fixture) -> Running {
    let script = "touch /ready; while [ ! -e /go ]; do sleep 0.01; done; exit 7";
    let running = fixture.start(&fixture.sh(script)).unwrap();
    wait_for(&fixture.path("ready"));
    running
}

/// Lets it end.
pub(crate) fn end(fixture: &Fixture, running: Running) {
    File::create(fixture.path("go")).unwrap();
    assert_eq!(fixture.finish(running).exited.exit_code, 7);
}
