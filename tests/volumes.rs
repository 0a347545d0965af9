//! Volumes are created at their first use, outlive containers, and can be used with several images.

use std::os::unix::fs::MetadataExt as _;

use cowl_tests::busybox::{add_blog, in_shop, shop};
use cowl_tests::command::{shell, system};
use cowl_tests::profile::{Privilege, current, directory, root, user};
use cowl_tests::server::Server;
use cowl_tests::store::Store;

fn a_volume_outlives_its_container() {
    let store = shop("store");
    add_blog(&store);
    in_shop(
        &store,
        &["--rm", "-v", "notes:/data"],
        &["sh", "-c", "echo kept > /data/note"],
    )
    .ok();
    assert_eq!(
        store.ok([
            "run",
            "--rm",
            "-v",
            "notes:/elsewhere",
            "blog",
            "cat",
            "/elsewhere/note"
        ]),
        "kept\n"
    );
    let listed = store.ok(["volume", "ls"]);
    assert!(listed.contains("notes"), "{listed}");
    let data = store.root().join("volumes/notes/_data/note");
    assert_eq!(std::fs::read_to_string(data).unwrap(), "kept\n");

    in_shop(&store, &["--name", "user", "-v", "notes:/data"], &["true"]).ok();
    let refusal = store.run(["volume", "rm", "notes"]).refused(1);
    assert!(refusal.contains("notes"), "{refusal}");
    store.ok(["rm", "user"]);
    store.ok(["volume", "rm", "notes"]);
    assert!(!store.root().join("volumes/notes").exists());
}

#[test]
fn a_volume_outlives_its_container_as_root() {
    root(|| a_volume_outlives_its_container());
}

#[test]
fn a_volume_outlives_its_container_as_user() {
    user(|| a_volume_outlives_its_container());
}

fn read_only_is_read_only() {
    let store = shop("store");
    in_shop(
        &store,
        &["--rm", "-v", "notes:/data"],
        &["sh", "-c", "echo one > /data/note"],
    )
    .ok();
    let refused = in_shop(
        &store,
        &["--rm", "-v", "notes:/data:ro"],
        &["sh", "-c", "echo two > /data/note"],
    );
    assert_ne!(refused.code(), 0);
    assert!(
        refused.stderr.contains("Read-only file system"),
        "{refused}"
    );
    let remounted = in_shop(
        &store,
        &["--rm", "-v", "notes:/data:ro"],
        &["mount", "-o", "remount,rw", "/data"],
    );
    assert_ne!(
        remounted.code(),
        0,
        "nor can it be made writable from inside"
    );
    assert_eq!(
        in_shop(
            &store,
            &["--rm", "-v", "notes:/data"],
            &["cat", "/data/note"]
        )
        .ok(),
        "one\n"
    );
}

#[test]
fn read_only_is_read_only_as_root() {
    root(|| read_only_is_read_only());
}

#[test]
fn read_only_is_read_only_as_user() {
    user(|| read_only_is_read_only());
}

fn an_empty_volume_is_filled_from_the_image() {
    let store = shop("store");
    assert_eq!(
        in_shop(&store, &["--rm", "-v", "served:/srv"], &["/srv/hello"]).ok(),
        "this is shop\n"
    );
    let data = store.root().join("volumes/served/_data");
    assert_eq!(
        std::fs::metadata(data.join("catalogue.txt")).unwrap().len(),
        1_372_895
    );
}

#[test]
fn an_empty_volume_is_filled_from_the_image_as_root() {
    root(|| an_empty_volume_is_filled_from_the_image());
}

#[test]
fn an_empty_volume_is_filled_from_the_image_as_user() {
    user(|| an_empty_volume_is_filled_from_the_image());
}

/// Docker fills a volume when its first container is created: another container that mounts it
/// elsewhere finds the files, though the first has never run.
fn create_fills_a_new_volume() {
    let store = shop("store");
    let create = |flags: &[&str]| {
        store.ok([&["create"], flags, &["shop", "true"]].concat());
    };
    create(&["-v", "served:/srv"]);
    create(&["-v", "empty:/srv:nocopy", "-v", "none:/nothing/there"]);
    let data = |name: &str| store.root().join("volumes").join(name).join("_data");
    assert!(data("served").join("hello").exists());
    for name in ["empty", "none"] {
        assert_eq!(std::fs::read_dir(data(name)).unwrap().count(), 0, "{name}");
    }
    let listed = in_shop(
        &store,
        &["--rm", "-v", "served:/elsewhere"],
        &["ls", "/elsewhere"],
    );
    assert!(listed.ok().contains("hello\n"));
    // It is filled once: files that the first container removed are not restored.
    std::fs::remove_file(data("served").join("hello")).unwrap();
    create(&["-v", "served:/srv"]);
    assert!(!data("served").join("hello").exists());
    // Nothing of it shows in the container.
    let id = store.ok(["create", "-v", "fresh:/srv", "shop", "true"]);
    assert_eq!(store.ok(["diff", id.trim()]), "");
}

