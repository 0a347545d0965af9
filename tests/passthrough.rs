//! Big files are read at the kernel's speed, and nobody waits for somebody else's copy-up.
//!
//! That the count of READ requests counts is shown by the ordinary user's mount, which must be
//! asked for what it reads.

use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, pidfd_open};

use cowl_tests::command::{program, python};
use cowl_tests::host::has_passthrough;
use cowl_tests::profile::{current, directory, readable, root_alone, user_alone};
use cowl_tests::requests::{READ, during, worker};
use cowl_tests::store::Store;

/// 1 GiB that holes, deduplication and compression cannot make small, and files to look at
/// meanwhile.
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
fn read_of_a_gibibyte_sends_no_read_request_as_root() {
    root_alone(|| {
        if has_passthrough() {
            assert_eq!(reads_of(1024), 0);
        } else {
            assert_every_mebibyte_is_asked_for();
        }
    });
}

#[test]
fn read_sends_a_read_request_for_every_mebibyte_as_user() {
    user_alone(|| assert_every_mebibyte_is_asked_for());
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
    let store = image(mebibytes, 0);
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

fn nobody_waits_for_a_copy_up() {
    let store = image(1024, 40_000);
    let mount = store.mount_upper("big", "mnt");
    let many = mount.path().join("many");
    let mut copier = program("sh", ["-c", "printf x >> \"$1\"", "sh"])
        .arg(mount.path().join("big"))
        .spawn()
        .unwrap();
    let pidfd = pidfd_open(Pid::from_child(&copier), PidfdFlags::empty()).unwrap();
    let mut taken = Vec::new();
    // Each name is looked up for the first time, so each one asks the worker.
    for i in 0..40_000 {
        // A file system that clones the gibibyte is done at once; there is a percentile to speak
        // of even then.
        if i >= 1_000 && readable(&pidfd, Duration::ZERO) {
            break;
        }
        let name = many.join(format!("{i:06}"));
        let start = Instant::now();
        fs::symlink_metadata(name).unwrap();
        taken.push(start.elapsed());
    }
    assert!(copier.wait().unwrap().success());
    assert_eq!(
        fs::metadata(mount.upper().join("big")).unwrap().len(),
        (1 << 30) + 1
    );
    taken.sort_unstable();
    let p99 = taken[taken.len() * 99 / 100];
    println!(
        "stat during a copy-up of 1 GiB, {:?}: {} calls, p50 {:?}, p99 {p99:?}, max {:?}",
        current(),
        taken.len(),
        taken[taken.len() / 2],
        taken[taken.len() - 1]
    );
    assert!(p99 < Duration::from_millis(1), "p99 is {p99:?}");
    mount.unmount();
}

#[test]
fn a_stat_does_not_wait_for_a_copy_up_of_a_gibibyte_as_root() {
    root_alone(|| nobody_waits_for_a_copy_up());
}

#[test]
fn a_stat_does_not_wait_for_a_copy_up_of_a_gibibyte_as_user() {
    user_alone(|| nobody_waits_for_a_copy_up());
}
