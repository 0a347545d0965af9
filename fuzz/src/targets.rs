//! One target per parser of foreign bytes. Errors are fine; a panic, a loop or a false promise is a
//! bug.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use cowl_core::handover;
use cowl_core::image::{self, ImageConfig, Reference};
use cowl_core::layer::{self, HashOnly, Limits};
use cowl_core::recipe::{self, Recipe};
use cowl_core::store::Store;
use cowl_core::tree;
use cowl_core::upper::marks;
use cowl_launch::{control, wire};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, send, socketpair};

use crate::packages::{self, Kind, Packages};

/// A parser, as the runner sees it.
#[derive(Debug)]
pub struct Target {
    pub name: &'static str,
    /// Files and directories below fixtures/golden to start from, beside seeds/NAME.
    golden: &'static [&'static str],
    /// Whether lines of those files are hexadecimal inputs after a name.
    lines: bool,
    /// Makes a changed input pass a checksum that would hide everything behind it.
    pub repair: fn(&mut [u8]),
    /// Whether the parser accepts the input.
    pub parse: fn(&[u8]) -> bool,
}

const fn target(name: &'static str, parse: fn(&[u8]) -> bool) -> Target {
    Target {
        name,
        golden: &[],
        lines: false,
        repair: |_| {},
        parse,
    }
}

pub const TARGETS: [Target; 16] = [
    // Headers, PAX records and sparse maps in all spellings: seeds/layer has one archive of each.
    Target {
        repair: checksums,
        golden: &["recipe/canonical-v1.tar"],
        ..target("layer", |input| {
            layer::import(input, &HashOnly, &limits()).is_ok()
        })
    },
    target("pax", layer::fuzz::pax),
    target("sparse", layer::fuzz::sparse),
    target("compressed", |input| {
        layer::decompress(input).is_ok_and(|stream| {
            std::io::copy(&mut stream.take(1 << 20), &mut std::io::sink()).is_ok()
        })
    }),
    Target {
        repair: checksums,
        ..target("archive", load)
    },
    target("config", |input| ImageConfig::from_slice(input).is_ok()),
    target("reference", |input| {
        let Ok(text) = std::str::from_utf8(input) else {
            return false;
        };
        text.parse::<Reference>().is_ok_and(|reference| {
            // A name that is shown can be typed.
            assert!(reference.canonical().parse::<Reference>().is_ok(), "{text}");
            true
        })
    }),
    Target {
        golden: &["tree"],
        ..target("tree", |input| tree::fuzz::read(input.to_vec()).is_ok())
    },
    Target {
        golden: &["recipe"],
        ..target("recipe", read_recipe)
    },
    Target {
        golden: &["upper"],
        lines: true,
        ..target("marks", |input| {
            drop(marks::unescape(input));
            let file = marks::FileMark::decode(input);
            let stamp = marks::Stamp::decode(input);
            file.is_ok() || stamp.is_ok()
        })
    },
    Target {
        golden: &["fuse/requests"],
        lines: true,
        ..target("requests", |input| {
            let short = cowl_mountd::fuse::decodes(input, false);
            cowl_mountd::fuse::decodes(input, true) || short
        })
    },
    Target {
        golden: &["handover"],
        ..target("handover", |input| handover::decode(input).is_ok())
    },
    target("launch", read_launch),
    Target {
        golden: &["control"],
        ..target("control", |input| {
            let request = control::Request::decode(input).is_ok();
            let reply = control::Reply::decode(input).is_ok();
            request | reply | control::decode_process(input).is_ok()
        })
    },
    Target {
        golden: &["rpm"],
        ..target("rpm", |input| read_packages(Kind::Rpm, input))
    },
    target("packages", |input| {
        let dpkg = read_packages(Kind::Dpkg, input);
        read_packages(Kind::Apk, input) || dpkg
    }),
];

/// Small limits, so that an input's time is bounded by them.
fn limits() -> Limits {
    Limits {
        entries: 10_000,
        content_bytes: 1 << 22,
        stream_bytes: 1 << 22,
        ..Limits::default()
    }
}

