//! Promises of `cowl mount` beyond file semantics: read-only without an upper, several at once,
//! statfs of the file system below, and nothing left after unmounting.

use std::ffi::OsStr;
use std::fs;
use std::io::Read as _;
use std::process::{Child, Stdio};

use rustix::process::{PidfdFlags, Signal, kill_process, pidfd_open};

use cowl_tests::busybox::shop;
use cowl_tests::command::{binary, program, python, run, shell, system};
use cowl_tests::profile::{NEVER, Privilege, current, directory, processes, readable, root, user};
use cowl_tests::requests::worker;
use cowl_tests::store::mounted_kind;
use cowl_tests::tree;

fn a_mount_without_an_upper_is_read_only() {
    let store = shop("store");
    let mount = store.mount("shop", "mnt");
    let changes = [
        "echo x > new",
        "echo x >> etc/motd",
        "rm etc/motd",
        "mkdir new",
        "mv etc/motd etc/other",
        "ln etc/motd hard",
        "ln -s x soft",
        "chmod 0 etc/motd",
        "touch etc/motd",
        "setfattr -n user.x -v y etc/motd",
        "truncate -s 0 etc/motd",
    ];
    for change in changes {
        let refused = run(program("sh", ["-c", change]).current_dir(mount.path()));
        assert!(
            refused.stderr.contains("Read-only file system"),
            "{refused}"
        );
    }
    assert_eq!(
        fs::read_to_string(mount.path().join("etc/motd")).unwrap(),
        "welcome to the base\n"
    );
    mount.unmount();
}

#[test]
fn a_mount_without_an_upper_is_read_only_as_root() {
    root(|| a_mount_without_an_upper_is_read_only());
}

#[test]
fn a_mount_without_an_upper_is_read_only_as_user() {
    user(|| a_mount_without_an_upper_is_read_only());
}

/// Mounts of one image do not see each other's changes, and each keeps its own over a remount.
fn mounts_of_one_image_are_independent() {
    let store = shop("store");
    let plain = store.mount("shop", "plain");
    let before = tree::read(plain.path());
    let (mut one, two) = (
        store.mount_upper("shop", "one"),
        store.mount_upper("shop", "two"),
    );
    shell(
        one.path(),
        "echo one > etc/motd; rm -r srv; mkdir new",
        [""; 0],
    );
    shell(two.path(), "echo two > etc/motd; mv srv moved", [""; 0]);
    let seen = tree::read(one.path());
    assert_eq!(
        fs::read_to_string(two.path().join("etc/motd")).unwrap(),
        "two\n"
    );
    assert!(two.path().join("moved/hello").exists() && !one.path().join("srv").exists());
    one.remount();
    tree::assert_same(&seen, &tree::read(one.path()), "after a remount");
    tree::assert_same(
        &before,
        &tree::read(plain.path()),
        "the mount without an upper",
    );
    one.unmount();
    two.unmount();
    plain.unmount();
}

#[test]
fn mounts_of_one_image_are_independent_as_root() {
    root(|| mounts_of_one_image_are_independent());
}

#[test]
fn mounts_of_one_image_are_independent_as_user() {
    user(|| mounts_of_one_image_are_independent());
}

/// Free space and the longest name are those of the upper's file system.
fn statfs_is_that_of_the_uppers_file_system() {
    let store = shop("store");
    let mount = store.mount_upper("shop", "mnt");
    let figures =
        |path: &std::path::Path| system("stat", ["-f", "-c", "%S %b %l", path.to_str().unwrap()]);
    assert_eq!(figures(mount.path()), figures(mount.upper()));
    mount.unmount();
}

#[test]
fn statfs_is_that_of_the_uppers_file_system_as_root() {
    root(|| statfs_is_that_of_the_uppers_file_system());
}

#[test]
fn statfs_is_that_of_the_uppers_file_system_as_user() {
    user(|| statfs_is_that_of_the_uppers_file_system());
}

/// Inode numbers are stable over copy-up, rename and remount; hard links share one.
fn inode_numbers_are_stable() {
    let store = shop("store");
    let mut mount = store.mount_upper("shop", "mnt");
    let number = |point: &std::path::Path, name: &str| {
        use std::os::unix::fs::MetadataExt as _;
        fs::symlink_metadata(point.join(name)).unwrap().ino()
    };
    let mut names = vec!["etc/motd", "srv", "srv/catalogue.txt", "bin/sh"];
    if current() == Privilege::Root {
        // Without privilege a symbolic link cannot have a mark, so after copy-up and a remount it
        // is another file.
        names.push("usr/bin/env");
    }
    let before: Vec<u64> = names
        .iter()
        .map(|name| number(mount.path(), name))
        .collect();
    assert_eq!(
        number(mount.path(), "bin/sh"),
        number(mount.path(), "bin/ls"),
        "busybox under two names"
    );
    shell(
        mount.path(),
        "echo x >> etc/motd; chmod 0700 srv; echo x >> srv/catalogue.txt; touch bin/sh; chown -h 0:0 usr/bin/env",
        [""; 0],
    );
    let listed = "
import os, sys
for name in os.scandir(sys.argv[1]):
    assert name.inode() == os.lstat(name.path).st_ino, name.path
";
    for _ in 0..2 {
        let after: Vec<u64> = names
            .iter()
            .map(|name| number(mount.path(), name))
            .collect();
        assert_eq!(before, after);
        assert_eq!(
            number(mount.path(), "bin/sh"),
            number(mount.path(), "bin/ls")
        );
        for directory_name in ["", "etc", "bin"] {
            python(&directory(), listed, [mount.path().join(directory_name)]);
        }
        mount.remount();
    }
    mount.unmount();
}

