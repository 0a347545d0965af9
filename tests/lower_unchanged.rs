//! The lower never changes: every object's bytes, size, mode and time are the same after every kind
//! of operation through mounts and containers. (`model` checks the same after its own runs.)

use std::os::unix::fs::PermissionsExt as _;

use cowl_tests::busybox::{add_blog, in_shop, shop};
use cowl_tests::command::{python, shell};
use cowl_tests::profile::{Privilege, current, directory, root, user};
use cowl_tests::store::Store;

/// Every known way to change a file. Files with open readers, and mappings, come first: the kernel
/// serves those from the object itself.
const CHANGES: &str = r#"
import errno, mmap, os, sys
root = sys.argv[1]
files = [os.path.join(path, name) for path, _, names in os.walk(root) for name in names]
files = [path for path in files if os.path.isfile(path) and not os.path.islink(path) and os.path.getsize(path)]
for number, path in enumerate(sorted(files)):
    os.chmod(path, 0o666)
    reader = os.open(path, os.O_RDONLY)
    before = os.pread(reader, 16, 0)
    private = mmap.mmap(reader, 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
    private[0:1] = b"P"
    for way in (os.O_RDWR, os.O_WRONLY | os.O_APPEND, os.O_RDWR | os.O_DIRECT):
        try:
            writer = os.open(path, way)
        except OSError as error:
            if error.errno != errno.EINVAL: raise  # no O_DIRECT here
            continue
        if not way & os.O_DIRECT:
            os.write(writer, b"changed")
        os.fsync(writer)
        os.close(writer)
    try:
        again = os.open("/proc/self/fd/%d" % reader, os.O_RDWR)
    except OSError as error:
        # Not standard: what was opened while the object itself was served is not opened again for writing.
        if error.errno != errno.ESTALE: raise
        again = os.open(path, os.O_RDWR)
    os.pwrite(again, b"again", 3)
    shared = mmap.mmap(again, 0, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    shared[-3:] = b"end"
    shared.flush()
    shared.close()
    os.truncate(path, 5 + number % 7)
    os.posix_fallocate(again, 0, 100)
    os.close(again); private.close(); os.close(reader)
    os.utime(path, ns=(1, 1))
    os.setxattr(path, "user.x", b"y")
    if number % 3 == 0: os.rename(path, path + ".moved")
    if number % 3 == 1: os.unlink(path)
"#;

fn objects_stay_as_they_are() {
    let store = Store::new("store");
    let content = directory().join("content");
    std::fs::create_dir(&content).unwrap();
    // Small and large files, programs (which are served differently), hard links, and two files
    // with one content.
    shell(
        &content,
        "cp /bin/true program; cp /bin/bash large-program; seq 1 400000 > large; echo small > small; mkdir dir
         ln large-program dir/linked; cp large dir/copy; echo only > dir/only; cp small dir/small-copy",
        [""; 0],
    );
    store.import_directory(&content, "content");
    let before = store.objects();
    let mount = store.mount_upper("content", "mnt");
    python(&directory(), CHANGES, [mount.path()]);
    shell(
        mount.path(),
        "rm -rf dir; mkdir dir; echo new > dir/new",
        [""; 0],
    );
    mount.unmount();
    assert_eq!(store.objects(), before);
    store.ok(["check", "--deep"]);
    let modes = shell(
        store.root(),
        "find objects -type f -printf '%m\\n' | sort -u",
        [""; 0],
    );
    assert_eq!(modes, "444\n");
    if current() == Privilege::Root {
        assert_eq!(
            std::fs::metadata(store.root())
                .unwrap()
                .permissions()
                .mode()
                & 0o7777,
            0o700
        );
    }
}

#[test]
fn objects_stay_as_they_are_as_root() {
    root(|| objects_stay_as_they_are());
}

#[test]
fn objects_stay_as_they_are_as_user() {
    user(|| objects_stay_as_they_are());
}

fn containers_change_no_object() {
    let store = shop("store");
    add_blog(&store);
    let before = store.objects();
    let script = "for f in /bin/* /srv/* /etc/*; do echo x >> $f; done 2>/dev/null
        echo x > /srv/catalogue.txt; chmod 0777 /srv/hello; /bin/busybox rm -rf /srv /etc; true";
    in_shop(&store, &["--rm"], &["/bin/busybox", "sh", "-c", script]).ok();
    store.ok([
        "run",
        "--rm",
        "blog",
        "sh",
        "-c",
        "echo x > /var/lib/blog/archive.txt",
    ]);
    assert_eq!(in_shop(&store, &["--rm"], &[]).ok(), "this is shop\n");
    assert_eq!(store.objects(), before);
}

#[test]
fn containers_change_no_object_as_root() {
    root(|| containers_change_no_object());
}

#[test]
fn containers_change_no_object_as_user() {
    user(|| containers_change_no_object());
}
