//! The standard streams of one program: what it writes goes to the log and to every reader, what is
//! attached as standard input goes to it.
//!
//! Nothing here waits. A program is held up only by a reader whose backlog is full, and that reader
//! is cut off after [`PATIENCE`] without progress. Caller: [`super::serve`], which says what is
//! ready.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::epoll::EventFlags;
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

use super::input::{Input, Pumped};
use super::log::{Line, Log, Stream};
use super::poller::{Key, Poller};
use super::reader::{BACKLOG, Gone, Reader};

/// How long a program waits for a reader that takes nothing.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// What is read at once: what a pipe holds.
const CHUNK: usize = 64 << 10;

/// The ends of a program's standard streams, as it is started with them.
pub(super) type Stdio = [OwnedFd; 3];

/// Pipes that a client attaches.
#[derive(Debug, Default)]
pub(super) struct Attachment {
    pub(super) stdin: Option<OwnedFd>,
    pub(super) stdout: Option<OwnedFd>,
    pub(super) stderr: Option<OwnedFd>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Console {
    sources: Vec<Source>,
    readers: Vec<Attached>,
    inputs: Vec<Input>,
    /// Where input goes: the writing end of the program's standard input, or its terminal.
    target: Option<OwnedFd>,
    target_key: Option<Key>,
    terminal: bool,
    open_stdin: bool,
    /// The program has ended.
    finished: bool,
    /// The end of one input is the end of the program's.
    close_at_end: bool,
    /// Set while a reader's backlog is full: until when it may stay so.
    deadline: Option<Instant>,
}

#[derive(Debug)]
struct Source {
    stream: Stream,
    descriptor: OwnedFd,
    line: Line,
    /// None while it is not read.
    key: Option<Key>,
    ended: bool,
}

#[derive(Debug)]
struct Attached {
    stream: Stream,
    reader: Reader,
    /// None for what can't be polled, as it is always ready.
    key: Option<Key>,
    writing: bool,
}

impl Console {
    /// Pipes for a program without a terminal, and the ends it is started with.
    pub(super) fn pipes(open_stdin: bool, close_at_end: bool) -> Result<(Self, Stdio), Errno> {
        let pipe = || pipe_with(PipeFlags::CLOEXEC);
        let (stdin, target) = if open_stdin {
            let (stdin, target) = pipe()?;
            rustix::io::ioctl_fionbio(&target, true)?;
            (stdin, Some(target))
        } else {
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            let null = rustix::fs::open(c"/dev/null", flags, rustix::fs::Mode::empty())?;
            (null, None)
        };
        let (output, stdout) = pipe()?;
        let (error, stderr) = pipe()?;
        let sources = vec![
            Source::new(Stream::Stdout, output)?,
            Source::new(Stream::Stderr, error)?,
        ];
        let console = Self {
            sources,
            readers: Vec::new(),
            inputs: Vec::new(),
            target,
            target_key: None,
            terminal: false,
            open_stdin,
            finished: false,
            close_at_end,
            deadline: None,
        };
        Ok((console, [stdin, stdout, stderr]))
    }

    /// Of a program with a terminal, which comes later.
    pub(super) fn without_streams(open_stdin: bool) -> Self {
        Self {
            sources: Vec::new(),
            readers: Vec::new(),
            inputs: Vec::new(),
            target: None,
            target_key: None,
            terminal: true,
            open_stdin,
            finished: false,
            close_at_end: false,
            deadline: None,
        }
    }

    /// Takes the master end of the program's terminal.
    pub(super) fn set_terminal(&mut self, master: OwnedFd) -> Result<(), Errno> {
        let source = Source::new(Stream::Stdout, master)?;
        if self.open_stdin {
            let copy = rustix::io::fcntl_dupfd_cloexec(&source.descriptor, 3)?;
            self.target = Some(copy);
        }
        self.sources = vec![source];
        Ok(())
    }

