//! What is not as on a local file system, line by line as docs/posix.md lists it: each deviation is exactly this and
//! no more, and where it could be dangerous it is on the safe side.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::Path;

use cowl_tests::command::{python, shell};
use cowl_tests::profile::{directory, root, user};
use cowl_tests::store::{Mount, Store};

fn with_mount(content: &str, test: impl FnOnce(&Mount<'_>)) {
    let place = directory();
    fs::create_dir(place.join("content")).unwrap();
    shell(&place.join("content"), content, [""; 0]);
    let store = Store::new("store");
    store.import_directory(&place.join("content"), "content");
    let mount = store.mount_upper("content", "mnt");
    test(&mount);
    mount.unmount();
}

fn whole(mut file: &File) -> String {
    let mut text = String::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_string(&mut text).unwrap();
    text
}

/// Programs (ELF) of the image that are open for reading, as root: the open file keeps the image's content after
/// somebody else writes; whoever opens afterwards sees what was written.
#[test]
fn an_open_program_keeps_the_images_content() {
    root(|| {
        with_mount(
            "printf '\\177ELF first' > program; echo first > text",
            |mount| {
                let open = |name: &str| {
                    OpenOptions::new()
                        .append(true)
                        .open(mount.path().join(name))
                        .unwrap()
                };
                for (name, after) in [("program", "\x7fELF first"), ("text", "first\nsecond")] {
                    let reader = File::open(mount.path().join(name)).unwrap();
                    let before = whole(&reader);
                    open(name).write_all(b"second").unwrap();
                    assert_eq!(whole(&reader), after, "{name}, opened before");
                    let later = fs::read_to_string(mount.path().join(name)).unwrap();
                    assert_eq!(later, before + "second", "{name}, opened afterwards");
                }
            },
        );
    });
}

/// As an ordinary user the same program behaves like any file: nothing is read past the worker.
#[test]
fn an_open_program_follows_as_user() {
    user(|| {
        with_mount("printf '\\177ELF first' > program", |mount| {
            let reader = File::open(mount.path().join("program")).unwrap();
            assert_eq!(whole(&reader), "\x7fELF first");
            let mut writer = OpenOptions::new()
                .append(true)
                .open(mount.path().join("program"))
                .unwrap();
            writer.write_all(b"second").unwrap();
            assert_eq!(whole(&reader), "\x7fELF firstsecond");
        });
    });
}

/// Such an open file cannot be opened again for writing through /proc/self/fd once another has changed it: ESTALE. By
/// its name it can.
#[test]
fn an_open_program_is_not_opened_again_for_writing() {
    root(|| {
        with_mount("printf '\\177ELF first' > program", |mount| {
            let path = mount.path().join("program");
            let reader = File::open(&path).unwrap();
            let again = OpenOptions::new()
                .write(true)
                .open(format!("/proc/self/fd/{}", reader.as_raw_fd()));
            assert_eq!(again.unwrap_err().raw_os_error(), Some(libc::ESTALE));
            OpenOptions::new().write(true).open(&path).unwrap();
        });
    });
}

/// A program that is mapped and running keeps running while its file is replaced under it.
#[test]
fn a_running_program_is_not_disturbed() {
    root(|| {
        with_mount("cp /bin/cat cat", |mount| {
            let path = mount.path().join("cat");
            let mut child = std::process::Command::new(&path)
                .stdin(std::process::Stdio::piped())
                .stdout(std::process::Stdio::piped())
                .spawn()
                .unwrap();
            // It runs when it has answered.
            let (mut input, mut output) =
                (child.stdin.take().unwrap(), child.stdout.take().unwrap());
            input.write_all(b"1").unwrap();
            output.read_exact(&mut [0]).unwrap();
            // Busy as on any file system, or changed beside it; never under it.
            match OpenOptions::new().write(true).truncate(true).open(&path) {
                Ok(mut file) => file.write_all(b"broken").unwrap(),
                Err(error) => assert_eq!(error.raw_os_error(), Some(libc::ETXTBSY)),
            }
            input.write_all(b"2").unwrap();
            drop(input);
            let mut rest = String::new();
            output.read_to_string(&mut rest).unwrap();
            assert_eq!(rest, "2");
            assert!(child.wait().unwrap().success());
        });
    });
}

/// What is written through a file that was open before it became set-id loses the bit, whoever writes: on other file
/// systems root's writes would keep it.
#[test]
fn a_write_past_the_worker_clears_set_id_bits_for_all() {
    root(|| {
        with_mount("echo text > file", |mount| {
            let path = mount.path().join("file");
            let writer = OpenOptions::new().write(true).open(&path).unwrap();
            writer
                .set_permissions(fs::Permissions::from_mode(0o6755))
                .unwrap();
            writer.write_at(b"x", 0).unwrap();
            assert_eq!(mode(&path) & 0o6000, 0);
            // Opened after, it is written through the worker, and root keeps the bits.
            let path = mount.path().join("other");
            fs::write(&path, "text").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o6755)).unwrap();
            OpenOptions::new()
                .append(true)
                .open(&path)
                .unwrap()
                .write_all(b"y")
                .unwrap();
            assert_eq!(mode(&path) & 0o6000, 0o6000);
        });
    });
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

