//! `openat2` with the retry that its manual page leaves to the caller.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::path::Arg;

/// Attempts before EAGAIN is given to the caller. One attempt is lost to each rename or mount on
/// the host that falls into it, so only a host that does nothing else loses all of them.
const ATTEMPTS: u32 = 1 << 16;
/// Attempts before each further one lets other processes run first.
const EAGER: u32 = 32;

/// Opens `path` below `directory` as `resolve` says; the descriptor is close-on-exec.
///
/// With `RESOLVE_IN_ROOT` or `RESOLVE_BENEATH` the kernel answers EAGAIN when anything on the host
/// was renamed or mounted while a `..` was resolved (openat2(2), ERRORS): then it is asked again.
/// EINTR too.
#[expect(
    clippy::disallowed_methods,
    reason = "this is the wrapper the others use"
)]
pub fn openat2<P: Arg + Copy>(
    directory: impl AsFd,
    path: P,
    flags: OFlags,
    resolve: ResolveFlags,
) -> Result<OwnedFd, Errno> {
    let mut attempt = 0;
    loop {
        let opened = rustix::fs::openat2(
            directory.as_fd(),
            path,
            flags | OFlags::CLOEXEC,
            Mode::empty(),
            resolve,
        );
        match opened {
            Err(Errno::AGAIN | Errno::INTR) if attempt < ATTEMPTS => attempt += 1,
            other => return other,
        }
        if attempt > EAGER {
            rustix::thread::sched_yield();
        }
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "compares with the bare call")]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    /// rustix's own call shows when the kernel says EAGAIN; by then ours has met it too.
    #[test]
    fn openat2_succeeds_while_files_are_renamed_elsewhere() {
        const TIMES: u32 = 100;
        let temp = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(temp.path().join("root/a")).unwrap();
        let root = std::fs::File::open(temp.path().join("root")).unwrap();
        // A rename elsewhere has to fall into the walk. On one processor it does only if the walk is
        // interrupted; on several a long one would meet a rename each time.
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let path = "a/../".repeat(if processors > 1 { 20 } else { 800 });
        let (from, to) = (temp.path().join("from"), temp.path().join("to"));
        std::fs::write(&from, "").unwrap();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    std::fs::rename(&from, &to).unwrap();
                    std::fs::rename(&to, &from).unwrap();
                }
            });
            let (mut met, mut failed) = (0, None);
            while met < TIMES && failed.is_none() {
                let mode = Mode::empty();
                let bare =
                    rustix::fs::openat2(&root, &*path, OFlags::PATH, mode, ResolveFlags::IN_ROOT);
                met += u32::from(bare.err() == Some(Errno::AGAIN));
                failed = openat2(&root, &*path, OFlags::PATH, ResolveFlags::IN_ROOT).err();
            }
            done.store(true, Ordering::Relaxed);
            assert_eq!(failed, None);
        });
    }
}
