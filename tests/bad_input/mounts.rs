//! Mount points, uppers and hosts that cannot serve a mount.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;

use cowl_tests::busybox::{containers, in_shop, shop};
use cowl_tests::command::{run, shell};
use cowl_tests::profile::{directory, root, user};
use cowl_tests::store::mounted_kind;

use crate::{contents, point, refusal};

fn a_missing_mount_point() {
    let store = shop("store");
    let missing = directory().join("missing");
    refusal(
        store.run(["mount", "shop", missing.to_str().unwrap()]),
        1,
        missing.to_str().unwrap(),
        "",
    );
    let file = directory().join("file");
    fs::write(&file, "").unwrap();
    refusal(
        store.run(["mount", "shop", file.to_str().unwrap()]),
        1,
        file.to_str().unwrap(),
        "",
    );
    refusal(
        store.run(["umount", point().to_str().unwrap()]),
        1,
        point().to_str().unwrap(),
        "",
    );
    refusal(
        store.run([
            "mount",
            "shop",
            point().to_str().unwrap(),
            "--upper",
            missing.join("upper").to_str().unwrap(),
        ]),
        1,
        missing.to_str().unwrap(),
        "",
    );
    assert!(!missing.exists());
    assert_eq!(mounted_kind(&point()), None);
}

#[test]
fn a_missing_mount_point_is_named_as_root() {
    root(|| a_missing_mount_point());
}

#[test]
fn a_missing_mount_point_is_named_as_user() {
    user(|| a_missing_mount_point());
}

fn an_overlapping_upper() {
    let store = shop("store");
    let other = directory().join("other");
    fs::create_dir(&other).unwrap();
    let mount = |point: &std::path::Path, upper: &str, work: &[&str]| {
        let upper = directory().join(upper);
        let [point, upper] = [point, &upper].map(|path| path.to_str().unwrap().to_owned());
        let mut arguments = vec!["mount", "shop", &point, "--upper", &upper];
        arguments.extend(work);
        store.run(arguments)
    };
    let at = |name: &str| directory().join(name).to_str().unwrap().to_owned();
    for (upper, work) in [("up", "up"), ("up", "up/work"), ("w/up", "w")] {
        fs::create_dir_all(directory().join("w")).unwrap();
        refusal(
            mount(&point(), upper, &["--work", &at(work)]),
            1,
            &at(upper),
            "--work",
        );
        assert_eq!(mounted_kind(&point()), None);
        assert!(!directory().join(upper).exists(), "{upper}");
    }
    for upper in ["store/up", "store/volumes"] {
        refusal(
            mount(&point(), upper, &[]),
            1,
            &at(upper),
            "outside the store",
        );
        assert_eq!(mounted_kind(&point()), None);
    }
    assert!(!directory().join("store/up").exists());
    // With a trailing slash, as shell completion adds it, it is the same upper.
    mount(&point(), "up/", &[]).ok();
    assert_eq!(
        shell(
            &directory(),
            "ls -A up; ls -A up.work; ls -A mnt | grep work || true",
            [""; 0]
        ),
        "index\nlock\norphans\ntmp\n"
    );
    for work in [&[][..], &["--work", &at("other.work")]] {
        refusal(mount(&other, "up", work), 1, "up", "in use");
        assert_eq!(mounted_kind(&other), None);
    }
    assert!(!directory().join("other.work").exists());
    store.ok(["umount", point().to_str().unwrap()]);
}

#[test]
fn an_overlapping_upper_is_refused_as_root() {
    root(|| an_overlapping_upper());
}

#[test]
fn an_overlapping_upper_is_refused_as_user() {
    user(|| an_overlapping_upper());
}

/// Such a path, of anyone's mount, is in everyone's mount table.
fn a_mount_whose_path_is_not_utf_8() {
    let store = shop("store");
    let [foreign, own] =
        [b"foreign-\xff", b"own-mnt-\xff"].map(|name| directory().join(OsStr::from_bytes(name)));
    for dir in [&foreign, &own] {
        fs::create_dir(dir).unwrap();
    }
    shell(&directory(), "mount -t tmpfs tmpfs \"$1\"", [&foreign]);
    assert_eq!(
        in_shop(&store, &["--rm"], &["echo", "there"]).ok(),
        "there\n"
    );
    store.ok([OsStr::new("mount"), OsStr::new("shop"), own.as_os_str()]);
    assert!(own.join("etc/motd").exists());
    store.ok([OsStr::new("umount"), own.as_os_str()]);
    assert!(!own.join("etc").exists());
    shell(&directory(), "umount \"$1\"", [&foreign]);
}

#[test]
fn a_mount_whose_path_is_not_utf_8_stops_nothing_as_root() {
    root(|| a_mount_whose_path_is_not_utf_8());
}

#[test]
fn a_mount_whose_path_is_not_utf_8_stops_nothing_as_user() {
    user(|| a_mount_whose_path_is_not_utf_8());
}

#[test]
fn without_dev_fuse_it_says_how_to_get_it() {
    root(|| {
        let store = shop("store");
        let before = contents(&store);
        shell(
            &directory(),
            "mkdir dev; mount -t tmpfs tmpfs dev; cp -a /dev/null /dev/zero /dev/urandom dev; mount --bind dev /dev",
            [""; 0],
        );
        refusal(
            store.run(["mount", "shop", point().to_str().unwrap()]),
            1,
            "/dev/fuse",
            "modprobe fuse",
        );
        refusal(
            store.run(["run", "--rm", "shop", "true"]),
            125,
            "/dev/fuse",
            "modprobe fuse",
        );
        assert_eq!(mounted_kind(&point()), None);
        assert_eq!(containers(&store), [""; 0]);
        assert_eq!(contents(&store), before);
        shell(&directory(), "umount -l /dev; umount dev", [""; 0]);
    });
}

#[test]
fn without_privilege_it_says_what_is_missing() {
    root(|| {
        let store = shop("store");
        shell(
            &directory(),
            "chmod 0777 .; chown -R 65534:65534 store; mkdir -m 0777 other; mknod -m 0666 fuse c 10 229; mount --bind fuse /dev/fuse",
            [""; 0],
        );
        // An ordinary user outside a user namespace: may open /dev/fuse and owns the store, but may
        // not mount.
        let as_nobody = |arguments: &[&str]| {
            let cowl = store.command(arguments.iter());
            let mut command = cowl_tests::command::program(
                "setpriv",
                ["--reuid=65534", "--regid=65534", "--clear-groups", "--"],
            );
            run(command.arg(cowl.get_program()).args(cowl.get_args()))
        };
        let other = directory().join("other");
        refusal(
            as_nobody(&["mount", "shop", other.to_str().unwrap()]),
            1,
            "mount",
            "unshare -Urm",
        );
        refusal(
            as_nobody(&["run", "--rm", "shop", "true"]),
            125,
            "run",
            "unshare -Urm",
        );
        assert_eq!(mounted_kind(&other), None);
        shell(&directory(), "umount /dev/fuse; chown root store", [""; 0]);
        refusal(
            as_nobody(&["images"]),
            1,
            store.root().to_str().unwrap(),
            "--root DIR",
        );
    });
}
