//! A full disk refuses what does not fit and nothing else: what was there stays as it was, and removing makes room.
//!
//! On ext4, where a directory needs a block for its names: on a tmpfs there is always room for one more.

use std::fs;
use std::path::PathBuf;

use cowl_tests::command::shell;
use cowl_tests::disk::{Mounted, ext4};
use cowl_tests::profile::{directory, root};
use cowl_tests::store::Store;

/// An image of more objects than one block of a directory has names for.
const MANY: &str = r"
mkdir many; for i in $(seq 2000); do echo $i > many/$i; done; tar -c -f many.tar -C many .
head -c 60000000 /dev/urandom > large; tar -c -f large.tar large; rm large
";

/// Until not even a directory can be made.
const FILL: &str = r"
for size in 65536 1024; do dd if=/dev/zero of=filled-$size bs=$size status=none 2>/dev/null || true; done
! mkdir more 2>/dev/null
";

#[test]
fn a_full_disk_can_be_made_empty_again() {
    root(|| {
        let place = directory();
        shell(&place, MANY, [""; 0]);
        let (device, point) = (place.join("device"), place.join("disk"));
        ext4(&device, 40 << 20);
        fs::create_dir(&point).unwrap();
        let disk = Mounted::new(&device, &point);
        let store = Store::at(&point.join("store"));
        let import = |tar: &str, name: &str| -> [PathBuf; 3] {
            ["import".into(), place.join(tar), name.into()]
        };
        store.ok(import("many.tar", "many"));
        let before = store.objects();

        let refusal = store.run(import("large.tar", "large")).refused(1);
        assert!(refusal.contains("no space left"), "{refusal}");
        assert_eq!(store.objects(), before);
        assert_eq!(shell(store.root(), "find tmp -mindepth 1", [""; 0]), "");

        shell(&point, FILL, [""; 0]);
        store.ok(["check", "--deep"]);
        store.ok(["rmi", "many"]);
        let left = shell(
            store.root(),
            "find objects layers merged blobs refs trash tmp -type f",
            [""; 0],
        );
        assert_eq!(left, "");
        store.ok(["check"]);
        shell(&point, "rm filled-*", [""; 0]);
        store.ok(import("many.tar", "many"));
        assert_eq!(store.objects_by_name().lines().count(), 2000);
        disk.unmount();
    });
}
