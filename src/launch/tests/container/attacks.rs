//! Ways out of a container that other launchers once had, each with its CVE.

use std::io::Read as _;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::symlink;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;

use crate::harness::{Fixture, wait_for};
use cowl_launch::control::{ControlError, Streams, Target};
use cowl_launch::message::Start;
use cowl_launch::process::{Process, WindowSize};
use rustix::fs::Mode;
use rustix::io::Errno;

/// More than the launcher has open at any time.
const NUMBERS: std::ops::Range<u32> = 3..40;
/// From any directory to the root of whatever it is in.
const UP: &str = "/../../../../../../../../../../../..";

/// A file of the host, and what it says.
struct Secret {
    directory: tempfile::TempDir,
}

impl Secret {
    const TEXT: &str = "of the host";

    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("file"), Self::TEXT).unwrap();
        std::fs::copy("/bin/busybox", directory.path().join("echo")).unwrap();
        Self { directory }
    }

    /// The same directory as seen from a descriptor of the host.
    fn beyond_descriptor(&self, number: u32) -> String {
        format!(
            "/proc/self/fd/{number}{UP}{}",
            self.directory.path().display()
        )
    }
}

fn output(fixture: &Fixture, plan: &Start) -> String {
    match fixture.start(plan) {
        Ok(running) => fixture.finish(running).output,
        Err(error) => error.to_string(),
    }
}

/// CVE-2024-21626, runc: a descriptor of the host left open until exec, and `/proc/self/fd/N` as
/// program or working directory.
#[test]
fn no_descriptor_number_leads_to_the_host() {
    let fixture = Fixture::new("numbers");
    let secret = Secret::new();
    for number in NUMBERS {
        let place = secret.beyond_descriptor(number);
        let program = format!("{place}/echo");
        fixture.write("bin/script", format!("#!{program}\n").as_bytes(), 0o755);

        let relative = program.strip_prefix("/proc/self/fd/").unwrap();
        let mut from_proc = fixture.plan(&[relative, Secret::TEXT]);
        from_proc.process.cwd = b"/proc/self/fd".to_vec();
        let mut by_path = fixture.plan(&["echo", Secret::TEXT]);
        by_path.process.env = vec![format!("PATH={place}").into_bytes()];
        let inside = |cwd: String, look: &str| {
            let mut plan = fixture.plan(&["cat", look]);
            plan.process.cwd = cwd.into_bytes();
            plan
        };
        let ways = [
            ("the program", fixture.plan(&[&program, Secret::TEXT])),
            ("the program, relative", from_proc),
            ("PATH", by_path),
            ("an interpreter", fixture.plan(&["script", Secret::TEXT])),
            ("the working directory", inside(place.clone(), "file")),
            (
                "the working directory itself",
                inside(
                    format!("/proc/self/fd/{number}"),
                    &format!(".{UP}{}/file", secret.directory.path().display()),
                ),
            ),
        ];
        for (way, plan) in ways {
            let said = output(&fixture, &plan);
            assert!(!said.contains(Secret::TEXT), "{number} as {way}: {said}");
        }
    }
}

/// The same CVE: whatever is asked for, the working directory is a path of the container.
#[test]
fn the_working_directory_is_a_path_of_the_container() {
    let fixture = Fixture::new("cwd");
    symlink("../../../../../..", fixture.path("up")).unwrap();
    symlink("busybox", fixture.path("bin/pwd")).unwrap();
    for (cwd, expected) in [("/up", "/"), ("/up/etc", "/etc"), ("/proc/self", "/proc/1")] {
        let mut plan = fixture.plan(&["pwd", "-P"]);
        plan.process.cwd = cwd.as_bytes().to_vec();
        assert_eq!(output(&fixture, &plan).trim(), expected, "{cwd}");
    }
    // Links of /proc that lead anywhere: refused, whatever they lead to.
    for cwd in ["/proc/self/root", "/proc/1/cwd", "/proc/self/exe"] {
        let mut plan = fixture.plan(&["true"]);
        plan.process.cwd = cwd.as_bytes().to_vec();
        let failed = fixture.fail(&plan);
        assert_eq!(failed.errno, Errno::LOOP.raw_os_error(), "{cwd}: {failed}");
    }
}