#[test]
fn create_fills_a_new_volume_as_root() {
    root(|| create_fills_a_new_volume());
}

#[test]
fn create_fills_a_new_volume_as_user() {
    user(|| create_fills_a_new_volume());
}

/// If the namespace lacks the owner, the copy belongs to the caller, without set-id bits.
fn a_volume_keeps_the_images_owners() {
    let store = shop("store");
    let place = directory();
    shell(
        &place,
        "mkdir -p own/bin own/var/www; cp /bin/busybox own/bin/sh; echo page > own/var/www/page
         chmod 755 own own/* own/var/www; chmod 4755 own/var/www/page
         tar -cf own.tar --owner=0 --group=0 -C own ./bin; tar -rf own.tar --owner=33 --group=33 -C own ./var/www",
        [""; 0],
    );
    store.ok(["import", place.join("own.tar").to_str().unwrap(), "own"]);
    store.ok([
        "run",
        "--rm",
        "-v",
        "www:/var/www",
        "own",
        "/bin/sh",
        "-c",
        ":",
    ]);
    let data = store.root().join("volumes/www/_data");
    let (owner, mode) = match current() {
        Privilege::Root => (33, 0o4755),
        Privilege::User => (0, 0o755),
    };
    for (path, mode) in [("", 0o755), ("page", mode)] {
        let found = std::fs::metadata(data.join(path)).unwrap();
        assert_eq!(
            (found.uid(), found.gid(), found.mode() & 0o7777),
            (owner, owner, mode),
            "{path}"
        );
    }
    assert_eq!(
        std::fs::read_to_string(data.join("page")).unwrap(),
        "page\n"
    );
}

#[test]
fn a_volume_keeps_the_images_owners_as_root() {
    root(|| a_volume_keeps_the_images_owners());
}

#[test]
fn a_volume_keeps_the_images_owners_as_user() {
    user(|| a_volume_keeps_the_images_owners());
}

/// A link in the image at the volume's mount point is resolved inside the image, never to the
/// host's directory of that name.
#[test]
fn a_link_in_the_image_does_not_lead_a_volume_out() {
    root(|| {
        let store = shop("store");
        let content = directory().join("evil");
        let outside = directory().join("outside");
        std::fs::create_dir(&outside).unwrap();
        std::fs::create_dir_all(content.join("bin")).unwrap();
        std::fs::create_dir_all(content.join(outside.strip_prefix("/").unwrap())).unwrap();
        std::os::unix::fs::symlink(&outside, content.join("data")).unwrap();
        std::fs::copy("/bin/busybox", content.join("bin/sh")).unwrap();
        store.import_directory(&content, "evil");
        store.ok([
            "run",
            "--rm",
            "-v",
            "notes:/data",
            "evil",
            "/bin/sh",
            "-c",
            "echo inside > /data/note",
        ]);
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
        assert_eq!(
            std::fs::read_to_string(store.root().join("volumes/notes/_data/note")).unwrap(),
            "inside\n"
        );
    });
}

/// As in dockerd, one file system for all running containers, which ends with the last of them; but
/// nothing is mounted on the host.
fn running_containers_share_a_tmpfs_volume(create: impl Fn(&Store, &[&str])) {
    let store = shop("store");
    let options = ["type=tmpfs", "device=tmpfs", "o=size=64k,mode=1770,noexec"];
    let options = options.iter().flat_map(|option| ["--opt", option]);
    let create_shared: Vec<&str> = options.chain(["shared"]).collect();
    create(&store, &create_shared);
    let shown = store.ok(["volume", "inspect", "-f", "{{json .Options}}", "shared"]);
    assert_eq!(
        shown,
        "{\"device\":\"tmpfs\",\"o\":\"size=64k,mode=1770,noexec\",\"type\":\"tmpfs\"}\n"
    );
    let run =
        |mount: &str, script: &str| in_shop(&store, &["--rm", "-v", mount], &["sh", "-c", script]);
    let start = |name: &str, mount: &str| {
        store.ok([
            "run", "-d", "--name", name, "-v", mount, "shop", "sleep", "1000",
        ]);
    };
    // It is read-only for one container only.
    start("first", "shared:/data:ro");
    assert_eq!(
        run(
            "shared:/srv",
            "stat -c '%a %s' /srv; echo kept > /srv/note; ls /srv"
        )
        .ok(),
        "1770 40\nnote\n",
        "the image's files stay out of it"
    );
    assert_eq!(store.ok(["exec", "first", "cat", "/data/note"]), "kept\n");
    let write = run("shared:/srv:ro", "echo x > /srv/note");
    assert!(write.stderr.contains("Read-only file system"), "{write}");
    let exec = run("shared:/srv", "cp /bin/busybox /srv/b");
    assert!(exec.stderr.contains("No space left on device"), "{exec}");
    let exec = run(
        "shared:/srv",
        "echo '#!/bin/sh' > /srv/b; chmod 755 /srv/b; /srv/b; rm /srv/b",
    );
    assert!(exec.stderr.contains("Permission denied"), "{exec}");
    // The first container is gone, but not the last.
    start("second", "shared:/data");
    store.ok(["rm", "-f", "first"]);
    assert_eq!(run("shared:/data", "cat /data/note").ok(), "kept\n");
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!table.contains("volumes/shared"), "{table}");
    let data = store.root().join("volumes/shared/_data");
    assert_eq!(std::fs::read_dir(data).unwrap().count(), 0);
    store.ok(["rm", "-f", "second"]);
    assert_eq!(run("shared:/data", "ls -A /data").ok(), "");

    let twice = ["--rm", "-v", "shared:/a", "-v", "shared:/b"];
    let twice = in_shop(&store, &twice, &["true"]).refused(125);
    assert!(twice.contains("only once in a container"), "{twice}");
    for (options, why) in [
        (
            ["type=tmpfs", "device=x", "o=size=what"],
            "Bad value for 'size'",
        ),
        (
            ["type=nosuchfs", "device=x", "o=ro"],
            "mount x: No such device",
        ),
    ] {
        let options = options.iter().flat_map(|option| ["--opt", option]);
        create(&store, &options.chain(["wrong"]).collect::<Vec<_>>());
        let refused = run("wrong:/data", "true").refused(125);
        let expected = "failed to mount local volume: mount x: ";
        assert!(
            refused.contains(expected) && refused.contains(why),
            "{refused}"
        );
        store.ok(["volume", "rm", "wrong"]);
    }
    store.ok(["volume", "rm", "shared"]);
}

fn by_cowl(store: &Store, options: &[&str]) {
    store.ok([&["volume", "create"], options].concat());
}

#[test]
fn running_containers_share_a_tmpfs_volume_as_root() {
    root(|| running_containers_share_a_tmpfs_volume(by_cowl));
}

#[test]
fn running_containers_share_a_tmpfs_volume_as_user() {
    user(|| running_containers_share_a_tmpfs_volume(by_cowl));
}

#[test]
fn running_containers_share_a_tmpfs_volume_for_docker() {
    root(|| {
        running_containers_share_a_tmpfs_volume(|store, options| {
            let server = Server::start(store);
            server.ok([&["volume", "create"], options].concat());
        });
    });
}

/// A file system on a device: what containers write stays, and the image fills it once.
#[test]
fn a_volume_of_a_device_keeps_what_is_written() {
    root(|| {
        let store = shop("store");
        let disk = directory().join("disk");
        std::fs::File::create(&disk)
            .unwrap()
            .set_len(8 << 20)
            .unwrap();
        system("mkfs.ext4", ["-q", disk.to_str().unwrap()]);
        let device = system("losetup", ["--find", "--show", disk.to_str().unwrap()]);
        let device = format!("device={}", device.trim());
        let options = ["type=ext4", &device, "o=noatime"];
        let options = options.iter().flat_map(|option| ["--opt", option]);
        by_cowl(&store, &options.chain(["disk"]).collect::<Vec<_>>());
        let run = |script: &str| {
            in_shop(&store, &["--rm", "-v", "disk:/data"], &["sh", "-c", script]).ok()
        };
        store.ok([
            "run", "-d", "--name", "user", "-v", "disk:/d", "shop", "sleep", "1000",
        ]);
        run("echo kept > /data/note");
        assert_eq!(store.ok(["exec", "user", "cat", "/d/note"]), "kept\n");
        store.ok(["rm", "-f", "user"]);
        let mounted = run("cat /data/note; grep ' /data ' /proc/mounts");
        assert!(mounted.starts_with("kept\n"), "{mounted}");
        assert!(mounted.contains("ext4 rw,noatime"), "{mounted}");
        // Nothing holds the device.
        system("losetup", ["--detach", &device["device=".len()..]]);
        assert!(!system("losetup", ["--all"]).contains(disk.to_str().unwrap()));
        // A bind that is read-only, by its options or by the container's.
        let content = directory().join("content");
        std::fs::create_dir(&content).unwrap();
        std::fs::write(content.join("note"), "host\n").unwrap();
        let device = format!("device={}", content.display());
        let options = ["type=none", &device, "o=bind,ro"];
        let options = options.iter().flat_map(|option| ["--opt", option]);
        by_cowl(&store, &options.chain(["bound"]).collect::<Vec<_>>());
        let script = ["sh", "-c", "cat /data/note; echo x > /data/note"];
        let write = in_shop(&store, &["--rm", "-v", "bound:/data"], &script);
        assert_eq!(write.stdout, "host\n");
        assert!(write.stderr.contains("Read-only file system"), "{write}");
    });
}
