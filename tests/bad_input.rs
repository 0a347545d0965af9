//! Mistakes that a new user makes: each is answered by one line that names the thing and says what
//! to do, with the right exit code, and leaves nothing behind.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use cowl_tests::busybox::{containers, in_shop, layers, shop};
use cowl_tests::command::{Outcome, run, shell};
use cowl_tests::profile::{directory, root, user};
use cowl_tests::store::{Store, make_image, mounted_kind};

/// The line of a refusal, which names `what` and gives `advice`.
#[track_caller]
fn refusal(outcome: Outcome, code: i32, what: &str, advice: &str) {
    let line = outcome.refused(code);
    assert!(
        line.starts_with("cowl: "),
        "`{line}` does not say who speaks"
    );
    assert!(line.contains(what), "`{line}` does not name {what}");
    assert!(line.contains(advice), "`{line}` does not say: {advice}");
}

/// Every file below the store but locks, with its size: the same before and after a refusal.
fn contents(store: &Store) -> String {
    shell(
        store.root(),
        "find . -type f ! -name 'lock*' -printf '%p %s\\n' | sort",
        [""; 0],
    )
}

fn point() -> PathBuf {
    let point = directory().join("mnt");
    fs::create_dir_all(&point).unwrap();
    point
}

fn a_missing_image() {
    let store = shop("store");
    let before = contents(&store);
    refusal(
        store.run(["run", "--rm", "nosuch:1", "true"]),
        125,
        "nosuch:1",
        "No such image",
    );
    refusal(
        store.run(["mount", "nosuch", point().to_str().unwrap()]),
        1,
        "nosuch",
        "No such image",
    );
    refusal(store.run(["rmi", "nosuch"]), 1, "nosuch", "");
    refusal(store.run(["history", "nosuch"]), 1, "nosuch", "");
    // The same store as for any other command.
    assert!(store.ok(["dedup", "shop"]).contains("shop:latest"));
    let line = store.run(["dedup", "nosuch"]).refused(1);
    assert!(line.contains("no image nosuch:latest"), "{line}");
    assert_eq!(contents(&store), before);
}

#[test]
fn a_missing_image_is_named_as_root() {
    root(|| a_missing_image());
}

#[test]
fn a_missing_image_is_named_as_user() {
    user(|| a_missing_image());
}

#[test]
fn a_truncated_archive_is_refused_wherever_it_ends() {
    root(|| {
        let store = Store::empty("store");
        let before = contents(&store);
        let whole = directory().join("image.tar");
        make_image(
            "docker",
            &whole,
            "image",
            &["--compress", "gzip"],
            &[&layers().join("base.tar")],
        );
        let size = fs::metadata(&whole).unwrap().len();
        let cut = directory().join("cut.tar");
        for part in [1, 100, 511, 513, 1024, size / 3, size / 2, size - 20_000] {
            shell(
                &directory(),
                "head -c \"$1\" image.tar > cut.tar",
                [part.to_string()],
            );
            let outcome = store.run(["load", "-i", cut.to_str().unwrap()]);
            refusal(outcome, 1, "cut.tar", "");
            assert_eq!(
                contents(&store),
                before,
                "after the first {part} of {size} bytes"
            );
        }
        store.load(&whole);
    });
}

#[test]
fn a_file_that_is_no_archive_is_refused() {
    root(|| {
        let store = Store::empty("store");
        let before = contents(&store);
        shell(
            &directory(),
            "echo hello > text; : > empty; head -c 100000 /dev/urandom > noise; mkdir dir; gzip -k text",
            [""; 0],
        );
        for name in ["text", "empty", "noise", "dir", "text.gz"] {
            refusal(
                store.run(["load", "-i", directory().join(name).to_str().unwrap()]),
                1,
                name,
                "",
            );
        }
        for name in ["text", "noise", "text.gz"] {
            refusal(
                store.run(["import", directory().join(name).to_str().unwrap(), "image"]),
                1,
                name,
                "",
            );
        }
        refusal(
            store.run(["load", "-i", "/no/such/file"]),
            1,
            "/no/such/file",
            "",
        );
        // A plain root file system given to load: say which command takes it.
        refusal(
            store.run(["load", "-i", layers().join("base.tar").to_str().unwrap()]),
            1,
            "base.tar",
            "cowl import",
        );
        assert_eq!(contents(&store), before);
    });
}

#[test]
fn a_layer_that_is_not_what_its_config_says_is_refused() {
    root(|| {
        let store = Store::empty("store");
        let before = contents(&store);
        make_image(
            "docker",
            &directory().join("image.tar"),
            "image",
            &[],
            &[&layers().join("shop.tar")],
        );
        // One byte of a file's content: the tar stays well-formed, the diffID does not.
        shell(
            &directory(),
            "sed -i 's/this is/that is/' image.tar",
            [""; 0],
        );
        refusal(
            store.run([
                "load",
                "-i",
                directory().join("image.tar").to_str().unwrap(),
            ]),
            1,
            "image.tar",
            "sha256:",
        );
        assert_eq!(contents(&store), before);
    });
}

