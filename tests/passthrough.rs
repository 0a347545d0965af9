//! Large files are read at the kernel's speed, and a copy-up blocks no other request.
//!
//! The ordinary user's mount, which needs READ requests, shows that the count works.

use std::fs;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use cowl_tests::command::{program, python, shell};
use cowl_tests::host::has_passthrough;
use cowl_tests::profile::{NEVER, Privilege, current, directory, readable, root, user};
use cowl_tests::requests::{READ, during, worker};
use cowl_tests::store::Store;

/// 1 GiB that holes, deduplication and compression cannot shrink, and files to look up meanwhile.
const CONTENT: &str = r#"
import io, os, sys, tarfile
mebibytes, files = int(sys.argv[1]), int(sys.argv[2])
class Blocks(io.RawIOBase):
    def __init__(self): self.block, self.at = os.urandom(1 << 20), 0
    def readable(self): return True
    def readinto(self, buffer):
        left = memoryview(buffer)[:]
        done = 0
        while done < len(left):
            start = self.at % (1 << 20)
            piece = self.block[start:start + len(left) - done]
            left[done:done + len(piece)] = piece
            done += len(piece); self.at += len(piece)
        return done
with tarfile.open("content.tar", "w") as archive:
    info = tarfile.TarInfo("big"); info.size = mebibytes << 20
    archive.addfile(info, Blocks())
    for i in range(files):
        archive.addfile(tarfile.TarInfo("many/%06d" % i))
"#;

fn image(mebibytes: u32, files: u32) -> Store {
    let place = directory();
    python(&place, CONTENT, [mebibytes.to_string(), files.to_string()]);
    let store = Store::new("store");
    let archive = place.join("content.tar");
    store.ok(["import", archive.to_str().unwrap(), "big"]);
    fs::remove_file(archive).unwrap();
    store
}

#[test]
fn info_shows_privilege_and_io_modes_as_root() {
    root(|| info_tells("root"));
}

#[test]
fn info_shows_privilege_and_io_modes_as_user() {
    user(|| info_tells("root of a user namespace of one id; unshare --map-auto maps more"));
}

fn info_tells(privilege: &str) {
    let (store, content) = (Store::new("store"), directory().join("content"));
    fs::create_dir(&content).unwrap();
    store.import_directory(&content, "some");
    let told = store.ok(["info"]);
    let expected = if has_passthrough() {
        "cached (default), writeback, passthrough"
    } else if current() == Privilege::User {
        "cached (default), writeback; passthrough needs root of the initial user namespace"
    } else {
        "cached (default), writeback; passthrough needs Linux 6.9"
    };
    for line in [
        format!("Privilege: {privilege}"),
        format!("I/O Modes: {expected}"),
    ] {
        assert!(told.lines().any(|one| one == line), "{told}");
    }
}

#[test]
fn read_of_a_gibibyte_sends_no_read_request_as_root() {
    root(|| {
        if has_passthrough() {
            assert_eq!(reads_of(1024), 0);
        } else {
            assert_every_mebibyte_is_asked_for();
        }
    });
}

#[test]
fn read_sends_a_read_request_for_every_mebibyte_as_user() {
    user(|| assert_every_mebibyte_is_asked_for());
}

fn assert_every_mebibyte_is_asked_for() {
    let reads = reads_of(64);
    assert!(
        reads >= 64,
        "64 MiB in requests of at most 1 MiB, but {reads} were seen"
    );
}

/// READ requests that the worker gets while `big` is read from one end to the other.
fn reads_of(mebibytes: u32) -> usize {
    let mut store = image(mebibytes, 0);
    if has_passthrough() {
        store = store.with_io("passthrough");
    }
    let mount = store.mount("big", "mnt");
    let requests = during(worker(), || {
        assert_eq!(
            read_all(&mount.path().join("big")),
            u64::from(mebibytes) << 20
        );
    });
    mount.unmount();
    println!(
        "{mebibytes} MiB read, {:?}: requests {requests:?}",
        current()
    );
    requests.get(&READ).copied().unwrap_or_default()
}

fn read_all(path: &Path) -> u64 {
    let mut file = fs::File::open(path).unwrap();
    let mut buffer = vec![0; 1 << 20];
    let mut total = 0;
    loop {
        match file.read(&mut buffer).unwrap() {
            0 => return total,
            n => total += n as u64,
        }
    }
}

/// The copy-up lasts until the test ends it: a FIFO replaces the object, so the copy waits for a
/// writer.
fn stat_does_not_wait_for_a_copy_up() {
    let store = image(1, 1_000);
    let object = shell(store.root(), "find objects -type f", [""; 0]);
    let object = store.root().join(object.trim_end());
    let kept = store.root().join("kept");
    let mount = store.mount_upper("big", "mnt");
    fs::rename(&object, &kept).unwrap();
    mknodat(CWD, &object, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    // More than what is copied up in one step.
    let copier = program("truncate", ["--size=512K"])
        .arg(mount.path().join("big"))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // The metadata are copied first.
    while !mount.upper().join("big").exists() {
        std::thread::yield_now();
    }
    // Each name is looked up for the first time, so each lookup is a request.
    let looker = program("find", [mount.path().join("many").as_os_str()])
        .args(["-type", "f", "-newermt", "1960-01-01", "-printf", ""])
        .spawn()
        .unwrap();
    let (copies, looks) = (pidfd(&copier), pidfd(&looker));
    assert!(readable(&looks, NEVER), "find waits for the copy-up");
    assert!(!readable(&copies, Duration::ZERO));
    // Returns when the copy has opened it too; the copy of a FIFO then fails.
    drop(fs::OpenOptions::new().write(true).open(&object).unwrap());
    fs::rename(&kept, &object).unwrap();
    for (mut child, succeeds) in [(looker, true), (copier, false)] {
        assert_eq!(child.wait().unwrap().success(), succeeds);
    }
    mount.unmount();
}

fn pidfd(child: &Child) -> OwnedFd {
    pidfd_open(Pid::from_child(child), PidfdFlags::empty()).unwrap()
}

#[test]
fn stat_does_not_wait_for_a_copy_up_as_root() {
    root(|| stat_does_not_wait_for_a_copy_up());
}

#[test]
fn stat_does_not_wait_for_a_copy_up_as_user() {
    user(|| stat_does_not_wait_for_a_copy_up());
}
