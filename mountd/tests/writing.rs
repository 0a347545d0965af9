//! A writable mount: every kind of change, in both I/O modes, with the host's own files as the
//! measure.
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
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::Command;

use common::{Image, Mount, modes, noise};
use cowl_core::digest::ObjectId;
use cowl_core::handover::{IoMode, IoModeChoice};
use cowl_tests::profile::NEVER;
use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, Mode, OFlags, RenameFlags, SeekFrom, Timespec,
    Timestamps, XattrFlags, mknodat, renameat_with,
};
use rustix::io::Errno;

/// A mount in each I/O mode, over uppers of their own.
fn each(image: &Image, test: impl Fn(&Mount)) {
    for choice in modes() {
        let mount = image.mount_writable(choice, &format!("upper-{choice}"));
        test(&mount);
        assert!(mount.unmount().success(), "{}", image.log());
        assert!(!image.log().contains("panicked"), "{}", image.log());
    }
}

#[test]
fn changes_survive_a_remount() {
    let image = Image::of(&[("d/file", b"old content"), ("d/gone", b"x"), ("e/f", b"f")]);
    each(&image, |mount| {
        let mut file = File::options()
            .append(true)
            .open(mount.path("d/file"))
            .unwrap();
        file.write_all(b", and new").unwrap();
        drop(file);
        fs::write(mount.path("d/born"), "born here").unwrap();
        fs::remove_file(mount.path("d/gone")).unwrap();
        fs::create_dir(mount.path("d/dir")).unwrap();
        fs::rename(mount.path("e/f"), mount.path("d/dir/moved")).unwrap();
        symlink("file", mount.path("d/link")).unwrap();
        fs::hard_link(mount.path("d/born"), mount.path("d/twin")).unwrap();
        fs::remove_dir(mount.path("e")).unwrap();
    });
    for choice in modes() {
        let mount = image.mount_writable(choice, &format!("upper-{choice}"));
        assert_eq!(
            fs::read(mount.path("d/file")).unwrap(),
            b"old content, and new"
        );
        assert_eq!(
            fs::read(mount.path("d/link")).unwrap(),
            b"old content, and new"
        );
        assert_eq!(fs::read(mount.path("d/twin")).unwrap(), b"born here");
        assert_eq!(fs::metadata(mount.path("d/born")).unwrap().nlink(), 2);
        assert_eq!(fs::read(mount.path("d/dir/moved")).unwrap(), b"f");
        assert!(
            !mount.path("d/gone").try_exists().unwrap() && !mount.path("e").try_exists().unwrap()
        );
        assert!(mount.unmount().success());
    }
}

#[test]
fn fallocate_lseek_and_copy_file_range_work() {
    let image = Image::of(&[("d/file", &noise(100_000))]);
    each(&image, |mount| {
        let file = File::options()
            .read(true)
            .write(true)
            .open(mount.path("d/file"))
            .unwrap();
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&file, punch, 4096, 8192).unwrap();
        let mut bytes = [1; 8192];
        file.read_exact_at(&mut bytes, 4096).unwrap();
        assert!(bytes.iter().all(|byte| *byte == 0));
        rustix::fs::fsync(&file).unwrap();
        rustix::fs::fdatasync(&file).unwrap();
        rustix::fs::syncfs(&file).unwrap();
        assert_eq!(rustix::fs::seek(&file, SeekFrom::Data(0)).unwrap(), 0);
        assert!(rustix::fs::seek(&file, SeekFrom::Hole(0)).unwrap() <= 100_000);
        let copy = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(mount.path("d/copy"))
            .unwrap();
        let copied =
            rustix::fs::copy_file_range(&file, Some(&mut 0), &copy, Some(&mut 0), 50_000).unwrap();
        let mut both = [vec![0; copied], vec![0; copied]];
        file.read_exact_at(&mut both[0], 0).unwrap();
        copy.read_exact_at(&mut both[1], 0).unwrap();
        assert!(copied > 0 && both[0] == both[1]);
    });
}