#[test]
fn a_full_disk_leaves_the_store_as_it_was() {
    root(|| {
        shell(
            &directory(),
            "mkdir small; mount -t tmpfs -o size=16m tmpfs small; head -c 20000000 /dev/urandom > noise",
            [""; 0],
        );
        let store = Store::new("small/store");
        store.ok([
            "import",
            layers().join("shop.tar").to_str().unwrap(),
            "shop",
        ]);
        let before = contents(&store);
        shell(
            &directory(),
            "mkdir big; split -b 1000000 noise big/; tar -cf big.tar big",
            [""; 0],
        );
        refusal(
            store.run([
                "import",
                directory().join("big.tar").to_str().unwrap(),
                "big",
            ]),
            1,
            "big.tar",
            "cowl rmi",
        );
        assert_eq!(contents(&store), before);
        store.ok(["check"]);
        // A copy-up that finds no room leaves the file as it was and nothing beside it.
        let mount = store.mount_upper("shop", "small/mnt");
        shell(
            mount.path(),
            "if cat ../../noise > fill; then echo the disk is not full; exit 1; fi 2>/dev/null",
            [""; 0],
        );
        // Synced: without passthrough a write is cached, and a shell tells no error of close(2).
        let append = || {
            shell(
                mount.path(),
                "echo x | dd of=srv/catalogue.txt oflag=append conv=notrunc,fsync status=none 2>&1 || true",
                [""; 0],
            )
        };
        assert!(append().contains("No space left on device"));
        assert_eq!(
            shell(
                mount.path(),
                "seq 1 212000 | cmp - srv/catalogue.txt",
                [""; 0]
            ),
            ""
        );
        assert_eq!(
            shell(
                &directory(),
                "find small/mnt.upper small/mnt.upper.work -type f ! -name lock -printf '%p %b\\n' | grep -v ' 0$' | cut -d ' ' -f 1",
                [""; 0]
            ),
            "small/mnt.upper/fill\n"
        );
        // Not removed: what a removed file held is free when the kernel has let go of it, a little
        // later.
        shell(mount.path(), ": > fill", [""; 0]);
        assert_eq!(append(), "");
        assert_eq!(
            shell(
                mount.path(),
                "(seq 1 212000; echo x) | cmp - srv/catalogue.txt",
                [""; 0]
            ),
            ""
        );
        mount.unmount();
        shell(&directory(), "umount small", [""; 0]);
    });
}

#[test]
fn a_read_only_disk_is_named_as_what_it_is() {
    root(|| {
        shell(
            &directory(),
            "mkdir disk; mount -t tmpfs tmpfs disk",
            [""; 0],
        );
        let store = shop("disk/store");
        let before = contents(&store);
        shell(&directory(), "mount -o remount,ro disk", [""; 0]);
        store.ok(["images"]);
        let archive = layers().join("shop.tar");
        let refused: [(&[&str], i32, &str); 3] = [
            (&["run", "--rm", "shop", "true"], 125, "cowl: making"),
            (&["rmi", "shop"], 1, "shop"),
            (
                &["import", archive.to_str().unwrap(), "other"],
                1,
                "shop.tar",
            ),
        ];
        for (arguments, code, what) in refused {
            refusal(store.run(arguments), code, what, "Read-only file system");
        }
        assert_eq!(contents(&store), before);
        shell(&directory(), "umount disk", [""; 0]);
    });
}

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

