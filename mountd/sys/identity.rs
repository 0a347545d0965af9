//! The identity a thread creates files with: its own fsuid, fsgid and umask.
//!
//! A file made under the caller's ids has the right owner, group (in a set-group-id directory),
//! ACL and quota from birth; one whose owner is changed afterwards belonged to another user for a
//! moment, and stays so when the worker stops in between. The ids are left in place for the
//! thread's next request, which most often comes from the same caller.
#![expect(unsafe_code, reason = "unshare(2) has no safe wrapper")]

use std::cell::Cell;

use nix::unistd::{Gid, Uid, setfsgid, setfsuid};
use rustix::fs::Mode;
use rustix::io::{Errno, Result};
use rustix::thread::{CapabilitySet, UnshareFlags};

/// What a thread was last set to.
#[derive(Copy, Clone)]
struct Identity {
    uid: u32,
    gid: u32,
    umask: u32,
    /// The ids and capabilities the thread began with.
    own: (u32, u32),
    effective: CapabilitySet,
}

thread_local! {
    static NOW: Cell<Option<Identity>> = const { Cell::new(None) };
}

fn begin() -> Result<Identity> {
    if let Some(now) = NOW.get() {
        return Ok(now);
    }
    // umask(2) belongs to what threads share by default (CLONE_FS). SAFETY: CLONE_FS alone gives
    // this thread its own root, working directory and umask; no descriptor or memory changes
    // hands.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS)? };
    let own = (
        rustix::process::geteuid().as_raw(),
        rustix::process::getegid().as_raw(),
    );
    let umask = rustix::process::umask(Mode::empty()).as_raw_mode();
    rustix::process::umask(Mode::from_raw_mode(umask));
    let effective = rustix::thread::capabilities(None)?.effective;
    let identity = Identity {
        // Unknown yet: a thread inherits these ids from the one that started it, which may have
        // been acting for a client.
        uid: u32::MAX,
        gid: u32::MAX,
        umask,
        own,
        effective,
    };
    NOW.set(Some(identity));
    Ok(identity)
}

/// From here on this thread creates files as `uid` and `gid`, less the permissions in `umask`.
///
/// # Errors
/// EPERM if this process may not act as them: ids that its user namespace does not have, or no
/// privilege.
pub(crate) fn assume(uid: u32, gid: u32, umask: u32) -> Result<()> {
    let mut now = begin()?;
    if now.umask != umask {
        rustix::process::umask(Mode::from_raw_mode(umask & 0o777));
        now.umask = umask;
        NOW.set(Some(now));
    }
    if (now.uid, now.gid) == (uid, gid) {
        return Ok(());
    }
    // Both calls say what was before, whether they worked or not; asked with an impossible id they
    // say what is.
    setfsgid(Gid::from_raw(gid));
    setfsuid(Uid::from_raw(uid));
    let none = u32::MAX;
    now.gid = setfsgid(Gid::from_raw(none)).as_raw();
    now.uid = setfsuid(Uid::from_raw(none)).as_raw();
    NOW.set(Some(now));
    // Leaving user id 0 drops the capabilities over files (capabilities(7)); the overlay needs
    // them for every client.
    let mut sets = rustix::thread::capabilities(None)?;
    if sets.effective != now.effective {
        sets.effective = now.effective;
        rustix::thread::set_capabilities(None, sets)?;
    }
    if (now.uid, now.gid) == (uid, gid) {
        Ok(())
    } else {
        Err(Errno::PERM)
    }
}

/// From here on this thread creates files as the worker itself, with the permissions it says; the
/// worker's user and group id.
pub(crate) fn own() -> Result<(u32, u32)> {
    let now = begin()?;
    assume(now.own.0, now.own.1, 0)?;
    Ok(now.own)
}
