//! `cowl serve` on the test's own socket, and its clients.

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::command::{Outcome, program, run};
use crate::profile::directory;
use crate::store::Store;

/// A running server.
#[derive(Debug)]
pub struct Server {
    child: Option<Child>,
    socket: PathBuf,
}

impl Server {
    /// Starts a server over a store and waits until it answers.
    #[track_caller]
    pub fn start(store: &Store) -> Self {
        Self::start_by(store.command(["serve"]))
    }

    /// [`Server::start`] with the caller's own command line.
    #[track_caller]
    pub fn start_by(mut command: Command) -> Self {
        let socket = directory().join("cowl.sock");
        command
            .arg("--host")
            .arg(format!("unix://{}", socket.display()));
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        let output = child.stdout.take().unwrap();
        BufReader::new(output).read_line(&mut line).unwrap();
        assert_eq!(line, format!("API listen on {}\n", socket.display()));
        Self {
            child: Some(child),
            socket,
        }
    }

    /// Its process.
    pub fn pid(&self) -> Pid {
        Pid::from_child(self.child.as_ref().unwrap())
    }

    /// Its children, zombies among them.
    pub fn children(&self) -> Vec<String> {
        let tasks = format!("/proc/{}/task", self.pid());
        let children = |task: std::io::Result<std::fs::DirEntry>| {
            // A thread may have ended meanwhile.
            std::fs::read_to_string(task.unwrap().path().join("children")).unwrap_or_default()
        };
        let all: Vec<String> = std::fs::read_dir(tasks).unwrap().map(children).collect();
        all.iter()
            .flat_map(|some| some.split_whitespace())
            .map(str::to_owned)
            .collect()
    }

    /// Open descriptors.
    pub fn descriptors(&self) -> usize {
        let open = std::fs::read_dir(format!("/proc/{}/fd", self.pid()));
        open.unwrap().count()
    }

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The real `docker` command against it.
    pub fn docker<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = program("docker", arguments);
        command
            .env("DOCKER_HOST", format!("unix://{}", self.socket.display()))
            .env("HOME", directory());
        command
    }

    /// Runs it.
    #[track_caller]
    pub fn run<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Outcome {
        run(&mut self.docker(arguments))
    }

    /// Runs `docker`, which must succeed; returns its standard output.
    #[track_caller]
    pub fn ok<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> String {
        self.run(arguments).ok()
    }

    /// Sends a raw request, and returns the whole reply.
    #[track_caller]
    pub fn request(&self, head: &str, body: &str) -> String {
        let mut stream = UnixStream::connect(&self.socket).unwrap();
        let length = body.len();
        let request = format!(
            "{head} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap();
        reply
    }

    /// `docker` with this input, to its end.
    #[track_caller]
    pub fn with_input(&self, input: &[u8], arguments: &[&str]) -> std::process::Output {
        let mut docker = self.docker(arguments);
        let docker = docker.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut docker = docker.stderr(Stdio::piped()).spawn().unwrap();
        docker.stdin.take().unwrap().write_all(input).unwrap();
        docker.wait_with_output().unwrap()
    }

    /// Sends a request with an upgrade and no body, and reads the head of the reply.
    #[track_caller]
    pub fn hijack(&self, path: &str) -> UnixStream {
        let path = format!("POST /v1.51/containers/{path}");
        let (head, client) = self.open(&path, "Connection: Upgrade\r\nUpgrade: tcp\r\n", "");
        assert!(head.starts_with("HTTP/1.1 101 UPGRADED\r\n"), "{head}");
        client
    }

    /// Sends a request with these header lines, followed by a body in the same write. Returns the
    /// head of the reply, and the connection.
    #[track_caller]
    pub fn open(&self, request: &str, lines: &str, behind: &str) -> (String, UnixStream) {
        let mut client = UnixStream::connect(&self.socket).unwrap();
        let request = format!("{request} HTTP/1.1\r\nHost: x\r\n{lines}\r\n{behind}");
        client.write_all(request.as_bytes()).unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            client.read_exact(&mut byte).unwrap();
            head.extend(byte);
        }
        (String::from_utf8(head).unwrap(), client)
    }

    /// Creates an exec and returns its id.
    #[track_caller]
    pub fn create_exec(&self, container: &str, body: &str) -> String {
        let made = self.request(&format!("POST /v1.51/containers/{container}/exec"), body);
        assert!(status(&made).contains("201"), "{made}");
        made.split('"').nth_back(1).unwrap().to_owned()
    }

    /// Ends it by a signal and returns its exit code; none if the signal killed it.
    #[track_caller]
    pub fn end(mut self, signal: Signal) -> Option<i32> {
        let mut child = self.child.take().unwrap();
        kill_process(Pid::from_child(&child), signal).unwrap();
        child.wait().unwrap().code()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

/// Waits until a condition holds.
pub fn until(mut so: impl FnMut() -> bool) {
    while !so() {
        std::thread::yield_now();
    }
}

/// The status line of a reply.
pub fn status(reply: &str) -> &str {
    reply.lines().next().unwrap_or_default()
}

/// The next frame: its stream and bytes.
#[track_caller]
pub fn frame(client: &mut UnixStream) -> (u8, Vec<u8>) {
    let mut header = [0; 8];
    client.read_exact(&mut header).unwrap();
    assert_eq!(header[1..4], [0; 3]);
    let length = u32::from_be_bytes(header[4..].try_into().unwrap());
    let mut bytes = vec![0; length.try_into().unwrap()];
    client.read_exact(&mut bytes).unwrap();
    (header[0], bytes)
}

/// The output of each stream, up to its end.
#[track_caller]
pub fn streams(mut client: UnixStream) -> [String; 3] {
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).unwrap();
    let mut streams = [const { String::new() }; 3];
    let mut rest = rest.as_slice();
    while let Some((header, after)) = rest.split_first_chunk::<8>() {
        let length = u32::from_be_bytes(header[4..].try_into().unwrap());
        let (bytes, after) = after.split_at(length.try_into().unwrap());
        streams[usize::from(header[0])].push_str(std::str::from_utf8(bytes).unwrap());
        rest = after;
    }
    assert_eq!(rest, b"");
    streams
}
