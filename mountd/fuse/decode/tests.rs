//! Requests as Linux 6.18 sent them (`fixtures/golden/fuse/requests`, read off the connection with
//! strace), and bytes that no kernel sends.

use proptest::prelude::*;

use super::*;

/// What the connection that was recorded had negotiated.
const LINUX_6_18: Dialect = Dialect {
    long_setxattr: true,
};

fn recorded() -> Vec<(&'static str, Vec<u8>)> {
    let lines = include_str!("../../../fixtures/golden/fuse/requests").lines();
    lines
        .map(|line| {
            let (name, hex) = line.split_once(' ').unwrap();
            let bytes = hex
                .as_bytes()
                .chunks(2)
                .map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap());
            (name, bytes.collect())
        })
        .collect()
}

/// What the client had asked for.
#[expect(clippy::too_many_lines, reason = "a table")]
fn expected(name: &str) -> Operation<'static> {
    let nothing = Setattr::default();
    let at = |secs, nanos| Some(WireTime::At { secs, nanos });
    let umask = 0o027;
    match name {
        "lookup" => Operation::Lookup { name: b"absent" },
        "forget" => Operation::Forget { count: 1 },
        "getattr" => Operation::Getattr,
        "chmod" => Operation::Setattr(Setattr {
            mode: Some(0o104_755),
            ..nothing
        }),
        "chown" => Operation::Setattr(Setattr {
            uid: Some(3),
            gid: Some(4),
            kill_priv: true,
            ..nothing
        }),
        "utimens" => Operation::Setattr(Setattr {
            atime: at(-2, 750_000_000),
            mtime: at(-2, 750_000_000),
            ..nothing
        }),
        "touch" => Operation::Setattr(Setattr {
            atime: Some(WireTime::Now),
            mtime: Some(WireTime::Now),
            ..nothing
        }),
        "ftruncate" => Operation::Setattr(Setattr {
            size: Some(5),
            ..nothing
        }),
        "truncate-by-stranger" => Operation::Setattr(Setattr {
            size: Some(1),
            kill_priv: true,
            ..nothing
        }),
        "readlink" => Operation::Readlink,
        "symlink" => Operation::Symlink {
            name: b"link",
            target: b"target",
        },
        "mknod" => Operation::Mknod {
            name: b"dev",
            mode: 0o020_666,
            rdev: 0x501,
            umask,
        },
        "mkdir" => Operation::Mkdir {
            name: b"dir",
            mode: 0o777,
            umask,
        },
        "unlink" => Operation::Unlink { name: b"h" },
        "rmdir" => Operation::Rmdir { name: b"dir" },
        "rename" => Operation::Rename {
            name: b"i",
            new_parent: 2,
            new_name: b"j",
            flags: 0,
        },
        "rename-noreplace" => Operation::Rename {
            name: b"g",
            new_parent: 2,
            new_name: b"h",
            flags: 1,
        },
        "link" => Operation::Link {
            node: 3,
            name: b"i",
        },
        "open" => Operation::Open {
            flags: 0o100_000,
            kill_priv: false,
        },
        "open-cut-by-stranger" => Operation::Open {
            flags: 0o101_001,
            kill_priv: true,
        },
        "create" => Operation::Create {
            name: b"new",
            flags: 0o104_101,
            mode: 0o100_666,
            umask,
        },
        "tmpfile" => Operation::Tmpfile {
            flags: 0o20_300_002,
            mode: 0o100_600,
            umask,
        },
        "read" => Operation::Read {
            handle: 1,
            offset: 0,
            size: 4096,
        },
        "write" => Operation::Write {
            handle: 8,
            offset: 1,
            data: b"abc",
            from_cache: false,
            kill_priv: false,
        },
        "release" => Operation::Release { handle: 1 },
        "fsync" => Operation::Fsync { data_only: false },
        "fdatasync" => Operation::Fsync { data_only: true },
        "fsyncdir" => Operation::Fsyncdir { data_only: false },
        "statfs" => Operation::Statfs,
        "getxattr" => Operation::Getxattr {
            name: b"user.x",
            size: 128,
        },
        "setxattr" => Operation::Setxattr {
            name: b"user.x",
            value: b"v1",
            flags: 1,
            kill_sgid: false,
        },
        "listxattr" => Operation::Listxattr { size: 256 },
        "removexattr" => Operation::Removexattr { name: b"user.x" },
        "readdirplus" => Operation::Readdir {
            cookie: (1 << 32) + 9,
            size: 0x8000,
            plus: true,
        },
        "fallocate" => Operation::Fallocate {
            handle: 8,
            offset: 0,
            length: 8192,
            mode: 0,
        },
        "seek-hole" => Operation::Lseek {
            handle: 8,
            offset: 0,
            whence: 4,
        },
        "copy_file_range" => Operation::CopyFileRange(CopyRange {
            handle_in: 8,
            offset_in: 0,
            node_out: (1 << 32) + 5,
            handle_out: 9,
            offset_out: 1,
            length: 3,
            flags: 0,
        }),
        "flush" | "statx" => Operation::Unknown,
        _ => panic!("{name} is not expected"),
    }
}

