//! A worker that is killed is followed by another, and no client notices: whatever its requests
//! were, none fails, and the mount has what a plain directory has after the same calls.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    clippy::print_stderr,
    missing_docs,
    dead_code,
    unreachable_pub,
    clippy::verbose_file_reads,
    reason = "a test stops at the first surprise and builds its inputs with plain std::fs"
)]

mod common;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use common::{Image, Mount, OWN_MOUNTS, USER_NAMESPACE, is_here, noise, read_all, there};
use cowl_core::handover::IoModeChoice;
use cowl_tests::random::Random;
use cowl_tests::tree::{assert_same, below};
use rustix::fs::{CWD, RenameFlags, XattrFlags};
use rustix::io::Errno;

const FILES: &[(&str, &[u8])] = &[
    ("a/one", b"one of the image"),
    ("a/two", b"two"),
    ("a/sub/deep", b"deep in the image"),
    ("b/three", b"three three three"),
    ("c/four", b"4"),
];

/// One step on both sides; what it gave, as an error number or a short description.
fn step(root: &Path, choice: u64, one: &str, other: &str, content: &[u8]) -> Result<String, i32> {
    let at = |name: &str| root.join(name);
    let told = |error: std::io::Error| error.raw_os_error().unwrap_or(-1);
    let (from, to) = (at(one), at(other));
    match choice {
        0 | 1 => {
            let mut options = File::options();
            let mut file = options
                .write(true)
                .create_new(true)
                .mode(0o640)
                .open(&from)
                .map_err(told)?;
            file.write_all(content).map_err(told)?;
        }
        2 => fs::rename(&from, &to).map_err(told)?,
        3 | 4 => fs::remove_file(&from).map_err(told)?,
        5 => fs::create_dir(&from).map_err(told)?,
        6 => fs::remove_dir(&from).map_err(told)?,
        7 => {
            let mut file = File::options().append(true).open(&from).map_err(told)?;
            file.write_all(content).map_err(told)?;
        }
        8 => fs::hard_link(&from, &to).map_err(told)?,
        9 => rustix::fs::renameat_with(CWD, &from, CWD, &to, RenameFlags::EXCHANGE)
            .map_err(Errno::raw_os_error)?,
        10 => std::os::unix::fs::symlink(other, &from).map_err(told)?,
        11 => fs::set_permissions(&from, fs::Permissions::from_mode(0o600)).map_err(told)?,
        12 => {
            // ext4 has 4 KiB for all attributes of a file, marks among them.
            let value = content.get(..2048).unwrap_or(content);
            rustix::fs::setxattr(&from, "user.test", value, XattrFlags::CREATE)
                .map_err(Errno::raw_os_error)?;
        }
        13 => rustix::fs::removexattr(&from, "user.test").map_err(Errno::raw_os_error)?,
        14 => {
            let file = File::options().write(true).open(&from).map_err(told)?;
            file.set_len(3).map_err(told)?;
        }
        15 => {
            return fs::read(&from)
                .map(|bytes| format!("{bytes:?}"))
                .map_err(told);
        }
        16 => {
            let mut names: Vec<_> = fs::read_dir(&from)
                .map_err(told)?
                .map(|entry| entry.unwrap().file_name())
                .collect();
            names.sort();
            return Ok(format!("{names:?}"));
        }
        17 => rustix::fs::renameat_with(CWD, &from, CWD, &to, RenameFlags::NOREPLACE)
            .map_err(Errno::raw_os_error)?,
        _ => {
            let found = fs::symlink_metadata(&from).map_err(told)?;
            return Ok(format!("{:o} {}", found.mode(), found.nlink()));
        }
    }
    Ok(String::new())
}

const STEPS: u64 = 19;

fn a_name(random: &mut Random) -> String {
    const NAMES: [&str; 9] = [
        "one", "two", "three", "four", "deep", "sub", "new", "other", "x",
    ];
    const DIRECTORIES: [&str; 6] = ["", "a/", "b/", "c/", "a/sub/", "x/"];
    let directory = random.pick(&DIRECTORIES);
    format!("{directory}{}", random.pick(&NAMES))
}

fn seed() -> u64 {
    let seed = std::env::var("COWL_TEST_SEED").map_or(1, |seed| seed.parse().unwrap());
    eprintln!("COWL_TEST_SEED={seed}");
    seed
}

/// How often the worker is killed.
const KILLS: u64 = 10;
/// Clients, each in a directory of its own.
const CLIENTS: u64 = 2;

