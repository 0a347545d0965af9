use super::*;

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

fn origin(node: u32) -> FileMark {
    FileMark::of_origin(TreeIno(node))
}

fn file_marks() -> [(&'static str, FileMark); 7] {
    let metadata_only = FileMark {
        metadata_only: true,
        ..origin(0x0102_0304)
    };
    [
        ("origin", origin(0x0102_0304)),
        (
            "device",
            FileMark {
                device: true,
                ..FileMark::default()
            },
        ),
        ("metadata-only", metadata_only.clone()),
        (
            "indexed",
            FileMark {
                link_delta: Some(-2),
                ..metadata_only.clone()
            },
        ),
        (
            "copying",
            FileMark {
                copying: Some(Saved {
                    size: 0x0908,
                    mtime: Timestamp { secs: -2, nanos: 5 },
                    mode: 0o4755,
                    capability: None,
                }),
                ..metadata_only.clone()
            },
        ),
        (
            "copying-capability",
            FileMark {
                link_delta: Some(3),
                copying: Some(Saved {
                    size: 0x0908,
                    mtime: Timestamp {
                        secs: 0x0102_0304_0506,
                        nanos: 999_999_999,
                    },
                    mode: 0o755,
                    capability: Some(b"capability".to_vec()),
                }),
                ..metadata_only
            },
        ),
        (
            "path",
            FileMark {
                origin: Some(Origin::Path(b"/usr/bin".to_vec())),
                link_delta: Some(1),
                ..FileMark::default()
            },
        ),
    ]
}

#[test]
fn encode_writes_the_golden_bytes() {
    let golden = include_str!("../../../../fixtures/golden/upper/marks-v2.txt");
    let chain = ChainId(Sha256Digest::from_bytes(std::array::from_fn(|i| {
        0xff - u8::try_from(i).unwrap()
    })));
    let stamp = Stamp {
        chain,
        numbering: 0x0102,
    };
    let written: Vec<String> = file_marks()
        .into_iter()
        .map(|(name, mark)| (name, hex(&mark.encode())))
        .chain([("stamp", hex(&stamp.encode()))])
        .map(|(name, bytes)| format!("{name} {bytes}\n"))
        .collect();
    assert_eq!(written.concat(), golden);
}

#[test]
fn decode_reads_what_encode_wrote_and_nothing_else() {
    let stamp = Stamp {
        chain: ChainId(Sha256Digest::of(b"chain")),
        numbering: 7,
    };
    assert_eq!(Stamp::decode(&stamp.encode()), Ok(stamp));
    for (_, mark) in file_marks() {
        assert_eq!(FileMark::decode(&mark.encode()), Ok(mark));
    }
    for bytes in [
        &b""[..],
        b"y",
        &[1, 1, 0, 0, 1, 2, 3, 4],
        &[2, 0, 0, 0],
        &[2, 1, 0, 1, 1, 2, 3, 4],
        &[2, 1, 0, 0, 1, 2, 3],
        &[2, 1, 0, 0, 1, 2, 3, 4, 5],
        &[2, 2, 0, 0],
        &[
            2, 17, 0, 0, 1, 2, 3, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        ],
        &[2, 65, 0, 0, 1, 2, 3, 4],
        &[2, 32, 0, 0, 2, 0, b'a', b'b'],
        &[2, 32, 0, 0, 3, 0, b'/', b'b'],
        &[2, 33, 0, 0, 1, 2, 3, 4, 1, 0, b'/'],
    ] {
        assert_eq!(
            FileMark::decode(bytes),
            Err(UnknownMark(Mark::File)),
            "{bytes:?}"
        );
        assert_eq!(Stamp::decode(bytes), Err(UnknownMark(Mark::Stamp)));
    }
}

/// The encoding is canonical: bytes that decode are the bytes that encode gives.
#[test]
fn decode_refuses_or_round_trips_random_bytes() {
    let mut random = 0x9e37_79b9_u32;
    let mut next = || {
        random ^= random << 13;
        random ^= random >> 17;
        random ^= random << 5;
        random
    };
    let mut taken = 0;
    for _ in 0..200_000 {
        let length = next() % 40;
        let mut bytes: Vec<u8> = (0..length).map(|_| next().to_le_bytes()[1]).collect();
        if let Some(head) = bytes.first_chunk_mut::<4>() {
            *head = [VERSION, head[1] % 70, 0, 0];
        }
        // Chance alone rarely makes a path of the length that it says.
        let behind = u8::try_from(length).unwrap().saturating_sub(6);
        if let [_, flag::PATH, _, _, low, high, first, ..] = &mut *bytes {
            (*low, *high, *first) = (behind, 0, b'/');
        }
        if let Ok(mark) = FileMark::decode(&bytes) {
            assert_eq!(mark.encode(), bytes);
            taken += 1;
        }
    }
    assert!(taken > 500, "{taken} are marks");
}

/// fs/ext4/xattr.h: an inode of 256 bytes has 96 for attributes; a header takes 4 of them, the
/// end of the list 4, each attribute 16 and its name without prefix and its value, both in
/// steps of 4.
#[test]
fn marks_fit_into_an_inode_of_256_bytes_beside_a_capability() {
    let room = 96 - 4 - 4;
    let attribute =
        |name: usize, value: usize| 16 + name.next_multiple_of(4) + value.next_multiple_of(4);
    let mark = |mark: &FileMark, space: Namespace| {
        let name = Mark::File.name(space).len() - space.prefix().len();
        attribute(name, mark.encode().len())
    };
    let capability = attribute("capability".len(), 20);
    let directory_marks = attribute("overlay.impure".len(), YES.len());
    for space in [Namespace::Trusted, Namespace::User] {
        for (name, bytes) in &file_marks()[..4] {
            assert!(mark(bytes, space) + capability <= room, "{name}");
        }
        assert!(mark(&origin(1), space) + directory_marks <= room);
    }
}

#[test]
fn unescape_reverses_escape_and_hides_marks() {
    for (shown, stored) in [
        ("user.mime", "user.mime"),
        ("trusted.overlay.opaque", "trusted.overlay.overlay.opaque"),
        ("user.overlay.overlay.x", "user.overlay.overlay.overlay.x"),
        ("security.capability", "security.capability"),
        ("trusted.overlayx", "trusted.overlayx"),
    ] {
        assert_eq!(escape(shown.as_bytes()), stored.as_bytes());
        assert_eq!(unescape(stored.as_bytes()), Some(shown.as_bytes().to_vec()));
    }
    for mark in [
        "trusted.overlay.opaque",
        "user.overlay.cowl",
        "trusted.overlay.metacopy",
    ] {
        assert_eq!(unescape(mark.as_bytes()), None);
    }
}