    /// The terminal, if there is one.
    pub(super) fn terminal(&self) -> Option<BorrowedFd<'_>> {
        let source = self.sources.first().filter(|_| self.terminal)?;
        Some(source.descriptor.as_fd())
    }

    /// Begins to read the program's output and what is attached as its input.
    pub(super) fn start(&mut self, poller: &mut Poller) -> Result<(), Errno> {
        let takes_input = self.target.is_some();
        for input in &mut self.inputs {
            input.poll(takes_input, poller)?;
        }
        let wanted = self.deadline.is_none();
        self.sources
            .iter_mut()
            .try_for_each(|source| source.poll(wanted, poller))
    }

    /// Attaches a client's pipes.
    pub(super) fn attach(
        &mut self,
        attachment: Attachment,
        poller: &mut Poller,
    ) -> Result<(), Errno> {
        let Attachment {
            stdin,
            stdout,
            stderr,
        } = attachment;
        if self.finished {
            return Ok(());
        }
        let stderr = stderr.filter(|_| !self.terminal);
        for (stream, pipe) in [(Stream::Stdout, stdout), (Stream::Stderr, stderr)] {
            let Some(pipe) = pipe else { continue };
            let reader = Reader::new(pipe)?;
            // An error alone says that the other end is closed.
            let key = poller.add(reader.as_fd(), EventFlags::empty())?;
            self.readers.push(Attached {
                stream,
                reader,
                key,
                writing: false,
            });
        }
        if let (Some(descriptor), true) = (stdin, self.takes_input()) {
            let mut input = Input::new(descriptor)?;
            input.poll(self.target.is_some(), poller)?;
            self.inputs.push(input);
        }
        Ok(())
    }

    /// Whether standard input can be attached; a terminal that has not come yet counts.
    fn takes_input(&self) -> bool {
        self.target.is_some() || (self.terminal && self.open_stdin && self.sources.is_empty())
    }

    /// Handles an event, if it is of one of these descriptors.
    pub(super) fn handle(
        &mut self,
        key: Key,
        poller: &mut Poller,
        log: Option<&mut Log>,
        directory: BorrowedFd<'_>,
    ) -> Result<bool, Errno> {
        if let Some(position) = self.sources.iter().position(|it| it.key == Some(key)) {
            self.read_source(position, poller, log, directory)?;
        } else if let Some(position) = self.readers.iter().position(|it| it.key == Some(key)) {
            self.serve_reader(position, poller)?;
        } else if self.target_key == Some(key) || self.inputs.iter().any(|it| it.key == Some(key)) {
            self.pump(poller)?;
        } else {
            return Ok(false);
        }
        Ok(true)
    }

    /// Reads once; at the end of file the source is done.
    fn read_source(
        &mut self,
        position: usize,
        poller: &mut Poller,
        log: Option<&mut Log>,
        directory: BorrowedFd<'_>,
    ) -> Result<(), Errno> {
        let Some(source) = self.sources.get_mut(position) else {
            return Ok(());
        };
        let mut chunk = vec![0; CHUNK];
        let read = rustix::io::retry_on_intr(|| rustix::io::read(&source.descriptor, &mut chunk));
        match read {
            // EIO: no process has the terminal open.
            Ok(0) | Err(Errno::IO) => {
                source.ended = true;
                source.poll(false, poller)?;
            }
            Ok(length) => {
                let bytes = chunk.get(..length).unwrap_or_default();
                if let Some(log) = log {
                    log.add(source.stream, &mut source.line, bytes);
                }
                let stream = source.stream;
                self.give(stream, bytes, poller, directory)?;
            }
            Err(Errno::AGAIN) => {}
            Err(errno) => return Err(errno),
        }
        Ok(())
    }