#[test]
fn inode_numbers_are_stable_as_root() {
    root(|| inode_numbers_are_stable());
}

#[test]
fn inode_numbers_are_stable_as_user() {
    user(|| inode_numbers_are_stable());
}

/// After `umount` by another program, as at shutdown, keeper and worker end, and the lease is
/// released.
fn umount_by_another_program_ends_the_mount() {
    let store = shop("store");
    let mount = store.mount_upper("shop", "mnt");
    shell(mount.path(), "echo x > new", [""; 0]);
    let point = mount.path().to_owned();
    assert!(
        processes()
            .iter()
            .any(|(_, line)| line.contains("cowl-mountd"))
    );
    system("umount", [&point]);
    assert_eq!(mounted_kind(&point), None);
    mount.forget();
    // The upper can be mounted again at once: cowl waits until the keeper has released it.
    let mount = store.mount_upper("shop", "mnt");
    assert_eq!(fs::read_to_string(mount.path().join("new")).unwrap(), "x\n");
    mount.unmount();
}

#[test]
fn umount_by_another_program_ends_the_mount_as_root() {
    root(|| umount_by_another_program_ends_the_mount());
}

/// Runs a shell in a mount namespace of its own: first `script`, then it waits until told to end.
struct Elsewhere {
    shell: Child,
}

impl Elsewhere {
    fn new<S: AsRef<OsStr>>(script: &str, arguments: impl IntoIterator<Item = S>) -> Self {
        let script = format!("{script}\necho ready; read -r line");
        let mut shell = program("unshare", ["--mount", "sh", "-ec", &script, "sh"])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = [0; 6];
        shell
            .stdout
            .as_mut()
            .unwrap()
            .read_exact(&mut ready)
            .unwrap();
        assert_eq!(&ready, b"ready\n");
        Self { shell }
    }

    fn end(mut self) {
        drop(self.shell.stdin.take());
        self.shell.wait().unwrap();
    }
}

/// A mount ends with its mount namespace: its processes do not keep that alive, so they end too,
/// and the upper can be mounted again.
fn a_mount_ends_with_its_namespace() {
    let store = shop("store");
    let (point, upper) = (directory().join("mnt"), directory().join("mnt.upper"));
    fs::create_dir(&point).unwrap();
    let cowl = binary("cowl");
    let command = [
        cowl.as_os_str(),
        "--root".as_ref(),
        store.root().as_os_str(),
        "mount".as_ref(),
        "shop".as_ref(),
        point.as_os_str(),
        "--upper".as_ref(),
        upper.as_os_str(),
    ];
    let elsewhere = Elsewhere::new("\"$@\"; echo there > \"$6/new\"", command);
    assert_eq!(mounted_kind(&point), None);
    let served = pidfd_open(worker(), PidfdFlags::empty()).unwrap();
    elsewhere.end();
    assert!(readable(&served, NEVER), "nobody sees the mount any more");
    let mount = store.mount_upper("shop", "mnt");
    assert_eq!(
        fs::read_to_string(mount.path().join("new")).unwrap(),
        "there\n"
    );
    mount.unmount();
}

#[test]
fn a_mount_ends_with_its_namespace_as_root() {
    root(|| a_mount_ends_with_its_namespace());
}

#[test]
fn a_mount_ends_with_its_namespace_as_user() {
    user(|| a_mount_ends_with_its_namespace());
}

/// A namespace created while something is mounted has a copy of the mount: umount reports that, and
/// does not wait for a process that may never end.
fn umount_names_a_process_with_a_copy_of_the_mount() {
    let store = shop("store");
    let mount = store.mount_upper("shop", "mnt");
    let elsewhere = Elsewhere::new("", [""; 0]);
    let point = mount.path().to_owned();
    let refusal = store
        .run([OsStr::new("umount"), point.as_os_str()])
        .refused(1);
    let process = format!("process {} (sh) still has it", elsewhere.shell.id());
    assert!(refusal.contains(&process), "{refusal}");
    assert_eq!(mounted_kind(&point), None);
    mount.forget();
    let served = pidfd_open(worker(), PidfdFlags::empty()).unwrap();
    elsewhere.end();
    assert!(readable(&served, NEVER));
}

