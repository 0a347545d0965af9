//! Reads a stream ahead on a thread of its own: the next pieces are read, inflated and hashed while
//! the last is parsed and stored.
//!
//! Invariants
//! * Every byte that the source gives goes through the SHA-256 exactly once and in order, so the
//!   digest is that of the whole stream whatever its end looks like.
//! * Bytes that have come are handed over as they come: a pipe that stalls delays nothing that came
//!   before, a refusal least of all.
//! * Memory: [`PIECES`] buffers.

use std::io::{self, ErrorKind, Read};
use std::thread::{self, Builder};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::stop::Stop;
use super::stream::HashedRead;
use crate::digest::{Sha256Digest, Sha256Hasher};

/// Bytes of a piece: large enough that handing it over does not show.
const PIECE: usize = 256 * 1024;
const PIECES: usize = 4;

/// What the reading thread has to say.
enum Message {
    Piece(Vec<u8>),
    Failed(io::Error),
    /// The source's end, with the digest of all pieces.
    End(Sha256Digest),
}

/// The stream, as its reading thread gives it.
pub(super) struct Ahead {
    messages: Receiver<Message>,
    /// Where used buffers go.
    used: Sender<Vec<u8>>,
    piece: Vec<u8>,
    /// So much of the piece is consumed.
    at: usize,
    end: Option<Sha256Digest>,
}

/// Gives `work` the stream. The thread that reads is waited for: a source that may block has a
/// `stop`, which ends its read when the work is done.
pub(super) fn reading_ahead<R: Read + Send, T>(
    source: R,
    stop: Option<&Stop>,
    work: impl FnOnce(Ahead) -> T,
) -> io::Result<T> {
    let (sender, messages) = bounded(PIECES);
    let (used, buffers) = bounded(PIECES);
    thread::scope(|scope| {
        Builder::new().spawn_scoped(scope, move || read(source, &buffers, &sender))?;
        for _ in 0..PIECES {
            // The thread that it is for cannot be gone: it has not had a buffer yet.
            if used.send(Vec::new()).is_err() {
                break;
            }
        }
        let _stop = stop.map(Stop::on_drop);
        Ok(work(Ahead {
            messages,
            used,
            piece: Vec::new(),
            at: 0,
            end: None,
        }))
    })
}

/// Reads until the source ends or nobody listens any more.
fn read(mut source: impl Read, buffers: &Receiver<Vec<u8>>, messages: &Sender<Message>) {
    let mut hasher = Sha256Hasher::new();
    while let Ok(mut piece) = buffers.recv() {
        let (length, end) = fill(&mut source, &mut piece);
        piece.truncate(length);
        hasher.update(&piece);
        if !piece.is_empty() && messages.send(Message::Piece(piece)).is_err() {
            return;
        }
        let last = match end {
            Ok(false) => continue,
            Ok(true) => Message::End(hasher.finish()),
            Err(error) => Message::Failed(error),
        };
        // Nobody listens: the work has failed.
        let _unheard = messages.send(last);
        return;
    }
}

/// Reads a piece, once: more may be long in coming. Its length, and whether the source has ended or
/// why it failed.
fn fill(source: &mut impl Read, piece: &mut Vec<u8>) -> (usize, io::Result<bool>) {
    piece.resize(PIECE, 0);
    loop {
        match source.read(piece) {
            Ok(count) => return (count, Ok(count == 0)),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return (0, Err(error)),
        }
    }
}

impl Ahead {
    /// Takes the next piece; false at the end.
    fn next_piece(&mut self) -> io::Result<bool> {
        if self.end.is_some() {
            return Ok(false);
        }
        self.at = 0;
        let used = std::mem::take(&mut self.piece);
        if used.capacity() > 0 {
            // At the end of the stream nobody needs it any more.
            let _unneeded = self.used.send(used);
        }
        match self.messages.recv() {
            Ok(Message::Piece(piece)) => {
                self.piece = piece;
                Ok(true)
            }
            Ok(Message::Failed(error)) => Err(error),
            Ok(Message::End(digest)) => {
                self.end = Some(digest);
                Ok(false)
            }
            Err(_gone) => Err(ErrorKind::BrokenPipe.into()),
        }
    }
}

impl Read for Ahead {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.at == self.piece.len() {
            if !self.next_piece()? {
                return Ok(0);
            }
        }
        let rest = self.piece.get(self.at..).unwrap_or_default();
        let count = rest.len().min(out.len());
        if let (Some(out), Some(rest)) = (out.get_mut(..count), rest.get(..count)) {
            out.copy_from_slice(rest);
        }
        self.at += count;
        Ok(count)
    }
}

impl HashedRead for Ahead {
    fn digest(&mut self) -> io::Result<Sha256Digest> {
        loop {
            if let Some(digest) = self.end {
                return Ok(digest);
            }
            self.next_piece()?;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;
    use std::os::fd::OwnedFd;

    use super::*;

    fn bytes(length: usize) -> Vec<u8> {
        (0..251_u8).cycle().take(length).collect()
    }

    #[test]
    fn reading_ahead_gives_and_digests_every_byte() {
        for length in [0, 1, PIECE - 1, PIECE, PIECE + 1, 9 * PIECE + 7] {
            let bytes = bytes(length);
            let mut read = Vec::new();
            let digest = reading_ahead(bytes.as_slice(), None, |mut ahead| {
                ahead.read_to_end(&mut read).unwrap();
                ahead.digest().unwrap()
            });
            assert_eq!(
                (read, digest.unwrap()),
                (bytes.clone(), Sha256Digest::of(&bytes))
            );
            // what is not read is digested all the same
            let digest = reading_ahead(bytes.as_slice(), None, |mut ahead| ahead.digest().unwrap());
            assert_eq!(digest.unwrap(), Sha256Digest::of(&bytes));
        }
    }

    #[test]
    fn reading_ahead_ends_with_its_work() {
        let read = reading_ahead(io::repeat(7), None, |mut ahead| {
            let mut some = [0; 5];
            ahead.read_exact(&mut some).unwrap();
            some
        });
        assert_eq!(read.unwrap(), [7; 5]);
    }

    /// The writer's end stays open: reading all of a piece would wait for good, and so would
    /// waiting for the thread that reads.
    #[test]
    fn reading_ahead_gives_what_has_come_and_ends_a_read_that_waits() {
        let (reader, mut writer) = io::pipe().unwrap();
        let reader = File::from(OwnedFd::from(reader));
        writer.write_all(b"come").unwrap();
        let stop = Stop::new().unwrap();
        let read = reading_ahead(stop.reader(&reader), Some(&stop), |mut ahead| {
            let mut some = [0; 4];
            ahead.read_exact(&mut some).unwrap();
            some
        });
        assert_eq!(&read.unwrap(), b"come");
        drop(writer);
    }

    #[test]
    fn reading_ahead_gives_what_comes_before_an_error() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::other("the disk is gone"))
            }
        }
        let mut read = Vec::new();
        let source = bytes(PIECE + 3);
        let error = reading_ahead(source.as_slice().chain(Broken), None, |mut ahead| {
            ahead.read_to_end(&mut read).unwrap_err().to_string()
        });
        assert_eq!(error.unwrap(), "the disk is gone");
        assert_eq!(read, bytes(PIECE + 3));
    }
}
