//! On file systems with reflinks, `commit` and `unpack` share blocks instead of copying; elsewhere
//! both copy, with the same result. `filefrag` shows which blocks are shared.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use cowl_tests::command::{shell, system};
use cowl_tests::disk::{Mounted, ext4};
use cowl_tests::profile::{directory, root};
use cowl_tests::store::Store;
use cowl_tests::tree;

/// Files created in a mount: a large one, one with a hole, and a small one, which is copied.
const CHANGES: &str = r"
head -c 3000000 /bin/bash > large; cat large large large > larger
truncate -s 40M sparse; cat larger >> sparse; echo small > small
";

/// Commits an upper and unpacks the image, all on one file system; returns the upper and the
/// directory.
fn committed_and_unpacked(disk: &Path) -> (PathBuf, PathBuf) {
    let content = directory().join("content");
    fs::create_dir(&content).unwrap();
    fs::write(content.join("base"), "base").unwrap();
    let store = Store::at(&disk.join("store"));
    store.import_directory(&content, "image:1");
    let (upper, work, seen) = (disk.join("upper"), disk.join("work"), disk.join("seen"));
    fs::create_dir(&seen).unwrap();
    let words = ["mount", "image:1", "--upper", "--work"].map(Path::new);
    let [mount, image, upper_option, work_option] = words;
    store.ok([
        mount,
        image,
        &seen,
        upper_option,
        &upper,
        work_option,
        &work,
    ]);
    shell(&seen, CHANGES, [""; 0]);
    let expected = tree::read(&seen);
    store.ok([Path::new("umount"), &seen]);
    let words = ["commit", "image:1", "new:1"].map(Path::new);
    let [commit, image, new] = words;
    store.ok([commit, upper_option, &upper, work_option, &work, image, new]);
    store.assert_shows("new:1", &expected, "committed");
    let unpacked = disk.join("unpacked");
    store.ok([Path::new("unpack"), new, &unpacked]);
    tree::assert_same(&expected, &tree::read(&unpacked), "unpacked");
    store.ok(["check", "--deep"]);
    (upper, unpacked)
}

/// Whether the kernel says that all blocks of a file are shared.
fn is_shared(file: &Path) -> bool {
    let extents = shell(file.parent().unwrap(), "sync; filefrag -v \"$1\"", [file]);
    let is_extent = |line: &&str| line.trim_start().starts_with(|c: char| c.is_ascii_digit());
    let extents: Vec<&str> = extents.lines().filter(is_extent).collect();
    !extents.is_empty() && extents.iter().all(|line| line.contains("shared"))
}

/// Makes a file system in a file and mounts it.
fn mounted(name: &str, make: impl Fn(&Path)) -> (Mounted, PathBuf) {
    let (device, point) = (
        directory().join(name),
        directory().join(format!("on-{name}")),
    );
    make(&device);
    fs::create_dir(&point).unwrap();
    (Mounted::new(&device, &point), point)
}

#[test]
fn commit_and_unpack_share_blocks_on_xfs() {
    root(|| {
        let (disk, point) = mounted("xfs", |device| {
            File::create_new(device)
                .unwrap()
                .set_len(400 << 20)
                .unwrap();
            system("mkfs.xfs", ["-q", device.to_str().unwrap()]);
        });
        let (upper, unpacked) = committed_and_unpacked(&point);
        for place in [upper, unpacked] {
            for name in ["large", "larger", "sparse"] {
                assert!(
                    is_shared(&place.join(name)),
                    "{name} in {}",
                    place.display()
                );
            }
        }
        disk.unmount();
    });
}

#[test]
fn commit_and_unpack_copy_and_keep_holes_on_ext4() {
    root(|| {
        let (disk, point) = mounted("ext4", |device| ext4(device, 200 << 20));
        let (upper, unpacked) = committed_and_unpacked(&point);
        for place in [upper, unpacked] {
            assert!(!is_shared(&place.join("larger")));
            let kilobytes = shell(&place, "du -k sparse | cut -f1", [""; 0]);
            assert!(
                kilobytes.trim().parse::<u32>().unwrap() < 10_000,
                "{kilobytes}"
            );
        }
        disk.unmount();
    });
}
