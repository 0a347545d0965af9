//! Extended attributes in a tar: `SCHILY.xattr.NAME` of a PAX header, as GNU tar and Docker have
//! them.
//!
//! Out goes what is a file's own, in goes what the caller may set; `security.selinux` and the
//! like belong to the host, not to the file.

use crate::engine::error::{Error, Result};
use rustix::fs::{XattrFlags, fgetxattr, flistxattr, fsetxattr};
use rustix::io::Errno;
use std::io::{self, Read};
use std::os::fd::BorrowedFd;
use tar::Entry;

/// The key of a record, less the attribute's name.
const PREFIX: &str = "SCHILY.xattr.";
/// Most bytes of all names of a file, and of a value (`XATTR_LIST_MAX`, `XATTR_SIZE_MAX`).
const MOST: usize = 64 << 10;

/// A name and a value.
pub(super) type Xattr = (String, Vec<u8>);

/// Whether an attribute goes with the file: what users set, and the capabilities of a program.
fn is_copied(name: &str) -> bool {
    name.starts_with("user.") || name == "security.capability"
}

/// The attributes of a file, as records of a PAX header.
pub(super) fn read(file: BorrowedFd<'_>) -> io::Result<Vec<Xattr>> {
    let mut names = vec![0; MOST];
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
        let mut value = vec![0; MOST];
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

/// What an entry says of its file's attributes.
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

/// Sets attributes. After the owner, whose change drops a program's capabilities.
pub(super) fn write(file: BorrowedFd<'_>, xattrs: &[Xattr]) -> Result<()> {
    for (name, value) in xattrs {
        match fsetxattr(file, name.as_str(), value, XattrFlags::empty()) {
            // Not kept by this file system, or not for this user: dockerd copies the file all the
            // same (moby, go-archive).
            Ok(()) | Err(Errno::NOTSUP | Errno::PERM) => {}
            Err(errno) => return Err(Error::from(errno).context(format!("setting {name}"))),
        }
    }
    Ok(())
}
