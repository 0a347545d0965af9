//! Differences of a mount from a local file system: one test for each line of docs/posix.md, which
//! pins the exact difference.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::{Command, Stdio};

use cowl_tests::command::{python, shell};
use cowl_tests::host::io_modes;
use cowl_tests::profile::{directory, root, user};
use cowl_tests::requests::{SYNCFS, during, worker};
use cowl_tests::skip::skip;
use cowl_tests::store::{Mount, Store};

/// In every I/O mode that the test's mounts can have.
fn with_mount(content: &str, test: impl Fn(&Mount<'_>)) {
    in_each_mode(content, |_, mount| test(mount));
}

fn in_each_mode(content: &str, test: impl Fn(&str, &Mount<'_>)) {
    for io_mode in io_modes() {
        with_mount_in(io_mode, content, |mount| test(io_mode, mount));
    }
}

fn with_mount_in(io_mode: &'static str, content: &str, test: impl Fn(&Mount<'_>)) {
    println!("{io_mode}");
    let place = directory().join(io_mode);
    fs::create_dir_all(place.join("content")).unwrap();
    shell(&place.join("content"), content, [""; 0]);
    let store = Store::new(&format!("{io_mode}/store")).with_io(io_mode);
    store.import_directory(&place.join("content"), "content");
    let mount = store.mount_upper("content", &format!("{io_mode}/mnt"));
    test(&mount);
    mount.unmount();
}

fn whole(mut file: &File) -> String {
    let mut text = String::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_string(&mut text).unwrap();
    text
}

/// Programs (ELF) of the image that are open for reading, in passthrough: the open file keeps the
/// image's content after another process writes; an open afterwards sees what was written.
#[test]
fn reader_in_passthrough_keeps_the_images_content() {
    root(|| {
        in_each_mode(
            "printf '\\177ELF first' > program; echo first > text",
            |io_mode, mount| {
                let open = |name: &str| {
                    OpenOptions::new()
                        .append(true)
                        .open(mount.path().join(name))
                        .unwrap()
                };
                let program = match io_mode {
                    "passthrough" => "\x7fELF first",
                    _ => "\x7fELF firstsecond",
                };
                for (name, after) in [("program", program), ("text", "first\nsecond")] {
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
fn reader_sees_later_writes_as_user() {
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

#[test]
fn open_rdonly_with_o_trunc_of_a_running_program_truncates_it() {
    root(|| {
        in_each_mode(":", |io_mode, mount| {
            let cat = mount.path().join("cat");
            fs::copy("/bin/busybox", &cat).unwrap();
            let size = fs::metadata(&cat).unwrap().len();
            let mut running = Command::new(&cat).stdin(Stdio::piped()).spawn().unwrap();
            let error = File::options().write(true).open(&cat).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ETXTBSY));
            let mut truncating = File::options();
            truncating.read(true).custom_flags(libc::O_TRUNC);
            let outcome = truncating.open(&cat).map_err(|error| error.raw_os_error());
            running.kill().unwrap();
            running.wait().unwrap();
            let left = fs::metadata(&cat).unwrap().len();
            if io_mode == "passthrough" {
                assert_eq!(left, 0);
            } else {
                assert_eq!(outcome.unwrap_err(), Some(libc::ETXTBSY));
                assert_eq!(left, size);
            }
        });
    });
}

/// Such an open file cannot be reopened for writing through /proc/self/fd once another process has
/// changed it (ESTALE); by its name it can.
#[test]
fn reopening_a_passthrough_reader_for_writing_gives_estale() {
    root(|| {
        in_each_mode("printf '\\177ELF first' > program", |io_mode, mount| {
            let path = mount.path().join("program");
            let reader = File::open(&path).unwrap();
            let again = OpenOptions::new()
                .write(true)
                .open(format!("/proc/self/fd/{}", reader.as_raw_fd()));
            let refused = again.err().and_then(|error| error.raw_os_error());
            let expected = (io_mode == "passthrough").then_some(libc::ESTALE);
            assert_eq!(refused, expected);
            OpenOptions::new().write(true).open(&path).unwrap();
        });
    });
}

/// A program that is mapped and running keeps running while its file is replaced under it.
#[test]
fn truncating_open_does_not_disturb_a_running_program() {
    root(|| {
        with_mount("cp /bin/cat cat", |mount| {
            let path = mount.path().join("cat");
            let mut child = Command::new(&path)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            // Its output shows that it runs.
            let (mut input, mut output) =
                (child.stdin.take().unwrap(), child.stdout.take().unwrap());
            input.write_all(b"1").unwrap();
            output.read_exact(&mut [0]).unwrap();
            // ETXTBSY as on any file system, or replaced beside the running program; never changed
            // under it.
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

/// A write through a descriptor that was open before the file became set-id drops the bit, also
/// when root writes: on other file systems it would stay.
#[test]
fn write_to_an_open_file_that_became_set_id_drops_the_bits() {
    root(|| {
        in_each_mode("echo text > file", |io_mode, mount| {
            let path = mount.path().join("file");
            let writer = OpenOptions::new().write(true).open(&path).unwrap();
            writer
                .set_permissions(fs::Permissions::from_mode(0o6755))
                .unwrap();
            writer.write_at(b"x", 0).unwrap();
            let kept = match io_mode {
                "passthrough" => 0,
                _ => 0o6000,
            };
            assert_eq!(mode(&path) & 0o6000, kept);
            // If opened afterwards, it is written through the worker, and root keeps the bits.
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

/// A stranger's change drops set-id bits and capabilities, for every way to write.
#[test]
fn write_by_a_stranger_drops_set_id_bits_and_capabilities() {
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

/// A refused write by a user without permission drops nothing.
#[test]
fn refused_write_by_a_stranger_drops_nothing() {
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

/// For `chown(path, -1, -1)` the kernel sends the same request as before a write, without the
/// caller: so this clears set-id bits for every user, where other file systems allow it only to the
/// owner. It gains no privilege, but can make a set-id program an ordinary one.
#[test]
fn chown_to_minus_one_by_a_stranger_drops_set_id_bits() {
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

/// In a user namespace each write drops the bits, root's too: the worker cannot tell root by
/// `CAP_FSETID`.
#[test]
fn write_in_a_user_namespace_drops_set_id_bits() {
    user(|| {
        with_mount("echo text > file; chmod 6755 file", |mount| {
            let path = mount.path().join("file");
            let mut file = OpenOptions::new().append(true).open(&path).unwrap();
            file.write_all(b"x").unwrap();
            assert_eq!(mode(&path), 0o755);
        });
    });
}

/// Symbolic links take no `user.` attribute, so nothing tells which node of the tree one was
/// copied up from.
#[test]
fn st_ino_of_a_copied_up_symlink_changes_with_a_remount_as_user() {
    user(|| {
        shell(
            &directory(),
            "mkdir content; ln -s target content/link",
            [""; 0],
        );
        let store = Store::new("store");
        store.import_directory(&directory().join("content"), "content");
        let mut mount = store.mount_upper("content", "mnt");
        let ino = |mount: &Mount<'_>| {
            let link = mount.path().join("link");
            fs::symlink_metadata(link).unwrap().ino()
        };
        let before = ino(&mount);
        shell(mount.path(), "chown -h 0:0 link", [""; 0]);
        assert_eq!(ino(&mount), before, "while it is mounted");
        mount.remount();
        assert_ne!(ino(&mount), before);
        mount.unmount();
    });
}

/// Set-group-id without the group's execute bit is kept by a stranger's write; ext4 drops it.
#[test]
fn write_by_a_stranger_keeps_setgid_without_group_execute() {
    root(|| {
        with_mount("echo text > file; chmod 2766 file", |mount| {
            let path = mount.path().join("file");
            assert_eq!(
                python(&directory(), STRANGER, [path.as_os_str(), "write".as_ref()]),
                ""
            );
            assert_eq!(mode(&path), 0o2766);
        });
    });
}

/// Root's write drops a capability, as everywhere, and set-group-id with it.
#[test]
fn write_by_root_to_a_file_with_a_capability_drops_setgid_too() {
    root(|| {
        with_mount("echo text > file", |mount| {
            let path = mount.path().join("file");
            shell(
                mount.path(),
                "chmod 2755 file; setfattr -n security.capability -v 0x0100000200200000000000000000000000000000 file; echo x >> file",
                [""; 0],
            );
            assert_eq!(mode(&path), 0o755);
            assert_eq!(shell(mount.path(), "getfattr -d -m - file", [""; 0]), "");
        });
    });
}

/// ext4 has room for all of a file's attributes in its inode and one block. The mark takes some.
#[test]
fn copy_up_of_a_file_whose_xattrs_leave_no_room_for_the_mark_gives_enospc() {
    const CONTENT: &str = r"
echo text > full; echo text > other
value() { head -c $1 /dev/zero | tr '\0' x; }
setfattr -n user.a -v $(value 60) full
size=4096
until setfattr -n user.b -v $(value $size) full 2>/dev/null; do size=$((size - 4)); done
setfattr -n user.a -v $(value 60) other
setfattr -n user.b -v $(value $((size - 100))) other
";
    root(|| {
        if shell(&directory(), "stat -f -c %T .", [""; 0]).trim() != "ext2/ext3" {
            return skip("the upper is not on ext4");
        }
        with_mount(CONTENT, |mount| {
            // Without requests for opens, the first write copies the file up.
            let append = |name: &str| {
                let opened = File::options().append(true).open(mount.path().join(name));
                let written = opened.and_then(|mut file| {
                    file.write_all(b"x")?;
                    file.sync_all()
                });
                written.map_err(|error| error.raw_os_error())
            };
            assert_eq!(append("full"), Err(Some(28)), "ENOSPC");
            assert_eq!(append("other"), Ok(()));
        });
    });
}

/// A removed directory has no file in the upper that could keep an attribute.
#[test]
fn setxattr_on_a_removed_open_directory_fails() {
    root(|| {
        with_mount("mkdir dir", |mount| {
            let path = mount.path().join("dir");
            let open = File::open(&path).unwrap();
            fs::remove_dir(&path).unwrap();
            let set =
                rustix::fs::fsetxattr(&open, "user.test", b"x", rustix::fs::XattrFlags::empty());
            assert_eq!(set, Err(rustix::io::Errno::NOENT));
        });
    });
}

/// Data that the kernel has not written out yet would look like a hole.
#[test]
fn seek_hole_gives_the_end_of_the_file_under_the_writeback_cache() {
    user(|| {
        let content = "truncate -s 1M sparse; echo x >> sparse";
        with_mount_in("writeback", content, |mount| {
            let file = File::open(mount.path().join("sparse")).unwrap();
            let hole = rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(0)).unwrap();
            assert_eq!(hole, file.metadata().unwrap().len());
        });
    });
}

/// The kernel writes out its cache but sends no SYNCFS, so the disk below is not synced.
#[test]
fn syncfs_is_not_passed_on() {
    root(|| {
        with_mount("echo text > file", |mount| {
            fs::write(mount.path().join("new"), "text").unwrap();
            let file = File::open(mount.path()).unwrap();
            let requests = during(worker(), || rustix::fs::syncfs(&file).unwrap());
            assert!(!requests.contains_key(&SYNCFS), "{requests:?}");
        });
    });
}

fn times_of_an_unchanged_file() {
    with_mount("echo text > file; touch -d @1000 file", |mount| {
        let path = mount.path().join("file");
        fs::read(&path).unwrap();
        let meta = fs::metadata(&path).unwrap();
        assert_eq!(
            (meta.mtime(), meta.ctime(), meta.atime()),
            (1000, 1000, 1000)
        );
    });
}

#[test]
fn ctime_and_atime_of_an_unchanged_file_are_its_mtime_as_root() {
    root(|| times_of_an_unchanged_file());
}

#[test]
fn ctime_and_atime_of_an_unchanged_file_are_its_mtime_as_user() {
    user(|| times_of_an_unchanged_file());
}
