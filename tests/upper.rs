//! The cost of an upper: system calls for its names, disk blocks for its marks.

use std::fs;
use std::path::Path;

use cowl_tests::command::{python, shell, system};
use cowl_tests::disk::{Mounted, ext4};
use cowl_tests::host::has_overlayfs;
use cowl_tests::profile::{directory, root, user};
use cowl_tests::requests::{costs_during, worker};
use cowl_tests::server::until;
use cowl_tests::skip::skip;
use cowl_tests::store::Store;

/// Names in each directory: about 32 bytes each in `getdents64`, which returns 32 KiB at a time.
const NAMES: usize = 2000;
/// Two or three calls list the directory; the rest open it and read marks and attributes.
const CALLS: usize = 20;

const IMAGE: &str = "
import os, sys
for name in 'changed', 'removed':
    os.mkdir(name)
    for number in range(int(sys.argv[1])): open(f'{name}/file{number}', 'x').close()
";

/// One name of each directory is unchanged, to be looked up.
const CHANGES: &str = "
import os, sys
os.mkdir('made')
for number in range(int(sys.argv[1])):
    os.chmod(f'changed/file{number}', 0o600)
    open(f'made/file{number}', 'x').close()
    if number: os.remove(f'removed/file{number}')
";

fn the_first_stat_in_a_directory_takes_no_system_call_per_name() {
    let store = Store::new("store");
    let content = directory().join("content");
    fs::create_dir(&content).unwrap();
    python(&content, IMAGE, [NAMES.to_string()]);
    store.import_directory(&content, "many");
    let mut mount = store.mount_upper("many", "mnt");
    python(mount.path(), CHANGES, [NAMES.to_string()]);
    mount.remount();
    for name in ["changed", "made", "removed"] {
        let dir = mount.path().join(name);
        assert!(fs::metadata(&dir).unwrap().is_dir());
        let (_, calls) = costs_during(worker(), || {
            assert!(fs::metadata(dir.join("file0")).unwrap().is_file());
        });
        println!("{name}: {calls:?}");
        assert!(
            calls.contains_key("getdents64"),
            "{name} was not read: {calls:?}"
        );
        let count: usize = calls.values().sum();
        assert!(count < CALLS, "{name}: {count} calls: {calls:?}");
    }
    mount.unmount();
}

#[test]
fn the_first_stat_in_a_directory_takes_no_system_call_per_name_as_root() {
    root(|| the_first_stat_in_a_directory_takes_no_system_call_per_name());
}

#[test]
fn the_first_stat_in_a_directory_takes_no_system_call_per_name_as_user() {
    user(|| the_first_stat_in_a_directory_takes_no_system_call_per_name());
}

const CONTENT: &str = "
mkdir -p dir/sub gone empty; for name in one two three; do echo $name > dir/$name; done
echo deep > dir/sub/deep; echo y > gone/y; ln dir/one linked; ln -s dir/one symlink; mkfifo fifo
";

/// Each way in which a whiteout is created or removed.
const RENAMES: &str = "
rm dir/two; rm -r gone; echo new > gone; rm gone; mkdir gone; mv dir moved; mkdir dir; mv moved/sub dir/sub
chmod 600 moved/one; mv moved/one dir/one; rm linked; mv symlink linked; rmdir empty; mv fifo empty; mv empty fifo
mv moved/three fifo; ln fifo moved/three; rm dir/sub/deep; mkdir dir/empty; mv -T dir/empty dir/sub; echo x > .whited
";

/// Everything but times and directories' sizes and link counts.
const SHOWN: &str = r"
find . -mindepth 1 \( -type d -printf '%P %y %m %U:%G\n' \) -o -printf '%P %y %m %U:%G %n %s %l\n' | sort
find . -type f | sort | while read -r name; do echo $name; cat $name; done
";

/// As in a container on Docker's overlay2: the upper's file system takes neither devices 0:0 nor
/// `RENAME_WHITEOUT`.
fn an_upper_on_overlayfs_hides_names_by_files() {
    if !has_overlayfs() {
        return skip("this kernel has no overlayfs");
    }
    let host = "mount -t overlay overlay -o lowerdir=host.lower,upperdir=host.upper,workdir=host.work host";
    an_upper_keeps_changes_on(host, "");
}

/// A ramfs has no extended attributes either.
fn an_upper_on_ramfs_has_its_marks_in_links() {
    let marks = "cowl cowl.stamp impure opaque";
    an_upper_keeps_changes_on("mount -t ramfs ramfs host", marks);
}

