//! The format held by golden bytes; readers held against damage of every kind.

use proptest::prelude::*;

use super::*;
use crate::digest::{DiffId, ObjectId, Sha256Digest};

const GOLDEN: &[u8] = include_bytes!("../../../fixtures/golden/recipe/split-v2");
const GOLDEN_CANONICAL: &[u8] = include_bytes!("../../../fixtures/golden/recipe/canonical-v2");

const OLD: [&[u8]; 2] = [
    include_bytes!("../../../fixtures/golden/recipe/split-v1"),
    include_bytes!("../../../fixtures/golden/recipe/canonical-v1"),
];

fn diff_id() -> DiffId {
    DiffId(Sha256Digest::of(b"the tar"))
}

/// The objects that the layer's tree has.
fn table() -> [ObjectId; 2] {
    [ObjectId::of(&[2]), ObjectId::of(&[3])]
}

fn written(steps: &[Step]) -> Vec<u8> {
    let mut writer = Recorder::new(1 << 20).unwrap();
    let mut ids = table().to_vec();
    for step in steps {
        match step {
            Step::Literal(bytes) => writer.literal(bytes).unwrap(),
            Step::Zeros(count) => writer.zeros(*count).unwrap(),
            Step::Object(content, offset, length) => {
                let id = ObjectId::of(&[*content]);
                let known = ids.iter().position(|known| *known == id);
                let number = known.unwrap_or_else(|| {
                    ids.push(id);
                    ids.len() - 1
                });
                let number = u32::try_from(number).unwrap();
                writer.object(number, *offset, *length).unwrap();
            }
        }
    }
    let recording = writer.finish().unwrap();
    recording.into_recipe(diff_id(), 2, &ids[2..]).unwrap()
}

#[derive(Debug, Clone)]
enum Step {
    Literal(Vec<u8>),
    Zeros(u64),
    Object(u8, u64, u64),
}

/// What a tar is, literals as bytes, objects by name.
#[derive(Debug, PartialEq)]
enum Part {
    Bytes(Vec<u8>),
    Object(ObjectId, u64, u64),
}

fn push(parts: &mut Vec<Part>, bytes: &[u8]) {
    match parts.last_mut() {
        _ if bytes.is_empty() => {}
        Some(Part::Bytes(last)) => last.extend_from_slice(bytes),
        _ => parts.push(Part::Bytes(bytes.to_vec())),
    }
}

fn meant(steps: &[Step]) -> Vec<Part> {
    let mut parts = Vec::new();
    for step in steps {
        match step {
            Step::Literal(bytes) => push(&mut parts, bytes),
            Step::Zeros(count) => push(&mut parts, &vec![0; usize::try_from(*count).unwrap()]),
            Step::Object(_, _, 0) => {}
            Step::Object(content, offset, length) => {
                parts.push(Part::Object(ObjectId::of(&[*content]), *offset, *length));
            }
        }
    }
    parts
}

fn read(bytes: &[u8]) -> Result<Vec<Part>, RecipeError> {
    let recipe = Recipe::open(bytes)?;
    let mut instructions = recipe.instructions()?;
    let mut parts = Vec::new();
    while let Some(instruction) = instructions.next()? {
        match instruction {
            Instruction::Literal(bytes) => push(&mut parts, bytes),
            Instruction::Zeros(count) => {
                push(&mut parts, &vec![0; usize::try_from(count).unwrap()]);
            }
            Instruction::Object {
                number,
                offset,
                length,
            } => {
                let own = recipe.own_object(number);
                let id = own.unwrap_or_else(|| table()[number as usize]);
                parts.push(Part::Object(id, offset, length));
            }
        }
    }
    Ok(parts)
}

/// A recipe by hand, its digest right: what an encoder would never write. Beside its own objects it
/// may name two of a tree.
fn forged(unpacked: &[u8], own_objects: u32, tar_bytes: u64) -> Vec<u8> {
    let packed = zstd::bulk::compress(unpacked, 1).unwrap();
    let mut bytes = canonical(diff_id(), tar_bytes);
    bytes.truncate(HEADER_LEN);
    bytes[10] = 2;
    bytes[72..76].copy_from_slice(&own_objects.to_le_bytes());
    bytes[76..80].copy_from_slice(&2_u32.to_le_bytes());
    bytes[80..88].copy_from_slice(&(packed.len() as u64).to_le_bytes());
    bytes[88..96].copy_from_slice(&(unpacked.len() as u64).to_le_bytes());
    bytes.extend(vec![7; ID_LEN * own_objects as usize]);
    bytes.extend(packed);
    let digest = blake3::hash(&bytes);
    bytes.extend(digest.as_bytes());
    bytes
}

