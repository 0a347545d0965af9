//! The changes in a mount or container become a layer: other programs extract it to the same files
//! as the same changes to a plain directory.

use std::path::{Path, PathBuf};
use std::time::Instant;

use cowl_tests::busybox::{in_shop, layers, shop};
use cowl_tests::command::{program, run, shell, system};
use cowl_tests::host::has_overlayfs;
use cowl_tests::profile::{NEVER, Privilege, current, directory, root, user};
use cowl_tests::skip::skip;
use cowl_tests::store::{Store, extract, pack};
use cowl_tests::tree;

/// The image. `$1`: root adds devices and other owners.
const BASE: &str = r#"
mkdir -p dir/sub/deep moved/in/side opaque/old gone/with empty kept links/a links/b
for file in dir/chmod dir/append dir/rewrite dir/truncate dir/removed dir/sub/file dir/sub/deep/file moved/file \
  moved/in/file moved/in/side/file opaque/old/file opaque/file gone/file gone/with/file kept/file tofile/x ./swap; do
  mkdir -p "${file%/*}"; printf '%s content' "$file" > "$file"
done
head -c 300000 /bin/bash > kept/large; head -c 300000 /bin/bash | tr a b > dir/large
ln -s file dir/soft; ln -s nowhere dangling; printf x > links/a/one; ln links/a/one links/a/two; ln links/a/one links/b/three
printf y > links/a/quiet; ln links/a/quiet moved/quiet; printf z > links/z; ln links/z moved/in/z
truncate -s 1M dir/sparse; printf end >> dir/sparse
setfattr -n user.note -v base kept/file
if [ "$1" = root ]; then mknod dir/null c 1 3; chown 1000:1000 kept/file dir/chmod; fi
find . -depth -exec touch -h -d '1999-12-31T23:59:58.5Z' {} +
"#;

/// The changes, for a mount and for a plain directory. `$2`: overlayfs reads a device 0:0 as a
/// whiteout. Everything changed gets the same time.
const CHANGES: &str = r#"
chmod 4711 dir/chmod; printf more >> dir/append; printf new > dir/rewrite; truncate -s 5 dir/truncate; rm dir/removed
truncate -s 100000 dir/large; chmod 600 kept/large; setfattr -n user.note -v changed kept/file
mv dir/sub dir/renamed; printf in-renamed > dir/renamed/new; rm dir/renamed/deep/file
mv moved elsewhere; rm elsewhere/in/file; printf added > elsewhere/in/side/added; mkdir moved; printf again > moved/file
rm -r opaque; mkdir opaque; printf fresh > opaque/fresh; rm -r gone; rmdir empty; rm -r tofile; printf file > tofile
rm swap; mkdir swap; printf inside > swap/inside; ln -sfn elsewhere dangling; rm dir/soft; ln -s chmod dir/soft
printf changed > links/a/one; rm links/a/two; ln links/z links/new
mkdir -p made/by/hand; printf made > made/by/hand/file; ln made/by/hand/file made/link; mkfifo made/fifo; : > made/empty
truncate -s 2M made/sparse; printf end >> made/sparse; printf "$(printf 'odd\nname')" > "made/$(printf 'odd\nname')"
if [ "$1" = root ]; then
  mknod made/zero c 1 5; [ "$2" = overlayfs ] || mknod made/null c 0 0; chown 7:8 made/empty; rm dir/null
  setfattr -n security.capability -v 0x0100000200200000000000000000000000000000 made/link; setfattr -n trusted.t -v t made
fi
find . -depth -newermt 2001-01-01 -exec touch -h -d '2020-02-02T02:02:02.25Z' {} +
touch -d '2020-02-02T02:02:02.25Z' .
"#;

fn privilege() -> &'static str {
    match current() {
        Privilege::Root => "root",
        Privilege::User => "user",
    }
}