/// Within one mount: the next one would drop them.
fn an_upper_on_ramfs_drops_the_marks_of_removed_files() {
    let place = directory();
    shell(
        &place,
        "mkdir content host; mount -t ramfs ramfs host",
        [""; 0],
    );
    let files =
        "for i in $(seq 20); do mkdir dir$i; for f in a b c; do echo $i > dir$i/$f; done; done";
    shell(&place.join("content"), files, [""; 0]);
    let store = Store::new("store");
    store.import_directory(&place.join("content"), "image");
    let (seen, upper) = (place.join("host/seen"), place.join("host/upper"));
    fs::create_dir(&seen).unwrap();
    let image = [Path::new("mount"), Path::new("image")];
    store.ok([&image[..], &[&seen, Path::new("--upper"), &upper]].concat());
    let marks = || shell(&place, "ls host/upper.work/marks | cut -d. -f2-", [""; 0]);
    // A file that is closed, one that is open, and a directory that is replaced by a rename.
    let changes = "for i in $(seq 20); do
            chmod 600 dir$i/a dir$i/b dir$i/c; rm dir$i/a; exec 3< dir$i/b; rm dir$i/b; exec 3<&-
            rm -r dir$i; mkdir dir$i; mkdir new; mv -T new dir$i; rmdir dir$i
        done";
    shell(&seen, changes, [""; 0]);
    // The mount removes a file's marks when the kernel has forgotten it.
    until(|| marks() == "cowl.stamp\nimpure\nself\n");
    store.ok([Path::new("umount"), &seen]);
    shell(&place, "umount host", [""; 0]);
}

#[test]
fn an_upper_on_ramfs_drops_the_marks_of_removed_files_as_root() {
    root(|| an_upper_on_ramfs_drops_the_marks_of_removed_files());
}

#[test]
fn an_upper_on_ramfs_drops_the_marks_of_removed_files_as_user() {
    user(|| an_upper_on_ramfs_drops_the_marks_of_removed_files());
}

/// Its directories have other inode numbers in each mount of the overlayfs, so marks cannot be found
/// by them.
fn an_upper_on_overlayfs_without_attributes_is_refused() {
    if !has_overlayfs() {
        return skip("this kernel has no overlayfs");
    }
    let place = directory();
    let host = "mkdir content lower rw merged; mount -t ramfs ramfs rw; mkdir rw/upper rw/work
                mount -t overlay overlay -o lowerdir=lower,upperdir=rw/upper,workdir=rw/work merged";
    shell(&place, host, [""; 0]);
    let store = Store::new("store");
    store.import_directory(&place.join("content"), "image");
    let upper = place.join("merged/upper");
    let (seen, image) = (place.join("seen"), [Path::new("mount"), Path::new("image")]);
    fs::create_dir(&seen).unwrap();
    let refused = store.run([&image[..], &[&seen, Path::new("--upper"), &upper]].concat());
    let refused = refused.refused(1);
    assert!(refused.contains("has no extended attributes"), "{refused}");
    shell(&place, "umount merged rw", [""; 0]);
}

#[test]
fn an_upper_on_overlayfs_without_attributes_is_refused_as_root() {
    root(|| an_upper_on_overlayfs_without_attributes_is_refused());
}

#[test]
fn an_upper_on_overlayfs_without_attributes_is_refused_as_user() {
    user(|| an_upper_on_overlayfs_without_attributes_is_refused());
}

/// Mounts a host file system, changes files through an upper there, mounts it again and commits
/// it. `marks` are the kinds of links in its work directory.
fn an_upper_keeps_changes_on(host: &str, marks: &str) {
    let place = directory();
    for name in [
        "content",
        "plain",
        "seen",
        "host",
        "host.lower",
        "host.upper",
        "host.work",
    ] {
        fs::create_dir(place.join(name)).unwrap();
    }
    for name in ["content", "plain"] {
        shell(&place.join(name), CONTENT, [""; 0]);
    }
    let store = Store::new("store");
    store.import_directory(&place.join("content"), "image");
    shell(&place, host, [""; 0]);
    let (seen, upper) = (place.join("seen"), place.join("host/upper"));
    let mount = || {
        let image = [Path::new("mount"), Path::new("image")];
        store.ok([&image[..], &[&seen, Path::new("--upper"), &upper]].concat());
    };
    let unmount = || store.ok([Path::new("umount"), &seen]);
    mount();
    for changed in [&seen, &place.join("plain")] {
        shell(changed, RENAMES, [""; 0]);
    }
    let expected = shell(&place.join("plain"), SHOWN, [""; 0]);
    assert_eq!(shell(&seen, SHOWN, [""; 0]), expected);
    unmount();
    let kinds = shell(
        &upper,
        "find . -type c; find . -name '.wh.*' | wc -l",
        [""; 0],
    );
    assert!(kinds.trim().parse::<u32>().unwrap() > 3, "{kinds}");
    let kinds = "find host -path '*/marks/*.*' -printf '%f\\n' | cut -d. -f2- | sort -u | xargs";
    assert_eq!(shell(&place, kinds, [""; 0]).trim(), marks);
    mount();
    assert_eq!(shell(&seen, SHOWN, [""; 0]), expected);
    unmount();
    store.ok([
        Path::new("commit"),
        Path::new("--upper"),
        &upper,
        Path::new("image"),
        Path::new("committed"),
    ]);
    let committed = store.mount("committed", "committed");
    assert_eq!(shell(committed.path(), SHOWN, [""; 0]), expected);
    committed.unmount();
    shell(&place, "umount host", [""; 0]);
}

