//! How an upper says what its files were copied up from.
//!
//! Over a tree: by our own mark, since a tree has no paths that the kernel could follow. Over plain
//! directories: by the kernel's own marks wherever it has one, so that overlayfs can mount the
//! upper and the other way round. Our own mark beside them says only what overlayfs does not: which
//! file a copy took its `st_ino` from, link counts, an interrupted copy.

use rustix::io::{Errno, Result};

use super::marks::{FileMark, Mark, MarkStore, Origin};
use super::name_at::NameAt;
use crate::tree::FileType;

/// The two ways.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub enum Spelling {
    /// Over a merged tree.
    Tree,
    /// Over plain directories.
    Plain,
}

impl Spelling {
    /// Writes the marks of a file of type `stored`. Over plain directories the removal of
    /// [`Mark::Metacopy`] is what commits a copied content.
    pub fn write(
        self,
        name_at: NameAt<'_>,
        store: &MarkStore,
        stored: FileType,
        mark: &FileMark,
    ) -> Result<()> {
        if self == Spelling::Tree {
            return name_at.set_mark(store, Mark::File, &mark.encode());
        }
        match stored {
            FileType::Regular if mark.metadata_only => {
                name_at.set_mark(store, Mark::File, &mark.encode())?;
                name_at.set_mark(store, Mark::Metacopy, b"")
            }
            FileType::Regular => {
                name_at.clear_mark(store, Mark::Metacopy)?;
                name_at.clear_mark(store, Mark::Redirect)?;
                name_at.set_mark(store, Mark::File, &mark.encode())
            }
            _ => name_at.set_mark(store, Mark::File, &mark.encode()),
        }
    }

    /// Writes where a directory, or a file without its content, comes from that gets another name,
    /// if that is not written yet.
    pub fn write_redirect(
        self,
        name_at: NameAt<'_>,
        store: &MarkStore,
        origin: Origin,
    ) -> Result<()> {
        match (self, origin) {
            (Spelling::Plain, Origin::Path(path)) => name_at.set_mark(store, Mark::Redirect, &path),
            (_, origin) if name_at.mark(store, Mark::File)?.is_none() => {
                let mark = FileMark {
                    origin: Some(origin),
                    ..FileMark::default()
                };
                name_at.set_mark(store, Mark::File, &mark.encode())
            }
            _ => Ok(()),
        }
    }
}

/// Where the kernel's marks say that a file comes from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum KernelOrigin {
    /// No mark: a directory merges with its namesake, a file is its own.
    None,
    /// From the namesake.
    SameName,
    /// From another name beside the namesake.
    Sibling(Vec<u8>),
    /// From a path, as in [`Origin::Path`].
    Path(Vec<u8>),
}

/// Reads the kernel's marks of a file. They overrule our own, since the kernel changes no other.
pub(super) fn read_kernel_marks(
    name_at: NameAt<'_>,
    host_type: FileType,
    store: &MarkStore,
    mark: &mut FileMark,
) -> Result<KernelOrigin> {
    match host_type {
        FileType::Directory => {}
        FileType::Regular => {
            mark.metadata_only = name_at.mark(store, Mark::Metacopy)?.is_some();
            if !mark.metadata_only {
                mark.copying = None;
                return Ok(KernelOrigin::None);
            }
        }
        _ => return Ok(KernelOrigin::None),
    }
    match name_at.mark(store, Mark::Redirect)? {
        None if host_type == FileType::Directory => Ok(KernelOrigin::None),
        None => Ok(KernelOrigin::SameName),
        Some(path) => parse_redirect(path).ok_or(Errno::IO),
    }
}

/// A redirect is an absolute path or a single name; neither leads upwards.
fn parse_redirect(path: Vec<u8>) -> Option<KernelOrigin> {
    let sound =
        |name: &[u8]| !name.is_empty() && name != b"." && name != b".." && !name.contains(&0);
    match path.strip_prefix(b"/") {
        Some(rest) if rest.split(|byte| *byte == b'/').all(sound) => Some(KernelOrigin::Path(path)),
        None if sound(&path) && !path.contains(&b'/') => Some(KernelOrigin::Sibling(path)),
        _ => None,
    }
}

/// Where a redirect in a lower directory leads, for the directories below it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Redirect {
    /// To another name in the same directory.
    Sibling(Vec<u8>),
    /// To a path from the root, by its components.
    Path(Vec<Vec<u8>>),
}

impl Redirect {
    /// Parses the value of [`Mark::Redirect`]; None if it is not one.
    pub fn parse(value: Vec<u8>) -> Option<Self> {
        match parse_redirect(value)? {
            KernelOrigin::Path(path) => Some(Self::Path(
                path.split(|byte| *byte == b'/')
                    .skip(1)
                    .map(<[u8]>::to_vec)
                    .collect(),
            )),
            KernelOrigin::Sibling(name) => Some(Self::Sibling(name)),
            KernelOrigin::None | KernelOrigin::SameName => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_takes_a_name_or_an_absolute_path_and_nothing_that_leads_upwards() {
        let path = |names: &[&[u8]]| {
            let names = names.iter().map(|name| name.to_vec()).collect();
            Some(Redirect::Path(names))
        };
        let parse = |value: &[u8]| Redirect::parse(value.to_vec());
        assert_eq!(parse(b"a"), Some(Redirect::Sibling(b"a".to_vec())));
        assert_eq!(parse(b"/a"), path(&[b"a"]));
        assert_eq!(parse(b"/a/b c"), path(&[b"a", b"b c"]));
        for bad in [
            &b""[..],
            b"/",
            b"a/b",
            b"..",
            b".",
            b"/..",
            b"/a/../b",
            b"/a//b",
            b"/a/",
            b"a\0b",
        ] {
            assert_eq!(parse(bad), None, "{}", bad.escape_ascii());
        }
    }
}