#[test]
fn umount_names_a_process_with_a_copy_of_the_mount_as_root() {
    root(|| umount_names_a_process_with_a_copy_of_the_mount());
}

#[test]
fn umount_names_a_process_with_a_copy_of_the_mount_as_user() {
    user(|| umount_names_a_process_with_a_copy_of_the_mount());
}

/// `umount` waits for the mount's own processes, however long they take. Here its first waits are
/// made to time out at once.
fn umount_waits_for_a_slow_worker() {
    let store = shop("store");
    let mount = store.mount("shop", "mnt");
    let worker = worker();
    kill_process(worker, Signal::STOP).unwrap();
    let log = directory().join("calls");
    let umount = store.command([OsStr::new("umount"), mount.path().as_os_str()]);
    let mut umount = program("strace", ["-f", "-qq", "-e", "trace=ppoll", "-e"])
        .args(["inject=ppoll:retval=0:when=1..100", "-o"])
        .arg(&log)
        .arg(umount.get_program())
        .args(umount.get_args())
        .spawn()
        .unwrap();
    // By then it has checked for other holders of the mount, and found none.
    let waits_on = || {
        let calls = fs::read_to_string(&log).unwrap_or_default();
        calls.lines().count() > 100
    };
    while !waits_on() && umount.try_wait().unwrap().is_none() {
        std::thread::yield_now();
    }
    kill_process(worker, Signal::CONT).unwrap();
    assert!(umount.wait().unwrap().success());
    mount.forget();
}

#[test]
fn umount_waits_for_a_slow_worker_as_root() {
    root(|| umount_waits_for_a_slow_worker());
}

#[test]
fn umount_waits_for_a_slow_worker_as_user() {
    user(|| umount_waits_for_a_slow_worker());
}

/// A mount can be unmounted as soon as `cowl mount` has returned, however slow the daemons are to
/// finish.
#[test]
fn umount_right_after_mount_succeeds() {
    root(|| {
        let store = shop("store");
        let point = directory().join("mnt");
        fs::create_dir(&point).unwrap();
        let slow = "strace -f -qq -o strace.log -e trace=sendmsg -e inject=sendmsg:delay_exit=300000 \"$@\"";
        let both = "\"$1\" --root \"$2\" mount shop \"$3\"; \"$1\" --root \"$2\" umount \"$3\" || { umount -l \"$3\"; exit 1; }";
        let outcome = run(program("sh", ["-ec", slow, "sh", "sh", "-ec", both, "sh"])
            .arg(binary("cowl"))
            .args([store.root(), &point])
            .current_dir(directory()));
        outcome.ok();
    });
}

/// The daemons keep no descriptor of the caller: its output pipe closes with `cowl mount`.
#[test]
fn the_daemons_hold_nothing_of_the_caller() {
    root(|| {
        let store = shop("store");
        let point = directory().join("mnt");
        fs::create_dir(&point).unwrap();
        let mut command = store.command(["mount", "shop"]);
        // `output` returns when both pipes are closed by everybody.
        let output = command.arg(&point).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        store.ok(["umount", point.to_str().unwrap()]);
    });
}

/// As Docker refuses to remove an image in use by a container. With force the mount keeps what it
/// needs.
fn rmi_of_a_mounted_image() {
    let store = shop("store");
    let mount = store.mount_upper("shop", "mnt");
    let place = mount.path().to_str().unwrap().to_owned();
    fs::write(mount.path().join("new"), "new").unwrap();
    let id = store.ok(["images", "-q"]);
    for needle in ["shop", id.trim()] {
        let refused = store.run(["rmi", needle]).refused(1);
        assert!(
            refused.contains("(must") && refused.contains(&format!("the mount on {place}")),
            "{refused}"
        );
        assert!(
            refused.ends_with(&format!("cowl umount {place} ends it")),
            "{refused}"
        );
    }
    assert_eq!(store.ok(["rmi", "-f", "shop"]), "Untagged: shop:latest\n");
    let motd = fs::read_to_string(mount.path().join("etc/motd")).unwrap();
    assert_eq!(motd, "welcome to the base\n");
    assert!(!store.objects_by_name().is_empty());
    mount.unmount();
    let upper = fs::read_to_string(directory().join("mnt.upper/new")).unwrap();
    assert_eq!(upper, "new");
    // Now it is unused, and can be removed.
    let store = shop("store");
    assert!(store.ok(["rmi", "shop"]).contains("Deleted: "));
    assert_eq!(store.objects_by_name(), "");
}

#[test]
fn rmi_of_a_mounted_image_is_refused_as_root() {
    root(|| rmi_of_a_mounted_image());
}

#[test]
fn rmi_of_a_mounted_image_is_refused_as_user() {
    user(|| rmi_of_a_mounted_image());
}
