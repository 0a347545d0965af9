//! While an engine has changes held back, requests that change a file wait and others do not; and
//! nothing that happens to the engine or the worker leaves them waiting.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    clippy::print_stderr,
    missing_docs,
    dead_code,
    unreachable_pub,
    clippy::verbose_file_reads,
    reason = "a test stops at the first surprise and builds its inputs with plain std::fs"
)]

mod common;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::scope;

use common::{Image, Mount, eventually, modes, read_all};
use cowl_core::handover::{HandoverError, Hold, IoModeChoice, listen};
use cowl_tests::tree::{Tree, assert_same, below};
use rustix::fs::XattrFlags;

const SOCKET: &str = "worker";

const FILES: &[(&str, &[u8])] = &[
    ("read/file", b"of the image"),
    ("append/file", b"of the image"),
    ("chmod/file", b"x"),
    ("link/file", b"x"),
    ("rename/file", b"x"),
    ("setxattr/file", b"x"),
    ("truncate/file", b"longer"),
    ("unlink/file", b"x"),
];

/// A change in a directory of its own, since the kernel lets one client at a time change a
/// directory.
type Act = fn(&Path);

/// Changes, and the request that each is, where opening a file is none.
const CHANGES: &[(&str, &str, Act)] = &[
    ("append", "WRITE", |at| {
        let mut file = File::options().append(true).open(at.join("file")).unwrap();
        file.write_all(b" and more").unwrap();
    }),
    ("chmod", "SETATTR", |at| {
        fs::set_permissions(at.join("file"), fs::Permissions::from_mode(0o600)).unwrap();
    }),
    ("link", "LINK", |at| {
        fs::hard_link(at.join("file"), at.join("new")).unwrap();
    }),
    ("mkdir", "MKDIR", |at| {
        fs::create_dir(at.join("new")).unwrap();
    }),
    ("rename", "RENAME", |at| {
        fs::rename(at.join("file"), at.join("new")).unwrap();
    }),
    ("rmdir", "RMDIR", |at| {
        fs::remove_dir(at.join("empty")).unwrap();
    }),
    ("setxattr", "SETXATTR", |at| {
        rustix::fs::setxattr(at.join("file"), "user.new", b"x", XattrFlags::empty()).unwrap();
    }),
    ("symlink", "SYMLINK", |at| {
        std::os::unix::fs::symlink("to", at.join("new")).unwrap();
    }),
    ("truncate", "SETATTR", |at| {
        let file = File::options().write(true).open(at.join("file")).unwrap();
        file.set_len(1).unwrap();
    }),
    ("unlink", "UNLINK", |at| {
        fs::remove_file(at.join("file")).unwrap();
    }),
    ("create", "MKNOD", |at| {
        drop(File::create_new(at.join("new")).unwrap());
    }),
];

/// An image, its listening socket, and a mount whose worker answers there.
struct Held {
    image: Image,
    mount: Mount,
}

impl Held {
    fn new(choice: IoModeChoice) -> Self {
        let image = Image::of(FILES);
        let control = listen(File::open(image.path("")).unwrap().as_fd(), SOCKET).unwrap();
        let mount = image.mount_controlled(choice, "upper", &control);
        for (directory, ..) in CHANGES {
            fs::create_dir_all(mount.path(directory)).unwrap();
        }
        fs::create_dir(mount.path("rmdir/empty")).unwrap();
        // The kernel finds out that opens are no requests.
        drop(File::create(mount.path("read/created")).unwrap());
        Self { image, mount }
    }

    fn begin(&self) -> Result<Hold, HandoverError> {
        let directory = File::open(self.image.path("")).unwrap();
        Hold::begin(directory.as_fd(), SOCKET)
    }

    fn upper(&self) -> Tree {
        below(&self.image.path("upper"))
    }
}

#[test]
fn changes_wait_while_held_and_reads_do_not() {
    for choice in [IoModeChoice::Cached, IoModeChoice::Writeback] {
        // Under the writeback cache an append is none before it is written back.
        let is_request = |kind: &str| choice == IoModeChoice::Cached || kind != "WRITE";
        let changes: Vec<_> = CHANGES
            .iter()
            .filter(|(_, kind, _)| is_request(kind))
            .collect();
        let held = Held::new(choice);
        let mount = &held.mount;
        let before = held.upper();
        let counts: Vec<_> = changes
            .iter()
            .map(|(_, kind, _)| mount.count(kind))
            .collect();
        scope(|scope| {
            // Ends with a failed assertion, so that the threads do.
            let hold = held.begin().unwrap();
            let acts: Vec<_> = changes
                .iter()
                .map(|(directory, _, act)| {
                    let at = mount.path(directory);
                    scope.spawn(move || act(&at))
                })
                .collect();
            for ((_, kind, _), count) in changes.iter().zip(&counts) {
                let alike = changes.iter().filter(|(_, other, _)| other == kind).count();
                let all = count + u64::try_from(alike).unwrap();
                assert!(eventually(|| mount.count(kind) >= all), "{kind} {choice}");
            }
            // Lookups, attributes, names and contents.
            assert!(fs::metadata(mount.path("read/none")).is_err());
            assert_eq!(fs::read_dir(mount.path("read")).unwrap().count(), 2);
            let mut file = File::open(mount.path("read/file")).unwrap();
            assert_eq!(read_all(&mut file), b"of the image");
            for (act, (directory, ..)) in acts.iter().zip(&changes) {
                assert!(!act.is_finished(), "{directory} {choice}");
            }
            assert_same(&before, &held.upper(), &format!("the upper, {choice}"));
            hold.confirm().unwrap();
            drop(hold);
        });
        for (directory, _, _) in &changes {
            let changed = held.image.path("upper").join(directory);
            assert!(changed.symlink_metadata().is_ok(), "{directory} {choice}");
        }
        assert!(!mount.path("unlink/file").exists());
        assert!(mount.path("create/new").exists());
    }
}

