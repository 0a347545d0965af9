//! Names in an archive become components that cannot leave the root, or a refusal.
//!
//! Import never touches a path of the host, so an escaping name could do no harm here; it is
//! refused all the same, since a layer that has one was made to attack some other reader, and
//! since a name has to mean one thing.

use super::Limits;
use super::error::{EntryFault, Role};

/// The longest component Linux filesystems hold, and FUSE looks up.
const NAME_MAX: usize = 255;

/// What an entry's last component makes of it (image-spec, layer.md, "Whiteouts").
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Meaning<'p> {
    /// An ordinary entry.
    Plain,
    /// Hides this name of the layers below.
    Whiteout(&'p [u8]),
    /// Hides all names of the layers below in the directory it is in.
    Opaque,
    /// Bookkeeping of aufs (`.wh..wh.aufs`, `.wh..wh.plnk/...`, `.wh..wh.orph`), which never
    /// belonged in a layer; Docker skips it.
    Bookkeeping,
}

/// Splits a name into components: leading `/` and `./`, doubled and trailing slashes mean nothing;
/// `..` is refused.
///
/// No components: the root.
pub(super) fn components<'p>(
    name: &'p [u8],
    role: Role,
    limits: &Limits,
) -> Result<Vec<&'p [u8]>, EntryFault> {
    if name.is_empty() {
        return Err(if role == Role::Name {
            EntryFault::EmptyName
        } else {
            EntryFault::NoTarget
        });
    }
    if name.len() > limits.path_bytes {
        return Err(EntryFault::LongName {
            role,
            len: name.len(),
            limit: limits.path_bytes,
        });
    }
    if name.contains(&0) {
        return Err(EntryFault::Nul(role));
    }
    let mut components = Vec::new();
    for component in name.split(|&byte| byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => return Err(EntryFault::DotDot(role)),
            long if long.len() > NAME_MAX => return Err(EntryFault::LongComponent(role)),
            component => components.push(component),
        }
    }
    if components.len() > limits.depth {
        return Err(EntryFault::Deep {
            role,
            limit: limits.depth,
        });
    }
    Ok(components)
}

/// Whether a name says that it is a directory's: a trailing `/`, also hidden as `/.`.
pub(super) fn names_a_directory(name: &[u8]) -> bool {
    name.ends_with(b"/") || name.ends_with(b"/.") || name == b"."
}

/// What the whiteout rules make of a path.
pub(super) fn meaning<'p>(components: &[&'p [u8]]) -> Result<Meaning<'p>, EntryFault> {
    let Some((name, parents)) = components.split_last() else {
        return Ok(Meaning::Plain);
    };
    if *name == b".wh..wh..opq" {
        return in_real_directory(parents).map(|()| Meaning::Opaque);
    }
    if components
        .iter()
        .any(|component| component.starts_with(b".wh..wh."))
    {
        return Ok(Meaning::Bookkeeping);
    }
    in_real_directory(parents)?;
    match name.strip_prefix(b".wh.") {
        None => Ok(Meaning::Plain),
        Some(b"" | b"." | b"..") => Err(EntryFault::EmptyWhiteout),
        Some(hidden) => Ok(Meaning::Whiteout(hidden)),
    }
}

fn in_real_directory(parents: &[&[u8]]) -> Result<(), EntryFault> {
    if parents
        .iter()
        .any(|component| component.starts_with(b".wh."))
    {
        return Err(EntryFault::NotWhiteout("a directory"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(name: &[u8]) -> Result<Vec<u8>, String> {
        components(name, Role::Name, &Limits::default())
            .map(|parts| parts.join(&b'|'))
            .map_err(|fault| fault.to_string())
    }

    #[test]
    fn components_ignore_dots_and_doubled_slashes() {
        for name in [
            "usr/bin/x",
            "./usr/bin/x",
            "/usr/bin/x",
            "//usr//./bin/x",
            ".//usr/bin/x",
            "/./usr/bin/x/",
        ] {
            assert_eq!(split(name.as_bytes()).unwrap(), b"usr|bin|x", "{name}");
        }
        for root in ["/", ".", "./", "/.", "//./."] {
            assert_eq!(split(root.as_bytes()).unwrap(), b"", "{root}");
            assert!(root == "/" || names_a_directory(root.as_bytes()), "{root}");
        }
        assert_eq!(split(b"...").unwrap(), b"...");
        assert_eq!(split(b"..a/b..").unwrap(), b"..a|b..");
    }

    #[test]
    fn components_refuse_dot_dot_nul_and_long_names() {
        for name in ["..", "../x", "a/..", "a/../b", "/..", "./../etc/passwd"] {
            assert!(split(name.as_bytes()).unwrap_err().contains(".."), "{name}");
        }
        assert!(split(b"").unwrap_err().contains("empty"));
        assert!(split(b"a\0b").unwrap_err().contains("NUL"));
        assert!(split(&[b'x'; 256]).unwrap_err().contains("255"));
        assert!(split(&b"x/".repeat(2049)).unwrap_err().contains("4098"));
    }

    #[test]
    fn meaning_tells_whiteouts_from_similar_names() {
        let cases: &[(&[&str], Option<Meaning<'_>>)] = &[
            (&["etc", "passwd"], Some(Meaning::Plain)),
            (&[], Some(Meaning::Plain)),
            (&["etc", ".wh.passwd"], Some(Meaning::Whiteout(b"passwd"))),
            (&[".wh.x"], Some(Meaning::Whiteout(b"x"))),
            (&[".wh..hidden"], Some(Meaning::Whiteout(b".hidden"))),
            (&[".wh..wh..opq"], Some(Meaning::Opaque)),
            (&["a", ".wh..wh..opq"], Some(Meaning::Opaque)),
            (&[".wh..wh.aufs"], Some(Meaning::Bookkeeping)),
            (&[".wh..wh.plnk", "12.34"], Some(Meaning::Bookkeeping)),
            (&[".wh..wh.orph"], Some(Meaning::Bookkeeping)),
            (&[".whatever"], Some(Meaning::Plain)),
            (&["x.wh.y"], Some(Meaning::Plain)),
            (&[".wh."], None),
            (&[".wh.."], None),
            (&[".wh..."], None),
            (&[".wh.a", "b"], None),
            (&[".wh.a", ".wh..wh..opq"], None),
        ];
        for (path, expected) in cases {
            let path: Vec<&[u8]> = path.iter().map(|name| name.as_bytes()).collect();
            assert_eq!(meaning(&path).ok(), *expected, "{path:?}");
        }
    }
}