#[test]
fn an_upper_on_overlayfs_hides_names_by_files_as_root() {
    root(|| an_upper_on_overlayfs_hides_names_by_files());
}

#[test]
fn an_upper_on_overlayfs_hides_names_by_files_as_user() {
    user(|| an_upper_on_overlayfs_hides_names_by_files());
}

#[test]
fn an_upper_on_ramfs_has_its_marks_in_links_as_root() {
    root(|| an_upper_on_ramfs_has_its_marks_in_links());
}

#[test]
fn an_upper_on_ramfs_has_its_marks_in_links_as_user() {
    user(|| an_upper_on_ramfs_has_its_marks_in_links());
}

const COPY_UPS: &str = "
chmod 600 dir/chmod; echo x >> dir/append; mv dir/moved dir/renamed; ln dir/linked dir/link
chmod 700 sub; mv sub renamed-sub; echo x > made
";

/// The blocks of files outside their inodes: `File ACL` is the block for extended attributes that
/// do not fit into the inode.
const ATTRIBUTE_BLOCKS: &str = r#"
cd "$1"; find upper work/index -mindepth 1 | while read -r path; do
  echo "$path $(debugfs -R "stat \"/$path\"" "$2" 2>/dev/null | sed -n 's/.*File ACL: \([0-9]*\).*/\1/p')"
done
"#;

/// ext4's inodes have 256 bytes, of which about 90 are left for extended attributes.
#[test]
fn marks_fit_into_an_inode_of_256_bytes() {
    root(|| {
        let place = directory();
        let content = place.join("content");
        fs::create_dir(&content).unwrap();
        let files = "mkdir dir sub; for i in chmod append moved linked; do echo text > dir/$i; done; ln dir/linked dir/second";
        shell(&content, files, [""; 0]);
        let store = Store::new("store");
        store.import_directory(&content, "image");

        let (device, point, seen) = (place.join("device"), place.join("disk"), place.join("seen"));
        ext4(&device, 16 << 20);
        let features = system("tune2fs", [Path::new("-l"), &device]);
        let inode_size = features
            .lines()
            .find(|line| line.starts_with("Inode size:"));
        assert!(
            inode_size.is_some_and(|line| line.ends_with(" 256")),
            "{features}"
        );
        fs::create_dir(&point).unwrap();
        fs::create_dir(&seen).unwrap();
        let disk = Mounted::new(&device, &point);
        let (upper, work) = (point.join("upper"), point.join("work"));
        store.ok([
            Path::new("mount"),
            Path::new("image"),
            &seen,
            Path::new("--upper"),
            &upper,
            Path::new("--work"),
            &work,
        ]);
        shell(&seen, COPY_UPS, [""; 0]);
        store.ok([Path::new("umount"), &seen]);
        let marked = shell(
            &point,
            "getfattr -R -P -m trusted.overlay upper work/index 2>/dev/null | grep -c '^# file'",
            [""; 0],
        );
        // An attribute that does not fit shows that such a block is detected.
        let too_large = "echo x > upper/too-large; setfattr -n user.large -v $(printf %0300d 0) upper/too-large; sync -f .";
        shell(&point, too_large, [""; 0]);
        let blocks = shell(&place, ATTRIBUTE_BLOCKS, [&point, &device]);
        let outside: Vec<&str> = blocks
            .lines()
            .filter(|line| !line.ends_with(" 0"))
            .collect();
        assert!(
            marked.trim().parse::<usize>().unwrap() >= 5,
            "{marked} marked of {blocks}"
        );
        assert!(
            matches!(outside[..], [line] if line.starts_with("upper/too-large ")),
            "{outside:?} of {blocks}"
        );
        disk.unmount();
    });
}
