//! Counts the requests that serving processes read and the system calls that they make, from
//! outside by strace: their own counters would prove nothing, and peers have none.
//!
//! A thread's calls count for the request that it read last. A successful read of /dev/fuse returns
//! a request: its first word is its length, its second the opcode, its ninth the client's pid
//! (`struct fuse_in_header` of include/uapi/linux/fuse.h). libfuse may splice a request into a pipe
//! first; the thread then reads its header next.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, BufRead as _, BufReader, ErrorKind, copy, sink};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};

use crate::servers::{Descriptors, NEVER, descriptors};

/// What was counted.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Costs {
    /// By opcode.
    pub(crate) requests: BTreeMap<u32, u32>,
    /// By name of the system call.
    pub(crate) calls: BTreeMap<String, u32>,
}

/// FUSE_WRITE.
const WRITE: u32 = 16;
/// FUSE_RELEASE, FUSE_RELEASEDIR, FUSE_FORGET, FUSE_BATCH_FORGET, FUSE_NOTIFY_REPLY: no client
/// waits for them, so they may come after the count.
const UNAWAITED: [u32; 5] = [18, 29, 2, 42, 41];

/// Counts what `servers` do while `work` runs; `log` is a file that is created and removed.
pub(crate) fn during(
    servers: &[Pid],
    log: &Path,
    work: impl FnOnce() -> Result<()>,
) -> Result<Costs> {
    let mut known = Descriptors::default();
    for server in servers {
        let more = descriptors(*server)?;
        known.device.extend(more.device);
        known.wires.extend(more.wires);
    }
    let tracer = Tracer::attach(servers, log)?;
    let done = work();
    tracer.detach()?;
    done?;
    let text = std::fs::read(log).with_context(|| log.display().to_string())?;
    std::fs::remove_file(log).with_context(|| log.display().to_string())?;
    Ok(costs(&String::from_utf8_lossy(&text), &known))
}

struct Tracer {
    strace: Child,
    messages: JoinHandle<io::Result<u64>>,
}

impl Tracer {
    /// Attaches strace to all threads of the processes: their calls from here on are in the log.
    fn attach(servers: &[Pid], log: &Path) -> Result<Self> {
        let mut before = BTreeMap::new();
        for server in servers {
            before.extend(switches(*server)?);
        }
        let mut command = Command::new("strace");
        command.args(["-f", "-xx", "-s", "40", "-e", "trace=%file,%desc", "-o"]);
        command.arg(log);
        for server in servers {
            command.args(["-p", &server.as_raw_nonzero().to_string()]);
        }
        let mut strace = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("strace")?;
        // A thread has a tracer before it stops, and runs until then. strace's message for a
        // process comes when all its threads have been told to stop.
        let mut messages = BufReader::new(strace.stderr.take().context("strace's messages")?);
        let mut said = String::new();
        while said.matches("attached").count() < servers.len() {
            let length = messages.read_line(&mut said).context("strace's messages")?;
            ensure!(length > 0, "strace does not attach: {}", said.trim());
        }
        let drain = move || copy(&mut messages, &mut sink());
        let messages = thread::Builder::new().spawn(drain).context("a thread")?;
        // Until a thread has stopped it runs untraced, and may read a request. A waiting thread
        // switches context twice, to stop and to wait again. A thread may also have started another
        // one unnoticed by strace; that one ends when it is idle. /proc cannot be waited on, so
        // this polls.
        let limit = Instant::now() + NEVER;
        for server in servers {
            while !(is_traced(*server)? && have_stopped(&switches(*server)?, &before)) {
                ensure!(Instant::now() < limit, "strace does not attach");
                thread::yield_now();
            }
        }
        Ok(Self { strace, messages })
    }

    fn detach(mut self) -> Result<()> {
        let pid = Pid::from_child(&self.strace);
        kill_process(pid, Signal::INT).context("ending strace")?;
        self.strace.wait().context("waiting for strace")?;
        match self.messages.join() {
            Ok(read) => read.map(drop).context("strace's messages"),
            Err(_) => bail!("the thread that reads strace's messages ended early"),
        }
    }
}

/// The status of each thread.
fn statuses(process: Pid) -> Result<Vec<(OsString, String)>> {
    let directory = format!("/proc/{}/task", process.as_raw_nonzero());
    let mut found = Vec::new();
    for task in std::fs::read_dir(&directory).with_context(|| directory.clone())? {
        let task = task.context("/proc")?;
        match std::fs::read_to_string(task.path().join("status")) {
            Ok(status) => found.push((task.file_name(), status)),
            // It has ended.
            Err(error)
                if error.kind() == ErrorKind::NotFound
                    || Errno::from_io_error(&error) == Some(Errno::SRCH) => {}
            Err(error) => return Err(error).context(directory),
        }
    }
    Ok(found)
}

fn is_traced(process: Pid) -> Result<bool> {
    let statuses = statuses(process)?;
    Ok(!statuses
        .iter()
        .any(|(_, status)| status.contains("TracerPid:\t0\n")))
}

