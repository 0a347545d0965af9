//! Answers against bytes that a C program laid out with the kernel's own header
//! (`fixtures/golden/fuse/replies`).

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;

use super::*;
use crate::overlay::{HandleId, NodeId};
use cowl_core::tree::Timestamp;

const UNIQUE: u64 = 0x1122_3344_5566_7788;

fn golden(name: &str) -> Vec<u8> {
    let all = include_str!("../../../fixtures/golden/fuse/replies");
    let line = all
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
        .unwrap();
    line.as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

/// What the kernel would read.
fn sent(reply: &mut Reply, outcome: Result<(), Errno>) -> Vec<u8> {
    let (read, write) = rustix::pipe::pipe().unwrap();
    reply.send(write.as_fd(), UNIQUE, outcome).unwrap();
    drop(write);
    let mut bytes = Vec::new();
    Read::read_to_end(&mut File::from(read), &mut bytes).unwrap();
    bytes
}

fn entry() -> Entry {
    let attr = Attr {
        ino: 5,
        size: 4097,
        blocks: 16,
        atime: Timestamp {
            secs: -2,
            nanos: 750_000_000,
        },
        mtime: Timestamp {
            secs: 1_700_000_000,
            nanos: 123_456_789,
        },
        ctime: Timestamp {
            secs: 1_700_000_001,
            nanos: 1,
        },
        file_type: FileType::CharDevice,
        mode: 0o644,
        nlink: 2,
        uid: 1000,
        gid: 4,
        rdev: Rdev {
            major: 0xabc,
            minor: 0x34567,
        },
        blksize: 4096,
    };
    Entry {
        id: NodeId(0x1_0000_0007),
        attr,
        settled: true,
    }
}

type Fill<'f> = &'f dyn Fn(&mut Reply) -> Result<(), Errno>;

#[test]
fn replies_have_the_bytes_of_the_kernels_header() {
    let statfs = Statfs {
        block_size: 4096,
        blocks: 1,
        blocks_free: 2,
        blocks_available: 3,
        files: 4,
        files_free: 5,
        name_max: 255,
    };
    let open = wire::OpenOut {
        fh: HandleId(9).0,
        open_flags: wire::fopen::PASSTHROUGH,
        backing_id: 3,
    };
    let cases: [(&str, Fill<'_>); 6] = [
        ("entry", &|reply| reply.put(&entry_out(&entry()))),
        ("absent", &|reply| reply.put(&absent())),
        ("attr", &|reply| {
            reply.put(&attr_out(&entry().attr, FOR_GOOD))
        }),
        ("created", &|reply| {
            reply.put(&wire::CreateOut {
                entry: entry_out(&entry()),
                open,
            })
        }),
        ("statfs", &|reply| reply.put(&statfs_out(&statfs))),
        ("error", &|reply| {
            reply.put_bytes(b"nobody sees this").and(Err(Errno::ROFS))
        }),
    ];
    let mut reply = Reply::new().unwrap();
    for (name, fill) in cases {
        reply.clear();
        let outcome = fill(&mut reply);
        assert_eq!(sent(&mut reply, outcome), golden(name), "{name}");
    }
}

#[test]
fn readdir_replies_end_before_the_entry_that_does_not_fit() {
    let names = [
        (&b"."[..], 1, FileType::Directory, 1, None),
        (b"some-name", 5, FileType::CharDevice, 3, Some(entry())),
    ];
    for (name, plus) in [("readdir", false), ("readdirplus", true)] {
        let expected = golden(name);
        let fits = expected.len() - HEADER;
        for (limit, taken) in [(fits, 2), (fits - 1, 1), (0, 0)] {
            let mut reply = Reply::new().unwrap();
            let count = names
                .iter()
                .take_while(|(name, ino, file_type, cookie, entry)| {
                    let entry = DirEntry {
                        name,
                        ino: *ino,
                        file_type: *file_type,
                        cookie: *cookie,
                        entry: *entry,
                    };
                    reply.put_entry(&entry, limit, plus).unwrap()
                });
            assert_eq!(count.count(), taken);
            if taken == 2 {
                assert_eq!(sent(&mut reply, Ok(())), expected, "{name}");
            }
        }
    }
}

#[test]
fn rdev_round_trips() {
    for (major, minor) in [(0, 0), (5, 1), (0xfff, 0xf_ffff), (259, 256)] {
        let rdev = Rdev { major, minor };
        assert_eq!(decode_rdev(encode_rdev(rdev)), rdev);
    }
}

#[test]
fn reply_longer_than_the_buffer_is_an_error() {
    let mut reply = Reply::new().unwrap();
    assert_eq!(reply.room(MAX_WRITE).unwrap().len(), MAX_WRITE as usize);
    assert_eq!(reply.room(MAX_WRITE + 1).unwrap_err(), Errno::INVAL);
    reply.filled(MAX_WRITE as usize);
    assert_eq!(reply.put_bytes(b"x").unwrap_err(), Errno::RANGE);
    assert_eq!(reply.payload(), MAX_WRITE as usize);
}
