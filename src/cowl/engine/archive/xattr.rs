//! Extended attributes in a tar: `SCHILY.xattr.NAME` of a PAX header, as GNU tar and Docker have
//! them.
//!
//! Only attributes that belong to the file are copied; `security.selinux` and the like belong to
//! the host.

use crate::engine::error::{Error, Result};
use rustix::fs::{XattrFlags, fgetxattr, flistxattr, fsetxattr};
use rustix::io::Errno;
use std::io::{self, Read};
use std::os::fd::BorrowedFd;
use tar::Entry;

/// The prefix of a record's key, before the attribute's name.
const PREFIX: &str = "SCHILY.xattr.";
/// Largest list of names, and largest value, in bytes (`XATTR_LIST_MAX`, `XATTR_SIZE_MAX`).
const MAX_SIZE: usize = 64 << 10;

/// A name and a value.
pub(super) type Xattr = (String, Vec<u8>);

/// Whether an attribute is copied with the file: users' attributes and file capabilities.
fn is_copied(name: &str) -> bool {
    name.starts_with("user.") || name == "security.capability"
}

/// The attributes of a file, as records of a PAX header.
pub(super) fn read(file: BorrowedFd<'_>) -> io::Result<Vec<Xattr>> {
    let mut names = vec![0; MAX_SIZE];
    let length = match flistxattr(file, names.as_mut_slice()) {
        Ok(length) => length,
        Err(Errno::NOTSUP) => 0,
        Err(errno) => return Err(errno.into()),
    };
    names.truncate(length);
    let mut found = Vec::new();
    for name in names.split(|byte| *byte == 0) {
        let Some(name) = std::str::from_utf8(name)
            .ok()
            .filter(|name| is_copied(name))
        else {
            continue;
        };
        let mut value = vec![0; MAX_SIZE];
        let length = match fgetxattr(file, name, value.as_mut_slice()) {
            Ok(length) => length,
            // Removed since.
            Err(Errno::NODATA) => continue,
            Err(errno) => return Err(errno.into()),
        };
        value.truncate(length);
        found.push((format!("{PREFIX}{name}"), value));
    }
    found.sort();
    Ok(found)
}

/// The extended attributes in an entry's PAX header.
pub(super) fn of_entry(entry: &mut Entry<'_, impl Read>) -> Result<Vec<Xattr>> {
    let mut found = Vec::new();
    for record in entry.pax_extensions()?.into_iter().flatten() {
        let record = record?;
        let Ok(key) = record.key() else { continue };
        if let Some(name) = key.strip_prefix(PREFIX)
            && is_copied(name)
        {
            found.push((name.to_owned(), record.value_bytes().to_vec()));
        }
    }
    Ok(found)
}

/// Sets attributes. Call it after chown, which drops file capabilities.
pub(super) fn write(file: BorrowedFd<'_>, xattrs: &[Xattr]) -> Result<()> {
    for (name, value) in xattrs {
        match fsetxattr(file, name.as_str(), value, XattrFlags::empty()) {
            // The file system or this user cannot set it: dockerd copies the file all the same
            // (moby, go-archive).
            Ok(()) | Err(Errno::NOTSUP | Errno::PERM) => {}
            Err(errno) => return Err(Error::from(errno).context(format!("setting {name}"))),
        }
    }
    Ok(())
}
