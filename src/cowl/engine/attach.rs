//! The streams of an attached client: copies between the caller's standard streams, or a connection
//! of the server, and pipes of the container's monitor.
//!
//! The container never gets the caller's descriptors: through /proc/self/fd it could reopen a
//! host file, push keys into the caller's terminal or change its owner. One thread copies each
//! direction and ends when the container's side closes.

use super::detach_keys::DetachKeys;
use super::error::{Context, Error, Kind, Result};
use cowl_launch::control::{StreamSet, Streams};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread::{self, JoinHandle};

/// The size of a pipe: large enough that the copy, not the system call, is the cost.
const BUFFER: usize = 64 << 10;

/// The monitor's ends of the streams.
#[derive(Debug)]
pub(crate) struct Attached {
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
}

impl Attached {
    /// The streams as the launcher's messages take them.
    pub(crate) fn streams(&self) -> Streams<'_> {
        Streams {
            stdin: self.stdin.as_ref().map(AsFd::as_fd),
            stdout: self.stdout.as_ref().map(AsFd::as_fd),
            stderr: self.stderr.as_ref().map(AsFd::as_fd),
        }
    }
}

/// No stream is attached.
pub(crate) const NONE: Streams<'static> = Streams {
    stdin: None,
    stdout: None,
    stderr: None,
};

/// The caller's ends.
#[derive(Debug)]
pub(crate) struct Pipes {
    /// The writing end of what goes to the program.
    pub(crate) stdin: Option<OwnedFd>,
    /// The reading end of its standard output, or of its terminal.
    pub(crate) stdout: Option<OwnedFd>,
    /// None for a container with a terminal, which carries both outputs.
    pub(crate) stderr: Option<OwnedFd>,
}

/// The threads that copy what the container writes.
#[derive(Debug)]
pub(crate) struct Output {
    threads: Vec<JoinHandle<Result<(), Errno>>>,
    /// The threads hold its writing ends; it reads end of file when all have ended.
    done: OwnedFd,
    /// Receives a byte when the detach keys are typed. Both ends stay open, or it would read end of
    /// file.
    detached: (OwnedFd, OwnedFd),
}

/// Creates pipes between the caller and a container's monitor, for these streams.
pub(crate) fn pipes(streams: StreamSet) -> Result<(Attached, Pipes)> {
    let pipe = |wanted: bool| -> Result<(Option<OwnedFd>, Option<OwnedFd>)> {
        if !wanted {
            return Ok((None, None));
        }
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).context(|| "creating a pipe")?;
        Ok((Some(reader), Some(writer)))
    };
    let (stdin, stdin_writer) = pipe(streams.stdin)?;
    let (stdout_reader, stdout) = pipe(streams.stdout)?;
    let (stderr_reader, stderr) = pipe(streams.stderr)?;
    Ok((
        Attached {
            stdin,
            stdout,
            stderr,
        },
        Pipes {
            stdin: stdin_writer,
            stdout: stdout_reader,
            stderr: stderr_reader,
        },
    ))
}

/// All streams that a client can attach to a program.
pub(crate) fn all(stdin: bool, terminal: bool) -> StreamSet {
    StreamSet {
        stdin,
        stdout: true,
        stderr: !terminal,
    }
}

impl Pipes {
    /// Whether the caller's input is copied.
    pub(crate) fn has_stdin(&self) -> bool {
        self.stdin.is_some()
    }

    /// Starts copying. `keys` from the caller detach it and do not reach the program.
    pub(crate) fn relay(self, keys: DetachKeys) -> Result<Output> {
        let detached = pipe_with(PipeFlags::CLOEXEC).context(|| "creating a pipe")?;
        if let Some(writer) = self.stdin {
            relay_stdin(writer, keys, own(detached.1.as_fd())?)?;
        }
        let mut copies = Vec::new();
        if let Some(stdout) = self.stdout {
            copies.push(("stdout", stdout, own(std::io::stdout().as_fd())?));
        }
        if let Some(stderr) = self.stderr {
            copies.push(("stderr", stderr, own(std::io::stderr().as_fd())?));
        }
        Output::start(copies, detached)
    }
}

impl Output {
    fn start(copies: Vec<(&str, OwnedFd, OwnedFd)>, detached: (OwnedFd, OwnedFd)) -> Result<Self> {
        let (done, working) = pipe_with(PipeFlags::CLOEXEC).context(|| "creating a pipe")?;
        let mut threads = Vec::new();
        for (name, from, to) in copies {
            threads.push(copier(name, from, to, own(working.as_fd())?)?);
        }
        Ok(Self {
            threads,
            done,
            detached,
        })
    }