/// A file that was removed and is still open, with what was written to it.
struct Removed {
    file: File,
    content: Vec<u8>,
}

impl Removed {
    fn of(path: &Path) -> Self {
        let file = File::options().read(true).write(true).open(path).unwrap();
        let content = fs::read(path).unwrap();
        fs::remove_file(path).unwrap();
        Self { file, content }
    }

    fn append(&mut self, line: &str) {
        let end = self.content.len() as u64;
        self.file.write_all_at(line.as_bytes(), end).unwrap();
        self.content.extend_from_slice(line.as_bytes());
        assert_eq!(self.file.metadata().unwrap().nlink(), 0);
    }

    fn check(&mut self) {
        assert!(read_all(&mut self.file) == self.content);
    }
}

/// Changes the mount and a plain directory alike until it is over.
fn client(root: &Path, plain: &Path, seed: u64, steps: &AtomicU64, over: &AtomicBool) {
    let mut random = Random::new(seed);
    fs::write(root.join("born"), "born here").unwrap();
    // One of the image, one of the upper, open over all deaths.
    let mut removed = ["a/two", "born"].map(|name| Removed::of(&root.join(name)));
    fs::remove_file(plain.join("a/two")).unwrap();
    while !over.load(Ordering::Relaxed) {
        let number = steps.fetch_add(1, Ordering::Relaxed);
        let choice = random.below(STEPS);
        let (one, other) = (a_name(&mut random), a_name(&mut random));
        let content = noise(random.index(9000) + 1);
        let ours = step(root, choice, &one, &other, &content);
        let theirs = step(plain, choice, &one, &other, &content);
        assert_eq!(ours, theirs, "step {number}: {choice} {one} {other}");
        if number.is_multiple_of(16) {
            for removed in &mut removed {
                removed.append(&format!("{number}\n"));
            }
        }
    }
    for removed in &mut removed {
        removed.check();
    }
}

/// Kills the worker after so many further steps of the clients, somewhere within one. Each client
/// ends the step that a death was in before the next one: a request that met two is answered EIO.
fn killer(mount: &Mount, seed: u64, steps: &[AtomicU64], over: &AtomicBool) {
    let mut random = Random::new(!seed);
    let mut killed = 0;
    let begun = || -> Vec<u64> {
        steps
            .iter()
            .map(|own| own.load(Ordering::Relaxed))
            .collect()
    };
    while killed < KILLS && !over.load(Ordering::Relaxed) {
        let before = begun();
        let wanted = before.iter().sum::<u64>() + random.below(300);
        let is_due = || {
            let now = begun();
            let ended = now.iter().zip(&before).all(|(now, before)| now > before);
            ended && now.iter().sum::<u64>() >= wanted
        };
        while !is_due() && !over.load(Ordering::Relaxed) {
            std::hint::spin_loop();
        }
        (0..random.below(4000)).for_each(|_| std::hint::spin_loop());
        killed += u64::from(mount.kill_worker());
    }
    over.store(true, Ordering::Relaxed);
}

/// Makes a lower of files, and the same as a plain directory.
type Make = fn(&[(&str, &[u8])]) -> (Image, PathBuf);

/// The lower, with a directory for each client, and the same as a plain directory.
fn lower_and_plain(make: Make) -> (Image, PathBuf) {
    let names = (0..CLIENTS).flat_map(|client| {
        let own = FILES.iter();
        own.map(move |(path, content)| (format!("{client}/{path}"), *content))
    });
    let files: Vec<(String, &[u8])> = names.collect();
    let borrowed: Vec<(&str, &[u8])> = files
        .iter()
        .map(|(path, content)| (&**path, *content))
        .collect();
    make(&borrowed)
}

fn clients_do_not_notice(make: Make, choice: IoModeChoice) {
    let (image, plain) = lower_and_plain(make);
    let mount = image.mount_writable(choice, "upper");
    let root = mount.path("");
    let seed = seed();
    let steps: Vec<AtomicU64> = (0..CLIENTS).map(|_| AtomicU64::new(0)).collect();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| killer(&mount, seed, &steps, &over));
        for (number, steps) in (0..CLIENTS).zip(&steps) {
            let (root, plain) = (
                root.join(number.to_string()),
                plain.join(number.to_string()),
            );
            let (over, log) = (&over, &image);
            scope.spawn(move || {
                let run = || client(&root, &plain, seed + number, steps, over);
                let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
                over.store(true, Ordering::Relaxed);
                if let Err(panic) = outcome {
                    eprintln!("{}", log.log());
                    std::panic::resume_unwind(panic);
                }
            });
        }
    });
    let taken: u64 = steps.into_iter().map(AtomicU64::into_inner).sum();
    eprintln!("{taken} steps");
    assert_same(&below(&plain), &below(&root), "under the kills");
    assert!(mount.unmount().success(), "{}", image.log());
    let deaths = image.log().matches("another one serves on").count();
    assert!(deaths > 0, "{}", image.log());
    // What a later mount shows is the same, and nothing is left over.
    let mount = image.mount_writable(choice, "upper");
    assert_same(&below(&plain), &below(&mount.path("")), "after a remount");
    assert!(mount.unmount().success(), "{}", image.log());
    for left in ["orphans", "tmp"] {
        let left = image.path(&format!("upper.work/{left}"));
        assert_eq!(fs::read_dir(left).unwrap().count(), 0);
    }
}