/// Data and holes are where they are on a plain file, also while nothing of it was written out.
#[test]
fn lseek_finds_data_just_written() {
    let image = Image::of(&[("d/file", b"x")]);
    let plain = tempfile::tempdir().unwrap();
    let fresh = |path: PathBuf| {
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path)
            .unwrap();
        file.write_all_at(&noise(100_000), 0).unwrap();
        file
    };
    let starts = [0, 50_000, 100_000];
    let seek = |file: &File| {
        starts.map(|start| {
            (
                rustix::fs::seek(file, SeekFrom::Data(start)),
                rustix::fs::seek(file, SeekFrom::Hole(start)),
            )
        })
    };
    each(&image, |mount| {
        let name = format!("{:?}", mount.io_mode);
        let ours = fresh(mount.path("d").join(&name));
        assert_eq!(seek(&ours), seek(&fresh(plain.path().join(&name))));
    });
}

#[test]
fn renameat2_flags_and_linked_tmpfiles_work() {
    let image = Image::of(&[("d/one", b"one"), ("d/two", b"two")]);
    each(&image, |mount| {
        let at = |name: &str| mount.path("d").join(name);
        renameat_with(CWD, at("one"), CWD, at("two"), RenameFlags::EXCHANGE).unwrap();
        assert_eq!(fs::read(at("one")).unwrap(), b"two");
        assert_eq!(
            renameat_with(CWD, at("one"), CWD, at("two"), RenameFlags::NOREPLACE),
            Err(Errno::EXIST)
        );

        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let nameless = File::from(rustix::fs::open(mount.path("d"), flags, 0o640.into()).unwrap());
        nameless.write_all_at(b"no name yet", 0).unwrap();
        let opened = format!("/proc/self/fd/{}", nameless.as_raw_fd());
        rustix::fs::linkat(CWD, opened, CWD, at("named"), AtFlags::SYMLINK_FOLLOW).unwrap();
        assert_eq!(fs::read(at("named")).unwrap(), b"no name yet");
    });
}

#[test]
fn attributes_and_times_before_1970_are_kept() {
    let image = Image::of(&[("d/file", b"x")]);
    each(&image, |mount| {
        let file = mount.path("d/file");
        rustix::fs::setxattr(&file, "user.colour", b"green", XattrFlags::CREATE).unwrap();
        let again = rustix::fs::setxattr(&file, "user.colour", b"x", XattrFlags::CREATE);
        assert_eq!(again, Err(Errno::EXIST));
        let mut value = [0; 16];
        assert_eq!(
            rustix::fs::getxattr(&file, "user.colour", &mut value),
            Ok(5)
        );
        assert_eq!(
            rustix::fs::getxattr(&file, "user.colour", &mut [0; 2]),
            Err(Errno::RANGE)
        );
        rustix::fs::removexattr(&file, "user.colour").unwrap();
        assert_eq!(
            rustix::fs::getxattr(&file, "user.colour", &mut value),
            Err(Errno::NODATA)
        );

        let before = Timespec {
            tv_sec: -2,
            tv_nsec: 750_000_000,
        };
        let times = Timestamps {
            last_access: before,
            last_modification: before,
        };
        rustix::fs::utimensat(CWD, &file, &times, AtFlags::empty()).unwrap();
        let stat = fs::metadata(&file).unwrap();
        assert_eq!((stat.mtime(), stat.mtime_nsec()), (-2, 750_000_000));
        assert!(rustix::fs::statvfs(mount.path("")).unwrap().f_blocks > 0);
    });
}

#[test]
fn new_files_have_the_callers_owner_and_umask() {
    let image = Image::of(&[("d/x", b"x")]);
    each(&image, |mount| {
        fs::set_permissions(mount.path("d"), fs::Permissions::from_mode(0o777)).unwrap();
        run(
            mount,
            &["setpriv", "--reuid=1234", "--regid=2345", "--clear-groups"],
            "umask 027; echo hi > d/file; mkdir d/dir; mkfifo d/fifo; ln -s x d/link",
        );
        for (name, mode) in [
            ("file", 0o100_640),
            ("dir", 0o040_750),
            ("fifo", 0o010_640),
            ("link", 0o120_777),
        ] {
            let stat = fs::symlink_metadata(mount.path("d").join(name)).unwrap();
            assert_eq!(
                (stat.mode(), stat.uid(), stat.gid()),
                (mode, 1234, 2345),
                "{name}"
            );
        }
    });
}

