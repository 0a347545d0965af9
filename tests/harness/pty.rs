//! A program in a terminal, and its output.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::{Child, Command};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::profile::{NEVER, readable};

/// A program whose standard streams are a terminal. It is killed if the test fails.
#[derive(Debug)]
pub struct InTerminal {
    master: File,
    child: Child,
    shown: String,
}

impl InTerminal {
    /// Starts it in a terminal with this many lines and columns.
    #[track_caller]
    pub fn start(command: &mut Command, rows: u16, columns: u16) -> Self {
        let master =
            openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let slave = openat(CWD, name, flags, Mode::empty()).unwrap();
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&slave, size).unwrap();
        let copy = || -> OwnedFd { slave.try_clone().unwrap() };
        command.stdin(copy()).stdout(copy()).stderr(copy());
        let child = command.spawn().unwrap();
        // Our copies would keep the terminal open after its end.
        command
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null());
        Self {
            master: File::from(master),
            child,
            shown: String::new(),
        }
    }

    /// Types bytes.
    #[track_caller]
    pub fn send(&mut self, bytes: &[u8]) {
        self.master.write_all(bytes).unwrap();
    }

    /// Reads until this text appears, and returns everything up to its end that was not returned
    /// before.
    #[track_caller]
    pub fn expect(&mut self, text: &str) -> String {
        loop {
            if let Some(at) = self.shown.find(text) {
                let rest = self.shown.split_off(at + text.len());
                return std::mem::replace(&mut self.shown, rest);
            }
            assert!(self.read_some(), "{text:?} is missing: {:?}", self.shown);
        }
    }

    /// Waits for the end of the program. Returns its exit code and the rest of its output.
    #[track_caller]
    pub fn end(mut self) -> (Option<i32>, String) {
        while self.read_some() {}
        let code = self.child.wait().unwrap().code();
        (code, std::mem::take(&mut self.shown))
    }

    /// Reads available output; false if no program has the terminal open any more.
    fn read_some(&mut self) -> bool {
        assert!(readable(self.master.as_fd(), NEVER), "{:?}", self.shown);
        let mut bytes = [0; 4096];
        match self.master.read(&mut bytes) {
            Ok(length) => self
                .shown
                .push_str(&String::from_utf8_lossy(&bytes[..length])),
            Err(error) if error.raw_os_error() == Some(libc::EIO) => return false,
            Err(error) => panic!("reading the terminal: {error}"),
        }
        true
    }
}

impl Drop for InTerminal {
    fn drop(&mut self) {
        // Both fail if it has already been waited for.
        self.child.kill().unwrap_or_default();
        self.child.wait().map(drop).unwrap_or_default();
    }
}