#[test]
fn kill_of_the_worker_fails_no_operation_cached() {
    clients_do_not_notice(Image::beside_plain, IoModeChoice::Cached);
}

#[test]
fn kill_of_the_worker_fails_no_operation_writeback() {
    clients_do_not_notice(Image::beside_plain, IoModeChoice::Writeback);
}

#[test]
fn kill_of_the_worker_fails_no_operation_passthrough() {
    if kernel_has_passthrough() {
        clients_do_not_notice(Image::beside_plain, IoModeChoice::Passthrough);
    }
}

/// A kernel without passthrough refuses such a mount: `places.rs` holds that.
fn kernel_has_passthrough() -> bool {
    common::modes().contains(&IoModeChoice::Passthrough)
}

/// The kernel reads and writes these files itself, also while there is no worker.
#[test]
fn files_open_in_passthrough_stay_open_when_the_worker_is_killed() {
    if !kernel_has_passthrough() {
        return;
    }
    let big = noise(3 << 20);
    let image = Image::of(&[("big", &big), ("small", b"small")]);
    let mount = image.mount_writable(IoModeChoice::Passthrough, "upper");
    let path = |name: &str| mount.path(name);
    let all = |file: &mut File| read_all(file);
    let mut reader = File::open(path("big")).unwrap();
    let mut own = create(&path("own"));
    own.write_all(b"own").unwrap();
    assert!(mount.kill_worker());
    // The same backing id, else the kernel refuses a second open.
    let mut own_again = File::open(path("own")).unwrap();
    own.write_all(b" again").unwrap();
    assert_eq!(all(&mut own_again), b"own again");
    assert_eq!(all(&mut File::open(path("big")).unwrap()), big);
    // A changed file has another id; a descriptor of the image's file keeps the old one.
    let mut writer = File::options().append(true).open(path("big")).unwrap();
    writer.write_all(b"changed").unwrap();
    let changed = [&big[..], b"changed"].concat();
    for _ in 0..2 {
        assert!(mount.kill_worker());
        assert_eq!(all(&mut reader), big);
        assert_eq!(all(&mut File::open(path("big")).unwrap()), changed);
        let of = |file: &File| file.metadata().unwrap().ino();
        assert_eq!(of(&reader), of(&writer));
        assert_eq!(of(&reader), fs::metadata(path("big")).unwrap().ino());
    }
    writer.write_all(b" twice").unwrap();
    let changed = [&changed[..], b" twice"].concat();
    assert_eq!(
        fs::metadata(path("big")).unwrap().len(),
        changed.len() as u64
    );
    // Removed while they are open, before a death and after it. Of what `big` was changed to nobody
    // has anything open.
    fs::remove_file(path("own")).unwrap();
    assert!(mount.kill_worker());
    drop(writer);
    fs::remove_file(path("big")).unwrap();
    assert_eq!(all(&mut own_again), b"own again");
    assert_eq!(all(&mut reader), big);
    assert_eq!(own.metadata().unwrap().nlink(), 0);
    assert_eq!(reader.metadata().unwrap().nlink(), 0);
    assert!(mount.kill_worker());
    assert_eq!(reader.metadata().unwrap().nlink(), 0);
    drop((own, own_again, reader));
    let orphans = image.path("upper.work/orphans");
    let none_left = || fs::read_dir(&orphans).unwrap().count() == 0;
    assert!(common::eventually(none_left), "{}", image.log());
    assert!(mount.unmount().success(), "{}", image.log());
}