/// CVE-2019-5736, runc: the launcher's own file, found through /proc/self/exe, run and overwritten.
#[test]
fn the_launcher_can_neither_be_run_nor_changed_through_proc() {
    let fixture = Fixture::new("exe");
    fixture.write("bin/script", b"#!/proc/self/exe run\n", 0o755);
    for program in ["/proc/self/exe", "script", "/proc/1/exe"] {
        let failed = fixture.fail(&fixture.plan(&[program, "--version"]));
        assert_eq!(
            failed.errno,
            Errno::ACCESS.raw_os_error(),
            "{program}: {failed}"
        );
        assert_eq!(failed.exit_code, 126);
    }
    // The monitor runs from the same mount as its child did.
    let running = fixture.start(&fixture.plan(&["sleep", "1000"])).unwrap();
    let exe = format!("/proc/{}/exe", running.monitor.pid());
    let changed = rustix::fs::chmod(&exe, Mode::from_raw_mode(0o4755));
    assert_eq!(changed, Err(Errno::ROFS));
    running.monitor.signal(9).unwrap();
    fixture.finish(running);
}

/// CVE-2025-31133, runc: the image's own /dev/null as the cover of a masked path. The covers are
/// the launcher's.
#[test]
fn masks_are_not_made_of_the_images_files() {
    let fixture = Fixture::new("masks");
    std::fs::create_dir(fixture.path("dev")).unwrap();
    fixture.write("dev/null", b"of the image", 0o644);
    symlink("busybox", fixture.path("bin/stat")).unwrap();
    let script =
        "stat -c '%F %t:%T' /proc/interrupts /dev/null; cat /proc/interrupts; ls -A /sys/firmware";
    let null = "character special file 1:3\n";
    assert_eq!(
        output(&fixture, &fixture.sh(script)),
        format!("{null}{null}")
    );
}

/// CVE-2021-30465, runc, and CVE-2024-45310: the target of a mount is a link, or becomes one, and
/// leads out of the root.
#[test]
fn volumes_are_not_mounted_outside_of_the_root() {
    let outside = tempfile::tempdir().unwrap();
    let volume = tempfile::tempdir().unwrap();
    for (link, target) in [
        ("absolute", outside.path().to_str().unwrap().to_owned()),
        ("dots", format!("..{UP}{}", outside.path().display())),
        (
            "magic",
            format!("/proc/self/fd/3{UP}{}", outside.path().display()),
        ),
    ] {
        let mut fixture = Fixture::new(link);
        symlink(&target, fixture.path("link")).unwrap();
        let mut plan = fixture.plan(&["true"]);
        fixture.volume(&mut plan, volume.path(), "/link/made/here", false);
        drop(fixture.start(&plan).map(|running| fixture.finish(running)));
        assert_eq!(
            std::fs::read_dir(outside.path()).unwrap().count(),
            0,
            "{link}"
        );
    }
}

/// CVE-2025-52565, runc: /dev/console is a link of the attacker's when the terminal is bound to it.
#[test]
fn the_terminal_is_not_bound_over_a_link_to_the_host() {
    let outside = tempfile::tempdir().unwrap();
    let dev = tempfile::tempdir().unwrap();
    symlink(outside.path().join("made"), dev.path().join("console")).unwrap();
    let mut fixture = Fixture::new("console");
    let mut plan = fixture.plan(&["true"]);
    plan.process.terminal = Some(WindowSize {
        rows: 24,
        columns: 80,
    });
    fixture.volume(&mut plan, dev.path(), "/dev", false);
    drop(fixture.start(&plan).map(|running| fixture.finish(running)));
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
    assert!(dev.path().join("console").is_symlink());
}

