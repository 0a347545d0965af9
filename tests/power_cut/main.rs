//! After a power cut at any write of a load, import, commit, removal or gc, the store is consistent
//! (nothing corrupt, nothing partially visible), finished commands are durable, and everything
//! continues to work. What was synced through a mount is durable too.
//!
//! The store or the upper is on an ext4 on a disk that records every write and flush
//! (`harness/disk.rs`). During most of it another process continuously writes and syncs a file of
//! its own, so that the journal is also committed at other moments; names may then reach the disk
//! before unsynced contents.

mod session;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Child;

use cowl_tests::command::{binary, program, run, shell, system};
use cowl_tests::disk::{Disk, Lost, Mounted, ext4_of};
use cowl_tests::profile::{directory, root};
use cowl_tests::sample::{Point, is_repeated, stride_for, strided};
use cowl_tests::store::{Store, extract, make_image};
use cowl_tests::tree::Tree;

use session::{Session, Who};

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
mkdir -p changed/fresh changed.work; echo new > changed/added; cp base/dir/8 changed/fresh/copy
for layer in base one two changed; do tar -c -f $layer.tar --format=posix --sort=name -C $layer .; done
";

/// Writes and syncs a file of its own until it is told to stop.
struct Neighbour {
    child: Child,
    stop: PathBuf,
}

impl Neighbour {
    const SCRIPT: &str =
        r#"while [ ! -e "$1/stop" ]; do echo x >> "$1/noise"; sync "$1/noise"; done"#;

    fn start(point: &Path) -> Self {
        Self {
            child: program("sh", ["-euc", Self::SCRIPT, "sh"])
                .arg(point)
                .spawn()
                .unwrap(),
            stop: point.join("stop"),
        }
    }

    fn stop(mut self) {
        fs::write(self.stop, "").unwrap();
        assert!(self.child.wait().unwrap().success());
    }
}

struct Image {
    name: &'static str,
    /// The arguments that bring it in.
    arguments: Vec<PathBuf>,
    content: Tree,
}

#[test]
fn the_store_survives_a_power_cut_at_any_write() {
    root(|| {
        let images = images(&directory());
        let (disk, steps) = recorded(0, |disk, point, neighbour| {
            let steps = record(disk, &Store::at(&point.join("store")), &images);
            neighbour.stop();
            steps
        });
        cut(disk, [], |point, moment, what| {
            survives(point, &steps, moment, &images, what);
        });
    });
}

/// Runs something on a new disk's file system, beside the other process.
fn recorded<R>(owner: u32, work: impl FnOnce(&Disk, &Path, Neighbour) -> R) -> (Disk, R) {
    let place = directory();
    let (device, point) = (place.join("disk"), place.join("recorded"));
    ext4_of(owner, &device, DISK);
    fs::create_dir(&point).unwrap();
    let disk = Disk::over(&device);
    let mounted = Mounted::new(disk.path(), &point);
    let result = work(&disk, &point, Neighbour::start(&point));
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

fn images(place: &Path) -> [Image; 4] {
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
        Image {
            name: "four:1",
            arguments: vec![
                "commit".into(),
                "--upper".into(),
                place.join("changed"),
                "two:1".into(),
                "four:1".into(),
            ],
            content: content(&["base", "two", "changed"]),
        },
    ]
}

/// A command: its first and last moment, and the images after it.
struct Step {
    begin: usize,
    end: usize,
    after: BTreeSet<&'static str>,
}

/// Loads everything and removes some; finally removes what a killed removal left.
fn record(disk: &Disk, store: &Store, images: &[Image; 4]) -> Vec<Step> {
    let [one, two, three, four] = images;
    let removal = |image: &Image| vec!["rmi".into(), image.name.into()];
    let commands = [
        (one.arguments.clone(), vec![one.name]),
        (two.arguments.clone(), vec![one.name, two.name]),
        (removal(one), vec![two.name]),
        (three.arguments.clone(), vec![two.name, three.name]),
        (
            four.arguments.clone(),
            vec![two.name, three.name, four.name],
        ),
        (removal(two), vec![three.name, four.name]),
    ];
    let mut steps: Vec<Step> = commands
        .into_iter()
        .map(|(arguments, after)| step(disk, after, || drop(store.ok(arguments))))
        .collect();
    let forget = "rm refs/*four*; sync -f refs";
    steps.push(step(disk, vec![three.name], || {
        shell(store.root(), forget, [""; 0]);
    }));
    steps.push(step(disk, vec![three.name], || {
        assert!(store.ok(["gc"]).contains("2 layers: "));
    }));
    steps
}

fn step(disk: &Disk, after: Vec<&'static str>, work: impl FnOnce()) -> Step {
    let begin = disk.moment();
    work();
    Step {
        begin,
        end: disk.moment(),
        after: after.into_iter().collect(),
    }
}