/// The truth for comparison is a plain file on the host, changed by the same stranger.
#[test]
fn change_by_a_non_owner_clears_set_id_bits() {
    let image = Image::build(|builder, objects| {
        for (name, content) in [("small", noise(100)), ("large", noise(2 << 20))] {
            for change in ["write", "cut", "truncate", "fallocate", "append"] {
                objects.add_file(builder, &format!("d/{name}-{change}"), &content, 0o6777);
            }
        }
    });
    let plain = tempfile::tempdir().unwrap();
    fs::set_permissions(plain.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let script = |directory: &str| {
        format!(
            "cd {directory}; for f in small large; do printf x | dd of=$f-write conv=notrunc status=none; : > $f-cut; truncate -s 9 $f-truncate; \
             fallocate -l 4194304 $f-fallocate; printf x >> $f-append; done"
        )
    };
    let stranger = ["setpriv", "--reuid=1234", "--regid=2345", "--clear-groups"];
    for name in ["small", "large"] {
        for change in ["write", "cut", "truncate", "fallocate", "append"] {
            let path = plain.path().join(format!("{name}-{change}"));
            fs::write(&path, noise(100)).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o6777)).unwrap();
        }
    }
    assert!(
        command(&stranger, &script(plain.path().to_str().unwrap()))
            .status()
            .unwrap()
            .success()
    );
    each(&image, |mount| {
        run(mount, &stranger, &script("d"));
        for entry in fs::read_dir(plain.path()).unwrap() {
            let entry = entry.unwrap();
            let ours = fs::metadata(mount.path("d").join(entry.file_name())).unwrap();
            assert_eq!(
                format!("{:o}", ours.mode()),
                format!("{:o}", entry.metadata().unwrap().mode()),
                "{:?}",
                entry.file_name()
            );
        }
    });
}

/// Stands in an object's place: a fifo, so that the copy-up that opens it goes on only when the
/// test says so, and then fails.
struct Gate<'i> {
    image: &'i Image,
    content: &'i [u8],
}

impl<'i> Gate<'i> {
    fn new(image: &'i Image, content: &'i [u8]) -> Self {
        let gate = Self { image, content };
        fs::rename(gate.object(), gate.kept()).unwrap();
        mknodat(CWD, gate.object(), FileType::Fifo, Mode::RUSR, 0).unwrap();
        gate
    }

    fn object(&self) -> PathBuf {
        let id = ObjectId::of(self.content).to_string();
        let (shard, rest) = id.split_at(2);
        self.image.path("objects").join(shard).join(rest)
    }

    fn kept(&self) -> PathBuf {
        self.object().with_extension("kept")
    }

    /// Waits until the copy has opened the fifo, and lets it go on.
    fn open(self) {
        drop(File::options().write(true).open(self.object()).unwrap());
        fs::rename(self.kept(), self.object()).unwrap();
    }
}

#[test]
fn lookup_and_stat_do_not_wait_for_eight_copy_ups() {
    let names = ["a", "b", "c", "d", "e", "f", "g", "h"];
    let contents: Vec<Vec<u8>> = (1..=names.len()).map(|n| noise(n << 10)).collect();
    let mut files: Vec<(&str, &[u8])> = names
        .into_iter()
        .zip(contents.iter().map(Vec::as_slice))
        .collect();
    files.push(("other", b"other"));
    let image = Image::of(&files);
    each(&image, |mount| {
        let gates = contents.iter().map(|content| Gate::new(&image, content));
        let gates: Vec<Gate<'_>> = gates.collect();
        std::thread::scope(|scope| {
            let copies = names.map(|name| {
                let path = mount.path(name);
                // The open copies up for passthrough, the truncation elsewhere.
                scope.spawn(|| File::options().write(true).open(path)?.set_len(10))
            });
            let (tell, told) = std::sync::mpsc::channel();
            scope.spawn(|| {
                // Each name is new to the kernel, so each one asks the worker.
                for number in 0..1000 {
                    let absent = mount.path(&format!("absent-{number}"));
                    tell.send(fs::symlink_metadata(absent).is_err()).unwrap();
                }
                let other = fs::metadata(mount.path("other")).unwrap();
                tell.send(other.len() == 5).unwrap();
                drop(tell);
            });
            let answers: Vec<bool> = std::iter::from_fn(|| told.recv_timeout(NEVER).ok()).collect();
            gates.into_iter().for_each(Gate::open);
            assert_eq!(answers, [true; 1001]);
            for copy in copies {
                copy.join().unwrap().unwrap_err();
            }
        });
        for name in names {
            let mut file = File::options().append(true).open(mount.path(name)).unwrap();
            file.write_all(b"x").unwrap();
        }
    });
}

