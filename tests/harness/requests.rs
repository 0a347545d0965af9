//! Counts the requests to a mount's worker and its system calls, from outside by strace: a counter
//! of our own would prove nothing.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead as _, BufReader, ErrorKind, copy, sink};
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use crate::command::program;
use crate::profile::{NEVER, directory, processes, readable};

/// Opcode of a FUSE request (`enum fuse_opcode` of include/uapi/linux/fuse.h), and its count.
pub type Requests = BTreeMap<u32, usize>;

/// FUSE_READ.
pub const READ: u32 = 15;
/// FUSE_WRITE.
const WRITE: u32 = 16;
/// FUSE_OPEN.
pub const OPEN: u32 = 14;
/// FUSE_RELEASE.
pub const RELEASE: u32 = 18;
/// FUSE_SYNCFS.
pub const SYNCFS: u32 = 50;
/// FUSE_FORGET, FUSE_BATCH_FORGET and FUSE_NOTIFY_REPLY: housekeeping, at any time.
const HOUSEKEEPING: [u32; 3] = [2, 42, 41];

/// The keepers of images' mounts, and their workers. A worker is forked from its keeper, and has its
/// command line until it has begun.
pub fn keepers_and_workers() -> (Vec<Pid>, Vec<Pid>) {
    let all: Vec<Pid> = processes()
        .into_iter()
        .filter(|(_, line)| {
            line.contains("cowl-mountd keeper") || line.contains("cowl-mountd worker")
        })
        .map(|(pid, _)| pid)
        .collect();
    let parent = |pid: &Pid| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
        Pid::from_raw(parent.trim().parse().unwrap())
    };
    let is_keeper = |pid: &Pid| parent(pid).is_none_or(|parent| !all.contains(&parent));
    all.iter().copied().partition(is_keeper)
}

/// The worker of the only mount.
pub fn worker() -> Pid {
    let (_, found) = keepers_and_workers();
    assert_eq!(found.len(), 1, "one mount, one worker: {:?}", processes());
    found[0]
}

/// Cuts the only mount off: kills its workers until its keeper gives up.
pub fn cut_off() {
    let keeper = keeper();
    let gone = pidfd_open(keeper, PidfdFlags::empty()).unwrap();
    let children = format!("/proc/{keeper}/task/{keeper}/children");
    while !readable(&gone, Duration::ZERO) {
        let children = fs::read_to_string(&children).unwrap_or_default();
        for child in children.split_whitespace() {
            let worker = Pid::from_raw(child.parse().unwrap()).unwrap();
            // It may be a zombie.
            match kill_process(worker, Signal::KILL) {
                Ok(()) | Err(Errno::SRCH) => {}
                Err(errno) => panic!("{errno}"),
            }
        }
    }
}

/// The keeper of the only mount.
pub fn keeper() -> Pid {
    let (found, _) = keepers_and_workers();
    *found.first().expect("a keeper")
}

/// The requests to `worker` while `work` runs, without forgets and the kernel's own requests.
pub fn during(worker: Pid, work: impl FnOnce()) -> Requests {
    let log = traced_during(worker, "trace=read,readv", work);
    let mut requests = Requests::new();
    for request in log.lines().filter_map(request) {
        if !HOUSEKEEPING.contains(&request.opcode) && !request.is_kernels_own() {
            *requests.entry(request.opcode).or_default() += 1;
        }
    }
    requests
}

/// The requests to `worker` while `work` runs, and its system calls on host files for them.
/// Releases and forgets, which no client waits for, and the kernel's own requests are excluded with
/// their calls: they come at any time, also after the work.
pub fn costs_during(worker: Pid, work: impl FnOnce()) -> (Requests, BTreeMap<String, usize>) {
    costs(&traced_during(worker, "trace=%file,%desc", work))
}

/// Calls of the transport and its threads, and fcntl, with which a debug build checks descriptors
/// before closing.
const LEFT_OUT: [&str; 11] = [
    "epoll_create1",
    "epoll_ctl",
    "mmap",
    "read",
    "readv",
    "write",
    "writev",
    "epoll_wait",
    "epoll_pwait",
    "poll",
    "fcntl",
];

/// A thread's calls count for the request that it read last. A thread that waits in read(2) at the
/// attach may get its first request before it is stopped, unseen by strace.
fn costs(log: &str) -> (Requests, BTreeMap<String, usize>) {
    let (mut requests, mut calls) = (Requests::new(), BTreeMap::new());
    let mut counted = BTreeMap::new();
    for line in log.lines() {
        let Some((thread, _)) = line.split_once(char::is_whitespace) else {
            continue;
        };
        let is_read = line.contains("read(") || line.contains("read resumed>");
        if let Some(request) = request(line).filter(|_| is_read) {
            let opcode = request.opcode;
            let counts =
                opcode != RELEASE && !HOUSEKEEPING.contains(&opcode) && !request.is_kernels_own();
            *requests.entry(opcode).or_default() += usize::from(counts);
            counted.insert(thread, counts);
        } else if let Some(call) = call(line).filter(|call| !LEFT_OUT.contains(call))
            && counted.get(thread) != Some(&false)
        {
            *calls.entry(call.to_owned()).or_default() += 1;
        }
    }
    requests.retain(|_, count| *count > 0);
    (requests, calls)
}

/// The name of the call that a line begins: `1234 statx(7, ...`.
fn call(line: &str) -> Option<&str> {
    let (_thread, rest) = line.split_once(char::is_whitespace)?;
    let (name, _) = rest.trim_start().split_once('(')?;
    name.chars()
        .all(|c| c.is_ascii_alphanumeric() || c == '_')
        .then_some(name)
}