    fn give(
        &mut self,
        stream: Stream,
        bytes: &[u8],
        poller: &mut Poller,
        directory: BorrowedFd<'_>,
    ) -> Result<(), Errno> {
        let mut kept = Vec::with_capacity(self.readers.len());
        for mut attached in std::mem::take(&mut self.readers) {
            if attached.stream != stream {
                kept.push(attached);
                continue;
            }
            match attached.reader.give(bytes, directory) {
                Ok(()) => {
                    attached.poll(poller)?;
                    kept.push(attached);
                }
                Err(Gone) => attached.close(poller)?,
            }
        }
        self.readers = kept;
        self.hold_or_release(poller)
    }

    fn serve_reader(&mut self, position: usize, poller: &mut Poller) -> Result<(), Errno> {
        let Some(attached) = self.readers.get_mut(position) else {
            return Ok(());
        };
        let full = attached.reader.backlog() >= BACKLOG;
        let outcome = if attached.writing {
            attached.reader.catch_up()
        } else {
            // Nothing but an error was waited for.
            Err(Gone)
        };
        match outcome {
            Ok(moved) => {
                attached.poll(poller)?;
                if moved && full {
                    self.deadline = None;
                }
            }
            Err(Gone) => self.readers.remove(position).close(poller)?,
        }
        self.hold_or_release(poller)
    }

    /// Reads no output while a reader's backlog is full.
    fn hold_or_release(&mut self, poller: &mut Poller) -> Result<(), Errno> {
        let full = self.readers.iter().any(Attached::is_full);
        if full == self.deadline.is_some() {
            return Ok(());
        }
        self.deadline = full.then(|| Instant::now() + PATIENCE);
        self.sources
            .iter_mut()
            .try_for_each(|source| source.poll(!full, poller))
    }

    /// When [`Console::cut_off`] is to be called.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Closes the readers that have taken nothing for too long.
    pub(super) fn cut_off(&mut self, now: Instant, poller: &mut Poller) -> Result<(), Errno> {
        if self.deadline.is_none_or(|deadline| deadline > now) {
            return Ok(());
        }
        let (full, kept): (Vec<_>, Vec<_>) = std::mem::take(&mut self.readers)
            .into_iter()
            .partition(Attached::is_full);
        self.readers = kept;
        for attached in full {
            attached.close(poller)?;
        }
        self.hold_or_release(poller)
    }

    /// Moves input to the program.
    fn pump(&mut self, poller: &mut Poller) -> Result<(), Errno> {
        let (mut blocked, mut refused) = (false, false);
        if let Some(target) = &self.target {
            for input in &mut self.inputs {
                match input.pump(target)? {
                    Pumped::All => {}
                    Pumped::Blocked => blocked = true,
                    Pumped::Refused => refused = true,
                }
            }
        }
        if refused {
            // The program has closed its end, and reads nothing more.
            self.close_target(poller)?;
        }
        self.drop_ended_inputs(poller)?;
        let blocked = blocked && self.target.is_some();
        for input in &mut self.inputs {
            input.poll(!blocked, poller)?;
        }
        match (&self.target, self.target_key) {
            (Some(target), None) if blocked => {
                self.target_key = poller.add(target.as_fd(), EventFlags::OUT)?;
            }
            (Some(target), Some(key)) if !blocked => {
                poller.remove(key, target.as_fd())?;
                self.target_key = None;
            }
            (None | Some(_), _) => {}
        }
        Ok(())
    }

