//! A disk that records its writes and flushes in order, to reconstruct its content after a power
//! cut at any moment.
//!
//! The disk is one file of a FUSE file system, under a loop device. The loop driver passes on each
//! write and flush of the file system above, so the record is what a real disk would have seen. A
//! disk may cache writes since the last flush in any order: after a power cut any subset of them
//! may be lost.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, INodeNo,
    LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyWrite, Request, WriteFlags,
};

use crate::command::{program, run, system};
use crate::profile::NEVER;

/// The unit that survives a power cut whole or not at all: a block of the file system.
const BLOCK: usize = 4096;

/// A recorded operation.
#[derive(Debug)]
enum Told {
    Write { offset: usize, bytes: Vec<u8> },
    Flush,
}

/// The disk's current content, including its cache, and its history.
#[derive(Debug)]
struct State {
    first: Vec<u8>,
    now: Vec<u8>,
    told: Vec<Told>,
}

/// Which writes since the last flush survive a power cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lost {
    /// None.
    Nothing,
    /// About half of their blocks, drawn by the moment of the cut.
    Some,
}

/// A disk. Drop it after everything mounted from it.
#[derive(Debug)]
pub struct Disk {
    path: PathBuf,
    state: Arc<Mutex<State>>,
    session: Option<BackgroundSession>,
}

impl Disk {
    /// Replaces a file, keeping its content, and records from here on.
    pub fn over(path: &Path) -> Self {
        let first = fs::read(path).unwrap();
        let state = Arc::new(Mutex::new(State {
            now: first.clone(),
            first,
            told: Vec::new(),
        }));
        let recorder = Recorder(Arc::clone(&state));
        let session = fuser::spawn_mount(recorder, path, &Config::default()).expect("root");
        Self {
            path: path.to_owned(),
            state,
            session: Some(session),
        }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The number of writes and flushes so far: a moment.
    pub fn moment(&self) -> usize {
        self.state.lock().unwrap().told.len()
    }

    /// Writes the disk's content after a power cut at a moment into a new file.
    pub fn cut(&self, moment: usize, lost: Lost, path: &Path) {
        let state = self.state.lock().unwrap();
        let told = &state.told[..moment];
        let flushed = told
            .iter()
            .rposition(|told| matches!(told, Told::Flush))
            .unwrap_or(0);
        let mut held = state.first.clone();
        for (number, told) in told.iter().enumerate() {
            let Told::Write { offset, bytes } = told else {
                continue;
            };
            for (at, block) in (*offset..).step_by(BLOCK).zip(bytes.chunks(BLOCK)) {
                if number < flushed || lost == Lost::Nothing || survives(moment, number, at) {
                    held[at..at + block.len()].copy_from_slice(block);
                }
            }
        }
        fs::write(path, held).unwrap();
    }

    /// Ends it; nothing may be mounted from it.
    pub fn end(mut self) {
        let session = self.session.take().expect("ends once");
        session.umount_and_join().unwrap();
    }
}

/// Whether a block survives: pseudo-random by block and moment.
fn survives(moment: usize, write: usize, block: usize) -> bool {
    let mut hasher = DefaultHasher::new();
    (moment, write, block).hash(&mut hasher);
    hasher.finish().is_multiple_of(2)
}

/// A FUSE file system whose root is one file.
struct Recorder(Arc<Mutex<State>>);

/// Attributes change only through the mount that caches them.
const TTL: Duration = Duration::from_hours(1);

impl Filesystem for Recorder {
    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let size = self.0.lock().unwrap().now.len() as u64;
        let time = SystemTime::UNIX_EPOCH;
        reply.attr(
            &TTL,
            &FileAttr {
                ino,
                size,
                blocks: size / 512,
                atime: time,
                mtime: time,
                ctime: time,
                crtime: time,
                kind: FileType::RegularFile,
                perm: 0o600,
                nlink: 1,
                uid: 0,
                gid: 0,
                rdev: 0,
                blksize: 4096,
                flags: 0,
            },
        );
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let state = self.0.lock().unwrap();
        let start = usize::try_from(offset).unwrap().min(state.now.len());
        let end = (start + size as usize).min(state.now.len());
        reply.data(&state.now[start..end]);
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        bytes: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let offset = usize::try_from(offset).unwrap();
        let mut state = self.0.lock().unwrap();
        let Some(place) = state.now.get_mut(offset..offset + bytes.len()) else {
            return reply.error(Errno::ENOSPC);
        };
        place.copy_from_slice(bytes);
        state.told.push(Told::Write {
            offset,
            bytes: bytes.to_vec(),
        });
        reply.written(u32::try_from(bytes.len()).unwrap());
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.0.lock().unwrap().told.push(Told::Flush);
        reply.ok();
    }
}

/// A file system mounted through a loop device of its own, which is removed with it.
#[derive(Debug)]
pub struct Mounted {
    file: PathBuf,
    point: PathBuf,
}

impl Mounted {
    /// Mounts the file system in a file; its journal is replayed.
    pub fn new(file: &Path, point: &Path) -> Self {
        run(program("mount", ["-o", "loop"]).arg(file).arg(point)).ok();
        Self {
            file: file.to_owned(),
            point: point.to_owned(),
        }
    }

    /// Unmounts it; the file is then unused.
    pub fn unmount(self) {
        let Self { file, point } = self;
        system("umount", [&point]);
        // The loop device is removed with its last user, which may be udev; its end cannot be
        // waited for.
        let limit = Instant::now() + NEVER;
        while !system("losetup", ["--associated".as_ref(), file.as_os_str()]).is_empty() {
            assert!(Instant::now() < limit, "{} is in use", file.display());
        }
    }
}

/// An empty ext4 in a new file.
pub fn ext4(path: &Path, size: u64) {
    ext4_of(0, path, size);
}

/// [`ext4`] with a root directory owned by a user.
pub fn ext4_of(owner: u32, path: &Path, size: u64) {
    File::create_new(path).unwrap().set_len(size).unwrap();
    let owner = format!("root_owner={owner}:{owner}");
    run(program("mkfs.ext4", ["-q", "-F", "-E", &owner]).arg(path)).ok();
}
