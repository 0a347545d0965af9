//! The power may go at any write of a load, an import or a removal: then the store is whole
//! (nothing corrupt, nothing half visible), what a command had reported done is there, and
//! everything goes on as if nothing had been. What was synced through a mount is there, too.
//!
//! The store or the upper lies on an ext4 on a disk that remembers every write and flush
//! (`harness/disk.rs`). Beside it something else writes and syncs a file of its own without end,
//! so that the journal is committed at moments of its choosing and not only when it is asked to;
//! names then reach the disk before contents that were not synced.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use cowl_tests::command::{program, python, shell};
use cowl_tests::disk::{Disk, Lost, Mounted, ext4};
use cowl_tests::profile::{directory, root};
use cowl_tests::sample::{Point, is_repeated, stride_for, strided};
use cowl_tests::store::{Store, extract, make_image};
use cowl_tests::tree::Tree;

const DISK: u64 = 48 << 20;
/// How many moments are tried, before the scale.
const SAMPLE: u64 = 40;

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
        let images = images(&directory());
        let (disk, steps) =
            recorded(|disk, point| record(disk, &Store::at(&point.join("store")), &images));
        cut(disk, [], |point, moment, what| {
            survives(point, &steps, moment, &images, what);
        });
    });
}

/// Does something on a file system with a neighbour, on a new disk.
fn recorded<R>(work: impl FnOnce(&Disk, &Path) -> R) -> (Disk, R) {
    let place = directory();
    let (device, point) = (place.join("disk"), place.join("recorded"));
    ext4(&device, DISK);
    fs::create_dir(&point).unwrap();
    let disk = Disk::over(&device);
    let mounted = Mounted::new(disk.path(), &point);
    let mut neighbour = program("sh", ["-euc", NEIGHBOUR, "sh"])
        .arg(&point)
        .spawn()
        .unwrap();
    let result = work(&disk, &point);
    fs::write(point.join("stop"), "").unwrap();
    assert!(neighbour.wait().unwrap().success());
    mounted.unmount();
    (disk, result)
}

/// Shows the file system after power cuts: at the given moments and at a sample of all.
fn cut(
    disk: Disk,
    always: impl IntoIterator<Item = usize>,
    mut show: impl FnMut(&Path, usize, &str),
) {
    let all = disk.moment();
    assert!(all > 100, "{all} writes and flushes: nothing was recorded");
    let sample = strided(0, stride_for(all as u64, SAMPLE)).map(|point| point.number());
    let mut moments: BTreeSet<u64> = sample.take_while(|moment| *moment <= all as u64).collect();
    if !is_repeated() {
        moments.extend(
            always
                .into_iter()
                .chain([0, all])
                .map(|moment| moment as u64),
        );
    }
    println!("{all} writes and flushes, cut at {}", moments.len());
    let (device, point) = (directory().join("after"), directory().join("point"));
    fs::create_dir(&point).unwrap();
    for moment in moments.into_iter().map(Point::new) {
        for lost in [Lost::Nothing, Lost::Some] {
            let moment = moment.index();
            disk.cut(moment, lost, &device);
            let mounted = Mounted::new(&device, &point);
            let what = format!("power cut at write {moment} of {all}, lost: {lost:?}");
            show(&point, moment, &what);
            mounted.unmount();
            fs::remove_file(&device).unwrap();
        }
    }
    disk.end();
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
        extract(&plain, layers.iter().map(|layer| tar(layer)))
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

fn survives(point: &Path, steps: &[Step], moment: usize, images: &[Image; 3], what: &str) {
    let store = Store::at(&point.join("store"));
    // Before the first command's end there may be no store yet.
    let made = store.root().join("format.json").exists();
    let names = if made {
        listed(&store)
    } else {
        BTreeSet::new()
    };
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
    if made {
        whole(&store, images, &found, what);
    }
    for image in images {
        store.ok(&image.arguments);
    }
    let all = images.iter().map(|image| image.name).collect();
    whole(&store, images, &all, &format!("{what}; all loaded again"));
    // By their ids: what was imported twice is two images, of which the older one has no name any
    // more.
    for image in store.ok(["images", "-q"]).lines() {
        store.ok(["rmi", image]);
    }
    let left = shell(
        store.root(),
        "find objects layers merged blobs refs trash tmp pins -type f",
        [""; 0],
    );
    assert_eq!(left, "", "{what}: left when all was removed");
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

/// What is done through a mount and synced, in Python below the mount; and what is true from then
/// on.
const SYNCED: [(&str, &str); 6] = [
    (
        "with open('dir/1', 'r+') as f: f.seek(5); f.write('new'); f.flush(); os.fsync(f)",
        "open('dir/1', 'rb').read(8) == open('dir/2', 'rb').read(5) + b'new' and os.stat('linked').st_ino == os.stat('dir/1').st_ino",
    ),
    (
        "with open('dir/made', 'w') as f: f.write('made'); f.flush(); os.fsync(f)",
        "open('dir/made').read() == 'made'",
    ),
    (
        "os.mkdir('fresh'); f = open('fresh/file', 'w'); f.write('x'); f.flush(); os.fsync(f)",
        "open('fresh/file').read() == 'x'",
    ),
    (
        "os.chmod('dir/4', 0o711); os.fsync(os.open('dir/4', os.O_RDONLY))",
        "os.stat('dir/4').st_mode & 0o7777 == 0o711 and os.path.getsize('dir/4') == 80000 and open('dir/4', 'rb').read(4) == b'\\x7fELF'",
    ),
    (
        "os.rename('dir/5', 'dir/moved'); os.fsync(os.open('dir', os.O_RDONLY))",
        "not os.path.exists('dir/5') and os.path.getsize('dir/moved') == 100000",
    ),
    (
        "os.remove('dir/6'); os.fsync(os.open('dir', os.O_RDONLY))",
        "not os.path.exists('dir/6')",
    ),
];

#[test]
fn what_was_synced_through_a_mount_is_there() {
    root(|| {
        let [image, ..] = images(&directory());
        let store = Store::new("store");
        store.ok(&image.arguments);
        let seen = directory().join("seen");
        fs::create_dir(&seen).unwrap();
        let (disk, steps) = recorded(|disk, point| {
            mount_over(&store, image.name, point, &seen);
            let steps = SYNCED.map(|(change, _)| {
                python(&seen, &format!("import os\n{change}"), [""; 0]);
                disk.moment()
            });
            store.ok([Path::new("umount"), &seen]);
            steps
        });
        // The end of a step is where it shows what it did not sync.
        cut(disk, steps, |point, moment, what| {
            // Marks mean nothing to who does not know their namespace: no upper is stamped before
            // it is written down.
            shell(
                point,
                "! getfattr -n trusted.overlay.cowl.stamp upper 2>/dev/null || test \"$(cat work/lock)\" = trusted",
                [""; 0],
            );
            mount_over(&store, image.name, point, &seen);
            let done = steps.iter().filter(|end| **end <= moment).count();
            for (_, truth) in &SYNCED[..done] {
                let told = python(&seen, &format!("import os\nprint({truth})"), [""; 0]);
                assert_eq!(told.trim(), "True", "{what}: {truth}");
            }
            store.ok([Path::new("umount"), &seen]);
        });
    });
}

fn mount_over(store: &Store, image: &str, point: &Path, seen: &Path) {
    store.ok([
        "mount".as_ref(),
        image.as_ref(),
        seen.as_os_str(),
        "--upper".as_ref(),
        point.join("upper").as_os_str(),
        "--work".as_ref(),
        point.join("work").as_os_str(),
    ]);
}