/// A whole image archive, into a store of its own; in memory, where publishing does not wait for a
/// disk.
fn load(input: &[u8]) -> bool {
    let directory = tempfile::tempdir_in("/dev/shm").expect("a directory in memory");
    let path = directory.path().join("image.tar");
    fs::write(&path, input).expect("room for an archive");
    let store = Store::open_or_create(&directory.path().join("store")).expect("a new store");
    image::load(&store, &path).is_ok()
}

fn read_recipe(input: &[u8]) -> bool {
    drop(recipe::own_object_ids(input).map(|ids| ids.count()));
    let Ok(recipe) = Recipe::open(input) else {
        return false;
    };
    let verified = recipe.verify();
    if let Ok(mut instructions) = recipe.instructions() {
        // Zeros are counted and not stored: a bound of steps is one of time.
        for _ in 0..10_000 {
            if !matches!(instructions.next(), Ok(Some(_))) {
                break;
            }
        }
    }
    verified.is_ok()
}

/// A message of each direction between engine and monitor, and the file of what to start.
fn read_launch(input: &[u8]) -> bool {
    let message = |read: fn(&OwnedFd) -> bool| {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (here, there) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
            .expect("a pair of sockets");
        // Too long a message is refused by the socket.
        send(&here, input, SendFlags::empty()).is_ok() && read(&there)
    };
    let start = || {
        let file = rustix::fs::memfd_create(c"start", rustix::fs::MemfdFlags::CLOEXEC)
            .expect("a memory file");
        rustix::io::write(&file, input).expect("room in memory");
        wire::read_start(file, u32::try_from(input.len()).expect("short")).is_ok()
    };
    let run = message(|socket| wire::receive_run(socket.as_fd()).is_ok());
    let request = message(|socket| wire::receive_request(socket.as_fd()).is_ok());
    let event = message(|socket| wire::receive_event(socket.as_fd()).is_ok());
    run | request | event | start()
}

/// Whether a database has packages. What is copied out of it is bounded by its length: name,
/// version and release may lie over each other, SQLite's rows are read for at most twice the file,
/// and a byte that is no UTF-8 becomes three.
fn read_packages(kind: Kind, input: &[u8]) -> bool {
    let mut packages = Packages::new();
    let read = packages::read(kind, input, &mut packages);
    let copied: usize = packages
        .iter()
        .flat_map(|((_, name), versions)| std::iter::once(name).chain(versions))
        .map(String::len)
        .sum();
    assert!(copied <= 32 * input.len(), "{copied} bytes");
    read.is_ok() && !packages.is_empty()
}

/// Corrects the checksum of every block that has the magic of a tar header.
fn checksums(input: &mut [u8]) {
    for block in input.chunks_exact_mut(512) {
        if &block[257..262] != b"ustar" {
            continue;
        }
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
}

/// The inputs that a target starts from.
pub fn seeds(target: &Target) -> Vec<Vec<u8>> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut seeds = Vec::new();
    for file in files(&here.join("seeds").join(target.name)) {
        seeds.push(read(&file));
    }
    for golden in target.golden {
        for file in files(&here.join("../fixtures/golden").join(golden)) {
            let bytes = read(&file);
            if target.lines {
                let text = String::from_utf8(bytes).expect("lines of text");
                seeds.extend(
                    text.lines()
                        .filter_map(|line| hexadecimal(line.split(' ').nth(1)?)),
                );
            } else {
                seeds.push(bytes);
            }
        }
    }
    seeds
}

/// A file, or those of a directory, sorted.
fn files(path: &Path) -> Vec<PathBuf> {
    if path.is_file() {
        return vec![path.to_owned()];
    }
    let Ok(entries) = fs::read_dir(path) else {
        return Vec::new();
    };
    let mut files: Vec<_> = entries
        .map(|entry| entry.expect("an entry").path())
        .collect();
    files.sort();
    files
}

fn read(file: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    File::open(file)
        .and_then(|mut file| file.read_to_end(&mut bytes))
        .expect("a seed");
    bytes
}

fn hexadecimal(text: &str) -> Option<Vec<u8>> {
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok())
        .collect()
}
