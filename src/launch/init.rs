//! The child between clone and exec: a flat list of system calls over what the [`Arena`] holds, top to bottom.
//!
//! It allocates nothing and takes no lock. What fails is told to the monitor in eight bytes; success is the end of the report socket, which
//! exec closes. The container has no other process yet, so nothing it looks at changes under it, but for volumes shared with others.

use std::mem::ManuallyDrop;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, makedev};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use rustix::process::{Signal, set_parent_process_death_signal, setsid, umask};
use rustix::thread::{
    CapabilitySets, remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
    set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

use crate::arena::Arena;
use crate::mounts;
use crate::path::{Kind, follow};
use crate::plan::WindowSize;
use crate::step::{At as _, Failure, Step};
use crate::user::{self, User, UserError};

/// What the child sends before it ends in exec: a terminal's master end comes with it.
const TERMINAL: &[u8] = b"T";

/// What the child sends to learn whether the monitor is still there; nobody reads anything into it.
const ALIVE: &[u8] = b"E";

/// Does everything and becomes the program; returns only to say what failed.
pub(crate) fn run(arena: Arena, report: BorrowedFd<'_>) -> Failure {
    // Never dropped: its descriptors are closed by number, and the process ends with exec or without destructors.
    let mut arena = ManuallyDrop::new(arena);
    match become_program(&mut arena, report) {
        Ok(failure) | Err(failure) => failure,
    }
}

fn become_program(arena: &mut Arena, report: BorrowedFd<'_>) -> Result<Failure, Failure> {
    let (terminal, null) = build_root(arena, report)?;
    rustix::system::sethostname(&arena.hostname).at(Step::HostName)?;
    crate::sys::net::loopback_up().at(Step::Loopback)?;
    setsid().at(Step::Session)?;
    crate::sys::keyring::join_new_session().at(Step::Keyring)?;
    let user = find_user(arena)?;
    stdio(arena, terminal.as_ref(), null.as_fd()).at(Step::Stdio)?;
    own_stdio(terminal.as_ref(), user.uid).at(Step::Credentials)?;
    drop((terminal, null));
    // Before any path of the plan is looked up that may lead through /proc/self/fd (CVE-2024-21626): the working
    // directory below, the program and its interpreter at exec.
    crate::sys::exec::close_others(report).at(Step::Descriptors)?;
    // The image's mode bits decide who may write what is made from here on.
    umask(Mode::from_raw_mode(0o022));
    working_directory(arena).at(Step::WorkingDirectory)?;
    drop_privileges(arena, &user)?;
    tie_to_monitor(report)?;
    crate::sys::signal::reset_dispositions().at(Step::Signals)?;
    nix::sys::signal::SigSet::empty()
        .thread_set_mask()
        .map_err(|errno| Errno::from_raw_os_error(errno as i32))
        .at(Step::Signals)?;
    Ok(Failure {
        step: Step::Exec,
        index: 0,
        errno: exec(arena),
    })
}

/// All mounts, then the root. Returns the program's end of the terminal, if it has one, and the container's /dev/null.
fn build_root(
    arena: &Arena,
    report: BorrowedFd<'_>,
) -> Result<(Option<OwnedFd>, OwnedFd), Failure> {
    let root = arena.rootfs.as_fd();
    mounts::attach_root(arena)?;
    mounts::kernel_filesystems(root)?;
    let dev = mounts::dev(arena)?;
    mounts::mask(root, dev.null.as_fd(), &arena.masked)?;
    mounts::read_only(root, &arena.readonly)?;
    wait_for_monitor(report).at(Step::Barrier)?;
    crate::sys::clone::unshare_cgroup_namespace().at(Step::CgroupNamespace)?;
    mounts::cgroups(root, &arena.cgroups).at(Step::Cgroup)?;
    mounts::volumes(root, &arena.volumes)?;
    let terminal = arena
        .terminal
        .map(|size| open_terminal(dev.pts.as_fd(), size, report).at(Step::Terminal))
        .transpose()?;
    if let Some(terminal) = &terminal {
        mounts::console(dev.directory.as_fd(), terminal.as_fd()).at(Step::Console)?;
    }
    mounts::pivot(arena).at(Step::Pivot)?;
    Ok((terminal, dev.null))
}

/// The monitor moves us into our cgroups while we mount; before this point their namespace would have the wrong roots.
fn wait_for_monitor(report: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut byte = [0; 1];
    let (received, _) = rustix::io::retry_on_intr(|| recv(report, &mut byte, RecvFlags::empty()))?;
    if received == 1 {
        Ok(())
    } else {
        Err(Errno::PIPE)
    }
}

/// A terminal of the container's own devpts; the other end is asked of its descriptor, never of a path.
fn open_terminal(
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

fn stdio(arena: &Arena, terminal: Option<&OwnedFd>, null: BorrowedFd<'_>) -> Result<(), Errno> {
    if let Some(terminal) = terminal {
        rustix::process::ioctl_tiocsctty(terminal)?;
    }
    let given = match (&arena.stdio, terminal) {
        (Some([input, output, error]), _) => [input, output, error].map(OwnedFd::as_fd),
        (None, Some(terminal)) => [terminal.as_fd(); 3],
        (None, None) => return Err(Errno::BADF),
    };
    let [input, output, error] = given.map(|given| {
        // Through /proc/self/fd the container could change mode and owner of the host's.
        is_null(given).map(|is_null| if is_null { null } else { given })
    });
    rustix::stdio::dup2_stdin(input?)?;
    rustix::stdio::dup2_stdout(output?)?;
    rustix::stdio::dup2_stderr(error?)
}

/// By its number (admin-guide/devices.txt).
fn is_null(descriptor: BorrowedFd<'_>) -> Result<bool, Errno> {
    let status = fstat(descriptor)?;
    let kind = FileType::from_raw_mode(status.st_mode);
    Ok(kind == FileType::CharacterDevice && status.st_rdev == makedev(1, 3))
}

/// Makes the terminal or the pipes the user's, who may then open them by name too (/dev/stdout), as Docker does. What else it was given
/// stays its owner's.
fn own_stdio(terminal: Option<&OwnedFd>, uid: u32) -> Result<(), Errno> {
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

/// Who the program is to be, with `HOME` set for it.
fn find_user(arena: &mut Arena) -> Result<User<'static>, Failure> {
    read_file(arena.rootfs.as_fd(), c"etc/passwd", &mut arena.passwd).at(Step::Passwd)?;
    read_file(arena.rootfs.as_fd(), c"etc/group", &mut arena.group).at(Step::Group)?;
    let user = user::resolve(&arena.user, &arena.passwd, &arena.group, &mut arena.groups).map_err(
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
    if arena.needs_home {
        arena.environment.push(b"HOME=", user.home).at(Step::Home)?;
    }
    Ok(User { home: b"", ..user })
}

/// Reads a regular file of the container up to the buffer's capacity; one that is missing is empty. A larger one is refused.
fn read_file(
    root: BorrowedFd<'_>,
    path: &std::ffi::CStr,
    buffer: &mut Vec<u8>,
) -> Result<(), Errno> {
    // Not blocked by a FIFO that an image has there.
    let file = match follow(
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

/// Enters the working directory, made where missing. It is looked up below the root, which [`mounts::pivot`] has made the current
/// directory, and checked from inside: the kernel's name of a directory outside begins with "(unreachable)".
fn working_directory(arena: &mut Arena) -> Result<(), Errno> {
    let directory = arena.cwd.open_or_make(CWD, Kind::Directory)?;
    rustix::process::fchdir(&directory)?;
    let path = rustix::process::getcwd(std::mem::take(&mut arena.cwd_text))?;
    if path.to_bytes().starts_with(b"/") {
        Ok(())
    } else {
        Err(Errno::NOENT)
    }
}

/// Bounding set, groups, the filter of system calls, ids, then what is left of the capabilities. Inheritable and ambient sets end empty (CVE-2022-24769).
fn drop_privileges(arena: &Arena, user: &User<'_>) -> Result<(), Failure> {
    for capability in &arena.dropped {
        match remove_capability_from_bounding_set(*capability) {
            // Beyond the last one that this kernel knows.
            Err(Errno::INVAL) => break,
            other => other.at(Step::BoundingSet)?,
        }
    }
    if arena.set_groups {
        set_thread_groups(&arena.groups).at(Step::Credentials)?;
    }
    if let Some(filter) = &arena.filter {
        // Wants CAP_SYS_ADMIN, which ends with the next call. All that is still to be done is allowed by every filter.
        crate::sys::seccomp::load(filter).at(Step::Seccomp)?;
    }
    let (uid, gid) = (
        rustix::fs::Uid::from_raw(user.uid),
        rustix::fs::Gid::from_raw(user.gid),
    );
    set_thread_res_gid(gid, gid, gid).at(Step::Credentials)?;
    set_thread_res_uid(uid, uid, uid).at(Step::Credentials)?;
    let kept = if uid.is_root() {
        arena.capabilities
    } else {
        rustix::thread::CapabilitySet::empty()
    };
    let sets = CapabilitySets {
        effective: kept,
        permitted: kept,
        inheritable: rustix::thread::CapabilitySet::empty(),
    };
    set_capabilities(None, sets).at(Step::Capabilities)?;
    if arena.no_new_privileges {
        set_no_new_privs(true).at(Step::NewPrivileges)?;
    }
    Ok(())
}

/// From here on the kernel kills us when the monitor dies; set last, as a change of credentials clears it. If it has died before, its end of
/// the socket is closed.
fn tie_to_monitor(report: BorrowedFd<'_>) -> Result<(), Failure> {
    set_parent_process_death_signal(Some(Signal::KILL)).at(Step::ParentDeath)?;
    crate::socket::send(report, ALIVE, &[]).at(Step::ParentDeath)
}

/// Tries each place where the program may be, as execvp(3) does: one that can't be run is told only if no later one can.
fn exec(arena: &Arena) -> Errno {
    let mut worst = Errno::NOENT;
    for program in &arena.programs {
        match crate::sys::exec::execve(program, &arena.arguments, &arena.environment) {
            Errno::NOENT => {}
            Errno::NOTDIR if arena.programs.len() > 1 => {}
            Errno::ACCESS => worst = Errno::ACCESS,
            errno => return errno,
        }
    }
    worst
}
