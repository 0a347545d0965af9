//! The child's way from the container's root to its program: terminal, user, privileges, exec.
//!
//! A flat list of system calls on what the [`ProgramSetup`] holds, without allocation. Callers: the
//! first process ([`crate::init`]), and the processes that join it.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, makedev};
use rustix::io::Errno;
use rustix::process::{Rlimit, Signal, set_parent_process_death_signal, setrlimit, setsid, umask};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, remove_capability_from_bounding_set,
    set_capabilities, set_keep_capabilities, set_no_new_privs, set_thread_groups,
    set_thread_res_gid, set_thread_res_uid,
};

use crate::path::{Kind, open_in_root};
use crate::process::WindowSize;
use crate::setup::ProgramSetup;
use crate::step::{At as _, Failure, Step};
use crate::user::{self, User, UserError};

/// Report that carries the master end of the terminal.
const TERMINAL: &[u8] = b"T";

/// Report without meaning: sending it fails if the monitor is dead.
const ALIVE: &[u8] = b"E";

/// Becomes the program. The container's root is the process's root and current directory; `null` is
/// its /dev/null, in place of the host's as a standard stream. Returns only on failure.
pub(crate) fn become_program(
    setup: &mut ProgramSetup,
    terminal: Option<OwnedFd>,
    null: Option<OwnedFd>,
    report: BorrowedFd<'_>,
) -> Result<Failure, Failure> {
    setsid().at(Step::Session)?;
    crate::sys::keyring::join_new_session().at(Step::Keyring)?;
    let user = find_user(setup)?;
    stdio(setup, terminal.as_ref(), null.as_ref()).at(Step::Stdio)?;
    chown_stdio(terminal.as_ref(), user.uid).at(Step::Credentials)?;
    drop((terminal, null));
    // Before a path of the plan could lead through /proc/self/fd (CVE-2024-21626): the working
    // directory here, the program and its interpreter at exec.
    crate::sys::exec::close_others(report).at(Step::Descriptors)?;
    // The default for everything that is created from here on.
    umask(Mode::from_raw_mode(0o022));
    working_directory(setup).at(Step::WorkingDirectory)?;
    for (index, limit) in setup.rlimits.iter().enumerate() {
        let new = Rlimit {
            current: limit.soft,
            maximum: limit.hard,
        };
        setrlimit(limit.resource.number(), new).at_index(Step::ResourceLimit, index)?;
    }
    become_user(setup, &user)?;
    die_with_monitor(report)?;
    crate::sys::signal::reset_dispositions().at(Step::Signals)?;
    nix::sys::signal::SigSet::empty()
        .thread_set_mask()
        .map_err(|errno| Errno::from_raw_os_error(errno as i32))
        .at(Step::Signals)?;
    confine(setup, &user)?;
    Ok(Failure {
        step: Step::Exec,
        index: 0,
        errno: exec(setup),
    })
}

/// Opens a terminal in the container's devpts and sends its master end. The peer is opened by
/// descriptor (TIOCGPTPEER), not by path.
pub(crate) fn open_terminal(
    pts: BorrowedFd<'_>,
    size: WindowSize,
    report: BorrowedFd<'_>,
) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let master = rustix::fs::openat(pts, c"ptmx", flags, Mode::empty())?;
    rustix::pty::unlockpt(&master)?;
    let peer_flags = rustix::pty::OpenptFlags::RDWR
        | rustix::pty::OpenptFlags::NOCTTY
        | rustix::pty::OpenptFlags::CLOEXEC;
    let terminal = rustix::pty::ioctl_tiocgptpeer(&master, peer_flags)?;
    let size = rustix::termios::Winsize {
        ws_row: size.rows,
        ws_col: size.columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    rustix::termios::tcsetwinsize(&master, size)?;

    crate::socket::send(report, TERMINAL, &[master.as_fd()])?;
    Ok(terminal)
}

