//! No bytes make import panic, loop or read an archive differently from another reader.
//!
//! The peer is `tar-core`. It accepts more than we do; whatever both accept must be the same
//! entries at the same places. Archives are those of `fixtures/tars.py`, odd and hostile ones,
//! damaged block by block and byte by byte, with checksums that match again, since otherwise no
//! damage would get past them.

use std::fs;
use std::sync::OnceLock;

use bstr::ByteSlice;
use proptest::prelude::*;
use tar_core::parse::{ParseEvent, Parser};

use super::memory::Memory;
use super::oracle::{archives, tars};
use super::recipes::restored;
use crate::digest::Sha256Digest;
use crate::digest::Sha256Hasher;
use crate::layer::entry::{Entry, EntryKind};
use crate::layer::reader::TarReader;
use crate::layer::stream::Hashed;
use crate::layer::{HashOnly, Limits, import};
use crate::tree::Tree;

const BLOCK: usize = 512;

/// One kind of damage. Positions are taken modulo what there is.
#[derive(Debug, Clone)]
enum Damage {
    Byte(usize, u8),
    /// A digit of a header's field or PAX record, where most of the meaning is.
    Digit(usize, u8),
    Type(usize, u8),
    Remove(usize),
    Repeat(usize),
    Zero(usize),
    Swap(usize, usize),
    Cut(usize),
}

fn damage() -> impl Strategy<Value = Damage> {
    let place = any::<usize>;
    prop_oneof![
        (place(), any::<u8>()).prop_map(|(at, byte)| Damage::Byte(at, byte)),
        (place(), any::<u8>()).prop_map(|(at, digit)| Damage::Digit(at, b'0' + digit % 10)),
        (
            place(),
            prop::sample::select(b"\x000123456789gxLKSVMDNX".to_vec())
        )
            .prop_map(|(at, kind)| Damage::Type(at, kind)),
        place().prop_map(Damage::Remove),
        place().prop_map(Damage::Repeat),
        place().prop_map(Damage::Zero),
        (place(), place()).prop_map(|(a, b)| Damage::Swap(a, b)),
        place().prop_map(Damage::Cut),
    ]
}

fn apply(bytes: &mut Vec<u8>, damage: &Damage) {
    let blocks = bytes.len() / BLOCK;
    if blocks == 0 {
        return;
    }
    let block = |at: usize| (at % blocks) * BLOCK;
    match *damage {
        Damage::Byte(at, byte) => {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        Damage::Digit(at, digit) => {
            let digits: Vec<usize> = (0..bytes.len())
                .filter(|&at| bytes[at].is_ascii_digit())
                .collect();
            if let Some(&at) = digits.get(at % digits.len().max(1)) {
                bytes[at] = digit;
            }
        }
        Damage::Type(at, kind) => bytes[block(at) + 156] = kind,
        Damage::Remove(at) => drop(bytes.drain(block(at)..block(at) + BLOCK)),
        Damage::Repeat(at) => {
            let copy = bytes[block(at)..block(at) + BLOCK].to_vec();
            bytes.splice(block(at)..block(at), copy);
        }
        Damage::Zero(at) => bytes[block(at)..block(at) + BLOCK].fill(0),
        Damage::Swap(a, b) => (0..BLOCK).for_each(|at| bytes.swap(block(a) + at, block(b) + at)),
        Damage::Cut(at) => bytes.truncate(at % bytes.len()),
    }
}

/// Makes whatever looks like a header one.
fn fix_checksums(bytes: &mut [u8]) {
    for block in bytes.as_chunks_mut::<BLOCK>().0 {
        if &block[257..262] == b"ustar" {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
            block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        }
    }
}

/// Small ones: damage in a long run of equal blocks finds nothing.
fn seeds() -> &'static [Vec<u8>] {
    static SEEDS: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    SEEDS.get_or_init(|| {
        let scratch = tempfile::tempdir().unwrap();
        let mut seeds = Vec::new();
        for kind in ["odd", "hostile"] {
            let directory = scratch.path().join(kind);
            tars(&[kind, directory.to_str().unwrap()]);
            seeds.extend(
                archives(&directory)
                    .iter()
                    .map(|path| fs::read(path).unwrap()),
            );
        }
        seeds.retain(|seed| seed.len() <= 16 * 1024);
        assert!(seeds.len() > 100);
        seeds
    })
}

