//! The power may go at any write of a load, an import or a removal: then the store is whole (nothing corrupt, nothing
//! half visible), what a command had reported done is there, and everything goes on as if nothing had been.
//!
//! The store lies on an ext4 on a disk that remembers every write and flush (`harness/disk.rs`). Beside it something
//! else writes and syncs a file of its own without end, so that the journal is committed at moments of its choosing and
//! not only when the store asks; names then reach the disk before contents that were not synced.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Child;

use cowl_tests::command::{fixture, program, run, shell};
use cowl_tests::disk::{Disk, Lost, Mounted, ext4};
use cowl_tests::profile::{directory, long, root};
use cowl_tests::store::{Store, make_image};
use cowl_tests::tree::{self, Tree};

const DISK: u64 = 48 << 20;
/// How many moments are tried when not all are.
const SAMPLE: usize = 60;

/// Three layers that share contents, with a file large enough to be streamed.
const CONTENT: &str = r"
mkdir -p base/dir base/etc one two
for i in $(seq 8); do head -c $((i * 20000)) /bin/bash > base/dir/$i; done
ln base/dir/1 base/linked; ln -s dir/1 base/soft; : > base/empty
cp base/dir/3 one/same; echo one > one/own; head -c 400000 /bin/bash | tail -c 250000 > one/large
echo two > two/own; cp one/large two/large
for layer in base one two; do tar -c -f $layer.tar --format=posix --sort=name -C $layer .; done
";

/// Until it is told to stop.
const NEIGHBOUR: &str =
    r#"while [ ! -e "$1/stop" ]; do echo x >> "$1/noise"; sync "$1/noise"; done"#;

struct Image {
    name: &'static str,
    /// The arguments that bring it in.
    arguments: Vec<PathBuf>,
    content: Tree,
}

#[test]
fn the_power_may_go_at_any_write() {
    root(|| {
        let place = directory();
        let images = images(&place);
        let device = place.join("disk");
        ext4(&device, DISK);
        let disk = Disk::over(&device);
        let point = place.join("recorded");
        fs::create_dir(&point).unwrap();
        let mounted = Mounted::new(disk.path(), &point);
        let neighbour = neighbour(&point);
        let steps = record(&disk, &Store::at(&point.join("store")), &images);
        fs::write(point.join("stop"), "").unwrap();
        assert!({ neighbour }.wait().unwrap().success());
        mounted.unmount();

        let moments = disk.moment();
        let stride = if long() { 1 } else { moments.div_ceil(SAMPLE) };
        println!("{moments} writes and flushes, cut at every {stride}.");
        assert!(moments > 100, "nothing was recorded");
        for moment in (0..moments).step_by(stride).chain([moments]) {
            for lost in [Lost::Nothing, Lost::Some] {
                let what = format!("power cut at write {moment} of {moments}, lost: {lost:?}");
                let after = place.join("after");
                disk.cut(moment, lost, &after);
                survives(&after, &steps, moment, &images, &what);
                fs::remove_file(after).unwrap();
            }
        }
        disk.end();
    });
}

fn images(place: &Path) -> [Image; 3] {
    shell(place, CONTENT, [""; 0]);
    let tar = |name: &str| place.join(format!("{name}.tar"));
    let load = |name: &str, layers: &[&str]| {
        let archive = tar(&format!("image-{name}"));
        let layers: Vec<PathBuf> = layers.iter().map(|layer| tar(layer)).collect();
        let layers: Vec<&Path> = layers.iter().map(PathBuf::as_path).collect();
        make_image("docker", &archive, name, &["--compress", "gzip"], &layers);
        vec!["load".into(), "-i".into(), archive]
    };
    let content = |layers: &[&str]| {
        let plain = place.join(format!("plain-{}", layers.join("-")));
        run(program("python3", ["-B"])
            .arg(fixture("extract.py"))
            .arg(&plain)
            .args(layers.iter().map(|layer| tar(layer))))
        .ok();
        tree::read(&plain)
    };
    [
        Image {
            name: "one:1",
            arguments: load("one:1", &["base", "one"]),
            content: content(&["base", "one"]),
        },
        Image {
            name: "two:1",
            arguments: load("two:1", &["base", "two"]),
            content: content(&["base", "two"]),
        },
        Image {
            name: "three:1",
            arguments: vec!["import".into(), tar("two"), "three:1".into()],
            content: content(&["two"]),
        },
    ]
}

fn neighbour(point: &Path) -> Child {
    program("sh", ["-euc", NEIGHBOUR, "sh"])
        .arg(point)
        .spawn()
        .unwrap()
}

/// A command that was run: from when to when, and which images there were after it.
struct Step {
    begin: usize,
    end: usize,
    after: BTreeSet<&'static str>,
}

/// Brings all in and takes some away.
fn record(disk: &Disk, store: &Store, images: &[Image; 3]) -> Vec<Step> {
    let [one, two, three] = images;
    let removal = |image: &Image| vec!["rmi".into(), image.name.into()];
    let commands = [
        (one.arguments.clone(), vec![one.name]),
        (two.arguments.clone(), vec![one.name, two.name]),
        (removal(one), vec![two.name]),
        (three.arguments.clone(), vec![two.name, three.name]),
        (removal(two), vec![three.name]),
    ];
    commands
        .into_iter()
        .map(|(arguments, after)| {
            let begin = disk.moment();
            store.ok(arguments);
            Step {
                begin,
                end: disk.moment(),
                after: after.into_iter().collect(),
            }
        })
        .collect()
}

fn survives(disk: &Path, steps: &[Step], moment: usize, images: &[Image; 3], what: &str) {
    let point = directory().join("point");
    fs::create_dir(&point).unwrap();
    let mounted = Mounted::new(disk, &point);
    let store = Store::at(&point.join("store"));
    let names = listed(&store);
    let found: BTreeSet<&str> = names.iter().map(String::as_str).collect();
    let done = steps.iter().rfind(|step| step.end <= moment);
    let running = steps
        .iter()
        .find(|step| step.begin <= moment && moment < step.end);
    let nothing = BTreeSet::new();
    let kept = done.map_or(&nothing, |step| &step.after);
    let may = running.map_or(kept, |step| &step.after);
    assert!(
        found == *kept || found == *may,
        "{what}: {found:?} are there, {kept:?} or {may:?} should be"
    );
    whole(&store, images, &found, what);
    for image in images {
        store.ok(&image.arguments);
    }
    let all = images.iter().map(|image| image.name).collect();
    whole(&store, images, &all, &format!("{what}; all loaded again"));
    for image in images {
        store.ok(["rmi", image.name]);
    }
    let left = shell(
        store.root(),
        "find objects layers merged blobs refs trash tmp leases -type f",
        [""; 0],
    );
    assert_eq!(left, "", "{what}: left when all was removed");
    mounted.unmount();
    fs::remove_dir(point).unwrap();
}

/// The names of the images, as a person sees them.
fn listed(store: &Store) -> BTreeSet<String> {
    let table = store.ok(["images"]);
    let names = table.lines().skip(1).map(|line| {
        let mut words = line.split_whitespace();
        format!("{}:{}", words.next().unwrap(), words.next().unwrap())
    });
    names.collect()
}

fn whole(store: &Store, images: &[Image; 3], there: &BTreeSet<&str>, what: &str) {
    let check = store.run(["check", "--deep"]);
    assert!(check.status.success(), "{what}: {check}");
    for image in images.iter().filter(|image| there.contains(image.name)) {
        store.assert_shows(image.name, &image.content, what);
    }
}
