//! A command's cost, in system calls counted by strace, depends on its own work, not on the other
//! objects and images in the store.

use cowl_tests::command::{fixture, program, run, shell};
use cowl_tests::profile::{directory, root};
use cowl_tests::store::Store;

/// A store of `many/0:1` to `many/IMAGES-1:1` with `files` files each, each with a unique content.
fn store_of(images: usize, files: usize) -> Store {
    let archive = directory().join(format!("{images}-{files}.tar"));
    let script = "python3 \"$1\" \"$2\" \"$3\" > \"$4\"";
    let maker = fixture("many-images.py");
    let [images, files] = [images, files].map(|count| count.to_string());
    let arguments = [
        maker.as_os_str(),
        images.as_ref(),
        files.as_ref(),
        archive.as_os_str(),
    ];
    shell(&directory(), script, arguments);
    let name = archive.file_stem().unwrap().to_str().unwrap();
    let store = Store::new(&format!("store-{name}"));
    store.load(&archive);
    store
}

/// The system calls of a command that name a file, and those that list a directory or read.
fn calls(store: &Store, arguments: &[&str]) -> usize {
    let place = directory();
    let command = store.command(arguments);
    let trace = "trace=%file,getdents64,read,pread64";
    let mut traced = program("strace", ["-f", "-qq", "-o", "calls", "-e", trace, "--"]);
    run(traced
        .arg(command.get_program())
        .args(command.get_args())
        .current_dir(&place))
    .ok();
    // A call that another thread's interrupts has a second line.
    let count = shell(&place, "grep -vc ' resumed>' calls; rm calls", [""; 0]);
    count.trim().parse().unwrap()
}

/// Checks that the number of calls grows by at most `by`.
fn assert_grows(few: usize, many: usize, by: usize, what: &str) {
    println!("{what}: {few} system calls, then {many}");
    assert!(many <= few + by, "{what}: {few} system calls, then {many}");
}

/// 256 directories are listed, whatever they contain.
#[test]
fn gc_with_nothing_to_free_takes_no_call_per_object() {
    root(|| {
        let [few, many] = [10, 5_000].map(|files| calls(&store_of(1, files), &["gc"]));
        assert_grows(few, many, 50, "gc");
    });
}

#[test]
fn images_takes_no_call_per_object_and_ten_per_image() {
    root(|| {
        let [few, many] = [10, 5_000].map(|files| calls(&store_of(1, files), &["images"]));
        assert_grows(few, many, 0, "images, among objects");
        let [one, many] = [1, 201].map(|images| calls(&store_of(images, 1), &["images"]));
        assert_grows(one, many, 200 * 10, "images, among images");
    });
}

/// The container's image keeps its name, so no other tag is read.
#[test]
fn removal_of_a_container_among_many_images_takes_the_calls_of_one() {
    root(|| {
        let [one, many] = [1, 200].map(|images| {
            let store = store_of(images, 2);
            store.ok(["create", "--name", "box", "many/0:1", "/f0"]);
            calls(&store, &["rm", "box"])
        });
        assert_grows(one, many, 20, "rm");
    });
}
