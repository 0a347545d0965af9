//! Generates random programs of which most paths exist when the step runs; names come from a small
//! set, and each kind of operation has a weight. A seed always gives the same program.

use cowl_tests::random::Random;

use crate::operation::{Allocation, Operation, Path, Renaming, SLOTS, Special, Step, Time};

/// Steps between two comparisons of the whole trees.
const COMPARE_EVERY: usize = 250;
/// Steps between two mounts.
const REMOUNT_EVERY: usize = 500;

/// Further names for the programs, including some that a careless overlay would treat as its own.
const NAMES: [&[u8]; 16] = [
    b"a",
    b"b",
    b"c",
    b"d",
    b"e",
    b"f",
    b"g",
    b"file",
    b"dir",
    b"work",
    b".wh.a",
    b".wh..wh..opq",
    b"\xff\xfe raw",
    b"new\nline",
    b"index",
    LONG,
];
/// The longest name.
const LONG: &[u8] = &[b'L'; 255];

type Xattr = (&'static str, &'static [u8]);

/// user::rwx, user:0:rw-, group::r-x, mask::rwx, other::r--, as the kernel takes it (version 2).
const ACL: &[u8] = b"\x02\0\0\0\x01\0\x07\0\xff\xff\xff\xff\x02\0\x06\0\0\0\0\0\x04\0\x05\0\xff\xff\xff\xff\x10\0\x07\0\xff\xff\xff\xff\x20\0\x04\0\xff\xff\xff\xff";
// No security.capability here: losing it must cost a file of root's its set-group-id bit too,
// since the kernel's request for the one does not tell it from one for both. `non_standard` has
// the test.
const XATTRS: [Xattr; 8] = [
    ("user.one", b"1"),
    ("user.two", b"value \0 with a zero"),
    ("user.overlay.opaque", b"y"),
    ("user.empty", b""),
    ("trusted.t", b"t"),
    ("trusted.overlay.opaque", b"y"),
    ("system.posix_acl_access", ACL),
    ("system.posix_acl_default", ACL),
];

/// Generates the steps of one run, given the existing paths.
pub(crate) struct Generator {
    random: Random,
    /// Users that steps may act as.
    users: Vec<u32>,
    privileged: bool,
    /// Steps generated so far.
    made: usize,
}

impl Generator {
    pub(crate) fn new(seed: u64, privileged: bool) -> Self {
        let users = if privileged {
            vec![0, 0, 0, 1000]
        } else {
            vec![0]
        };
        Self {
            random: Random::new(seed),
            users,
            privileged,
            made: 0,
        }
    }

    /// The next step; `paths` are the existing paths, `directories` those that are directories.
    pub(crate) fn step(&mut self, paths: &[Path], directories: &[Path]) -> Step {
        self.made += 1;
        if self.made.is_multiple_of(REMOUNT_EVERY) {
            return Step::Remount;
        }
        if self.made.is_multiple_of(COMPARE_EVERY) {
            return Step::Compare;
        }
        let who = self.random.pick(&self.users);
        let operation = match self.random.below(100) {
            0..30 => self.name_operation(paths, directories),
            30..52 => self.content_operation(paths, directories),
            52..72 => self.attribute_operation(paths),
            72..88 => self.slot_operation(paths),
            _ => self.look(paths, directories),
        };
        // Not standard: a stranger's chown(-1, -1) is not refused; see `non_standard`.
        let unnamed = matches!(
            operation,
            Operation::Chown {
                uid: None,
                gid: None,
                ..
            }
        );
        let who = if unnamed { 0 } else { who };
        Step::Do { who, operation }
    }

    fn existing(&mut self, paths: &[Path]) -> Path {
        if paths.is_empty() || self.random.one_in(20) {
            Path(self.random.pick(&NAMES).to_vec())
        } else {
            self.random.pick(paths)
        }
    }

    /// A name in an existing directory; the name may or may not exist.
    fn fresh(&mut self, directories: &[Path]) -> Path {
        let directory = if directories.is_empty() {
            Path(Vec::new())
        } else {
            self.random.pick(directories)
        };
        let name = self.random.pick(&NAMES);
        if directory.0 == b"." || directory.0.is_empty() {
            Path(name.to_vec())
        } else {
            Path([&directory.0, &b"/"[..], name].concat())
        }
    }

    fn mode(&mut self) -> u32 {
        self.random.pick(&[
            0o644, 0o755, 0o600, 0o666, 0o777, 0o444, 0o4755, 0o2755, 0o6777, 0o1777, 0o2775,
            0o700, 0,
        ])
    }

    fn mask(&mut self) -> u32 {
        // None that leaves a set-group-id bit without the group's x: whether it stays depends
        // on groups that no request tells.
        self.random.pick(&[0o022, 0o022, 0o027, 0])
    }

    fn length(&mut self) -> usize {
        self.random
            .pick(&[0, 1, 100, 4095, 4096, 4097, 20_000, 131_073])
    }

    fn offset(&mut self) -> u64 {
        self.random
            .pick(&[0, 0, 1, 4096, 10_000, 100_000, 1_200_000])
    }