/// Attributes of a file that may be written through a mapping are asked for each time, until it
/// cannot be any more, whichever worker was told of the mapping.
#[test]
fn mapping_written_after_the_worker_is_killed_shows_in_the_attributes() {
    if !kernel_has_passthrough() {
        return;
    }
    let image = Image::of(&[("x", b"y")]);
    let mount = image.mount_writable(IoModeChoice::Passthrough, "upper");
    let path = mount.path("mapped");
    let mut mapping = Mapping::of_new(&mount.path_for_others("mapped"));
    let modified = || fs::metadata(&path).unwrap().modified().unwrap();
    let before = modified();
    assert!(mount.kill_worker());
    assert_eq!(modified(), before);
    mapping.write();
    assert!(modified() > before);
    assert!(mount.kill_worker());
    assert_eq!(fs::read(&path).unwrap()[0], b'X');
    mapping.end();
    // Its backing id is closed with the worker that kept it: no process can write any more.
    assert!(mount.kill_worker());
    let asked = || mount.count("GETATTR");
    let mut counts = [0; 3];
    for count in &mut counts {
        modified();
        *count = asked();
    }
    assert_eq!(counts[1], counts[2], "{}", image.log());
    assert!(mount.unmount().success(), "{}", image.log());
}

/// A process that has a new file mapped for writing, and not open.
struct Mapping {
    process: Child,
    said: BufReader<ChildStdout>,
}

impl Mapping {
    const SCRIPT: &str = "
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
os.ftruncate(file, 4096)
# PROT_READ | PROT_WRITE, MAP_SHARED
mapping = libc.mmap(None, 4096, 3, 1, file, 0)
os.close(file)
print('mapped', flush=True)
for _ in sys.stdin:
    ctypes.memset(mapping, ord('X'), 1)
    print('written', flush=True)
";

    fn of_new(path: &Path) -> Self {
        let mut process = Command::new("python3")
            .args(["-c", Self::SCRIPT])
            .arg(path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let said = BufReader::new(process.stdout.take().unwrap());
        let mut mapping = Self { process, said };
        mapping.expect("mapped");
        mapping
    }

    fn expect(&mut self, line: &str) {
        let mut said = String::new();
        self.said.read_line(&mut said).unwrap();
        assert_eq!(said.trim_end(), line);
    }

    fn write(&mut self) {
        writeln!(self.process.stdin.as_mut().unwrap()).unwrap();
        self.expect("written");
    }

    fn end(mut self) {
        drop(self.process.stdin.take());
        assert!(self.process.wait().unwrap().success());
    }
}

fn create(path: &Path) -> File {
    let mut options = File::options();
    options
        .read(true)
        .write(true)
        .create_new(true)
        .open(path)
        .unwrap()
}

#[test]
fn kill_of_the_worker_fails_no_operation_as_user() {
    if !is_here() {
        return there(USER_NAMESPACE);
    }
    clients_do_not_notice(Image::beside_plain, IoModeChoice::Auto);
}

#[test]
fn kill_of_the_worker_fails_no_operation_over_layers_cached() {
    if !is_here() {
        return there(OWN_MOUNTS);
    }
    clients_do_not_notice(Image::layers_beside_plain, IoModeChoice::Cached);
}

#[test]
fn kill_of_the_worker_fails_no_operation_over_layers_writeback() {
    if !is_here() {
        return there(OWN_MOUNTS);
    }
    clients_do_not_notice(Image::layers_beside_plain, IoModeChoice::Writeback);
}

#[test]
fn kill_of_the_worker_fails_no_operation_over_layers_as_user() {
    if !is_here() {
        return there(USER_NAMESPACE);
    }
    clients_do_not_notice(Image::layers_beside_plain, IoModeChoice::Auto);
}

/// Workers that die one after the other: an end is better than a mount that is never there.
#[test]
fn mount_of_layers_whose_workers_die_again_and_again_is_cut_off_and_says_so() {
    if !is_here() {
        return there(OWN_MOUNTS);
    }
    let (image, _plain) = Image::layers_beside_plain(FILES);
    let mut mount = image.mount_writable(IoModeChoice::Auto, "upper");
    while mount.keeper.try_wait().unwrap().is_none() {
        mount.kill_worker();
    }
    assert_eq!(mount.keeper.wait().unwrap().code(), Some(1));
    let error = fs::read(mount.path("b/three")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOTCONN));
    let log = image.log();
    let said = "cowl-mountd: the worker died (signal: 9 (SIGKILL)); the mount is cut off: too many have died within a minute";
    assert_eq!(log.lines().last(), Some(said), "{log}");
    let followed = log.matches("another one serves on").count();
    assert!(followed >= 32, "{log}");
}
