//! The command line of fuse-overlayfs: `cowl-mountd -o lowerdir=a:b,upperdir=u,workdir=w DIR`.
//!
//! It mounts a stack of plain directories at a directory and answers as soon as the mount does:
//! the command that was typed starts a process that serves the mount until it is unmounted, and
//! waits until the mount answers; in the foreground, until it has ended. A failure before that is
//! one line on standard error, the exit code 1, and leaves nothing behind.

mod options;
mod serve;
mod start;
mod worker;

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::ExitCode;

pub use options::{MountFlags, OptionError, Options};

/// The first argument of the process that serves: standard input is where it says that the mount
/// answers.
const SERVING: &str = "--serve";

const HELP: &str = "\
Usage: cowl-mountd [-f] [-d] -o OPTION[,OPTION]... [SOURCE] DIR

Mounts plain directories, with a writable one on top, at DIR. Takes the command line of
fuse-overlayfs, and may be installed under that name.

  -o lowerdir=A[:B]...   the directories below, the top one first; \\: and \\, are a colon and a comma
  -o upperdir=U          where changes go; without it the mount is read-only
  -o workdir=W           a directory on the same file system as U
  -o volatile, fsync=0   sync nothing
  -o static_nlink        directories of several layers have a link count of 1
  -o uidmapping=FILE:SHOWN:LENGTH[:...], gidmapping=...
                         owners from FILE on are shown from SHOWN on
  -o squash_to_root, squash_to_uid=ID, squash_to_gid=ID
                         show all files as of one owner
  -o noacl               show, set and hand down no ACL
  -o redirect_dir=on|off whether directories of lower layers can be renamed (else EXDEV)
  -o metacopy=on|off     whether chmod and chown leave a file's content where it is
  -o io=auto|cached|writeback, writeback=0|1
                         how files are served
  -o userxattr           marks in user.overlay.* also as root
  -o allow_other, allow_root, fsname=NAME, context=CONTEXT, ro, nodev, nosuid, noexec, noatime
  -f                     stay in the foreground; SIGINT, SIGTERM and SIGHUP unmount
  -d, --debug            log what happens, and stay in the foreground
  -h, --help; -V, --version
";

/// What the command line asks for.
#[derive(Debug)]
enum Request {
    Help,
    Version,
    Mount(Box<Mounting>),
}

/// A mount to be made.
#[derive(Debug)]
struct Mounting {
    options: Options,
    at: PathBuf,
    foreground: bool,
    debug: bool,
}

/// Whether a command line is fuse-overlayfs's: this program has its name, or the arguments are no
/// command of `cowl-mountd`.
pub fn is_drop_in_command_line(arguments: &[OsString]) -> bool {
    let program = arguments.first().map(PathBuf::from).unwrap_or_default();
    if program.file_name() != Some(OsStr::new("cowl-mountd")) {
        return true;
    }
    arguments.iter().skip(1).any(|argument| {
        let argument = argument.as_bytes();
        argument.starts_with(b"-o") || argument == SERVING.as_bytes()
    })
}

/// Does what the command line says.
pub fn run(mut arguments: Vec<OsString>) -> ExitCode {
    let serving = arguments.get(1).is_some_and(|first| first == SERVING);
    if serving {
        arguments.remove(1);
    }
    let request = match parse(arguments.get(1..).unwrap_or_default()) {
        Ok(request) => request,
        Err(error) => return fail(&error),
    };
    let mounting = match request {
        Request::Help => return print(HELP),
        Request::Version => {
            return print(concat!(
                "cowl-mountd ",
                env!("CARGO_PKG_VERSION"),
                " (in place of fuse-overlayfs)\n"
            ));
        }
        Request::Mount(mounting) => mounting,
    };
    if !serving {
        return start::run(&arguments, &mounting);
    }
    serve::run(&mounting)
}

fn print(text: &str) -> ExitCode {
    let written = cowl_sys::stdio::check_output();
    match written.and_then(|()| std::io::stdout().write_all(text.as_bytes())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_closed) => ExitCode::FAILURE,
    }
}

fn fail(error: &dyn std::fmt::Display) -> ExitCode {
    // Written at once, since others may write there, too. Nothing is left to tell if this fails.
    let line = format!("cowl-mountd: {error}\n");
    drop(std::io::stderr().write_all(line.as_bytes()));
    ExitCode::FAILURE
}