    /// Readable (at end of file) when all output has been copied.
    pub(crate) fn done(&self) -> BorrowedFd<'_> {
        self.done.as_fd()
    }

    /// Readable once the caller has typed the detach keys.
    pub(crate) fn detached(&self) -> BorrowedFd<'_> {
        self.detached.0.as_fd()
    }

    /// Waits until all output [is copied](Self::done) and returns the first error.
    pub(crate) fn finish(self) -> Result<()> {
        for thread in self.threads {
            let copied = thread.join().map_err(|_panic| {
                Error::failed("a thread that copied the container's output panicked")
            })?;
            copied.map_err(|errno| {
                Error::new(
                    Kind::Output,
                    format!("writing the container's output: {errno}"),
                )
            })?;
        }
        Ok(())
    }
}

/// Copies standard input until its end or the detach keys, which write a byte to `detached`. The
/// thread is never joined: it may wait for input for ever.
fn relay_stdin(to: OwnedFd, mut keys: DetachKeys, detached: OwnedFd) -> Result<()> {
    let from = own(std::io::stdin().as_fd())?;
    let copying = move || {
        // An error ends the program's input, as end of file does.
        copy(&from, |bytes| {
            let (passed, detaches) = keys.filter(bytes);
            write_all(&to, &passed)?;
            if detaches {
                write_all(&detached, &[0])?;
            }
            Ok(!detaches)
        })
        .unwrap_or_default();
    };
    thread::Builder::new()
        .name("stdin".to_owned())
        .spawn(copying)
        .context(|| "starting a thread")
        .map(drop)
}

fn own(fd: BorrowedFd<'_>) -> Result<OwnedFd> {
    fd.try_clone_to_owned()
        .context(|| "duplicating a standard stream")
}

/// Starts a thread that copies and holds `working` meanwhile.
fn copier(
    name: &str,
    from: OwnedFd,
    to: OwnedFd,
    working: OwnedFd,
) -> Result<JoinHandle<Result<(), Errno>>> {
    let copying = move || {
        let copied = copy(&from, |bytes| write_all(&to, bytes).map(|()| true));
        drop(working);
        copied
    };
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(copying)
        .context(|| "starting a thread")
}

/// Passes what is read to `each` until end of file or until `each` returns false. A closed side
/// ends the copy without error: EPIPE of a pipe, EIO of a terminal.
fn copy(from: &OwnedFd, mut each: impl FnMut(&[u8]) -> Result<bool, Errno>) -> Result<(), Errno> {
    let mut buffer = vec![0_u8; BUFFER];
    loop {
        let length = match rustix::io::read(from, &mut buffer) {
            Ok(0) | Err(Errno::IO) => return Ok(()),
            Ok(length) => length,
            Err(Errno::INTR) => continue,
            Err(Errno::AGAIN) => {
                wait(from, rustix::event::PollFlags::IN)?;
                continue;
            }
            Err(errno) => return Err(errno),
        };
        match each(buffer.get(..length).unwrap_or_default()) {
            Ok(true) => {}
            Ok(false) | Err(Errno::PIPE | Errno::IO) => return Ok(()),
            Err(errno) => return Err(errno),
        }
    }
}

fn write_all(to: &OwnedFd, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match rustix::io::write(to, bytes) {
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            // Another user of the caller's stream may have made it non-blocking.
            Err(Errno::AGAIN) => wait(to, rustix::event::PollFlags::OUT)?,
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn wait(on: &OwnedFd, what: rustix::event::PollFlags) -> Result<(), Errno> {
    match rustix::event::poll(&mut [rustix::event::PollFd::new(on, what)], None) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn copy_writes_all_to_a_non_blocking_pipe() {
        let (from, mut feed) = pipe_with(PipeFlags::CLOEXEC)
            .map(|(r, w)| (r, std::fs::File::from(w)))
            .unwrap();
        let (sink, to) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).unwrap();
        rustix::fs::fcntl_setfl(&sink, rustix::fs::OFlags::empty()).unwrap();
        let sent: Vec<u8> = (0..1_000_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        let (_done, working) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let thread = copier("test", from, to, working).unwrap();
        let expected = sent.clone();
        let writer = thread::spawn(move || feed.write_all(&sent));
        let mut received = Vec::new();
        std::fs::File::from(sink)
            .read_to_end(&mut received)
            .unwrap();
        writer.join().unwrap().unwrap();
        thread.join().unwrap().unwrap();
        assert!(received == expected);
    }

    #[test]
    fn copy_ends_without_error_when_the_reader_closes() {
        let (from, feed) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let (sink, to) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        drop(sink);
        rustix::io::write(&feed, b"x").unwrap();
        assert_eq!(
            copy(&from, |bytes| write_all(&to, bytes).map(|()| true)),
            Ok(())
        );
    }
}