/// A volume whose directories another process swaps for links to the host while the container
/// starts (CVE-2021-30465's race).
#[test]
fn a_mount_point_that_is_swapped_for_a_link_stays_inside() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let outside = tempfile::tempdir().unwrap();
    let shared = tempfile::tempdir().unwrap();
    let secret = tempfile::tempdir().unwrap();
    std::fs::create_dir(shared.path().join("a")).unwrap();
    symlink(outside.path(), shared.path().join("b")).unwrap();
    let (a, b) = (shared.path().join("a"), shared.path().join("b"));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let exchange = rustix::fs::RenameFlags::EXCHANGE;
            while !done.load(Ordering::Relaxed) {
                rustix::fs::renameat_with(rustix::fs::CWD, &a, rustix::fs::CWD, &b, exchange)
                    .unwrap();
            }
        });
        for round in 0..40 {
            let mut fixture = Fixture::new(&format!("swap{round}"));
            let mut plan = fixture.plan(&["true"]);
            fixture.volume(&mut plan, shared.path(), "/shared", false);
            fixture.volume(&mut plan, secret.path(), "/shared/a/made", false);
            drop(fixture.start(&plan).map(|running| fixture.finish(running)));
        }
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
}

/// CVE-2026-30892, crun, and its like: a number that the parser reads as another, 0 most of all.
#[test]
fn a_user_that_is_no_number_is_not_root() {
    let fixture = Fixture::new("users");
    for user in [
        "4294967296",
        "4294967295",
        "-1",
        "+1",
        "0x1",
        "1000abc",
        " 1000",
        "1000 ",
        "1000:",
        ":1000",
        "1000:4294967296",
        "nobody",
        "1e3",
        "00x",
        "\u{661}",
    ] {
        let mut plan = fixture.plan(&["id", "-u"]);
        plan.process.user = user.as_bytes().to_vec();
        let said = output(&fixture, &plan);
        let number = user.split(':').next().unwrap();
        assert!(said.trim() != "0" || number.is_empty(), "{user:?}: {said}");
    }
}

/// CVE-2022-0492 and CVE-2023-25809: cgroup files that a container could write, release_agent among
/// them.
#[test]
fn cgroup_files_cannot_be_written() {
    let fixture = Fixture::new("cgroups");
    symlink("busybox", fixture.path("bin/find")).unwrap();
    let script = "for f in $(find /sys/fs/cgroup -type f); do echo 0 2>/dev/null >$f && echo wrote $f; done; \
                  mount -o remount,rw /sys/fs/cgroup 2>/dev/null && echo remounted; echo looked";
    assert_eq!(output(&fixture, &fixture.sh(script)), "looked\n");
}

