//! No bytes make the reader panic, loop or say yes: trees with flipped bytes and lost ends, with
//! the header's digest made right again so that the damage gets past the door.

use proptest::prelude::*;

use super::super::fuzz;
use super::super::{Kind, LayerBuilder, Meta, Tree, TreeError, TreeIno, merge};
use super::{LAYER, layer, meta, parts};

/// Where format 2 has the digest of its header, and how long that is.
const HEADER_DIGEST: usize = 288;
const BODY: usize = 320;

fn samples() -> Vec<Vec<u8>> {
    let script = "d \nf a/b/c 1\nf a/b/d 22\nh e a/b/c\nl a/l b/c\nw gone\nw a/gone\no o\nh far a/x/y\nf o/p 1";
    let base = layer("f a/x/y 1\nf gone 1\nl o x\nd a\nf z/z/z/z/z 5");
    let upper = layer(script);
    let mut builder = LayerBuilder::new();
    let xattrs = vec![
        (b"user.a".to_vec(), b"1".to_vec()),
        (b"user.b".to_vec(), vec![7; 300]),
    ];
    builder
        .insert(
            &parts("x"),
            Meta {
                xattrs,
                ..meta(0o644)
            },
            Kind::Fifo,
        )
        .unwrap();
    let attributes = Tree::from_bytes(builder.finish(LAYER).unwrap()).unwrap();
    let merged = merge(&[base, upper]).unwrap();
    vec![
        merged,
        layer(script).bytes().to_vec(),
        attributes.bytes().to_vec(),
    ]
}

fn fix_header_digest(bytes: &mut [u8]) {
    if let Some((hashed, rest)) = bytes.split_at_mut_checked(HEADER_DIGEST) {
        let digest = blake3::hash(hashed);
        if let Some(place) = rest.get_mut(..32) {
            place.copy_from_slice(digest.as_bytes());
        }
    }
}

fn fix_digests(bytes: &mut [u8]) {
    fix_header_digest(bytes);
    if let Some((hashed, place)) = bytes.split_last_chunk_mut::<32>() {
        *place = *blake3::hash(hashed).as_bytes();
    }
}

#[test]
fn fuzz_read_accepts_the_samples() {
    for bytes in samples() {
        fuzz::read(bytes).unwrap();
    }
}

#[test]
fn open_refuses_every_truncation() {
    for bytes in samples() {
        for length in 0..bytes.len() {
            let mut cut = bytes[..length].to_vec();
            fix_header_digest(&mut cut);
            assert!(
                Tree::from_bytes(cut).is_err(),
                "{length} of {} bytes",
                bytes.len()
            );
        }
        let mut longer = bytes;
        longer.push(0);
        assert!(matches!(
            Tree::from_bytes(longer),
            Err(TreeError::Length { .. })
        ));
    }
}

#[test]
fn verify_finds_every_flipped_byte() {
    for bytes in samples() {
        for position in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[position] ^= 0x55;
            assert!(fuzz::read(flipped).is_err(), "byte {position}");
        }
    }
}

#[test]
fn open_names_an_unknown_version_or_feature() {
    let bytes = samples().swap_remove(0);
    let with = |position: usize, value: u8| {
        let mut bytes = bytes.clone();
        bytes[position] = value;
        fix_digests(&mut bytes);
        Tree::from_bytes(bytes)
    };
    assert!(matches!(with(0, b'C'), Err(TreeError::Magic)));
    assert!(matches!(with(8, 3), Err(TreeError::Version(3))));
    assert!(matches!(with(24, 4), Err(TreeError::Features(4))));
    assert!(matches!(with(12, 3), Err(TreeError::Corrupt { .. })));
    // Compatible features change nothing; an unknown numbering fails verify only.
    with(16, 1).unwrap().verify().unwrap();
    let renumbered = with(10, 9).unwrap();
    assert_eq!(renumbered.numbering(), 9);
    assert!(renumbered.verify().is_err());
}

#[test]
fn open_skips_an_unknown_section() {
    for old in samples() {
        let mut bytes = old.clone();
        // The sections move by 64 bytes, to make room for one more entry of the table.
        bytes.splice(320..320, [0; 64]);
        for position in 0..8 {
            let at = 96 + 24 * position + 8;
            let offset = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) + 64;
            bytes[at..at + 8].copy_from_slice(&offset.to_le_bytes());
        }
        let length = bytes.len() as u64;
        bytes[48..56].copy_from_slice(&length.to_le_bytes());
        bytes[16] = 1; // a compatible feature
        bytes[44] = 9; // sections
        let entry = [
            &99u32.to_le_bytes()[..],
            &1u32.to_le_bytes(),
            &360u64.to_le_bytes(),
            &4u64.to_le_bytes(),
        ];
        bytes[288..312].copy_from_slice(&entry.concat());
        let digest = blake3::hash(&bytes[..312]);
        bytes[312..344].copy_from_slice(digest.as_bytes());
        let (hashed, place) = bytes.split_last_chunk_mut::<32>().unwrap();
        *place = *blake3::hash(hashed).as_bytes();
        let old = Tree::from_bytes(old).unwrap();
        let new = Tree::from_bytes(bytes).unwrap();
        new.verify().unwrap();
        assert_eq!(new.node_count(), old.node_count());
        for number in 0..old.node_count() {
            let ino = TreeIno(number);
            assert_eq!(new.node(ino).unwrap(), old.node(ino).unwrap());
            assert_eq!(new.path_of(ino).unwrap(), old.path_of(ino).unwrap());
        }
    }
}

/// Values that make trouble: ends, beginnings, sizes, flags.
fn word() -> impl Strategy<Value = u32> {
    prop_oneof![
        0..20u32,
        Just(u32::MAX),
        Just(u32::MAX - 1),
        Just(1 << 31),
        any::<u32>()
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn read_of_damaged_records_fails_cleanly(
        sample in 0..3usize,
        bytes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        words in prop::collection::vec((any::<prop::sample::Index>(), word()), 0..4),
        header in prop::collection::vec((0..288usize, any::<u8>()), 0..2),
    ) {
        let mut tree = samples().swap_remove(sample);
        let body = tree.len() - BODY;
        for (position, value) in bytes {
            tree[BODY + position.index(body)] = value;
        }
        for (position, value) in words {
            let position = BODY + position.index(body / 4 - 1) * 4;
            tree[position..position + 4].copy_from_slice(&value.to_le_bytes());
        }
        for (position, value) in header {
            tree[position] = value;
        }
        fix_digests(&mut tree);
        // Some damage makes another good tree; what counts is to get here.
        drop(fuzz::read(tree));
    }

    #[test]
    fn read_of_noise_fails_cleanly(mut noise in prop::collection::vec(any::<u8>(), 0..2000)) {
        noise.splice(0..noise.len().min(8), *b"cowltree");
        fix_digests(&mut noise);
        prop_assert!(fuzz::read(noise).is_err());
    }
}
