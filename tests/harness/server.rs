//! `cowl serve` on a socket of the test's, and its clients.

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
    /// Starts one over a store and waits until it answers.
    #[track_caller]
    pub fn start(store: &Store) -> Self {
        let socket = directory().join("cowl.sock");
        let mut command = store.command(["serve", "--host"]);
        command.arg(format!("unix://{}", socket.display()));
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
            // A thread may have ended since.
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

    /// Runs it, it must succeed; gives its standard output.
    #[track_caller]
    pub fn ok<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> String {
        self.run(arguments).ok()
    }

    /// Sends one request as it is written here, and gives the whole reply.
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

    /// Ends it by a signal and gives its exit code; none if the signal killed it.
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