/// A header as `printf '%06o'` writes its checksum: 'n', 'u', 's' and eight spaces.
fn tar_header() -> Vec<u8> {
    let mut block = vec![0; 512];
    block[0] = b'n';
    block[257..259].copy_from_slice(b"us");
    block[148..156].copy_from_slice(b"001126\0 ");
    block
}

fn golden_steps() -> Vec<Step> {
    vec![
        Step::Literal([&tar_header()[..], &[b'x'; 506]].concat()),
        Step::Object(1, 0, 5),
        Step::Literal([&[b'+'; 513], &tar_header()[..], b"more"].concat()),
        Step::Object(2, 300, 70_000),
        Step::Object(3, 0, 1),
        Step::Object(1, 0, 5),
        Step::Zeros(1024),
    ]
}

#[test]
fn golden_recipes_of_version_2_are_read() {
    let recipe = Recipe::open(GOLDEN).unwrap();
    recipe.verify().unwrap();
    let length = 512 + 506 + 5 + 513 + 512 + 4 + 70_000 + 1 + 5 + 1024;
    assert_eq!(
        (recipe.kind(), recipe.diff_id(), recipe.tar_bytes()),
        (Kind::Split, diff_id(), length)
    );
    assert_eq!(read(GOLDEN).unwrap(), meant(&golden_steps()));
    assert_eq!(recipe.tree_objects(), 2);
    let own: Vec<ObjectId> = own_object_ids(GOLDEN).unwrap().collect();
    assert_eq!(own, [ObjectId::of(&[1])]);

    assert_eq!(canonical(diff_id(), 10_240), GOLDEN_CANONICAL);
    let recipe = Recipe::open(GOLDEN_CANONICAL).unwrap();
    recipe.verify().unwrap();
    assert_eq!(
        (recipe.kind(), recipe.tar_bytes()),
        (Kind::Canonical, 10_240)
    );
    assert_eq!(read(GOLDEN_CANONICAL).unwrap(), []);
}

#[test]
fn open_refuses_recipes_of_other_versions_by_number() {
    for old in OLD {
        let message = Recipe::open(old).unwrap_err().to_string();
        assert_eq!(message, "recipe format version 1 is not supported");
    }
    let mut newer = GOLDEN.to_vec();
    newer[8] = 3;
    let message = own_object_ids(&newer).err().unwrap().to_string();
    assert_eq!(message, "recipe format version 3 is not supported");
}

/// zstd may pack them otherwise one day; the header, the ids and the unpacked instructions stay.
#[test]
fn recipe_bytes_match_the_format_page() {
    let bytes = written(&golden_steps());
    let ids_end = HEADER_LEN + ID_LEN;
    let without_packed = |bytes: &[u8]| [&bytes[..80], &bytes[88..ids_end]].concat();
    assert_eq!(without_packed(&bytes), without_packed(GOLDEN));
    let packed = &bytes[ids_end..bytes.len() - DIGEST_LEN];
    let unpacked = zstd::bulk::decompress(packed, 4096).unwrap();
    let header = tar_header();
    let header = [b"\x07", &header[..148], &header[156..]].concat();
    let expected = [
        &header[..],
        // 506 literal bytes
        b"\xe8\x0f",
        &[b'x'; 506],
        // 5 bytes of object 2, the first beyond the tree's: 2 forwards from 0
        b"\x16\x04\x00",
        // 513 bytes, so that the header is at 1536
        b"\x84\x10",
        &[b'+'; 513],
        &header[..],
        b"\x10more",
        // object 0, from 300 on: 3 backwards from 3
        b"\xc2\x8b\x11\x05\xac\x02",
        // object 1 follows, and then 2
        b"\x06\x00\x00",
        b"\x16\x00\x00",
        b"\x81\x20",
    ]
    .concat();
    assert_eq!(unpacked, expected);
}

#[test]
fn encoder_keeps_blocks_literal_whose_checksum_is_another() {
    let mut octal = tar_header();
    octal[148..156].copy_from_slice(b"  1126\0 ");
    let mut wrong = tar_header();
    wrong[0] = b'm';
    for block in [octal, wrong] {
        let bytes = written(&[Step::Literal(block.clone())]);
        let packed = &bytes[HEADER_LEN..bytes.len() - DIGEST_LEN];
        let unpacked = zstd::bulk::decompress(packed, 4096).unwrap();
        assert_eq!(unpacked, [b"\x80\x10", &block[..]].concat());
    }
}

#[test]
fn recipe_of_a_terabyte_of_zeros_is_one_instruction() {
    let bytes = written(&[Step::Literal(vec![1]), Step::Zeros(1 << 40)]);
    assert!(bytes.len() < 200, "{}", bytes.len());
    assert_eq!(Recipe::open(&bytes).unwrap().tar_bytes(), (1 << 40) + 1);
}