/// strace's log of calls, with the headers of the requests that they read.
fn traced_during(worker: Pid, calls: &str, work: impl FnOnce()) -> String {
    let log = directory().join("strace.log");
    let options = ["-xx", "-s", "40", "-e", calls, "-o"].map(OsStr::new);
    let mut strace = attach(worker, options.into_iter().chain([log.as_os_str()]));
    work();
    let pidfd = pidfd_open(Pid::from_child(&strace), PidfdFlags::empty()).unwrap();
    kill_process(Pid::from_child(&strace), Signal::INT).unwrap();
    assert!(readable(&pidfd, NEVER), "strace does not end");
    strace.wait().unwrap();
    fs::read_to_string(log).unwrap()
}

/// Attaches strace to all threads of a process. Their calls from here on are traced.
pub fn attach(target: Pid, options: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Child {
    let pid = target.as_raw_nonzero().to_string();
    let mut strace = program("strace", ["-f", "-p", &pid])
        .args(options)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("strace");
    // A thread has a tracer before it stops, and runs until then. The message comes when all have
    // been told to stop.
    let mut messages = BufReader::new(strace.stderr.take().unwrap());
    let mut said = String::new();
    while !said.contains("attached") {
        let length = messages.read_line(&mut said).unwrap();
        assert!(length > 0, "strace does not attach to {pid}: {said}");
    }
    thread::spawn(move || copy(&mut messages, &mut sink()));
    // A thread may have started another one unnoticed by strace. That one ends when it is idle;
    // /proc cannot be waited on, so this polls.
    let limit = Instant::now() + NEVER;
    while !is_traced(&pid) {
        assert!(Instant::now() < limit, "strace did not attach to {pid}");
        thread::yield_now();
    }
    strace
}

fn is_traced(pid: &str) -> bool {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    tasks
        .map(|task| fs::read_to_string(task.unwrap().path().join("status")))
        .all(|status| match status {
            Ok(status) => !status.contains("TracerPid:\t0\n"),
            // It has ended.
            Err(error) => {
                error.kind() == ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
            }
        })
}

/// The header of a request.
struct Request {
    opcode: u32,
    /// The client's pid.
    process: u32,
}

impl Request {
    /// Whether the kernel sent it on its own: it flushes cached times when it chooses, or when any
    /// process of the host calls sync(2). For cached writes it names no process either, but sends
    /// those once, at a close at the latest.
    fn is_kernels_own(&self) -> bool {
        self.process == 0 && self.opcode != WRITE
    }
}

/// Of `... read(6, "\x38\x00\x00\x00\x03\x00\x00\x00"..., 1052672) = 56`: a request begins with
/// its length, which is what was read, and its opcode (`struct fuse_in_header` of
/// include/uapi/linux/fuse.h), little-endian words of 32 bits; the process is the ninth.
fn request(line: &str) -> Option<Request> {
    let (_, rest) = line.split_once("\"\\x")?;
    let (text, after) = rest.split_once('"')?;
    let bytes: Vec<u8> = text
        .split("\\x")
        .map(|byte| u8::from_str_radix(byte, 16))
        .collect::<Result<_, _>>()
        .ok()?;
    let (_, returned) = after.rsplit_once(" = ")?;
    let word = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let request = Request {
        opcode: word(4)?,
        process: word(32)?,
    };
    (returned.trim().parse() == Ok(word(0)?)).then_some(request)
}

#[cfg(test)]
mod tests {
    use super::{Requests, call, costs, request};

    #[test]
    fn a_call_is_known_by_the_line_that_begins_it() {
        assert_eq!(call("1234 statx(7, \"\\x66\", 0) = 0"), Some("statx"));
        assert_eq!(call("1234  close(7 <unfinished ...>"), Some("close"));
        assert_eq!(call("1234 <... close resumed>) = 0"), None);
        assert_eq!(call("1234 +++ exited with 0 +++"), None);
    }

    /// A request of 80 bytes, as strace shows its header.
    fn head(opcode: u8, process: u8) -> String {
        let mut bytes = [0; 40];
        (bytes[0], bytes[4], bytes[32]) = (80, opcode, process);
        let digits: Vec<String> = bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect();
        format!("\"{}\"..., 1052672) = 80", digits.concat())
    }

    #[test]
    fn requests_are_told_from_other_reads() {
        for begin in ["8     read(6, ", "8     <... read resumed>"] {
            let found = request(&format!("{begin}{}", head(15, 7))).unwrap();
            assert_eq!((found.opcode, found.process), (15, 7));
            assert!(!found.is_kernels_own());
        }
        assert!(request(r#"8     read(9, "\x01\x00\x00\x00\x00\x00\x00\x00", 8) = 8"#).is_none());
        assert!(request("8     +++ exited with 0 +++").is_none());
    }

    /// A FORGET (2) and a SETATTR (4) by the kernel, beside a LOOKUP (1) in another thread, which
    /// is first seen in the middle of another request.
    #[test]
    fn calls_are_counted_for_the_requests_of_clients() {
        let log = [
            "7 unlinkat(3, ...) = 0".to_owned(),
            format!("7 read(6, {}", head(1, 9)),
            format!("8 read(6, {}", head(2, 0)),
            "8 unlinkat(3, ...) = 0".to_owned(),
            "7 statx(3, ...) = 0".to_owned(),
            format!("8 read(6, {}", head(4, 0)),
            "8 utimensat(3, ...) = 0".to_owned(),
        ];
        let (requests, calls) = costs(&log.join("\n"));
        assert_eq!(requests, Requests::from([(1, 1)]));
        assert_eq!(
            calls.into_iter().collect::<Vec<_>>(),
            [("statx".to_owned(), 1), ("unlinkat".to_owned(), 1)]
        );
    }
}