fn an_upper_that_is_not_apart() {
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
    // A slash at the end, as a shell's completion leaves it, is the same upper.
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
fn an_upper_that_is_not_apart_is_refused_as_root() {
    root(|| an_upper_that_is_not_apart());
}

#[test]
fn an_upper_that_is_not_apart_is_refused_as_user() {
    user(|| an_upper_that_is_not_apart());
}

/// Anyone's mount on such a path stands in everyone's mount table.
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
        // An ordinary user, in no user namespace: may open /dev/fuse and has the store, may not mount.
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

/// Root would leave files in it that the user could not read or remove.
#[test]
fn root_changes_nothing_in_a_users_store() {
    root(|| {
        let store = shop("store");
        let (archive, base) = (layers().join("blog.image.tar"), layers().join("base.tar"));
        let ended = in_shop(&store, &["--name", "ended"], &["true"]);
        assert_eq!(ended.code(), 0, "{ended}");
        shell(&directory(), "chown -R 65534:65534 store", [""; 0]);
        let everything = || {
            let list = "find . -printf '%p %s %u %m\n' | sort";
            shell(store.root(), list, [""; 0])
        };
        let before = everything();
        let (archive, base) = (archive.to_str().unwrap(), base.to_str().unwrap());
        let mount_point = point();
        let commands: [&[&str]; 8] = [
            &["load", "-i", archive],
            &["import", base, "base"],
            &["mount", "shop", mount_point.to_str().unwrap()],
            &["run", "--rm", "shop", "true"],
            &["rmi", "-f", "shop"],
            &["rm", "ended"],
            &["volume", "create", "data"],
            &["volume", "rm", "data"],
        ];
        for command in commands {
            let code = if command[0] == "run" { 125 } else { 1 };
            let owner = format!("{} belongs to user 65534", store.root().display());
            refusal(store.run(command), code, &owner, "sudo -u '#65534' cowl");
        }
        assert_eq!(everything(), before);
        for command in [&["images"][..], &["history", "shop"], &["check"], &["ps"]] {
            store.ok(command);
        }
        assert_eq!(everything(), before);
        assert_eq!(mounted_kind(&mount_point), None);
    });
}

/// A command that does not need what is damaged works; none hangs or follows a symbolic link.
fn a_damaged_part() {
    let store = shop("store");
    in_shop(&store, &["--name", "ended"], &["true"]).ok();
    let run = &["run", "--rm", "shop", "true"][..];
    let archive = layers().join("blog.image.tar");
    let load = &["load", "-q", "-i", archive.to_str().unwrap()][..];
    let (images, ps, volumes) = (&["images"][..], &["ps", "-a"][..], &["volume", "ls"][..]);
    let history = &["history", "shop"][..];
    let parts = [
        (
            "merged",
            vec![images, ps, volumes, history],
            vec![run, load],
        ),
        (
            "volumes",
            vec![images, ps, run, load, history],
            vec![volumes],
        ),
        (
            "mountd.log",
            vec![images, ps, volumes, load, history],
            vec![run],
        ),
    ];
    let damages = [
        "mkfifo \"$1\"",
        "mkdir -p elsewhere; ln -s elsewhere \"$1\"",
        "ln -s nowhere \"$1\"",
        "echo > \"$1\"",
    ];
    for (part, works, fails) in parts {
        for damage in damages {
            // A log of any content is one.
            let damage = if part == "mountd.log" {
                damage.replace("echo >", "mkdir")
            } else {
                damage.to_owned()
            };
            shell(store.root(), "mv \"$1\" ../aside", [part]);
            shell(store.root(), &damage, [part]);
            for command in &works {
                store.ok(*command);
            }
            for command in &fails {
                let code = if *command == run { 125 } else { 1 };
                let path = store.root().join(part);
                let why = if part == "mountd.log" {
                    "not a regular file"
                } else {
                    "Not a directory"
                };
                refusal(store.run(*command), code, path.to_str().unwrap(), why);
            }
            let check = store.run(["check"]);
            assert_eq!(check.code(), 1, "{check}");
            let named = format!("{}: damaged", store.root().join(part).display());
            assert!(check.stdout.contains(&named), "{check}");
            shell(
                store.root(),
                "rm -r \"$1\"; mv ../aside \"$1\"; if [ -e elsewhere ]; then rmdir elsewhere; fi; ! ls nowhere 2>/dev/null",
                [part],
            );
        }
    }
    for command in [run, load, volumes] {
        store.ok(command);
    }
    store.ok(["rm", "ended"]);
    store.ok(["check", "--deep"]);
}

#[test]
fn a_damaged_part_stops_only_the_commands_that_need_it_as_root() {
    root(|| a_damaged_part());
}

#[test]
fn a_damaged_part_stops_only_the_commands_that_need_it_as_user() {
    user(|| a_damaged_part());
}

fn a_wrong_command_line() {
    let store = Store::new("store");
    refusal(store.run(["images", "--nosuch"]), 125, "--nosuch", "--help");
    refusal(
        store.run(["run", "--nosuch", "shop"]),
        125,
        "--nosuch",
        "--help",
    );
    refusal(store.run(["nosuch"]), 125, "nosuch", "cowl --help");
    let line = store.run(["dedup", "--nosuch"]).refused(125);
    assert!(
        line.contains("--nosuch") && line.contains("cowl dedup --help"),
        "{line}"
    );
    refusal(store.run(["run"]), 125, "IMAGE", "--help");
    refusal(
        store.run(["run", "-m", "lots", "shop"]),
        125,
        "lots",
        "--help",
    );
    assert!(
        !store.root().exists(),
        "a wrong command line makes no store"
    );
}

#[test]
fn a_wrong_command_line_is_told() {
    root(|| a_wrong_command_line());
}

fn a_name_in_use() {
    let store = shop("store");
    in_shop(&store, &["--name", "taken"], &["true"]).ok();
    let before = containers(&store);
    refusal(
        in_shop(&store, &["--name", "taken"], &["true"]),
        125,
        "taken",
        "You have to remove (or rename) that container",
    );
    assert_eq!(containers(&store), before);
    refusal(
        in_shop(&store, &["--name", "no/slash"], &["true"]),
        125,
        "no/slash",
        "",
    );
    refusal(store.run(["rm", "nosuch"]), 1, "nosuch", "");
    assert_eq!(containers(&store), before);
}

#[test]
fn a_name_in_use_is_told_as_root() {
    root(|| a_name_in_use());
}

#[test]
fn a_name_in_use_is_told_as_user() {
    user(|| a_name_in_use());
}
