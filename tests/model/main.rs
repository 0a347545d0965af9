//! A mount behaves as a plain directory: random programs of system calls run on both. After each
//! step the caller must see the same, and from time to time and after each remount the whole trees
//! must be equal.
//!
//! The programs' seeds move with the commit (`harness/sample.rs`). A program that finds a
//! difference is shortened before it is shown, and the command that runs it again is printed.

mod generator;
mod operation;
mod seen;
mod side;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path as FsPath, PathBuf};

use cowl_tests::command::{program, run, shell};
use cowl_tests::profile::{Privilege, current, directory, root, user};
use cowl_tests::sample::seeds;
use cowl_tests::store::{Mount, Store};
use cowl_tests::tree;

use crate::generator::Generator;
use crate::operation::{Path, Step};
use crate::side::Side;

/// Steps of one program.
const STEPS: usize = 2_500;
/// Programs for each privilege: 100,000 steps over both; the long tier runs ten times as many.
const PROGRAMS: u64 = 20;
/// Steps after which the existing paths are listed again.
const LOOK_EVERY: usize = 20;
/// Replays that shortening a program may take.
const REPLAYS: usize = 400;

#[test]
fn a_plain_directory_agrees_with_itself() {
    root(|| agree(&Plain, 2));
}

#[test]
fn a_mount_agrees_with_a_plain_directory_as_root() {
    root(|| a_mount_agrees());
}

#[test]
fn a_mount_agrees_with_a_plain_directory_as_user() {
    user(|| a_mount_agrees());
}

fn a_mount_agrees() {
    let subject = Cowl::new();
    let objects = subject.0.objects();
    agree(&subject, PROGRAMS);
    assert_eq!(subject.0.objects(), objects, "the lower never changes");
}

/// The subject that is compared with a plain directory.
trait Subject {
    /// Creates a new one over the base tree, with a name of its own.
    fn begin(&self, name: &str) -> Box<dyn Place + '_>;
}

trait Place {
    fn path(&self) -> &FsPath;
    fn remount(&mut self);
}

/// The model itself.
struct Plain;

impl Subject for Plain {
    fn begin(&self, name: &str) -> Box<dyn Place> {
        Box::new(copy_of_base(&format!("{name}.subject")))
    }
}

impl Place for PathBuf {
    fn path(&self) -> &FsPath {
        self
    }

    fn remount(&mut self) {}
}

/// A mount of the base tree as an image, with an upper.
struct Cowl(Store);

impl Cowl {
    fn new() -> Self {
        let store = Store::new("store");
        make_base();
        store.import_directory(&directory().join("base"), "base");
        Self(store)
    }
}

impl Subject for Cowl {
    fn begin(&self, name: &str) -> Box<dyn Place + '_> {
        Box::new(self.0.mount_upper("base", &format!("{name}.subject")))
    }
}

impl Place for Mount<'_> {
    fn path(&self) -> &FsPath {
        Mount::path(self)
    }

    fn remount(&mut self) {
        Mount::remount(self);
    }
}

/// The base tree: files of many sizes and owners, hard links, dangling links, devices, marks.
const BASE: &str = r#"
mkdir -p base/bin base/etc/conf.d base/lib/deep/er base/tmp base/var/empty base/home
chmod 1777 base/tmp; chmod 0700 base/home; chmod 2775 base/var
cp /bin/true base/bin/true; chmod 4755 base/bin/true
head -c 1500000 /bin/bash > base/lib/big.so
printf 'root:x:0:0\n' > base/etc/passwd; : > base/etc/empty
for i in 1 2 3 4 5 6 7 8; do head -c $((i * 3000)) /bin/bash > base/lib/deep/f$i; echo $i > base/etc/conf.d/$i; done
ln base/lib/deep/f1 base/lib/deep/er/linked; ln base/lib/deep/f1 base/etc/linked; ln base/etc/passwd base/etc/passwd-
truncate -s 1M base/lib/sparse; printf end >> base/lib/sparse
ln -s passwd base/etc/link; ln -s ../lib base/etc/up; ln -s nowhere base/etc/dangling; ln -s . base/loop
mkfifo base/tmp/fifo
setfattr -n user.one -v 1 base/etc/passwd; setfattr -n user.dir -v d base/etc/conf.d
if [ "$1" = root ]; then
  mknod base/tmp/null c 1 3; mknod base/tmp/zero c 0 0; mknod base/tmp/disk b 7 9
  chown -h 1000:1000 base/home base/lib/deep/f2 base/etc/dangling base/etc/conf.d/1 base/lib/deep/er
  chown 1000:2000 base/lib/deep/f3; chmod 6755 base/lib/deep/f3
  setfattr -n trusted.t -v t base/lib
fi
find base -depth -exec touch -h -d '1999-12-31T23:59:58.123456789Z' {} +
"#;

fn make_base() {
    let who = if current() == Privilege::Root {
        "root"
    } else {
        "user"
    };
    if !directory().join("base").exists() {
        shell(&directory(), BASE, [who]);
    }
}

fn copy_of_base(name: &str) -> PathBuf {
    make_base();
    let copy = directory().join(name);
    run(program("cp", ["-a", "base"])
        .arg(&copy)
        .current_dir(directory()))
    .ok();
    copy
}