    fn name_operation(&mut self, paths: &[Path], directories: &[Path]) -> Operation {
        match self.random.below(20) {
            0..3 => Operation::Create {
                path: self.fresh(directories),
                mode: self.mode(),
                exclusive: self.random.one_in(2),
                umask: self.mask(),
            },
            3..6 => Operation::Mkdir {
                path: self.fresh(directories),
                mode: self.mode(),
                umask: self.mask(),
            },
            6..8 => Operation::Unlink {
                path: self.existing(paths),
            },
            8..10 => Operation::Rmdir {
                path: self.existing(directories),
            },
            10 => Operation::Symlink {
                target: self.existing(paths),
                path: self.fresh(directories),
            },
            11..13 => Operation::Link {
                from: self.existing(paths),
                to: self.fresh(directories),
            },
            13 => Operation::Mknod {
                path: self.fresh(directories),
                special: self.special(),
                mode: self.mode(),
                umask: self.mask(),
            },
            _ => {
                let to = if self.random.one_in(3) {
                    self.existing(paths)
                } else {
                    self.fresh(directories)
                };
                let renaming = self.random.pick(&[
                    Renaming::Replace,
                    Renaming::Replace,
                    Renaming::NoReplace,
                    Renaming::Exchange,
                ]);
                Operation::Rename {
                    from: self.existing(paths),
                    to,
                    renaming,
                }
            }
        }
    }

    fn special(&mut self) -> Special {
        let any = [
            Special::Fifo,
            Special::Socket,
            Special::Regular,
            Special::Char(0, 0),
            Special::Char(1, 3),
            Special::Block(7, 200),
        ];
        // In a user namespace 0:0 is the one device that may be made, and only on some file
        // systems.
        self.random
            .pick(if self.privileged { &any } else { &any[..3] })
    }

    fn content_operation(&mut self, paths: &[Path], directories: &[Path]) -> Operation {
        let path = self.existing(paths);
        match self.random.below(12) {
            0..3 => Operation::Write {
                path,
                offset: self.offset(),
                length: self.length(),
                seed: self.random.byte(),
            },
            3 | 4 => Operation::Append {
                path,
                length: self.length(),
                seed: self.random.byte(),
            },
            5 => Operation::OpenTruncated { path },
            6 | 7 => Operation::Truncate {
                path,
                length: self.offset(),
            },
            8 => Operation::CopyRange {
                from: path,
                to: self.existing(paths),
                length: self.length(),
            },
            9 => {
                let kinds = [
                    Allocation::Grow,
                    Allocation::KeepSize,
                    Allocation::PunchHole,
                    Allocation::ZeroRange,
                ];
                Operation::Fallocate {
                    path,
                    allocation: self.random.pick(&kinds),
                    offset: self.offset(),
                    length: self.length() as u64,
                }
            }
            10 => Operation::Tmpfile {
                directory: self.existing(directories),
                length: self.length(),
                seed: self.random.byte(),
                link: if self.random.one_in(2) {
                    Some(self.fresh(directories))
                } else {
                    None
                },
            },
            _ => Operation::SyncDirectory {
                path: self.existing(directories),
            },
        }
    }

    fn attribute_operation(&mut self, paths: &[Path]) -> Operation {
        let path = self.existing(paths);
        match self.random.below(10) {
            0..3 => Operation::Chmod {
                path,
                mode: self.mode(),
            },
            3 | 4 => {
                let ids = [None, Some(0), Some(1000), Some(2000)];
                Operation::Chown {
                    path,
                    uid: self.random.pick(&ids),
                    gid: self.random.pick(&ids),
                    follow: self.random.one_in(2),
                }
            }
            5 | 6 => {
                let times = [
                    Time::At(1_000_000, 123_456_789),
                    Time::At(-5, 999_999_999),
                    Time::At(500_000_000, 0),
                    Time::Now,
                    Time::Omit,
                ];
                Operation::Times {
                    path,
                    modified: self.random.pick(&times),
                    follow: self.random.one_in(2),
                }
            }
            7 | 8 => {
                let (name, value) = self.xattr();
                let (create, replace) = (self.random.one_in(4), self.random.one_in(4));
                Operation::SetXattr {
                    path,
                    name,
                    value,
                    create: create && !replace,
                    replace,
                }
            }
            _ => Operation::RemoveXattr {
                path,
                name: self.xattr().0,
            },
        }
    }

    fn xattr(&mut self) -> Xattr {
        self.random.pick(&XATTRS)
    }

    fn slot_operation(&mut self, paths: &[Path]) -> Operation {
        let slot = self.random.index(SLOTS);
        match self.random.below(10) {
            0..3 => Operation::Open {
                slot,
                path: self.existing(paths),
                write: self.random.one_in(2),
                append: self.random.one_in(5),
            },
            3 | 4 => Operation::SlotWrite {
                slot,
                offset: self.offset(),
                length: self.length(),
                seed: self.random.byte(),
            },
            5 => Operation::SlotRead {
                slot,
                offset: self.offset(),
                length: self.length(),
            },
            6 => Operation::SlotTruncate {
                slot,
                length: self.offset(),
            },
            7 => Operation::SlotStat { slot },
            8 if self.random.one_in(2) => Operation::SlotChmod {
                slot,
                mode: self.mode(),
            },
            8 => Operation::SlotSync { slot },
            _ => Operation::SlotClose { slot },
        }
    }

    fn look(&mut self, paths: &[Path], directories: &[Path]) -> Operation {
        let path = self.existing(paths);
        match self.random.below(9) {
            0 | 1 => Operation::Readdir {
                path: self.existing(directories),
            },
            2 => Operation::Read {
                path,
                offset: self.offset(),
                length: self.length(),
            },
            3 => Operation::GetXattr {
                path,
                name: self.xattr().0,
            },
            4 => Operation::ListXattr { path },
            5 => Operation::Access {
                path,
                mode: self.random.byte() & 7,
            },
            6 => Operation::Readlink { path },
            7 => Operation::Stat {
                path: self.fresh(directories),
            },
            _ => Operation::Stat { path },
        }
    }
}
