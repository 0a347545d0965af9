//! A reader of a program's output: the writing end of its pipe, and what it has not taken yet.
//!
//! What does not fit into the pipe goes to an unnamed file, so that a slow reader delays neither
//! the program nor other readers. When that file is full the program waits for the reader, and the
//! monitor cuts the reader off if it makes no progress ([`super::console`]).

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt as _;

use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;

/// Most that is kept for one reader.
pub(super) const BACKLOG: u64 = 16 << 20;
/// What is moved at once.
const CHUNK: usize = 16 << 10;

/// See the module.
#[derive(Debug)]
pub(super) struct Reader {
    pipe: OwnedFd,
    backlog: Option<Backlog>,
}

/// What a reader has not taken.
#[derive(Debug)]
struct Backlog {
    file: File,
    begin: u64,
    end: u64,
}

/// The reader has closed its end, or can't be served any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Gone;

impl AsFd for Reader {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}

impl Reader {
    pub(super) fn new(pipe: OwnedFd) -> Result<Self, Errno> {
        rustix::io::ioctl_fionbio(&pipe, true)?;
        Ok(Self {
            pipe,
            backlog: None,
        })
    }

    /// Bytes that it has not taken.
    pub(super) fn backlog(&self) -> u64 {
        self.backlog
            .as_ref()
            .map_or(0, |backlog| backlog.end - backlog.begin)
    }

    /// Gives it output, after what it has not taken yet. `directory` is where a backlog can be.
    pub(super) fn give(&mut self, mut bytes: &[u8], directory: BorrowedFd<'_>) -> Result<(), Gone> {
        while self.backlog() == 0 && !bytes.is_empty() {
            match write(&self.pipe, bytes)? {
                0 => break,
                written => bytes = bytes.get(written..).unwrap_or_default(),
            }
        }
        if bytes.is_empty() {
            return Ok(());
        }
        let backlog = match &mut self.backlog {
            Some(backlog) => backlog,
            None => self.backlog.insert(Backlog::new(directory)?),
        };
        let length = u64::try_from(bytes.len()).map_err(|_range| Gone)?;
        // No room on the disk: it can't have what comes after without what comes before.
        let written = backlog.file.write_all_at(bytes, backlog.end);
        written.map_err(|_error| Gone)?;
        backlog.end += length;
        Ok(())
    }

    /// Moves as much of its backlog as its pipe takes. Returns whether that was something.
    pub(super) fn catch_up(&mut self) -> Result<bool, Gone> {
        let mut moved = false;
        while let Some(backlog) = self.backlog.as_mut().filter(|it| it.begin < it.end) {
            let mut chunk = [0; CHUNK];
            let left = usize::try_from(backlog.end - backlog.begin).unwrap_or(CHUNK);
            let chunk = chunk.get_mut(..left.min(CHUNK)).unwrap_or_default();
            let read = backlog.file.read_exact_at(chunk, backlog.begin);
            read.map_err(|_error| Gone)?;
            match write(&self.pipe, chunk)? {
                0 => return Ok(moved),
                written => backlog.begin += u64::try_from(written).map_err(|_range| Gone)?,
            }
            moved = true;
            if backlog.begin == backlog.end {
                // What was read needs no room any more.
                backlog.file.set_len(0).map_err(|_error| Gone)?;
                (backlog.begin, backlog.end) = (0, 0);
            }
        }
        Ok(moved)
    }
}

impl Backlog {
    fn new(directory: BorrowedFd<'_>) -> Result<Self, Gone> {
        let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
        let file = openat(directory, c".", flags, Mode::from_raw_mode(0o600));
        Ok(Self {
            file: File::from(file.map_err(|_errno| Gone)?),
            begin: 0,
            end: 0,
        })
    }
}

/// Writes as much as the pipe takes now; 0 is nothing.
fn write(pipe: &OwnedFd, bytes: &[u8]) -> Result<usize, Gone> {
    match rustix::io::retry_on_intr(|| rustix::io::write(pipe, bytes)) {
        Ok(written) => Ok(written),
        Err(Errno::AGAIN) => Ok(0),
        Err(_closed) => Err(Gone),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::pipe::{PipeFlags, pipe_with};
    use std::io::Read as _;

    #[test]
    fn a_reader_gets_all_in_order_however_late_it_reads() {
        let directory = tempfile::tempdir().unwrap();
        let directory = File::open(directory.path()).unwrap();
        let (ours, pipe) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let mut reader = Reader::new(pipe).unwrap();
        let sent: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
        let (first, second) = sent.split_at(900_000);
        reader.give(first, directory.as_fd()).unwrap();
        assert!(reader.backlog() > 0);
        assert_eq!(reader.catch_up(), Ok(false));
        reader.give(second, directory.as_fd()).unwrap();
        let mut received = vec![0; sent.len()];
        let mut ours = File::from(ours);
        let mut at = 0;
        while at < received.len() {
            at += ours.read(&mut received[at..]).unwrap();
            reader.catch_up().unwrap();
        }
        assert!(received == sent);
        assert_eq!(reader.backlog(), 0);
        drop(ours);
        assert_eq!(reader.give(b"x", directory.as_fd()), Err(Gone));
    }
}