/// CVE-2020-15257, containerd: an abstract socket of the host, reached from a network namespace
/// that is shared.
#[test]
fn abstract_sockets_of_the_host_are_not_reached() {
    let fixture = Fixture::new("abstract");
    symlink("busybox", fixture.path("bin/grep")).unwrap();
    let name = format!("cowl-test-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    let _listener = UnixListener::bind_addr(&address).unwrap();
    let host = std::fs::read_to_string("/proc/net/unix").unwrap();
    assert!(host.contains(&name), "{host}");
    let script = format!("grep {name} /proc/net/unix || echo none");
    assert_eq!(output(&fixture, &fixture.sh(&script)), "none\n");
}

/// The caller's own state, handed down by exec to the monitor (CVE-2016-9962's kind).
#[test]
fn the_monitor_keeps_nothing_of_its_caller() {
    let fixture = Fixture::new("caller");
    let left = std::fs::File::open(fixture.path("etc")).unwrap();
    rustix::io::fcntl_setfd(&left, rustix::io::FdFlags::empty()).unwrap();
    let running = fixture
        .start(&fixture.sh("touch /ready; exec sleep 1000"))
        .unwrap();
    wait_for(&fixture.path("ready"));
    for pid in [running.monitor.pid(), running.pid] {
        let number = left.as_raw_fd();
        let link = std::fs::read_link(format!("/proc/{pid}/fd/{number}"));
        assert_ne!(link.ok(), Some(fixture.path("etc")), "{pid} has it");
        let cwd = std::fs::read_link(format!("/proc/{pid}/cwd")).unwrap();
        assert_eq!(cwd, Path::new("/"));
    }
    running.monitor.signal(9).unwrap();
    fixture.finish(running);
}

/// CVE-2019-5736 and CVE-2016-9962 through `exec`: what is in the container when a process joins
/// finds nothing of the host in it, through /proc/PID/exe, /proc/PID/fd or ptrace.
#[test]
fn a_joining_process_shows_nothing_of_the_host() {
    let fixture = Fixture::new("joining");
    for applet in ["readlink", "stat", "tr", "cp"] {
        symlink("busybox", fixture.path("bin").join(applet)).unwrap();
    }
    // Looks at every process it sees, over and over; what it finds beyond its own is kept. A process
    // that joins reads the container's users and opens its working directory: the name alone does
    // not tell whose they are. Name and file are those of one open: the number may stand for another
    // file by the next look.
    let spy = "own=\" $(stat -c %d:%i / /etc/passwd /etc/group | tr '\n' ' ') \"; touch /ready; while [ ! -e /go ]; do for p in /proc/[0-9]*; do \
        case $p in /proc/1) continue;; esac; \
        for f in $p/fd/*; do t=$(readlink $f 2>/dev/null) || continue; \
        case $t in /dev/pts/*|/dev/null|pipe:*|socket:*|/proc/*|/bin/*|'') continue;; \
        /|/etc/*) s=$(exec 2>/dev/null 9<$f && echo \"$(readlink /proc/self/fd/9) $(stat -L -c %d:%i /proc/self/fd/9)\") || continue; \
        case $s in \"$t \"*) ;; *) continue;; esac; case $own in *\" ${s##* } \"*) continue;; esac;; esac; \
        echo \"$p $t\" >> /found; done; \
        cp /bin/busybox $p/exe 2>/dev/null && echo overwritten >> /found; done; done; exit 0";
    let mut start = fixture.sh(spy);
    // What an attacker may have at most beside root of the host.
    start.process.capabilities |= 1 << 19; // SYS_PTRACE
    start.sandbox.masked_paths.clear();
    let running = fixture.start(&start).unwrap();
    wait_for(&fixture.path("ready"));
    let control = fixture.control();
    let runtime = std::fs::read(env!("CARGO_BIN_EXE_cowl-runtime")).unwrap();
    for round in 0..60 {
        let id = format!("e{round}");
        let process = Process::new(vec![b"true".to_vec()]);
        control
            .exec(&id, &process, false, Streams::default())
            .unwrap();
        assert_eq!(control.wait(Target::Exec(id)).unwrap().exit_code, 0);
    }
    std::fs::write(fixture.path("go"), "").unwrap();
    assert_eq!(fixture.finish(running).exited.exit_code, 0);
    let found = std::fs::read_to_string(fixture.path("found")).unwrap_or_default();
    assert_eq!(found, "");
    let after = std::fs::read(env!("CARGO_BIN_EXE_cowl-runtime")).unwrap();
    assert!(runtime == after);
}

/// CVE-2024-21626 through `exec`: a working directory or a program behind a descriptor's number.
#[test]
fn no_descriptor_number_of_an_exec_leads_to_the_host() {
    let fixture = Fixture::new("exec-numbers");
    let secret = Secret::new();
    let running = fixture
        .start(&fixture.sh("touch /ready; exec sleep 1000"))
        .unwrap();
    wait_for(&fixture.path("ready"));
    let control = fixture.control();
    for number in NUMBERS {
        let place = secret.beyond_descriptor(number);
        let mut inside = Process::new(vec![b"cat".to_vec(), b"file".to_vec()]);
        inside.cwd = place.clone().into_bytes();
        let program = Process::new(vec![
            format!("{place}/echo").into_bytes(),
            Secret::TEXT.as_bytes().to_vec(),
        ]);
        for (way, process) in [("cwd", inside), ("program", program)] {
            let (mut read, write) = std::io::pipe().unwrap();
            let streams = Streams {
                stdin: None,
                stdout: Some(write.as_fd()),
                stderr: Some(write.as_fd()),
            };
            let id = format!("{way}{number}");
            drop(control.exec(&id, &process, false, streams));
            drop(write);
            let mut said = String::new();
            read.read_to_string(&mut said).unwrap();
            assert!(!said.contains(Secret::TEXT), "{number} as {way}: {said}");
        }
    }
    let open = Process::new(vec![b"ls".to_vec(), b"/proc/self/fd".to_vec()]);
    let (mut read, write) = std::io::pipe().unwrap();
    let streams = Streams {
        stdin: None,
        stdout: Some(write.as_fd()),
        stderr: Some(write.as_fd()),
    };
    control.exec("open", &open, false, streams).unwrap();
    drop(write);
    let mut said = String::new();
    read.read_to_string(&mut said).unwrap();
    assert_eq!(said, "0\n1\n2\n3\n");
    running.monitor.signal(9).unwrap();
    fixture.finish(running);
}

/// Files that a running container has put where `exec` reads or mounts: users, terminals.
#[test]
fn an_exec_follows_no_link_of_the_container_to_the_host() {
    let fixture = Fixture::new("exec-links");
    symlink("busybox", fixture.path("bin/mkfifo")).unwrap();
    let host = std::fs::read_to_string("/etc/passwd").unwrap();
    assert!(host.contains("daemon:"), "{host}");
    let script = "cd /etc; rm passwd; ln -s /proc/1/root/../../../../etc/passwd passwd; touch /ready; \
                  while [ ! -e /second ]; do sleep 0.01; done; rm passwd; mkfifo passwd; touch /fifo; exec sleep 1000";
    let running = fixture.start(&fixture.sh(script)).unwrap();
    wait_for(&fixture.path("ready"));
    let control = fixture.control();
    let refused = |id: &str, user: &str| {
        let mut process = Process::new(vec![b"id".to_vec()]);
        process.user = user.as_bytes().to_vec();
        match control.exec(id, &process, false, Streams::default()) {
            Err(ControlError::Failed(failed)) => failed.what,
            other => panic!("{other:?}"),
        }
    };
    // A user of the host, not of the container.
    let said = refused("a", "daemon");
    assert!(said.contains("the container's /etc/passwd"), "{said}");
    std::fs::write(fixture.path("second"), "").unwrap();
    wait_for(&fixture.path("fifo"));
    // A file that would be waited for without end.
    assert_eq!(refused("b", "root"), "read the container's /etc/passwd");
    running.monitor.signal(9).unwrap();
    fixture.finish(running);
}

/// A terminal of an exec comes from a devpts, whatever the container has at /dev/pts.
#[test]
fn the_terminal_of_an_exec_is_not_opened_through_a_link() {
    let fixture = Fixture::new("exec-pts");
    let mut start = fixture.sh("touch /ready; exec sleep 1000");
    // A container that can change its mounts.
    let pts = b"/dev/pts".as_slice();
    let moved = start.sandbox.mounts.iter_mut();
    for mount in moved.filter(|mount| mount.destination == pts) {
        mount.destination = b"/other".to_vec();
    }
    let running = fixture.start(&start).unwrap();
    wait_for(&fixture.path("ready"));
    let control = fixture.control();
    let root = control.root().unwrap();
    rustix::fs::symlinkat("/other", &root, "dev/pts").unwrap();
    let mut process = Process::new(vec![b"tty".to_vec()]);
    process.terminal = Some(WindowSize {
        rows: 24,
        columns: 80,
    });
    let refused = |id: &str| match control.exec(id, &process, false, Streams::default()) {
        Err(ControlError::Failed(failed)) => failed,
        other => panic!("{other:?}"),
    };
    let failed = refused("a");
    assert_eq!(failed.what, "open the container's /dev/pts");
    assert_eq!(failed.errno, Errno::LOOP.raw_os_error());
    rustix::fs::unlinkat(&root, "dev/pts", rustix::fs::AtFlags::empty()).unwrap();
    rustix::fs::mkdirat(&root, "dev/pts", Mode::from_raw_mode(0o755)).unwrap();
    assert_eq!(refused("b").errno, Errno::NODEV.raw_os_error());
    running.monitor.signal(9).unwrap();
    fixture.finish(running);
}