/// The number of voluntary context switches of each thread.
fn switches(process: Pid) -> Result<BTreeMap<OsString, u64>> {
    let of = |(thread, status): (OsString, String)| {
        let mut lines = status.lines();
        let count = lines.find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        Some((thread, count?.trim().parse().ok()?))
    };
    Ok(statuses(process)?.into_iter().filter_map(of).collect())
}

fn have_stopped(now: &BTreeMap<OsString, u64>, before: &BTreeMap<OsString, u64>) -> bool {
    now.iter()
        .all(|(thread, count)| before.get(thread).is_none_or(|before| *count >= before + 2))
}

/// The state of a thread while the log is parsed.
#[derive(Debug, Default)]
struct Thread<'l> {
    /// Whether its calls are for a counted request.
    counts: bool,
    /// A request is in a pipe; its header is read next.
    is_head_next: bool,
    /// An unfinished call: its name and first descriptor.
    unfinished: Option<(&'l str, Option<i32>)>,
}

fn costs(log: &str, known: &Descriptors) -> Costs {
    let mut costs = Costs::default();
    let mut threads: BTreeMap<&str, Thread<'_>> = BTreeMap::new();
    for line in log.lines() {
        let Some((id, rest)) = line.split_once(char::is_whitespace) else {
            continue;
        };
        let (thread, rest) = (threads.entry(id).or_default(), rest.trim_start());
        let (name, descriptor, begins) = if rest.starts_with("<... ") {
            match thread
                .unfinished
                .take()
                .or_else(|| waiting_since_before(rest))
            {
                Some((name, descriptor)) => (name, descriptor, false),
                None => continue,
            }
        } else {
            match begun(rest) {
                Some((name, descriptor)) => (name, descriptor, true),
                None => continue,
            }
        };
        if rest.ends_with("<unfinished ...>") {
            thread.unfinished = Some((name, descriptor));
        }
        // The call that a thread was waiting in at the attach counts if it returned a request.
        let is_device = descriptor.is_some_and(|number| known.device.contains(&number))
            || (!begins && descriptor.is_none() && is_whole_request(name, rest));
        let is_read = matches!(name, "read" | "readv");
        if is_device || (thread.is_head_next && is_read) {
            if returned(rest).is_some_and(|length| length > 0) {
                take_request(rest, name, thread, &mut costs);
            }
        } else if begins && thread.counts && is_work(name, descriptor, rest, known) {
            *costs.calls.entry(name.to_owned()).or_default() += 1;
        }
    }
    costs
}

/// Handles a finished call on the device, or on the pipe that a request is in.
fn take_request(line: &str, name: &str, thread: &mut Thread<'_>, costs: &mut Costs) {
    match name {
        "splice" => thread.is_head_next = true,
        "read" | "readv" => {
            thread.is_head_next = false;
            let Some(head) = head(line) else { return };
            thread.counts = !UNAWAITED.contains(&head.opcode) && !head.is_kernels_own();
            if thread.counts {
                *costs.requests.entry(head.opcode).or_default() += 1;
            }
        }
        // Replies.
        _ => {}
    }
}

/// Whether a call does work for a request, beyond transporting it.
fn is_work(name: &str, descriptor: Option<i32>, line: &str, known: &Descriptors) -> bool {
    let is_wire = descriptor.is_some_and(|number| known.wires.contains(&number));
    let is_transport = match name {
        "epoll_create1" | "epoll_ctl" | "epoll_wait" | "epoll_pwait" | "poll" | "ppoll"
        // Transport of data between the device, pipes and memory; memory mappings.
        | "splice" | "vmsplice" | "pipe" | "pipe2" | "mmap" => true,
        // A debug build of cowl checks what it closes.
        "fcntl" => line.contains("F_GETFD"),
        _ => is_wire,
    };
    !is_transport
}

/// The name and first descriptor of the call at the start of a line: `statx(7, ...`.
fn begun(line: &str) -> Option<(&str, Option<i32>)> {
    let (name, arguments) = line.split_once('(')?;
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if name.is_empty() || !name.chars().all(is_name) {
        return None;
    }
    let (number, _) = arguments.split_once([',', ')', ' ', '<'])?;
    Some((name, number.parse().ok()))
}

fn returned(line: &str) -> Option<u64> {
    let (_, value) = line.rsplit_once(" = ")?;
    value.trim().parse().ok()
}

/// The name of a call that started before the log: `<... splice resumed>`.
fn waiting_since_before(line: &str) -> Option<(&str, Option<i32>)> {
    let name = line.strip_prefix("<... ")?.split(' ').next()?;
    matches!(name, "read" | "readv" | "splice").then_some((name, None))
}

/// Whether a call with an unknown descriptor returned a request: it was spliced, or its length
/// matches its header.
fn is_whole_request(name: &str, line: &str) -> bool {
    let length = returned(line);
    match name {
        "splice" => length.is_some_and(|length| length > 0),
        _ => head(line).is_some_and(|head| length == Some(head.length.into())),
    }
}

