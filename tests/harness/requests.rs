//! Requests that a mount's worker gets and system calls that it makes, counted from outside by
//! strace: a counter of our own would prove nothing.

use std::collections::BTreeMap;
use std::fs;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use crate::command::program;
use crate::profile::{NEVER, directory, processes, readable};

/// Number of a FUSE request (`enum fuse_opcode` of include/uapi/linux/fuse.h) and how often it
/// came.
pub type Requests = BTreeMap<u32, usize>;

/// FUSE_READ.
pub const READ: u32 = 15;
/// FUSE_OPEN.
pub const OPEN: u32 = 14;
/// FUSE_RELEASE.
pub const RELEASE: u32 = 18;
/// FUSE_SYNCFS.
pub const SYNCFS: u32 = 50;
/// FUSE_FORGET and FUSE_BATCH_FORGET: the kernel's housekeeping, at times of its own choosing.
const FORGETS: [u32; 2] = [2, 42];

/// The worker of the only mount there is.
pub fn worker() -> Pid {
    let found: Vec<Pid> = processes()
        .into_iter()
        .filter(|(_, line)| line.contains("cowl-mountd") && line.contains("worker"))
        .map(|(pid, _)| pid)
        .collect();
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
            // It may be dead, and not reaped yet.
            match kill_process(worker, Signal::KILL) {
                Ok(()) | Err(Errno::SRCH) => {}
                Err(errno) => panic!("{errno}"),
            }
        }
    }
}

/// The keeper of the only mount there is.
pub fn keeper() -> Pid {
    let is_one = |line: &str| line.contains("cowl-mountd") && line.contains("keeper");
    let found = processes().into_iter().find(|(_, line)| is_one(line));
    found.expect("a keeper").0
}

/// What `worker` is asked while `work` goes on, forgets left out.
pub fn during(worker: Pid, work: impl FnOnce()) -> Requests {
    let tracer = Tracer::attach(worker, "trace=read,readv");
    work();
    let mut requests = Requests::new();
    for opcode in tracer.finish().lines().filter_map(opcode) {
        if !FORGETS.contains(&opcode) {
            *requests.entry(opcode).or_default() += 1;
        }
    }
    requests
}

/// What `worker` is asked while `work` goes on, and how often it makes which system call on files
/// of the host for that. Releases and forgets, which no client waits for, are left out.
pub fn costs_during(worker: Pid, work: impl FnOnce()) -> (Requests, BTreeMap<String, usize>) {
    // The transport's and its threads'; and fcntl, by which a debug build checks what it closes.
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
    let log = file_calls_during(worker, work);
    let (mut requests, mut calls) = (Requests::new(), BTreeMap::new());
    for line in log.lines() {
        let is_read = line.contains("read(") || line.contains("read resumed>");
        if let Some(opcode) = opcode(line).filter(|_| is_read) {
            if opcode != RELEASE && !FORGETS.contains(&opcode) {
                *requests.entry(opcode).or_default() += 1;
            }
        } else if let Some(call) = call(line).filter(|call| !LEFT_OUT.contains(call)) {
            *calls.entry(call.to_owned()).or_default() += 1;
        }
    }
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

/// The system calls on paths and descriptors that `worker` makes while `work` goes on, as strace
/// writes them.
pub fn file_calls_during(worker: Pid, work: impl FnOnce()) -> String {
    let tracer = Tracer::attach(worker, "trace=%file,%desc");
    work();
    tracer.finish()
}

/// strace on all threads of a process, writing down calls and the first bytes of what they read.
struct Tracer {
    strace: Child,
}

impl Tracer {
    fn attach(target: Pid, calls: &str) -> Self {
        let log = directory().join("strace.log");
        let messages = fs::File::create(directory().join("strace.messages")).unwrap();
        let pid = target.as_raw_nonzero().to_string();
        let mut command = program(
            "strace",
            ["-f", "-xx", "-s", "8", "-e", calls, "-p", &pid, "-o"],
        );
        let strace = command
            .arg(log)
            .stdout(Stdio::null())
            .stderr(Stdio::from(messages))
            .spawn()
            .expect("strace");
        // Attached when every thread names its tracer. /proc has nothing to wait on, so this
        // asks again.
        let limit = Instant::now() + NEVER;
        while !traced(&pid) {
            assert!(Instant::now() < limit, "strace did not attach to {pid}");
            std::thread::yield_now();
        }
        Self { strace }
    }

    /// What it wrote down.
    fn finish(mut self) -> String {
        let pidfd = pidfd_open(Pid::from_child(&self.strace), PidfdFlags::empty()).unwrap();
        kill_process(Pid::from_child(&self.strace), Signal::INT).unwrap();
        assert!(readable(&pidfd, NEVER), "strace does not end");
        self.strace.wait().unwrap();
        fs::read_to_string(directory().join("strace.log")).unwrap()
    }
}

fn traced(pid: &str) -> bool {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    tasks
        .map(|task| fs::read_to_string(task.unwrap().path().join("status")).unwrap())
        .all(|status| !status.contains("TracerPid:\t0\n"))
}

/// Of `... read(6, "\x38\x00\x00\x00\x03\x00\x00\x00"..., 1052672) = 56`: a request begins with
/// its length, which is what was read, and its opcode, both little-endian words of 32 bits.
fn opcode(line: &str) -> Option<u32> {
    let (_, rest) = line.split_once("\"\\x")?;
    let (text, after) = rest.split_once('"')?;
    let bytes: Vec<u8> = text
        .split("\\x")
        .map(|byte| u8::from_str_radix(byte, 16))
        .collect::<Result<_, _>>()
        .ok()?;
    let (_, returned) = after.rsplit_once(" = ")?;
    let length = u32::from_le_bytes(bytes.get(..4)?.try_into().ok()?);
    let opcode = u32::from_le_bytes(bytes.get(4..8)?.try_into().ok()?);
    (returned.trim().parse() == Ok(length)).then_some(opcode)
}

#[cfg(test)]
mod tests {
    use super::{call, opcode};

    #[test]
    fn a_call_is_known_by_the_line_that_begins_it() {
        assert_eq!(call("1234 statx(7, \"\\x66\", 0) = 0"), Some("statx"));
        assert_eq!(call("1234  close(7 <unfinished ...>"), Some("close"));
        assert_eq!(call("1234 <... close resumed>) = 0"), None);
        assert_eq!(call("1234 +++ exited with 0 +++"), None);
    }

    #[test]
    fn requests_are_told_from_other_reads() {
        assert_eq!(
            opcode(r#"8     read(6, "\x50\x00\x00\x00\x0f\x00\x00\x00"..., 1052672) = 80"#),
            Some(15)
        );
        assert_eq!(
            opcode(
                r#"8     <... read resumed>"\x50\x00\x00\x00\x0f\x00\x00\x00"..., 1052672) = 80"#
            ),
            Some(15)
        );
        assert_eq!(
            opcode(r#"8     read(9, "\x01\x00\x00\x00\x00\x00\x00\x00", 8) = 8"#),
            None
        );
        assert_eq!(opcode("8     +++ exited with 0 +++"), None);
    }
}