#[test]
fn open_of_an_object_for_writing_fails_in_the_worker() {
    let content = noise(2 << 20);
    let image = Image::of(&[("large", &content)]);
    each(&image, |mount| {
        if mount.io_mode != IoMode::Passthrough {
            return;
        }
        let objects = fs::read_dir(format!("/proc/{}/fd", mount.worker))
            .unwrap()
            .map(|fd| fd.unwrap().path());
        let objects = objects.filter(|fd| {
            fs::read_dir(fd)
                .is_ok_and(|mut inside| inside.any(|name| name.unwrap().file_name().len() == 2))
        });
        let id = ObjectId::of(&content).to_string();
        let (shard, rest) = id.split_at(2);
        let object = objects
            .map(|fd| fd.join(shard).join(rest))
            .find(|path| path.try_exists().unwrap())
            .unwrap();
        let error = File::options().write(true).open(object).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EROFS));
    });
}

#[test]
fn large_file_is_written_while_it_is_read() {
    let content = noise(2 << 20);
    let image = Image::of(&[("large", &content)]);
    each(&image, |mount| {
        let reader = File::open(mount.path("large")).unwrap();
        let inode = reader.metadata().unwrap().ino();
        let writer = File::options()
            .write(true)
            .open(mount.path("large"))
            .unwrap();
        writer.write_all_at(b"NEW", 0).unwrap();
        let mut start = [0; 3];
        File::open(mount.path("large"))
            .unwrap()
            .read_exact_at(&mut start, 0)
            .unwrap();
        assert_eq!(&start, b"NEW");
        assert_eq!(fs::metadata(mount.path("large")).unwrap().ino(), inode);
        reader.read_exact_at(&mut start, 0).unwrap();
        // A passthrough reader keeps what it opened; through the cache it sees the change.
        let expected = if mount.io_mode == IoMode::Passthrough {
            &content[..3]
        } else {
            b"NEW"
        };
        assert_eq!(start, expected);
        writer.set_len(1 << 20).unwrap();
        assert_eq!(reader.metadata().unwrap().len(), 1 << 20);
    });
}

#[test]
fn mount_refuses_an_upper_in_use_or_of_another_image() {
    let mut image = Image::of(&[("x", b"y")]);
    let mount = image.mount_writable(IoModeChoice::Auto, "upper");
    let refused = |image: &Image| {
        image
            .try_mount(IoModeChoice::Auto, Some("upper"))
            .err()
            .unwrap()
            .to_string()
    };
    let in_use = refused(&image);
    assert!(in_use.contains("use") && !in_use.contains('\n'), "{in_use}");
    assert!(mount.unmount().success());
    image.chain = [8; 32];
    let other = refused(&image);
    assert!(other.contains("image") && !other.contains('\n'), "{other}");
    eprintln!("{in_use}\n{other}");
}

fn run(mount: &Mount, prefix: &[&str], script: &str) {
    let status = command(prefix, script)
        .current_dir(mount.path(""))
        .status()
        .unwrap();
    assert!(status.success(), "{script}");
}

fn command(prefix: &[&str], script: &str) -> Command {
    let mut command = Command::new(prefix[0]);
    command.args(&prefix[1..]).args(["bash", "-ec", script]);
    command
}