/// The header of a request.
struct Head {
    length: u32,
    opcode: u32,
    /// The client's pid.
    process: u32,
}

impl Head {
    /// Whether the kernel sent it on its own: it flushes cached times when it chooses. For cached
    /// writes it names no process either, but those count for a client.
    fn is_kernels_own(&self) -> bool {
        self.process == 0 && self.opcode != WRITE
    }
}

/// Parses `read(6, "\x38\x00..."..., 1052672) = 56`.
fn head(line: &str) -> Option<Head> {
    let (_, rest) = line.split_once("\"\\x")?;
    let (text, _) = rest.split_once('"')?;
    let bytes: Vec<u8> = text
        .split("\\x")
        .map(|byte| u8::from_str_radix(byte, 16))
        .collect::<Result<_, _>>()
        .ok()?;
    let word = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    Some(Head {
        length: word(0)?,
        opcode: word(4)?,
        process: word(32)?,
    })
}

#[cfg(test)]
mod tests {
    use super::{Costs, begun, costs};
    use crate::servers::Descriptors;

    const LOOKUP: u8 = 1;

    /// A request of 80 bytes, as strace shows its header.
    fn head(opcode: u8, process: u8) -> String {
        let mut bytes = [0; 40];
        (bytes[0], bytes[4], bytes[32]) = (80, opcode, process);
        let digits: Vec<String> = bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect();
        format!("\"{}\"..., 1052672) = 80", digits.concat())
    }

    fn counted(log: &[String]) -> Costs {
        let known = Descriptors {
            device: [6].into(),
            wires: [9].into(),
        };
        costs(&log.join("\n"), &known)
    }

    /// `count` LOOKUP requests, and one call of each of these names.
    fn lookups(count: u32, calls: &[&str]) -> Costs {
        let requests = (count > 0).then_some((LOOKUP.into(), count));
        Costs {
            requests: requests.into_iter().collect(),
            calls: calls.iter().map(|name| ((*name).to_owned(), 1)).collect(),
        }
    }

    #[test]
    fn begun_parses_name_and_descriptor() {
        assert_eq!(
            begun("statx(7, \"\\x66\", 0) = 0"),
            Some(("statx", Some(7)))
        );
        assert_eq!(begun("close(7 <unfinished ...>"), Some(("close", Some(7))));
        assert_eq!(begun("openat(AT_FDCWD, 0) = 3"), Some(("openat", None)));
        assert_eq!(begun("+++ exited with 0 +++"), None);
    }

    /// A FORGET (2) and a SETATTR (4) by the kernel, beside a LOOKUP in another thread.
    #[test]
    fn calls_are_counted_for_the_requests_of_clients() {
        let log = [
            "7 unlinkat(3, ...) = 0".to_owned(),
            "7 read(6,  <unfinished ...>".to_owned(),
            format!("8 read(6, {}", head(2, 0)),
            format!("7 <... read resumed>{}", head(LOOKUP, 9)),
            "8 unlinkat(3, ...) = 0".to_owned(),
            "7 statx(3, ... <unfinished ...>".to_owned(),
            format!("8 read(6, {}", head(4, 0)),
            "8 utimensat(3, ...) = 0".to_owned(),
            "7 <... statx resumed>) = 0".to_owned(),
            "7 write(9, \"\\x01\", 8) = 8".to_owned(),
            "7 writev(6, ...) = 24".to_owned(),
        ];
        assert_eq!(counted(&log), lookups(1, &["statx"]));
    }

    /// libfuse: the request goes through a pipe (5) that is not in the table of descriptors yet.
    #[test]
    fn spliced_requests_are_counted_once() {
        let log = [
            "7 splice(6, NULL, 5, NULL, 135168, 0) = 80".to_owned(),
            format!("7 read(5, {}", head(LOOKUP, 9)),
            "7 openat(3, ...) = 8".to_owned(),
            "7 read(8, \"\\x61\", 4096) = 1".to_owned(),
        ];
        assert_eq!(counted(&log), lookups(1, &["openat", "read"]));
    }

    /// Two threads are waiting at the attach, one of them for an eventfd.
    #[test]
    fn requests_awaited_at_the_attach_are_counted() {
        let log = [
            "7 <... splice resumed>) = 80".to_owned(),
            format!("7 read(5, {}", head(LOOKUP, 9)),
            format!("8 <... read resumed>{}", head(LOOKUP, 9)),
            "9 <... read resumed>\"\\x01\\x00\", 8) = 8".to_owned(),
            "9 close(3) = 0".to_owned(),
        ];
        assert_eq!(counted(&log), lookups(2, &[]));
    }

    #[test]
    fn a_failed_read_is_not_a_request() {
        let log = ["7 read(6, 0x7f00, 1052672) = -1 ENODEV (No such device)".to_owned()];
        assert_eq!(counted(&log), lookups(0, &[]));
    }
}