/// The image `base`, and a plain directory with its files.
fn base() -> (Store, PathBuf) {
    let content = directory().join("content");
    std::fs::create_dir(&content).unwrap();
    shell(&content, BASE, [privilege()]);
    let store = Store::new("store");
    store.import_directory(&content, "base");
    (store, content)
}

/// The layers of a saved image, bottom first, as files.
fn saved_layers(store: &Store, image: &str) -> Vec<PathBuf> {
    let (archive, layout) = (directory().join("saved.tar"), directory().join("layout"));
    store.ok(["save", "-o", archive.to_str().unwrap(), image]);
    std::fs::create_dir(&layout).unwrap();
    system(
        "tar",
        [
            "-xf",
            archive.to_str().unwrap(),
            "-C",
            layout.to_str().unwrap(),
        ],
    );
    let paths = shell(
        &layout,
        "python3 -c 'import json; print(\"\\n\".join(json.load(open(\"manifest.json\"))[0][\"Layers\"]))'",
        [""; 0],
    );
    paths.lines().map(|path| layout.join(path)).collect()
}

/// Commits [`CHANGES`] made in a mount; returns the store and the directory changed alike.
fn committed(name: &str, reader: &str) -> (Store, PathBuf) {
    let (store, content) = base();
    let mount = store.mount_upper("base", "mnt");
    shell(mount.path(), CHANGES, [privilege(), reader]);
    shell(&content, CHANGES, [privilege(), reader]);
    let shown = tree::read(mount.path());
    let upper = mount.upper().to_owned();
    let command = ["commit", "--upper", upper.to_str().unwrap(), "base", name];
    let refused = store.run(command).refused(1);
    assert!(refused.contains("in use by another mount"), "{refused}");
    mount.unmount();
    let id = store.ok(command);
    assert_eq!(store.ok(["images", "-q", "--no-trunc", name]), id);
    store.assert_shows(name, &shown, "the committed image, mounted");
    assert!(store.ok(["check", "--deep"]).contains("No problems"));
    (store, content)
}

fn a_committed_upper_extracts_to_the_changed_files() {
    let (store, content) = committed("new:1", "any");
    let layers = saved_layers(&store, "new:1");
    assert_eq!(layers.len(), 2);
    let extracted = extract(&directory().join("extracted"), &layers);
    tree::assert_same(
        &tree::read(&content),
        &extracted,
        "the committed layers, extracted",
    );
    // Loaded as an image, the layer has the same tree and objects.
    let other = Store::new("other");
    other.load(&directory().join("saved.tar"));
    let layer = layers[1].file_name().unwrap();
    let files = ["tree-v2", "recipe-v2", "layer.json"].map(|file| {
        let path = Path::new("layers").join(layer).join(file);
        std::fs::read(store.root().join(&path)).unwrap()
            == std::fs::read(other.root().join(&path)).unwrap()
    });
    assert_eq!(files, [true; 3]);
}

#[test]
fn a_committed_upper_extracts_to_the_changed_files_as_root() {
    root(|| a_committed_upper_extracts_to_the_changed_files());
}

#[test]
fn a_committed_upper_extracts_to_the_changed_files_as_user() {
    user(|| a_committed_upper_extracts_to_the_changed_files());
}

#[test]
fn umoci_unpacks_a_committed_image_to_the_changed_files() {
    root(|| {
        let (store, content) = committed("new:latest", "any");
        saved_layers(&store, "new");
        shell(
            &directory(),
            "umoci unpack --image layout:latest bundle",
            [""; 0],
        );
        let unpacked = tree::read(&directory().join("bundle/rootfs"));
        tree::assert_same(&tree::read(&content), &unpacked, "umoci's unpacking");
    });
}