fn stdio(
    setup: &ProgramSetup,
    terminal: Option<&OwnedFd>,
    null: Option<&OwnedFd>,
) -> Result<(), Errno> {
    let given = match (&setup.stdio, terminal) {
        (_, Some(terminal)) => {
            rustix::process::ioctl_tiocsctty(terminal)?;
            [terminal.as_fd(); 3]
        }
        (Some([input, output, error]), None) => [input, output, error].map(OwnedFd::as_fd),
        // They are in place.
        (None, None) => return Ok(()),
    };
    let [input, output, error] = given.map(|given| {
        // Not the host's: through /proc/self/fd the container could change its mode and owner.
        let own = null.map(OwnedFd::as_fd);
        is_null(given).map(|is_null| own.filter(|_| is_null).unwrap_or(given))
    });
    rustix::stdio::dup2_stdin(input?)?;
    rustix::stdio::dup2_stdout(output?)?;
    rustix::stdio::dup2_stderr(error?)
}

/// Whether this is /dev/null, by its device number (admin-guide/devices.txt).
fn is_null(descriptor: BorrowedFd<'_>) -> Result<bool, Errno> {
    let status = fstat(descriptor)?;
    let kind = FileType::from_raw_mode(status.st_mode);
    Ok(kind == FileType::CharacterDevice && status.st_rdev == makedev(1, 3))
}

/// Gives the terminal or the pipes to the user, so that it can open /dev/stdout by name, as Docker
/// does. Other files keep their owner.
fn chown_stdio(terminal: Option<&OwnedFd>, uid: u32) -> Result<(), Errno> {
    let own = |stream| rustix::fs::fchown(stream, Some(rustix::fs::Uid::from_raw(uid)), None);
    if let Some(terminal) = terminal {
        return own(terminal.as_fd());
    }
    let streams = [
        rustix::stdio::stdin(),
        rustix::stdio::stdout(),
        rustix::stdio::stderr(),
    ];
    for stream in streams {
        if FileType::from_raw_mode(fstat(stream)?.st_mode) == FileType::Fifo {
            own(stream)?;
        }
    }
    Ok(())
}

/// Resolves the plan's user, and adds `HOME` to the environment if it is missing.
fn find_user(setup: &mut ProgramSetup) -> Result<User<'static>, Failure> {
    read_file(CWD, c"etc/passwd", &mut setup.passwd).at(Step::Passwd)?;
    read_file(CWD, c"etc/group", &mut setup.group).at(Step::Group)?;
    let user = user::resolve(&setup.user, &setup.passwd, &setup.group, &mut setup.groups).map_err(
        |error| {
            let step = match error {
                UserError::NoSuchUser => Step::UnknownUser,
                UserError::NoSuchGroup => Step::UnknownGroup,
                UserError::BadNumber => Step::UserNumber,
                UserError::TooManyGroups => Step::TooManyGroups,
            };
            Failure {
                step,
                index: 0,
                errno: Errno::INVAL,
            }
        },
    )?;
    for (index, name) in setup.named_groups.iter().enumerate() {
        user::add_group(name, &setup.group, &mut setup.groups).map_err(|error| Failure {
            step: match error {
                UserError::TooManyGroups => Step::TooManyGroups,
                _ => Step::NamedGroup,
            },
            index: u16::try_from(index).unwrap_or(u16::MAX),
            errno: Errno::INVAL,
        })?;
    }
    if setup.needs_home {
        setup.environment.push(b"HOME=", user.home).at(Step::Home)?;
    }
    Ok(User { home: b"", ..user })
}

/// Reads a regular file of the container into the buffer's capacity. A missing file is empty; a
/// larger one is refused.
fn read_file(
    root: BorrowedFd<'_>,
    path: &std::ffi::CStr,
    buffer: &mut Vec<u8>,
) -> Result<(), Errno> {
    // O_NONBLOCK: the image may have a FIFO there.
    let file = match open_in_root(
        root,
        path,
        OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY,
    ) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
        other => other?,
    };
    if FileType::from_raw_mode(fstat(&file)?.st_mode) != FileType::RegularFile {
        return Err(Errno::INVAL);
    }
    while buffer.len() < buffer.capacity() {
        if rustix::io::retry_on_intr(|| {
            rustix::io::read(&file, rustix::buffer::spare_capacity(buffer))
        })? == 0
        {
            return Ok(());
        }
    }
    Err(Errno::FBIG)
}