    fn drop_ended_inputs(&mut self, poller: &mut Poller) -> Result<(), Errno> {
        let unwanted = self.target.is_none();
        let over = |input: &Input| unwanted || input.is_done();
        let (over, kept): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.inputs).into_iter().partition(over);
        self.inputs = kept;
        let ended = !over.is_empty();
        for mut input in over {
            input.poll(false, poller)?;
        }
        if ended && self.close_at_end && !self.terminal {
            self.close_target(poller)?;
            for mut input in std::mem::take(&mut self.inputs) {
                input.poll(false, poller)?;
            }
        }
        Ok(())
    }

    /// Closes the program's input. A terminal's descriptor has a copy, so closing it does not end
    /// the wait for it.
    pub(super) fn close_target(&mut self, poller: &mut Poller) -> Result<(), Errno> {
        if let (Some(key), Some(target)) = (self.target_key.take(), &self.target) {
            poller.remove(key, target.as_fd())?;
        }
        self.target = None;
        Ok(())
    }

    /// Reads what is left of the output of a program that has ended, whatever its readers take.
    pub(super) fn finish(
        &mut self,
        poller: &mut Poller,
        mut log: Option<&mut Log>,
        directory: BorrowedFd<'_>,
    ) -> Result<(), Errno> {
        self.finished = true;
        let mut chunk = vec![0; CHUNK];
        for mut source in std::mem::take(&mut self.sources) {
            loop {
                let read =
                    rustix::io::retry_on_intr(|| rustix::io::read(&source.descriptor, &mut chunk));
                let length = match read {
                    Ok(0) | Err(Errno::IO | Errno::AGAIN) => break,
                    read => read?,
                };
                let bytes = chunk.get(..length).unwrap_or_default();
                if let Some(log) = &mut log {
                    log.add(source.stream, &mut source.line, bytes);
                }
                self.give(source.stream, bytes, poller, directory)?;
            }
            if let Some(log) = &mut log {
                log.finish(source.stream, &mut source.line);
            }
            source.ended = true;
            source.poll(false, poller)?;
        }
        for mut input in std::mem::take(&mut self.inputs) {
            input.poll(false, poller)?;
        }
        self.close_target(poller)?;
        self.deadline = None;
        // Those that have taken all see the end now.
        let (waiting, done): (Vec<_>, Vec<_>) = std::mem::take(&mut self.readers)
            .into_iter()
            .partition(|attached| attached.reader.backlog() > 0);
        self.readers = waiting;
        done.into_iter()
            .try_for_each(|attached| attached.close(poller))
    }

    /// Gives a reader of an ended program more; true if the event was for one.
    pub(super) fn linger(&mut self, key: Key, poller: &mut Poller) -> Result<bool, Errno> {
        let Some(position) = self.readers.iter().position(|it| it.key == Some(key)) else {
            return Ok(false);
        };
        self.serve_reader(position, poller)?;
        if let Some(attached) = self.readers.get(position)
            && attached.key == Some(key)
            && attached.reader.backlog() == 0
        {
            self.readers.remove(position).close(poller)?;
        }
        Ok(true)
    }

    /// Whether a reader has not taken all yet.
    pub(super) fn has_readers(&self) -> bool {
        !self.readers.is_empty()
    }
}

impl Source {
    fn new(stream: Stream, descriptor: OwnedFd) -> Result<Self, Errno> {
        rustix::io::ioctl_fionbio(&descriptor, true)?;
        Ok(Self {
            stream,
            descriptor,
            line: Line::default(),
            key: None,
            ended: false,
        })
    }

    fn poll(&mut self, wanted: bool, poller: &mut Poller) -> Result<(), Errno> {
        let wanted = wanted && !self.ended;
        poller.wait_for_input(wanted, &mut self.key, self.descriptor.as_fd())
    }
}

impl Attached {
    fn is_full(&self) -> bool {
        self.reader.backlog() >= BACKLOG
    }

    /// Waits for room in its pipe while it has a backlog.
    fn poll(&mut self, poller: &mut Poller) -> Result<(), Errno> {
        let writing = self.reader.backlog() > 0;
        if let (Some(key), true) = (self.key, writing != self.writing) {
            let flags = if writing {
                EventFlags::OUT
            } else {
                EventFlags::empty()
            };
            poller.modify(key, self.reader.as_fd(), flags)?;
            self.writing = writing;
        }
        Ok(())
    }

    fn close(self, poller: &mut Poller) -> Result<(), Errno> {
        match self.key {
            Some(key) => poller.remove(key, self.reader.as_fd()),
            None => Ok(()),
        }
    }
}
