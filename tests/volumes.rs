//! Volumes are made at their first use, outlive containers, and go from one image to another.

use std::os::unix::fs::MetadataExt as _;

use cowl_tests::busybox::{add_blog, in_shop, shop};
use cowl_tests::command::shell;
use cowl_tests::profile::{Privilege, current, directory, root, user};

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

fn an_empty_volume_takes_what_the_image_has_there() {
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
fn an_empty_volume_takes_what_the_image_has_there_as_root() {
    root(|| an_empty_volume_takes_what_the_image_has_there());
}

#[test]
fn an_empty_volume_takes_what_the_image_has_there_as_user() {
    user(|| an_empty_volume_takes_what_the_image_has_there());
}

/// Where the namespace has no such owner, the copy is the caller's, and no program is run as
/// somebody else.
fn a_volume_takes_owners_along() {
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
fn a_volume_takes_owners_along_as_root() {
    root(|| a_volume_takes_owners_along());
}

#[test]
fn a_volume_takes_owners_along_as_user() {
    user(|| a_volume_takes_owners_along());
}

/// A link in the image at the volume's place leads inside the image, never to the host's directory
/// of that name.
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
