//! How a mount ends, and what it leaves behind.

use std::fs::{self, File};
use std::io::Read as _;
use std::process::{Child, Stdio};
use std::time::Instant;

use cowl_tests::command::{binary, program, run, shell, system};
use cowl_tests::host::has_overlayfs;
use cowl_tests::profile::{NEVER, processes, readable, root, user};
use cowl_tests::skip::skip;
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use rustix::process::{Pid, PidfdFlags, Signal, getsid, kill_process, pidfd_open};

use super::{Place, STACK};

/// `cowl-mountd -f`, killed if a test fails before its end.
struct Foreground<'p> {
    place: &'p Place,
    child: Child,
}

impl<'p> Foreground<'p> {
    /// Starts it from a shell that has run `before`; returns when it has mounted.
    fn start(place: &'p Place, before: &str) -> Self {
        let script = format!("{before}; exec \"$1\" -f -o \"$2\" mnt");
        let mut command = program("sh", ["-euc", &script, "sh"]);
        let command = command.arg(binary("cowl-mountd")).arg(STACK);
        let child = command.current_dir(&place.path).spawn().unwrap();
        let foreground = Self { place, child };
        foreground.wait_until(true);
        foreground
    }

    /// Waits until it is mounted, or no longer is; polls mountinfo.
    fn wait_until(&self, mounted: bool) {
        let limit = Instant::now() + NEVER;
        while self.place.is_mounted() != mounted {
            assert!(Instant::now() < limit, "mounted is not {mounted}");
            std::thread::yield_now();
        }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Its exit code.
    fn end(mut self) -> Option<i32> {
        let pidfd = pidfd_open(Pid::from_child(&self.child), PidfdFlags::empty()).unwrap();
        assert!(readable(&pidfd, NEVER), "it does not end");
        self.child.wait().unwrap().code()
    }
}

impl Drop for Foreground<'_> {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[test]
fn a_signal_in_the_foreground_unmounts_as_root() {
    root(|| signal_unmounts());
}

#[test]
fn a_signal_in_the_foreground_unmounts_as_user() {
    user(|| signal_unmounts());
}

fn signal_unmounts() {
    let place = Place::with_layers("place");
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        let mountd = Foreground::start(&place, ":");
        let text = format!("{signal:?}");
        fs::write(place.at("mnt/said"), &text).unwrap();
        mountd.signal(signal);
        assert_eq!(mountd.end(), Some(0), "{signal:?}");
        assert!(!place.is_mounted(), "{signal:?}");
        let kept = fs::read_to_string(place.at("upper/said")).unwrap();
        assert_eq!(kept, text);
    }
    // Unmounted by another program.
    let mountd = Foreground::start(&place, ":");
    place.unmount();
    assert_eq!(mountd.end(), Some(0));
    // nohup's SIGHUP is ignored.
    let mountd = Foreground::start(&place, "trap '' HUP");
    mountd.signal(Signal::HUP);
    assert!(place.is_mounted());
    mountd.signal(Signal::TERM);
    assert_eq!(mountd.end(), Some(0));
}

#[test]
fn a_second_signal_ends_a_mount_that_is_in_use_as_root() {
    root(|| {
        let place = Place::with_layers("place");
        let mountd = Foreground::start(&place, ":");
        let mut used = File::open(place.at("mnt/large")).unwrap();
        let unread = File::open(place.at("mnt/kept")).unwrap();
        mountd.signal(Signal::TERM);
        mountd.wait_until(false);
        let mut text = String::new();
        used.read_to_string(&mut text).unwrap();
        assert!(text.ends_with("\n30000\n"), "its users keep it");
        mountd.signal(Signal::TERM);
        assert_eq!(mountd.end(), Some(1));
        // Both processes of the mount end now. A request sent before the last one closes the
        // connection is aborted.
        let error = rustix::fs::fsync(&unread).unwrap_err();
        let ended = [Errno::NOTCONN, Errno::CONNABORTED];
        assert!(ended.contains(&error), "{error}");
    });
}

#[test]
fn a_mount_in_the_foreground_ends_with_the_process_that_holds_it_as_root() {
    root(|| holder_dies());
}

#[test]
fn a_mount_in_the_foreground_ends_with_the_process_that_holds_it_as_user() {
    user(|| holder_dies());
}