#[test]
fn recorder_stops_at_its_limit() {
    let mut recorder = Recorder::new(10_000).unwrap();
    let mut number = 1_u64;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        number = number
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        number.to_le_bytes()[7]
    })
    .take(500_000)
    .collect();
    let error = recorder
        .literal(&noise)
        .and_then(|()| recorder.finish())
        .unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::FileTooLarge);
}

#[test]
fn instructions_refuse_what_the_header_contradicts() {
    let refused = |unpacked: &[u8], objects, tar_bytes, part: &str| {
        let message = read(&forged(unpacked, objects, tar_bytes))
            .unwrap_err()
            .to_string();
        assert!(message.contains(part), "{part}: {message}");
    };
    assert_eq!(
        read(&forged(b"\x04x", 0, 1)).unwrap(),
        [Part::Bytes(vec![b'x'])]
    );
    refused(b"\x04x", 0, 2, "end too early");
    refused(b"\x04x", 0, 0, "too much");
    refused(b"\x08x", 0, 2, "end too early");
    refused(b"\x07", 0, 1, "too much");
    refused(b"\x07", 0, 512, "end too early");
    refused(b"\x0b", 0, 1024, "end too early");
    refused(b"\x00", 0, 0, "gives nothing");
    refused(b"\x84\x00x", 0, 1, "number");
    refused(&[0xff; 11], 0, 1, "number");
    // the tree has 0 and 1
    refused(b"\x06\x04\x00", 0, 1, "no object");
    refused(b"\x06\x06\x00", 1, 1, "no object");
    // backwards from 0
    refused(b"\x06\x01\x00", 1, 1, "no object");
    // 2^63 forwards
    refused(
        b"\x06\xfe\xff\xff\xff\xff\xff\xff\xff\xff\x01\x00",
        1,
        1,
        "no object",
    );
    // 2^64 - 1
    refused(
        b"\x06\x00\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        1,
        1,
        "2^64",
    );
    // a count of 2^62 - 1 within a tar of as many bytes asks for no memory
    refused(
        b"\xfc\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        0,
        u64::MAX >> 2,
        "end too early",
    );
}

#[test]
fn verify_finds_any_changed_or_missing_byte() {
    for golden in [GOLDEN, GOLDEN_CANONICAL] {
        for at in 0..golden.len() {
            let mut damaged = golden.to_vec();
            damaged[at] ^= 1;
            assert!(
                Recipe::open(&damaged).is_err()
                    || Recipe::open(&damaged).unwrap().verify().is_err(),
                "byte {at}"
            );
            assert!(own_object_ids(&golden[..at]).is_err(), "cut at {at}");
        }
    }
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..2000).prop_map(Step::Literal),
        (0_usize..4).prop_map(|count| Step::Literal(tar_header().repeat(count))),
        Just(Step::Zeros(512)),
        (0_u64..200_000).prop_map(Step::Zeros),
        prop::sample::select(vec![65_535_u64, 65_536, 65_537, 131_072]).prop_map(Step::Zeros),
        (any::<u8>(), 0_u64..1 << 40, 0_u64..1 << 40)
            .prop_map(|(content, offset, length)| Step::Object(content, offset, length)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn instructions_round_trip(steps in prop::collection::vec(step(), 0..20)) {
        let bytes = written(&steps);
        Recipe::open(&bytes).unwrap().verify().unwrap();
        prop_assert_eq!(read(&bytes).unwrap(), meant(&steps));
    }

    /// Which is how a canonical tar is recognised.
    #[test]
    fn recorder_gives_equal_instructions_for_equal_tars(
        start in 0_u64..1024,
        bytes in prop::collection::vec(prop::sample::select(vec![0_u8, 0, 0, 1]), 0..200),
        headers in 0_usize..200,
        zeros in 0_u64..200_000,
        cut in 0_usize..100_000,
    ) {
        let before = Step::Object(1, 0, start);
        let bytes = [bytes, tar_header().repeat(headers)].concat();
        let whole = [bytes.clone(), vec![0; usize::try_from(zeros).unwrap()]].concat();
        let cut = cut.min(bytes.len());
        prop_assert_eq!(
            written(&[before.clone(), Step::Literal(whole)]),
            written(&[
                before,
                Step::Literal(bytes[..cut].to_vec()),
                Step::Literal(bytes[cut..].to_vec()),
                Step::Zeros(zeros),
            ])
        );
    }

    #[test]
    fn instructions_never_panic(
        unpacked in prop::collection::vec(any::<u8>(), 0..200),
        objects in 0_u32..3,
        tar_bytes in 0_u64..10_000,
        raw in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        // a run of zeros is no longer than the tar, so nothing here is large
        drop(read(&forged(&unpacked, objects, tar_bytes)));
        drop(read(&raw));
    }
}
