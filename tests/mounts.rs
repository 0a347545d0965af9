//! What `cowl mount` promises beside the behaviour of files: read-only without an upper, several
//! at once, figures of the file system below, and nothing left when it is gone.

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

fn without_an_upper_it_is_read_only() {
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
fn without_an_upper_it_is_read_only_as_root() {
    root(|| without_an_upper_it_is_read_only());
}

#[test]
fn without_an_upper_it_is_read_only_as_user() {
    user(|| without_an_upper_it_is_read_only());
}

/// Mounts of one image do not see each other's changes, and each comes back as it was left.
fn several_mounts_are_apart() {
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
fn several_mounts_are_apart_as_root() {
    root(|| several_mounts_are_apart());
}

#[test]
fn several_mounts_are_apart_as_user() {
    user(|| several_mounts_are_apart());
}

/// Free space is that of the file system the upper lies on; names may be as long as there.
fn figures_are_the_uppers() {
    let store = shop("store");
    let mount = store.mount_upper("shop", "mnt");
    let figures =
        |path: &std::path::Path| system("stat", ["-f", "-c", "%S %b %l", path.to_str().unwrap()]);
    assert_eq!(figures(mount.path()), figures(mount.upper()));
    mount.unmount();
}

#[test]
fn figures_are_the_uppers_as_root() {
    root(|| figures_are_the_uppers());
}

#[test]
fn figures_are_the_uppers_as_user() {
    user(|| figures_are_the_uppers());
}

/// Numbers of files stay what they were: over copy-up, rename and remount; two names of a file
/// have one.
fn inode_numbers_stay() {
    let store = shop("store");
    let mut mount = store.mount_upper("shop", "mnt");
    let number = |point: &std::path::Path, name: &str| {
        use std::os::unix::fs::MetadataExt as _;
        fs::symlink_metadata(point.join(name)).unwrap().ino()
    };
    let mut names = vec!["etc/motd", "srv", "srv/catalogue.txt", "bin/sh"];
    if current() == Privilege::Root {
        // Without privilege a symbolic link takes no mark, so one that is copied up is another
        // file after a remount.
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
fn inode_numbers_stay_as_root() {
    root(|| inode_numbers_stay());
}

#[test]
fn inode_numbers_stay_as_user() {
    user(|| inode_numbers_stay());
}

/// Unmounted by other hands (`umount`, as a system that shuts down does it): keeper and worker
/// end, the lease goes.
fn a_foreign_umount_ends_it() {
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
    // The same upper can be mounted again at once, or as soon as the keeper has let go; cowl waits
    // for that.
    let mount = store.mount_upper("shop", "mnt");
    assert_eq!(fs::read_to_string(mount.path().join("new")).unwrap(), "x\n");
    mount.unmount();
}

#[test]
fn a_foreign_umount_ends_it_as_root() {
    root(|| a_foreign_umount_ends_it());
}

/// Runs a shell in a mount namespace of its own until it is told to end: `script` first, then it
/// waits.
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

/// What was mounted in a mount namespace ends with it: its processes do not keep it alive, so they
/// end too, and the upper can be mounted again.
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

/// A namespace that was made while something was mounted has a copy of it: umount says so, and does
/// not wait for the end of a process that may never end.
fn a_copy_elsewhere_is_named() {
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
fn a_copy_elsewhere_is_named_as_root() {
    root(|| a_copy_elsewhere_is_named());
}

#[test]
fn a_copy_elsewhere_is_named_as_user() {
    user(|| a_copy_elsewhere_is_named());
}

/// `umount` waits for the mount's own processes, however long they take. For this one time passes
/// quickly: its first waits end at once.
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
    // By then it has looked for others that have the mount, and there are none.
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

/// A mount can be taken away as soon as `cowl mount` has returned, however slow the daemons are in
/// finishing what they do.
#[test]
fn a_mount_is_free_for_unmounting_at_once() {
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

/// Nothing of the caller stays open in the daemons: a pipe that was its output ends with `cowl
/// mount`.
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

/// As Docker refuses to remove the image of a container. With force the mount keeps what it needs.
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
    // Now nothing needs it, and nothing refuses.
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