fn holder_dies() {
    let place = Place::with_layers("place");
    let mountd = Foreground::start(&place, ":");
    let (holder, _) = processes()
        .into_iter()
        .find(|(pid, line)| line.contains("--serve") && getsid(Some(*pid)) == Ok(*pid))
        .unwrap();
    // The end of their pipe tells the command that it has mounted.
    let tells = || {
        let open = fs::read_dir(format!("/proc/{holder}/fd")).unwrap();
        open.flatten().any(|entry| {
            let to = fs::read_link(entry.path()).unwrap_or_default();
            let is_standard = ["0", "1", "2"].iter().any(|fd| entry.file_name() == *fd);
            !is_standard && to.to_string_lossy().starts_with("pipe:")
        })
    };
    let limit = Instant::now() + NEVER;
    while tells() {
        assert!(Instant::now() < limit, "it keeps the pipe");
        std::thread::yield_now();
    }
    kill_process(holder, Signal::KILL).unwrap();
    assert_eq!(mountd.end(), Some(1));
    assert!(!place.is_mounted());
    // The upper is free.
    place.ours(STACK);
    place.unmount();
}

#[test]
fn a_mount_stands_without_the_command_that_waits_for_it_as_root() {
    root(|| {
        let place = Place::with_layers("place");
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        drop(reader);
        let mut serving = program(
            binary("cowl-mountd").to_str().unwrap(),
            ["--serve", "-o", STACK, "mnt"],
        );
        let serving = serving.stdin(writer).stdout(Stdio::piped());
        let mut serving = serving.current_dir(&place.path).spawn().unwrap();
        // The end of its output is the sign that the mount answers.
        let mut said = String::new();
        let mut output = serving.stdout.take().unwrap();
        output.read_to_string(&mut said).unwrap();
        let kept = fs::read_to_string(place.at("mnt/kept"));
        place.unmount();
        assert_eq!(serving.wait().unwrap().code(), Some(0));
        assert_eq!(kept.unwrap(), "kept\n");
    });
}

#[test]
fn a_mount_waits_for_one_that_was_unmounted_as_root() {
    root(|| {
        let place = Place::with_layers("place");
        place.ours(STACK);
        let serving = processes()
            .into_iter()
            .find(|(_, line)| line.contains("--serve"))
            .unwrap()
            .0;
        // It is unmounted, but its process cannot end yet.
        kill_process(serving, Signal::STOP).unwrap();
        rustix::mount::unmount(place.at("mnt"), UnmountFlags::DETACH).unwrap();
        let mut command = program(
            binary("cowl-mountd").to_str().unwrap(),
            ["-o", STACK, "mnt"],
        );
        let mut next = command.current_dir(&place.path).spawn().unwrap();
        let limit = Instant::now() + NEVER;
        // The line of a waiting process (proc_locks(5)).
        let waits = || {
            fs::read_to_string("/proc/locks")
                .unwrap()
                .contains("-> FLOCK")
        };
        while next.try_wait().unwrap().is_none() && !waits() {
            assert!(Instant::now() < limit, "it neither waits nor ends");
            std::thread::yield_now();
        }
        kill_process(serving, Signal::CONT).unwrap();
        assert!(next.wait().unwrap().success());
        place.unmount();
    });
}

#[test]
fn a_volatile_upper_is_marked_and_refused_as_overlayfs_does_as_root() {
    if !has_overlayfs() {
        return skip("this kernel has no overlayfs");
    }
    root(|| {
        let place = Place::with_layers("place");
        let kernel = |options: &str| {
            let all = format!("{STACK},{options}");
            let arguments = ["-t", "overlay", "overlay", "-o", &all, "mnt"];
            run(program("mount", arguments).current_dir(&place.path))
        };
        let mark = place.at("work/work/incompat/volatile");
        let leave = |ours: bool| {
            if ours {
                place.ours(&format!("{STACK},volatile"));
            } else {
                kernel("volatile").ok();
            }
            fs::write(place.at("mnt/new"), "new").unwrap();
            place.unmount();
            let layout = shell::<&str>(&mark, "find . -printf '%P %y\\n' | sort", []);
            fs::write(place.at("left"), layout.clone()).unwrap();
            layout
        };
        let mut layouts = Vec::new();
        for ours in [true, false] {
            layouts.push(leave(ours));
            for options in [STACK.to_owned(), format!("{STACK},volatile")] {
                let error = place.mount(&binary("cowl-mountd"), &options).refused(1);
                assert!(error.contains("the feature \"volatile\""), "{error}");
            }
            let kernels = kernel("volatile");
            assert!(!kernels.status.success(), "{kernels}");
            system("rm", [&"-r".into(), &mark]);
            place.ours(STACK);
            assert_eq!(fs::read_to_string(place.at("mnt/new")).unwrap(), "new");
            place.unmount();
            assert!(!mark.exists(), "without the option there is no mark");
        }
        assert_eq!(layouts[0], layouts[1]);
    });
}