/// Stacked layers, as containers-storage extracts them for the kernel's overlayfs.
#[test]
fn the_kernels_overlayfs_shows_a_committed_image_as_changed() {
    if !has_overlayfs() {
        return skip("this kernel has no overlayfs");
    }
    root(|| {
        let (store, content) = committed("new:latest", "overlayfs");
        saved_layers(&store, "new");
        let podman = "
podman() { command podman --root \"$PWD/podman\" --runroot \"$PWD/run\" --storage-driver overlay --cgroup-manager cgroupfs \"$@\"; }
podman load -q -i saved.tar >&2
podman image mount new:latest";
        let point = shell(&directory(), podman, [""; 0]);
        let point = Path::new(point.trim());
        let kind = cowl_tests::store::mounted_kind(point);
        assert_eq!(kind.as_deref(), Some("overlay"));
        // Its directories have one link; the root's mode is containers-storage's.
        let listing = "find . -mindepth 1 -type d -printf '%p %m %U %G %T@\\n' | sort
find . -type f -printf '%p %m %U %G %T@ %n %s\\n' | sort; find . ! -type f ! -type d -printf '%p %y %m %U %G %T@ %n %l\\n' | sort
find . -type f -exec sha256sum {} + | sort; find . -type f -print0 | sort -z | xargs -0 getfattr -h -d -m '^(user|security.capability)' -e hex";
        let shown = shell(point, listing, [""; 0]);
        system("umount", [point]);
        // podman mounts its storage on itself.
        let storage = directory().join("podman/overlay");
        if cowl_tests::store::mounted_kind(&storage).is_some() {
            system("umount", [storage]);
        }
        assert_eq!(shown, shell(&content, listing, [""; 0]));
    });
}

#[test]
fn diff_lists_what_an_upper_adds_changes_and_deletes() {
    root(|| {
        let (store, _) = base();
        let mount = store.mount_upper("base", "mnt");
        shell(
            mount.path(),
            "chmod 600 kept/file; rm dir/removed; printf x > dir/new; mv dir/sub dir/renamed; rm -r opaque; mkdir opaque; : > opaque/fresh; mkdir -p a/b",
            [""; 0],
        );
        let upper = mount.upper().to_owned();
        mount.unmount();
        let listed = store.ok(["diff", "--upper", upper.to_str().unwrap(), "base"]);
        let expected = "A /a
A /a/b
C /dir
A /dir/new
D /dir/removed
A /dir/renamed
A /dir/renamed/deep
A /dir/renamed/deep/file
A /dir/renamed/file
D /dir/sub
C /kept
C /kept/file
C /opaque
D /opaque/file
A /opaque/fresh
D /opaque/old
";
        assert_eq!(listed, expected);
    });
}

#[test]
fn a_stopped_container_becomes_an_image_as_docker_makes_it() {
    root(|| {
        let store = shop("store");
        let run = [
            "run",
            "--name",
            "box",
            "-e",
            "ADDED=1",
            "-v",
            "/made/volume",
            "shop",
        ];
        let script = "echo changed > /file; rm /etc/motd 2>/dev/null; exit 0";
        store.ok([&run[..], &["sh", "-c", script]].concat());
        let diff = store.ok(["diff", "box"]);
        assert!(diff.contains("A /file\n"), "{diff}");
        assert!(!diff.contains("volume") && !diff.contains("proc"), "{diff}");
        let commit = ["commit", "-a", "Me <me@example.org>", "-m", "said so"];
        let change = [
            "-c",
            "CMD [\"cat\", \"/file\"]",
            "-c",
            "LABEL a=b",
            "box",
            "new:1",
        ];
        let id = store.ok([&commit[..], &change].concat());
        assert_eq!(in_shop_of(&store, "new:1"), "changed\n");
        let history = store.ok(["history", "--no-trunc", "new:1"]);
        let last = history.lines().nth(1).unwrap();
        assert!(
            last.starts_with(id.trim()) && last.ends_with("said so"),
            "{last}"
        );
        assert!(last.contains("sh -c echo changed > /file"), "{last}");
        let config = store
            .root()
            .join("blobs/sha256")
            .join(&id.trim()["sha256:".len()..]);
        let fields = shell(
            &directory(),
            "python3 -c 'import json, sys; c = json.load(open(sys.argv[1])); print(c[\"author\"], c[\"config\"][\"Cmd\"], c[\"config\"][\"Labels\"], sorted(c[\"config\"][\"Env\"]), len(c[\"rootfs\"][\"diff_ids\"]))' \"$1\"",
            [&config],
        );
        assert_eq!(
            fields,
            "Me <me@example.org> ['cat', '/file'] {'a': 'b'} ['ADDED=1', 'FROM=image', 'PATH=/bin:/usr/bin'] 3\n"
        );
        // Nothing changed: no layer, but a history step of its own.
        store.ok(["run", "--name", "idle", "shop", "true"]);
        store.ok(["commit", "idle", "same:1"]);
        let steps = store.ok(["history", "-q", "same:1"]);
        assert_eq!(steps.lines().count(), 3);
        store.run(["commit", "none", "x"]).refused(1);
        store.run(["commit", "-c", "RUN x", "box", "x"]).refused(1);
    });
}

fn in_shop_of(store: &Store, image: &str) -> String {
    store.ok(["run", "--rm", image])
}

fn export_writes_the_files_of_images_and_containers() {
    let (store, content) = base();
    let plain = directory().join("plain.tar");
    pack(&content, &plain);
    let archive = directory().join("image.tar");
    store.ok(["export", "-o", archive.to_str().unwrap(), "base"]);
    let expected = tree::read(&content);
    let extracted = extract(&directory().join("image"), [&archive]);
    tree::assert_same(&expected, &extracted, "an image's files");
    let refused = store.run(["export", "none"]).refused(1);
    assert!(
        refused.contains("No such container or image: none"),
        "{refused}"
    );
}

#[test]
fn export_writes_the_files_of_an_image_as_root() {
    root(|| export_writes_the_files_of_images_and_containers());
}

#[test]
fn export_writes_the_files_of_an_image_as_user() {
    user(|| export_writes_the_files_of_images_and_containers());
}

#[test]
fn export_writes_the_files_of_a_stopped_container() {
    root(|| {
        let store = shop("store");
        let script = "echo changed > /file; mv /srv /moved; rm -f /bin/vi";
        assert_eq!(
            in_shop(&store, &["--name", "box"], &["sh", "-c", script]).code(),
            0
        );
        let archive = directory().join("box.tar");
        store.ok(["export", "-o", archive.to_str().unwrap(), "box"]);
        let parts = layers();
        let plain = directory().join("plain");
        extract(&plain, [parts.join("base.tar"), parts.join("shop.tar")]);
        shell(
            &plain,
            "echo changed > file; mv srv moved; rm -f bin/vi",
            [""; 0],
        );
        // The times of changed files differ, their contents do not.
        let listing = "find . -mindepth 1 -printf '%p %y %m %U %G %l\\n' | grep -v '^./\\(proc\\|sys\\|dev\\) ' | sort; find . -type f -exec sha256sum {} + | sort";
        let found = directory().join("found");
        extract(&found, [&archive]);
        assert_eq!(
            shell(&found, listing, [""; 0]),
            shell(&plain, listing, [""; 0])
        );
    });
}

#[test]
fn tag_names_an_image_again() {
    root(|| {
        let store = shop("store");
        let id = store.ok(["images", "-q", "--no-trunc"]);
        store.ok(["tag", "shop", "other:1"]);
        store.ok(["tag", &id.trim()[..20], "by/id"]);
        for name in ["shop", "other:1", "by/id:latest"] {
            assert_eq!(store.ok(["images", "-q", "--no-trunc", name]), id, "{name}");
        }
        store.ok(["rmi", "shop", "other:1"]);
        assert_eq!(in_by_id(&store), "yes\n");
        store.run(["tag", "none", "x"]).refused(1);
        store.run(["tag", "by/id", "X"]).refused(1);
        store
            .run(["tag", "by/id", &format!("x@{}", id.trim())])
            .refused(1);
    });
}

fn in_by_id(store: &Store) -> String {
    store.ok(["run", "--rm", "by/id", "echo", "yes"])
}

fn unpack_makes_the_files_of_an_image() {
    let (store, content) = base();
    let dir = directory().join("unpacked");
    let expected = tree::read(&content);
    let outcome = store.run(["unpack", "base", dir.to_str().unwrap()]);
    assert_eq!((outcome.code(), outcome.stderr.as_str()), (0, ""));
    tree::assert_same(&expected, &tree::read(&dir), "the unpacked image");
    let blocks = shell(&dir, "stat -c %b dir/sparse", [""; 0]);
    let blocks: u64 = blocks.trim().parse().unwrap();
    assert!(
        blocks * 512 < 1 << 19,
        "a hole of 1 MiB has {blocks} blocks"
    );
    let refused = store
        .run(["unpack", "base", dir.to_str().unwrap()])
        .refused(1);
    assert!(refused.contains("not empty"), "{refused}");
}

#[test]
fn unpack_makes_the_files_of_an_image_as_root() {
    root(|| unpack_makes_the_files_of_an_image());
}

#[test]
fn unpack_makes_the_files_of_an_image_as_user() {
    user(|| unpack_makes_the_files_of_an_image());
}

/// What this user may not do is skipped and reported.
#[test]
fn unpack_says_what_a_user_is_not_permitted() {
    user(|| {
        let content = directory().join("content");
        std::fs::create_dir(&content).unwrap();
        let archive = directory().join("foreign.tar");
        shell(
            &content,
            "printf x > file; chmod 4755 file; printf y > other; mkfifo fifo",
            [""; 0],
        );
        let python = "
import sys, tarfile
with tarfile.open(sys.argv[1], 'w', format=tarfile.PAX_FORMAT) as archive:
    for name in 'file', 'other', 'fifo':
        info = archive.gettarinfo(name)
        info.uid = 1234 if name == 'file' else 0
        archive.addfile(info, open(name, 'rb') if info.isreg() else None)
    info = tarfile.TarInfo('null'); info.type = tarfile.CHRTYPE; info.devmajor, info.devminor = 1, 3
    archive.addfile(info)
    info = tarfile.TarInfo('marked'); info.pax_headers = {'SCHILY.xattr.trusted.t': 'v'}
    archive.addfile(info)";
        cowl_tests::command::python(&content, python, [&archive]);
        let store = Store::new("store");
        store.ok(["import", archive.to_str().unwrap(), "foreign"]);
        let dir = directory().join("unpacked");
        let outcome = store.run(["unpack", "foreign", dir.to_str().unwrap()]);
        assert_eq!(outcome.code(), 0, "{outcome}");
        assert_eq!(
            outcome.stderr,
            "cowl: warning: not permitted: 1 files belong to this user instead of their owner
cowl: warning: not permitted: 1 devices are missing
cowl: warning: not permitted: 1 extended attributes are missing
"
        );
        let listing = shell(&dir, "stat -c '%n %A' *", [""; 0]);
        assert_eq!(
            listing,
            "fifo prw-r--r--\nfile -rwxr-xr-x\nmarked -rw-r--r--\nother -rw-r--r--\n"
        );
    });
}

/// A running container that has changed files; with `writeback` the kernel still caches its last
/// write.
fn a_running_container_is_read_as_it_is() {
    let store = shop("store");
    let script = "echo new > /new; rm /srv/hello; printf more >> /etc/motd; mv /home /moved; touch /ready; exec sleep 1000";
    for io_mode in ["cached", "writeback"] {
        store.ok([
            "run", "-d", "--name", "web", "--io", io_mode, "shop", "sh", "-c", script,
        ]);
        let limit = Instant::now() + NEVER;
        while !store.ok(["exec", "web", "ls", "/"]).contains("ready") {
            assert!(
                Instant::now() < limit,
                "the script does not come to its end"
            );
        }
        let running = store.ok(["diff", "web"]);
        store.ok(["commit", "web", "live"]);
        let archive = directory().join("live.tar");
        store.ok(["export", "-o", archive.to_str().unwrap(), "web"]);
        let names = system("tar", ["-tf".as_ref(), archive.as_os_str()]);
        assert!(names.contains("new\n"), "{names}");
        assert!(!names.contains("srv/hello"), "{names}");
        // It continues afterwards, and a pause by the user stays.
        assert_eq!(store.ok(["exec", "web", "cat", "/new"]), "new\n");
        store.ok(["pause", "web"]);
        assert_eq!(store.ok(["diff", "web"]), running);
        let status = store.ok(["inspect", "-f", "{{.State.Status}}", "web"]);
        assert_eq!(status, "paused\n");
        store.ok(["unpause", "web"]);
        store.ok(["stop", "-t", "0", "web"]);
        assert_eq!(store.ok(["diff", "web"]), running, "{io_mode}, at rest");
        store.ok(["commit", "web", "rest"]);
        let layers = |image: &str| store.ok(["inspect", "-f", "{{json .RootFS.Layers}}", image]);
        assert_eq!(layers("live"), layers("rest"), "{io_mode}");
        store.ok(["rm", "web"]);
        store.ok(["rmi", "live", "rest"]);
    }
}

#[test]
fn a_running_container_is_read_as_it_is_as_root() {
    root(|| a_running_container_is_read_as_it_is());
}

/// Locks of a mount that has just ended, and of another command that tests them: each lock in turn
/// is held.
#[test]
fn diff_waits_for_locks_that_others_are_about_to_release() {
    root(|| {
        let store = shop("store");
        store.ok(["run", "--name", "ended", "shop", "touch", "/new"]);
        let diff = store.command(["diff", "ended"]);
        let calls = directory().join("calls");
        for at in 1.. {
            let inject = format!("inject=flock:error=EAGAIN:when={at}");
            let mut traced = program(
                "strace",
                ["-f", "-qq", "-e", "trace=flock", "-e", &inject, "-o"],
            );
            traced.arg(&calls).arg("--").arg(diff.get_program());
            let outcome = run(traced.args(diff.get_args()));
            assert!(!outcome.stderr.contains("are in use"), "{outcome}");
            if !std::fs::read_to_string(&calls)
                .unwrap()
                .contains("(INJECTED)")
            {
                assert_eq!(outcome.ok(), "A /new\n");
                assert!(at > 2, "the upper has two locks");
                break;
            }
        }
    });
}

/// The mount of an ended container may have much to sync: its end is awaited, however long it
/// takes.
#[test]
fn diff_waits_for_the_mount_of_an_ended_container() {
    root(|| {
        let store = shop("store");
        let id = store.ok(["run", "-d", "shop", "touch", "/new"]);
        store.ok(["wait", id.trim()]);
        let lock = store.root().join("containers").join(id.trim());
        let lock = std::fs::File::open(lock.join("work/lock")).unwrap();
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
        let mut diff = store.command(["diff", id.trim()]);
        let mut diff = diff.stdout(std::process::Stdio::piped()).spawn().unwrap();
        let limit = Instant::now() + NEVER;
        // The line of a waiting process (proc_locks(5)).
        let waiting = format!(" {} ", diff.id());
        let waits = || {
            let locks = std::fs::read_to_string("/proc/locks").unwrap();
            let mut lines = locks.lines();
            lines.any(|line| line.contains("-> FLOCK") && line.contains(&waiting))
        };
        while diff.try_wait().unwrap().is_none() && !waits() {
            assert!(Instant::now() < limit, "it neither waits nor ends");
            std::thread::yield_now();
        }
        drop(lock);
        let outcome = diff.wait_with_output().unwrap();
        assert_eq!(String::from_utf8(outcome.stdout).unwrap(), "A /new\n");
    });
}