/// As `$1` names a file and `$2` a change: a stranger's write, truncation, change of owner.
const STRANGER: &str = "
import ctypes, os, sys
path, way = sys.argv[1:]
libc = ctypes.CDLL(None)
libc.setfsgid(1000); libc.setfsuid(1000)
try:
    if way == 'write': os.write(os.open(path, os.O_WRONLY), b'x')
    if way == 'append': os.write(os.open(path, os.O_WRONLY | os.O_APPEND), b'x')
    if way == 'truncate': os.truncate(path, 1)
    if way == 'open': os.open(path, os.O_WRONLY | os.O_TRUNC)
    if way == 'fallocate': os.posix_fallocate(os.open(path, os.O_WRONLY), 0, 5000)
    if way == 'chown': os.chown(path, -1, -1)
except PermissionError: print('refused')
";

/// A stranger's change takes set-id bits and capabilities away, in every way there is to write.
#[test]
fn a_strangers_change_takes_privileges_away() {
    root(|| {
        with_mount(
            "for i in write append truncate open fallocate; do echo text > lower-$i; chmod 6777 lower-$i; done",
            |mount| {
                for way in ["write", "append", "truncate", "open", "fallocate"] {
                    for place in ["lower", "upper"] {
                        let path = mount.path().join(format!("{place}-{way}"));
                        if place == "upper" {
                            fs::write(&path, "text").unwrap();
                            fs::set_permissions(&path, fs::Permissions::from_mode(0o6777)).unwrap();
                            shell(
                                mount.path(),
                                "setfattr -n security.capability -v 0x0100000200200000000000000000000000000000 \"$1\"",
                                [&path],
                            );
                        }
                        let said = python(&directory(), STRANGER, [path.as_os_str(), way.as_ref()]);
                        assert_eq!(said, "", "{place}, {way}");
                        assert_eq!(mode(&path), 0o777, "{place}, {way}");
                        let left = shell(mount.path(), "getfattr -d -m - \"$1\"", [&path]);
                        assert_eq!(left, "", "{place}, {way}");
                    }
                }
            },
        );
    });
}

/// A stranger who may not write the file takes nothing away from it by trying to.
#[test]
fn a_stranger_without_the_right_to_write_takes_nothing_away() {
    root(|| {
        with_mount("echo text > file; chmod 6755 file", |mount| {
            let path = mount.path().join("file");
            for way in ["write", "append", "truncate", "open", "fallocate"] {
                assert_eq!(
                    python(&directory(), STRANGER, [path.as_os_str(), way.as_ref()]),
                    "refused\n",
                    "{way}"
                );
                assert_eq!(mode(&path), 0o6755, "{way}");
            }
        });
    });
}

/// The kernel asks for `chown(path, -1, -1)` with the same request as before a write, and does not say who asks: so this
/// clears set-id bits for anybody, where other file systems refuse it to all but the owner. Nothing is gained by it, but
/// a set-id program can be made an ordinary one.
#[test]
fn a_change_of_owner_to_nobody_in_particular_is_not_refused() {
    root(|| {
        with_mount("echo text > file; chmod 6755 file", |mount| {
            let path = mount.path().join("file");
            assert_eq!(
                python(&directory(), STRANGER, [path.as_os_str(), "chown".as_ref()]),
                ""
            );
            assert_eq!(mode(&path), 0o755);
        });
    });
}