/// Reads the arguments after the program's name.
fn parse(arguments: &[OsString]) -> Result<Request, String> {
    let mut options = Options::default();
    let mut positional = Vec::new();
    let (mut foreground, mut debug) = (false, false);
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let text = argument.as_bytes();
        match text {
            b"-h" | b"--help" => return Ok(Request::Help),
            b"-V" | b"--version" => return Ok(Request::Version),
            b"-f" => foreground = true,
            b"-d" | b"--debug" => debug = true,
            // One thread, or quietly: nothing that a client could see.
            b"-s" | b"-n" | b"-v" => {}
            b"--" => positional.extend(rest.by_ref().cloned()),
            b"-o" => {
                let value = rest.next().ok_or("-o needs a value")?;
                debug |= take(&mut options, value)?;
            }
            [b'-', b'o', value @ ..] => debug |= take(&mut options, OsStr::from_bytes(value))?,
            [b'-', _, ..] => return Err(format!("unknown argument: {}", argument.display())),
            _ => positional.push(argument.clone()),
        }
    }
    let at = match &*positional {
        [at] => at,
        [source, at] => {
            options.fsname.get_or_insert_with(|| source.clone());
            at
        }
        [] => return Err("the directory to mount at is missing (--help says more)".into()),
        _ => return Err("more than one directory to mount at".into()),
    };
    let mut options = options.finish().map_err(|error| error.to_string())?;
    let at = absolute(at.as_ref())?;
    for path in options
        .lower
        .iter_mut()
        .chain(&mut options.upper)
        .chain(&mut options.work)
    {
        *path = absolute(path)?;
    }
    Ok(Request::Mount(Box::new(Mounting {
        options,
        at,
        foreground: foreground || debug,
        debug,
    })))
}

/// Takes one `-o`; whether `debug` was among it, which says nothing of the mount.
fn take(options: &mut Options, value: &OsStr) -> Result<bool, String> {
    let is_debug = value == "debug";
    if !is_debug {
        options.take(value).map_err(|error| error.to_string())?;
    }
    Ok(is_debug)
}

/// The process that serves works in `/`.
fn absolute(path: &std::path::Path) -> Result<PathBuf, String> {
    std::path::absolute(path).map_err(|error| format!("{}: {error}", path.display()))
}

/// Standard input, which is the pipe to say that the mount answers; it is replaced by `/dev/null`.
fn take_stdin() -> std::io::Result<OwnedFd> {
    let pipe = std::io::stdin().as_fd().try_clone_to_owned()?;
    let null = std::fs::File::open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    Ok(pipe)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(text: &[&str]) -> Vec<OsString> {
        text.iter().map(OsString::from).collect()
    }

    #[test]
    fn parse_takes_fuse_overlayfs_s_command_lines() {
        for line in [
            &["-o", "lowerdir=a,upperdir=b,workdir=c", "m"][..],
            &["-olowerdir=a", "m"],
            &["-f", "m", "-o", "lowerdir=a"],
            &["source", "m", "-o", "rw,lowerdir=a,dev,suid"],
            &["-o", "lowerdir=a", "-o", "debug", "--", "m"],
        ] {
            match parse(&arguments(line)) {
                Ok(Request::Mount(mounting)) => {
                    assert_eq!(mounting.at, std::env::current_dir().unwrap().join("m"));
                }
                other => panic!("{line:?}: {other:?}"),
            }
        }
        for line in [
            &["-o", "lowerdir=a"][..],
            &["-x", "m"],
            &["-o"],
            &["m"],
            &["a", "b", "c"],
        ] {
            assert!(parse(&arguments(line)).is_err(), "{line:?}");
        }
    }

    #[test]
    fn is_meant_tells_the_two_command_lines_apart() {
        for line in [
            &["/usr/bin/fuse-overlayfs"][..],
            &["cowl-mountd", "-o", "x", "m"],
        ] {
            assert!(is_drop_in_command_line(&arguments(line)), "{line:?}");
        }
        for line in [
            &["cowl-mountd", "keeper"][..],
            &["/x/cowl-mountd", "--help"],
        ] {
            assert!(!is_drop_in_command_line(&arguments(line)), "{line:?}");
        }
    }
}