fn survives(point: &Path, steps: &[Step], moment: usize, images: &[Image; 4], what: &str) {
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
    // By their ids: importing twice makes two images, and the older one loses its name.
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

/// The names of the images as `cowl images` prints them.
fn listed(store: &Store) -> BTreeSet<String> {
    let table = store.ok(["images"]);
    let names = table.lines().skip(1).map(|line| {
        let mut words = line.split_whitespace();
        format!("{}:{}", words.next().unwrap(), words.next().unwrap())
    });
    names.collect()
}

fn whole(store: &Store, images: &[Image; 4], there: &BTreeSet<&str>, what: &str) {
    let check = store.run(["check", "--deep"]);
    assert!(check.status.success(), "{what}: {check}");
    for image in images.iter().filter(|image| there.contains(image.name)) {
        store.assert_shows(image.name, &image.content, what);
    }
}

/// Writes and syncs through a mount, in Python, and what must hold from then on. Each list uses a
/// new mount, which drops the kernel's and the worker's caches.
const SYNCED: [&[(&str, &str)]; 2] = [
    &[
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
        (
            "[os.chmod(f'dir/{n}', 0o640) for n in (3, 7, 8)]; [os.fsync(os.open(f'dir/{n}', os.O_RDONLY)) for n in (3, 7, 8)]",
            "[os.stat(f'dir/{n}').st_mode & 0o777 for n in (3, 7, 8)] == [0o640] * 3",
        ),
    ],
    // Files whose metadata an earlier mount copied up: here the content is copied up.
    &[
        (
            "os.pwrite(f := os.open('dir/3', os.O_RDWR), b'new', 5); os.fsync(f)",
            "open('dir/3', 'rb').read(8) == open('dir/2', 'rb').read(5) + b'new' and os.path.getsize('dir/3') == 60000",
        ),
        (
            "os.pwrite(f := os.open('dir/7', os.O_RDWR), b'new', 5); os.fdatasync(f)",
            "open('dir/7', 'rb').read(8) == open('dir/2', 'rb').read(5) + b'new' and os.path.getsize('dir/7') == 140000",
        ),
        (
            "os.pwrite(os.open('dir/8', os.O_RDWR | os.O_DSYNC), b'new', 5)",
            "open('dir/8', 'rb').read(8) == open('dir/2', 'rb').read(5) + b'new' and os.path.getsize('dir/8') == 160000",
        ),
    ],
];

fn synced_writes_through_a_mount_survive_a_power_cut(who: &Who) {
    let [image, ..] = images(&directory());
    let seen = who.directory("seen");
    let store = Store::at(&who.directory("home").join("store"));
    run(who
        .command(who.cowl())
        .args(["--root".as_ref(), store.root()])
        .args(&image.arguments))
    .ok();
    let (disk, steps) = recorded(who.id(), |disk, point, neighbour| {
        let mut steps = Vec::new();
        let mut neighbour = Some(neighbour);
        for changes in SYNCED {
            let mut session = Session::start(who, &store, image.name, point, &seen);
            steps.extend(changes.iter().map(|(change, _)| {
                assert_eq!(session.evaluate(&format!("exec({change:?})")), "None");
                disk.moment()
            }));
            session.end();
            // In the later mounts the journal is committed only by their own syncs.
            neighbour.take().into_iter().for_each(Neighbour::stop);
        }
        steps
    });
    // Missing syncs show at the end of a step.
    cut(disk, steps.clone(), |point, moment, what| {
        // A mount with another xattr namespace cannot read the marks: no upper gets marks before
        // its stamp is durable.
        let stamped = "! getfattr -n $1.overlay.cowl.stamp upper 2>/dev/null || test \"$(cat work/lock)\" = $1";
        shell(point, stamped, [who.namespace()]);
        let mut session = Session::start(who, &store, image.name, point, &seen);
        let done = steps.iter().filter(|end| **end <= moment).count();
        for (_, truth) in SYNCED.into_iter().flatten().take(done) {
            assert_eq!(session.evaluate(truth), "True", "{what}: {truth}");
        }
        session.end();
    });
}

#[test]
fn synced_writes_through_a_mount_survive_a_power_cut_as_root() {
    root(|| synced_writes_through_a_mount_survive_a_power_cut(&Who::Root));
}

/// Root mounts the disk; an ordinary user does everything else.
#[test]
fn synced_writes_through_a_mount_survive_a_power_cut_as_user() {
    root(|| {
        let device = mount_device_for_all();
        let programs = directory().join("programs");
        fs::create_dir(&programs).unwrap();
        for name in ["cowl", "cowl-mountd"] {
            fs::copy(binary(name), programs.join(name)).unwrap();
        }
        synced_writes_through_a_mount_survive_a_power_cut(&Who::User { programs });
        system("umount", [device]);
    });
}

/// `/dev/fuse` with the mode that udev gives it.
fn mount_device_for_all() -> &'static str {
    let node = directory().join("fuse");
    run(program("mknod", ["-m", "0666"])
        .arg(&node)
        .args(["c", "10", "229"]))
    .ok();
    run(program("mount", ["--bind"]).arg(&node).arg("/dev/fuse")).ok();
    "/dev/fuse"
}