/// Enters the working directory, created if missing at a start. It is looked up below the root,
/// which [`crate::mounts::pivot`] has made the current directory, and checked: getcwd of a directory
/// outside begins with "(unreachable)".
fn working_directory(setup: &mut ProgramSetup) -> Result<(), Errno> {
    let directory = if setup.creates_cwd {
        setup.cwd.open_or_create(CWD, Kind::Directory)?
    } else {
        setup.cwd.open(CWD)?
    };
    rustix::process::fchdir(&directory)?;
    let path = rustix::process::getcwd(std::mem::take(&mut setup.cwd_text))?;
    if path.to_bytes().starts_with(b"/") {
        Ok(())
    } else {
        Err(Errno::NOENT)
    }
}

/// Drops the bounding set, and sets groups and ids. The other capabilities are kept until
/// [`confine`].
fn become_user(setup: &ProgramSetup, user: &User<'_>) -> Result<(), Failure> {
    for capability in &setup.dropped {
        match remove_capability_from_bounding_set(*capability) {
            // Beyond the last capability of this kernel.
            Err(Errno::INVAL) => break,
            other => other.at(Step::BoundingSet)?,
        }
    }
    if setup.set_groups {
        set_thread_groups(&setup.groups).at(Step::Credentials)?;
    }
    let (uid, gid) = (
        rustix::fs::Uid::from_raw(user.uid),
        rustix::fs::Gid::from_raw(user.gid),
    );
    set_thread_res_gid(gid, gid, gid).at(Step::Credentials)?;
    // Exec clears it.
    set_keep_capabilities(true).at(Step::Capabilities)?;
    set_thread_res_uid(uid, uid, uid).at(Step::Credentials)
}

/// Sets capabilities and loads the seccomp filter, as the last calls before exec: a filter need
/// allow no other. Inheritable and ambient sets end empty (CVE-2022-24769).
fn confine(setup: &ProgramSetup, user: &User<'_>) -> Result<(), Failure> {
    let kept = if user.uid == 0 {
        setup.capabilities
    } else {
        CapabilitySet::empty()
    };
    let sets = CapabilitySets {
        effective: kept,
        permitted: kept,
        inheritable: CapabilitySet::empty(),
    };
    let load = || match &setup.filter {
        Some(filter) => crate::sys::seccomp::load(filter).at(Step::Seccomp),
        None => Ok(()),
    };
    if setup.no_new_privileges {
        set_capabilities(None, sets).at(Step::Capabilities)?;
        set_no_new_privs(true).at(Step::NewPrivileges)?;
        return load();
    }
    // To load takes CAP_SYS_ADMIN, which the change of ids has made ineffective.
    let mut all = capabilities(None).at(Step::Capabilities)?;
    all.effective = all.permitted;
    set_capabilities(None, all).at(Step::Capabilities)?;
    load()?;
    set_capabilities(None, sets).at(Step::Capabilities)
}

/// Has the kernel kill this process when the monitor dies. Set last, since a change of credentials
/// clears it. If the monitor is dead already, its end of the socket is closed.
pub(crate) fn die_with_monitor(report: BorrowedFd<'_>) -> Result<(), Failure> {
    set_parent_process_death_signal(Some(Signal::KILL)).at(Step::ParentDeath)?;
    crate::socket::send(report, ALIVE, &[]).at(Step::ParentDeath)
}

/// Tries each path of the program, as execvp(3) does: EACCES is reported only if no later one can
/// be run.
fn exec(setup: &ProgramSetup) -> Errno {
    let mut worst = Errno::NOENT;
    for program in &setup.programs {
        match crate::sys::exec::execve(program, &setup.arguments, &setup.environment) {
            Errno::NOENT => {}
            Errno::NOTDIR if setup.programs.len() > 1 => {}
            Errno::ACCESS => worst = Errno::ACCESS,
            errno => return errno,
        }
    }
    worst
}