fn agree(subject: &dyn Subject, programs: u64) {
    for point in seeds(programs) {
        let seed = point.number();
        let mut steps = Vec::new();
        let Some(found) = explore(subject, seed, &mut steps) else {
            continue;
        };
        let (short, last) = shorten(subject, steps, found.clone());
        let listed: Vec<String> = short.iter().map(|step| format!("  {step:?}")).collect();
        panic!(
            "seed {seed}: {found}\n\nshortened to {} steps, which end with: {last}\n{}",
            short.len(),
            listed.join("\n")
        );
    }
}

/// Runs the program of a seed; returns the first difference, with the steps up to it.
fn explore(subject: &dyn Subject, seed: u64, steps: &mut Vec<Step>) -> Option<String> {
    let mut run = Run::new(subject, &format!("seed-{seed}"));
    let mut generator = Generator::new(seed, current() == Privilege::Root);
    let (mut paths, mut directories) = (Vec::new(), Vec::new());
    for made in 0..STEPS {
        if made % LOOK_EVERY == 0 {
            (paths, directories) = paths_of(&run.model);
        }
        let step = generator.step(&paths, &directories);
        steps.push(step.clone());
        if let Some(found) = run.step(&step) {
            run.end();
            return Some(found);
        }
    }
    run.end();
    None
}

/// Drops steps, in ever smaller pieces, as long as a difference of the same kind remains.
fn shorten(subject: &dyn Subject, mut steps: Vec<Step>, mut last: String) -> (Vec<Step>, String) {
    let mut replays = 0;
    let mut piece = steps.len() / 2;
    while piece > 0 {
        let mut start = 0;
        while start < steps.len() && replays < REPLAYS {
            let mut fewer = steps.clone();
            fewer.drain(start..(start + piece).min(steps.len()));
            replays += 1;
            match replay(subject, &format!("replay-{replays}"), &fewer) {
                Some((end, found)) if kind(&found) == kind(&last) => {
                    fewer.truncate(end + 1);
                    (steps, last) = (fewer, found);
                }
                _ => start += piece,
            }
        }
        piece /= 2;
    }
    (steps, last)
}

/// Runs a program up to its first difference.
fn replay(subject: &dyn Subject, name: &str, steps: &[Step]) -> Option<(usize, String)> {
    let mut run = Run::new(subject, name);
    let found = steps
        .iter()
        .enumerate()
        .find_map(|(end, step)| run.step(step).map(|found| (end, found)));
    run.end();
    found
}

/// The kind of a difference: the operation that saw it, or a difference of trees.
fn kind(found: &str) -> &str {
    let name = |text: &str| text.split(' ').next().map(str::len).unwrap_or_default();
    match found.split_once("operation: ") {
        Some((_, operation)) => &operation[..name(operation)],
        None => "trees",
    }
}

/// Existing paths and directories of the model, in a fixed order; only the first few hundred.
fn paths_of(model: &FsPath) -> (Vec<Path>, Vec<Path>) {
    let (mut paths, mut directories, mut next) = (Vec::new(), vec![Path(b".".to_vec())], 0);
    while next < directories.len() && paths.len() < 400 {
        let below = directories[next].clone();
        next += 1;
        let mut entries: Vec<_> = fs::read_dir(model.join(OsStr::from_bytes(&below.0)))
            .unwrap()
            .map(Result::unwrap)
            .collect();
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let name = entry.file_name().into_vec();
            let path = Path(if below.0 == b"." {
                name
            } else {
                [&below.0, &b"/"[..], &name].concat()
            });
            if entry.file_type().unwrap().is_dir() && path.0.len() < 1_500 {
                directories.push(path.clone());
            }
            paths.push(path);
        }
    }
    (paths, directories)
}

/// A subject and a model that execute the same steps.
struct Run<'s> {
    /// Dropped before the mount: its open files would keep that busy.
    sides: [Side; 2],
    place: Box<dyn Place + 's>,
    model: PathBuf,
}

impl<'s> Run<'s> {
    fn new(subject: &'s dyn Subject, name: &str) -> Self {
        let model = copy_of_base(&format!("{name}.model"));
        let place = subject.begin(name);
        let sides = [Side::new(&model), Side::new(place.path())];
        Self {
            sides,
            place,
            model,
        }
    }

    /// Executes one step; returns the difference, if any.
    fn step(&mut self, step: &Step) -> Option<String> {
        match step {
            Step::Do { who, operation } => {
                let [model, subject] = &mut self.sides;
                let (expected, found) = (
                    model.carry_out(*who, operation),
                    subject.carry_out(*who, operation),
                );
                (expected != found)
                    .then(|| format!("{step:?}\n  expected {expected:?}\n  found    {found:?}"))
            }
            Step::Compare => self.compare(),
            Step::Remount => {
                // Open files would keep the mount busy.
                let scratch = directory();
                self.sides = [Side::new(&self.model), Side::new(&scratch)];
                self.place.remount();
                self.sides[1] = Side::new(self.place.path());
                self.compare()
                    .map(|found| format!("after a remount: {found}"))
            }
        }
    }

    fn compare(&self) -> Option<String> {
        let lines = tree::differences(&tree::read(&self.model), &tree::read(self.place.path()));
        (!lines.is_empty()).then(|| {
            format!(
                "{} differences: {}",
                lines.len(),
                lines[..lines.len().min(5)].join("\n  ")
            )
        })
    }

    /// Removes the run's files.
    fn end(self) {
        drop(self.sides);
        drop(self.place);
        shell(
            &directory(),
            "rm -rf --one-file-system -- \"$@\"",
            [&self.model],
        );
    }
}