/// In passthrough an open for writing is a request, and changes the upper.
#[test]
fn opens_for_writing_wait_while_held() {
    if !modes().contains(&IoModeChoice::Passthrough) {
        return;
    }
    let held = Held::new(IoModeChoice::Passthrough);
    let mount = &held.mount;
    let opens = mount.count("OPEN");
    scope(|scope| {
        let hold = held.begin().unwrap();
        let append = scope.spawn(|| CHANGES[0].2(&mount.path("append")));
        assert!(eventually(|| mount.count("OPEN") > opens));
        let mut file = File::open(mount.path("read/file")).unwrap();
        assert_eq!(read_all(&mut file), b"of the image");
        assert!(!append.is_finished());
        hold.confirm().unwrap();
        drop(hold);
    });
    let changed = fs::read(held.image.path("upper/append/file")).unwrap();
    assert_eq!(changed, b"of the image and more");
}

/// The client is written from the bytes of the protocol's golden files.
#[test]
fn a_killed_engine_ends_the_hold() {
    let held = Held::new(IoModeChoice::Cached);
    let mount = &held.mount;
    let script = "
import socket, sys
client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
client.connect(sys.argv[1])
client.send(open(sys.argv[2] + '/hold-changes-1', 'rb').read())
assert client.recv(100) == open(sys.argv[2] + '/changes-held-1', 'rb').read()
print('held', flush=True)
sys.stdin.read()";
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/golden/handover");
    let mut engine = Command::new("python3")
        .args([
            "-c",
            script,
            held.image.path(SOCKET).to_str().unwrap(),
            golden,
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = [0; 4];
    let mut says = engine.stdout.take().unwrap();
    says.read_exact(&mut said).unwrap();
    assert_eq!(&said, b"held");
    let mkdirs = mount.count("MKDIR");
    scope(|scope| {
        let mkdir = scope.spawn(|| fs::create_dir(mount.path("mkdir/new")));
        assert!(eventually(|| mount.count("MKDIR") > mkdirs));
        assert!(!held.image.path("upper/mkdir/new").exists());
        engine.kill().unwrap();
        engine.wait().unwrap();
        mkdir.join().unwrap().unwrap();
    });
}

#[test]
fn a_second_engine_waits_for_the_first() {
    let held = Held::new(IoModeChoice::Cached);
    let first = held.begin().unwrap();
    scope(|scope| {
        let second = scope.spawn(|| held.begin().map(drop));
        first.confirm().unwrap();
        drop(first);
        second.join().unwrap().unwrap();
    });
}

/// The successor holds nothing back: what waited is done once, and the engine learns of it.
#[test]
fn a_killed_worker_ends_the_hold() {
    for choice in modes() {
        let held = Held::new(choice);
        let mount = &held.mount;
        let hold = held.begin().unwrap();
        let mkdirs = mount.count("MKDIR");
        scope(|scope| {
            let mkdir = scope.spawn(|| fs::create_dir(mount.path("mkdir/new")));
            assert!(eventually(|| mount.count("MKDIR") > mkdirs));
            assert!(mount.kill_worker());
            mkdir.join().unwrap().unwrap();
        });
        assert!(matches!(hold.confirm(), Err(HandoverError::Closed)));
        let hold = held.begin().unwrap();
        assert!(held.image.path("upper/mkdir/new").is_dir());
        hold.confirm().unwrap();
    }
}

/// The kernel writes back what it caches while changes are held, so that a read that waits for it
/// comes to its end.
#[test]
fn what_the_kernel_writes_back_does_not_wait() {
    let held = Held::new(IoModeChoice::Writeback);
    let path = held.mount.path("read/new");
    let file = File::create_new(&path).unwrap();
    let hold = held.begin().unwrap();
    file.write_all_at(b"cached", 0).unwrap();
    let mut options = File::options();
    options.read(true).custom_flags(libc::O_DIRECT);
    let mut past_the_cache = options.open(&path).unwrap();
    assert_eq!(read_all(&mut past_the_cache), b"cached");
    let written = fs::read(held.image.path("upper/read/new")).unwrap();
    assert_eq!(written, b"cached");
    drop(hold);
}

#[test]
fn a_mount_that_is_gone_holds_nothing() {
    let Held { image, mount } = Held::new(IoModeChoice::Cached);
    let directory = File::open(image.path("")).unwrap();
    let hold = Hold::begin(directory.as_fd(), SOCKET).unwrap();
    assert!(mount.unmount().success());
    assert!(matches!(hold.confirm(), Err(HandoverError::Closed)));
    let refused = Hold::begin(directory.as_fd(), SOCKET);
    assert!(matches!(refused, Err(HandoverError::Closed)));
}