#[test]
fn recorded_requests_are_decoded() {
    for (name, bytes) in recorded() {
        let header = Header::read(&bytes).unwrap();
        assert_eq!(
            header.operation(&bytes, LINUX_6_18).unwrap(),
            expected(name),
            "{name}"
        );
        // On a connection that allows idmapped mounts only creations carry the caller's ids.
        let creates = matches!(name, "symlink" | "mknod" | "mkdir" | "create" | "tmpfile");
        let asker = if creates || matches!(name, "forget" | "release") {
            0
        } else {
            u32::MAX
        };
        assert_eq!((header.uid, header.gid), (asker, asker), "{name}");
    }
}

/// As Linux 5.6 lays it out: the flags of its own are not there.
#[test]
fn setxattr_is_shorter_before_linux_5_14() {
    let (_, mut bytes) = recorded()
        .into_iter()
        .find(|(name, _)| *name == "setxattr")
        .unwrap();
    bytes.drain(48..56);
    bytes[0] -= 8;
    let header = Header::read(&bytes).unwrap();
    let old = Dialect {
        long_setxattr: false,
    };
    assert_eq!(header.operation(&bytes, old), Ok(expected("setxattr")));
}

#[test]
fn truncated_requests_are_malformed_or_harmless() {
    for (_, bytes) in recorded() {
        for length in 0..bytes.len() {
            let mut cut = bytes[..length].to_vec();
            assert_eq!(
                Header::read(&cut),
                Err(Malformed),
                "the length does not agree"
            );
            if length >= 40 {
                cut[..4].copy_from_slice(&u32::try_from(length).unwrap().to_ne_bytes());
                swallow(&cut);
            }
        }
    }
}

/// Reads everything there is to read.
fn swallow(bytes: &[u8]) {
    let Ok(header) = Header::read(bytes) else {
        return;
    };
    if let Ok(Operation::BatchForget(nodes)) = header.operation(bytes, LINUX_6_18) {
        assert!(nodes.count() <= bytes.len() / 16);
    }
}

proptest! {
    #[test]
    fn decode_of_random_bytes_never_panics(
        opcode in 0..64_u32,
        extensions in prop_oneof![Just(0_u16), 0..8_u16, any::<u16>()],
        body in proptest::collection::vec(prop_oneof![Just(0_u8), any::<u8>()], 0..200),
    ) {
        let mut bytes = u32::try_from(40 + body.len()).unwrap().to_ne_bytes().to_vec();
        bytes.extend(opcode.to_ne_bytes());
        bytes.extend([0; 28]);
        bytes.extend(extensions.to_ne_bytes());
        bytes.extend([0; 2]);
        bytes.extend(body);
        swallow(&bytes);
    }

    #[test]
    fn decode_of_a_changed_request_never_panics(which in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), to in any::<u8>()) {
        let mut all = recorded();
        let (_, bytes) = which.get_mut(&mut all);
        let at = at.index(bytes.len());
        bytes[at] = to;
        swallow(bytes);
    }
}
