//! Images and archives that are missing, damaged or too large for the disk.

use std::fs;

use cowl_tests::busybox::{layers, shop};
use cowl_tests::command::shell;
use cowl_tests::profile::{directory, root, user};
use cowl_tests::store::{Store, make_image};

use crate::{contents, point, refusal};

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
    // The same store as in other commands.
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
fn load_refuses_a_file_that_is_not_an_archive() {
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
        // For a plain root file system, load names the command that takes it.
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
        // Changing one byte of a file's content keeps the tar well-formed, but not its diffID.
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
        // A copy-up that fails for lack of space leaves the file as it was and nothing else.
        let mount = store.mount_upper("shop", "small/mnt");
        shell(
            mount.path(),
            "if cat ../../noise > fill; then echo the disk is not full; exit 1; fi 2>/dev/null",
            [""; 0],
        );
        // Synced: without passthrough a write is cached, and a shell does not report errors of
        // close(2).
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
        // Not removed: the kernel frees a removed file's space a little later.
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
