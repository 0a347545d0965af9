//! The cost of a mount depends neither on the number of its layers, which were merged at load, nor
//! on the other images of the store.

use std::path::{Path, PathBuf};

use cowl_tests::command::{fixture, program, python, run, shell};
use cowl_tests::profile::{directory, root};
use cowl_tests::store::{Store, make_image};

const LAYERS: usize = 500;
const IMAGES: usize = 500;
/// Extra system calls for longer files: an image's configuration and record name every layer.
const READING: usize = 50;

/// A layer of one file for each number, and one layer of all files.
const MAKE: &str = r#"
import io, sys, tarfile
count = int(sys.argv[1])
with tarfile.open("all.tar", "w") as all:
    for number in range(count):
        with tarfile.open("%d.tar" % number, "w") as one:
            for layer in (one, all):
                entry = tarfile.TarInfo("file-%d" % number)
                entry.size = 3
                layer.addfile(entry, io.BytesIO(b"%03d" % number))
"#;

#[test]
fn a_mount_of_500_layers_takes_the_system_calls_of_one() {
    root(|| {
        let place = directory();
        python(&place, MAKE, [LAYERS.to_string()]);
        let many: Vec<PathBuf> = (0..LAYERS)
            .map(|number| place.join(format!("{number}.tar")))
            .collect();
        let calls = |name: &str, layers: &[&Path]| {
            let archive = place.join(format!("image-{name}"));
            make_image("docker", &archive, name, &[], layers);
            let store = Store::new(&format!("store-{name}"));
            store.load(&archive);
            system_calls_of_mount(&store, name, "file-7", "007")
        };
        let one = calls("one", &[&place.join("all.tar")]);
        let many = calls(
            "many",
            &many.iter().map(PathBuf::as_path).collect::<Vec<_>>(),
        );
        println!("{one} system calls over one layer, {many} over {LAYERS}");
        assert!(
            many < one + READING,
            "{many} over {LAYERS} layers, {one} over one"
        );
    });
}

#[test]
fn a_mount_among_500_images_takes_the_system_calls_of_one() {
    root(|| {
        let place = directory();
        let calls = [1, IMAGES].map(|images| {
            let archive = place.join(format!("{images}.tar"));
            let script = "python3 \"$1\" \"$2\" 2 > \"$3\"";
            let maker = fixture("many-images.py");
            let count = images.to_string();
            shell(&place, script, [maker.as_path(), count.as_ref(), &archive]);
            let store = Store::new(&format!("store-{images}"));
            store.load(&archive);
            system_calls_of_mount(&store, "many/0:1", "f1", "0 1\n")
        });
        let [one, many] = calls;
        println!("{one} system calls with one image, {many} with {IMAGES}");
        assert!(many < one + READING, "{many} of {IMAGES}, {one} of one");
    });
}

/// Counted for the command itself: keeper and worker start from the merged tree.
fn system_calls_of_mount(store: &Store, image: &str, file: &str, content: &str) -> usize {
    let place = directory();
    shell(&place, "mkdir mnt", [""; 0]);
    let mount = store.command(["mount", image]);
    let mut traced = program("strace", ["-qq", "-o", "calls", "--"]);
    run(traced
        .arg(mount.get_program())
        .args(mount.get_args())
        .arg(place.join("mnt"))
        .current_dir(&place))
    .ok();
    assert_eq!(shell(&place, "cat \"mnt/$1\"", [file]), content);
    store.ok([Path::new("umount"), &place.join("mnt")]);
    shell(&place, "rmdir mnt; wc -l < calls", [""; 0])
        .trim()
        .parse()
        .unwrap()
}