fn limits() -> Limits {
    Limits {
        content_bytes: 1 << 24,
        ..Limits::default()
    }
}

/// Name, type and stored data of each entry.
type Listing = Vec<(Vec<u8>, u8, u64)>;

fn ours(bytes: &[u8]) -> Option<Listing> {
    let limits = limits();
    let mut reader = TarReader::new(Hashed(bytes, Sha256Hasher::new()), (), &limits);
    let mut listing = Listing::new();
    while let Some(Entry { path, kind, .. }) = reader.next().ok()?.continue_value() {
        let letter = match kind {
            EntryKind::Regular(_) => b'0',
            EntryKind::HardLink(_) => b'1',
            EntryKind::Symlink(_) => b'2',
            EntryKind::CharDevice(_) => b'3',
            EntryKind::BlockDevice(_) => b'4',
            EntryKind::Directory => b'5',
            EntryKind::Fifo => b'6',
        };
        let mut stored = 0;
        loop {
            match reader.content(u64::MAX).ok()? {
                [] => break,
                piece => stored += piece.len() as u64,
            }
        }
        listing.push((path, letter, stored));
    }
    Some(listing)
}

fn theirs(bytes: &[u8]) -> Option<Listing> {
    let mut parser = Parser::with_defaults();
    parser.set_ignore_pax_errors(true);
    parser.set_allow_empty_path(true);
    let mut listing = Listing::new();
    let mut rest = bytes;
    loop {
        let (consumed, entry) = match parser.parse(rest).ok()? {
            ParseEvent::End { .. } => return Some(listing),
            // the end of the bytes, which is one of the archive
            ParseEvent::NeedData { .. } => {
                return (rest.is_empty() || rest.iter().all(|&byte| byte == 0)).then_some(listing);
            }
            ParseEvent::GlobalExtensions { consumed, .. } => {
                rest = &rest[consumed..];
                continue;
            }
            ParseEvent::Entry { consumed, entry }
            | ParseEvent::SparseEntry {
                consumed, entry, ..
            } => (consumed, entry),
        };
        let letter = match entry.entry_type.to_byte() {
            b'0' if entry.header.as_bytes()[156] == 0
                && super::super::path::names_a_directory(&entry.path) =>
            {
                b'5'
            }
            b'7' | b'S' => b'0',
            other => other,
        };
        // it takes one NUL off a GNU long name; Go and GNU tar end it at the first
        let path = entry.path.trim_end_with(|letter| letter == '\0').to_vec();
        // where the data of these begin and end is left to its callers: Go and GNU tar see none
        let (size, padded) = match letter {
            b'1'..=b'6' => (0, 0),
            _ => (entry.size, entry.padded_size()),
        };
        listing.push((path, letter, size));
        let data = &rest[consumed..];
        let padded = usize::try_from(padded).ok()?;
        if data.len() < usize::try_from(size).ok()? {
            return None;
        }
        rest = data.get(padded..).unwrap_or_default();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn import_agrees_with_tar_core_or_refuses(
        seed in any::<prop::sample::Index>(),
        damages in prop::collection::vec(damage(), 1..6),
        mended in prop::bool::weighted(0.9),
    ) {
        let mut bytes = seed.get(seeds()).clone();
        for damage in &damages {
            apply(&mut bytes, damage);
        }
        if mended {
            fix_checksums(&mut bytes);
        }
        if let Ok(layer) = import(bytes.as_slice(), &HashOnly, &limits()) {
            prop_assert_eq!(layer.diff_id.0, Sha256Digest::of(&bytes));
            Tree::from_bytes(layer.tree_bytes).unwrap().verify().unwrap();
            let contents = Memory::default();
            let kept = import(bytes.as_slice(), &contents, &limits()).unwrap();
            prop_assert!(restored(&kept, &contents) == bytes, "the recipe gives other bytes");
            let ours = ours(&bytes);
            prop_assert!(ours.is_some());
            if let Some(theirs) = theirs(&bytes) {
                prop_assert_eq!(ours, Some(theirs));
            }
        }
    }

    #[test]
    fn import_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..4096)) {
        drop(import(bytes.as_slice(), &HashOnly, &limits()));
    }
}
