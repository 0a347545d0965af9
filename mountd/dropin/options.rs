//! The options of `-o`: those of fuse-overlayfs, of overlayfs where it has a word for the same, and
//! the general ones that mount(8) passes.
//!
//! Every option is taken, refused by name, or listed as having no effect: none is dropped silently.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use cowl_core::handover::{IdKind, IdMap, IoModeChoice};

/// Longest stack of lower directories, as in overlayfs.
const MOST_LAYERS: usize = 500;

/// What a mount is to be like.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Options {
    /// The lower directories, the top one first.
    pub lower: Vec<PathBuf>,
    /// Where changes go; none makes the mount read-only.
    pub upper: Option<PathBuf>,
    /// The work directory.
    pub work: Option<PathBuf>,
    /// Marks are in `user.` also where `trusted.` could be used.
    pub user_marks: bool,
    /// See [`Layers::static_nlink`](crate::overlay::Layers::static_nlink).
    pub static_nlink: bool,
    /// Nothing is synced.
    pub volatile: bool,
    /// ACLs are neither shown nor honoured.
    pub no_acl: bool,
    /// How owners are shown.
    pub ids: IdMap,
    /// Whether directories of the lower can be renamed; None: where the kernel would read it.
    pub redirect_dir: Option<bool>,
    /// Whether metadata is copied up alone; None: as above.
    pub metacopy: Option<bool>,
    /// Other users may use the mount.
    pub owner_only: bool,
    /// The source in `/proc/self/mountinfo`.
    pub fsname: Option<OsString>,
    /// SELinux contexts, as `(option, value)` for the kernel.
    pub contexts: Vec<(String, OsString)>,
    /// How files are served.
    pub io_mode: IoModeChoice,
    /// Flags of the mount.
    pub flags: MountFlags,
}

/// Flags that every file system has.
#[derive(Copy, Clone, Debug, Default, Eq, PartialEq)]
#[expect(missing_docs, reason = "the names of mount(8)")]
#[expect(clippy::struct_excessive_bools, reason = "independent flags")]
pub struct MountFlags {
    pub ro: bool,
    pub nodev: bool,
    pub nosuid: bool,
    pub noexec: bool,
    pub noatime: bool,
    pub nodiratime: bool,
}

/// Why options cannot be used.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum OptionError {
    /// Not an option.
    #[error("unknown option: {0}")]
    Unknown(String),
    /// An option of fuse-overlayfs or overlayfs that this program does not have.
    #[error("option {0} is not supported: {1}")]
    Unsupported(String, &'static str),
    /// A value that is none of the option's.
    #[error("option {0} cannot be {1:?}")]
    Value(String, String),
    /// An option without its value.
    #[error("option {0} needs a value")]
    NoValue(String),
    /// An option that must be there.
    #[error("option {0} is missing")]
    Missing(&'static str),
    /// Too long a stack.
    #[error("{0} lower directories are more than {MOST_LAYERS}")]
    TooMany(usize),
}

/// Splits at a byte that no backslash precedes; backslashes stay.
fn split(text: &[u8], at: u8) -> Vec<Vec<u8>> {
    let mut parts = vec![Vec::new()];
    let mut escaped = false;
    for byte in text {
        if *byte == at && !escaped {
            parts.push(Vec::new());
            continue;
        }
        escaped = *byte == b'\\' && !escaped;
        if let Some(part) = parts.last_mut() {
            part.push(*byte);
        }
    }
    parts
}

/// Removes the backslash of each escaped byte.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut escaped = false;
    for byte in text {
        if *byte == b'\\' && !escaped {
            escaped = true;
            continue;
        }
        escaped = false;
        plain.push(*byte);
    }
    plain
}

fn path(text: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(unescape(text)))
}

fn shown(text: &[u8]) -> String {
    String::from_utf8_lossy(text).into_owned()
}

impl Options {
    /// Takes the argument of one `-o`. A later option overrides an earlier one.
    pub fn take(&mut self, argument: &OsStr) -> Result<(), OptionError> {
        for option in split(argument.as_bytes(), b',') {
            let mut halves = option.splitn(2, |byte| *byte == b'=');
            let name = shown(halves.next().unwrap_or_default());
            let value = halves.next();
            if !name.is_empty() || value.is_some() {
                self.take_one(&name, value)?;
            }
        }
        Ok(())
    }

    fn take_one(&mut self, name: &str, value: Option<&[u8]>) -> Result<(), OptionError> {
        let needed = || value.ok_or_else(|| OptionError::NoValue(name.into()));
        match name {
            "lowerdir" => self.lower = lower(needed()?)?,
            "upperdir" => self.upper = Some(path(needed()?)),
            "workdir" => self.work = Some(path(needed()?)),
            "userxattr" => self.user_marks = true,
            "static_nlink" => self.static_nlink = switch(name, value, true)?,
            "volatile" => self.volatile = true,
            // fuse-overlayfs: fsync=0 is what overlayfs calls volatile.
            "fsync" => self.volatile = !switch(name, value, true)?,
            "redirect_dir" => {
                self.redirect_dir = Some(match needed()? {
                    b"on" | b"follow" => true,
                    b"off" | b"nofollow" => false,
                    other => return Err(OptionError::Value(name.into(), shown(other))),
                });
            }
            "metacopy" => self.metacopy = Some(switch(name, value, true)?),
            "io" => self.io_mode = io_mode(needed()?)?,
            "writeback" => {
                self.io_mode = if switch(name, value, true)? {
                    IoModeChoice::Writeback
                } else {
                    IoModeChoice::Cached
                };
            }
            "noacl" => self.no_acl = true,
            "uidmapping" | "gidmapping" | "squash_to_uid" | "squash_to_gid" => {
                self.take_ids(name, needed()?)?;
            }
            "squash_to_root" => {
                if switch(name, value, true)? {
                    self.ids.squash_to_root();
                }
            }
            "allow_other" => self.owner_only = false,
            "allow_root" => self.owner_only = true,
            "fsname" => self.fsname = Some(OsString::from_vec(unescape(needed()?))),
            "context" | "fscontext" | "defcontext" | "rootcontext" => {
                let value = needed()?;
                let bare = value
                    .strip_prefix(b"\"")
                    .and_then(|v| v.strip_suffix(b"\""));
                let value = OsString::from_vec(unescape(bare.unwrap_or(value)));
                self.contexts.push((name.into(), value));
            }
            _ => return self.take_flag(name, value),
        }
        Ok(())
    }

    fn take_ids(&mut self, name: &str, value: &[u8]) -> Result<(), OptionError> {
        let text = shown(value);
        let kind = if name.contains("uid") {
            IdKind::User
        } else {
            IdKind::Group
        };
        let taken = if name.starts_with("squash") {
            // The last id stands for none (chown(2)).
            let id = text.parse().ok().filter(|id| *id < u32::MAX);
            id.map(|id| self.ids.squash(kind, id))
        } else {
            self.ids.map(kind, &text).ok()
        };
        taken.ok_or(OptionError::Value(name.into(), text))
    }

    fn take_flag(&mut self, name: &str, value: Option<&[u8]>) -> Result<(), OptionError> {
        let flags = &mut self.flags;
        match name {
            "ro" => flags.ro = true,
            "rw" => flags.ro = false,
            "nodev" => flags.nodev = true,
            "dev" => flags.nodev = false,
            "nosuid" => flags.nosuid = true,
            "suid" => flags.nosuid = false,
            "noexec" => flags.noexec = true,
            "exec" => flags.noexec = false,
            "noatime" => flags.noatime = true,
            "atime" => flags.noatime = false,
            "nodiratime" => flags.nodiratime = true,
            "diratime" => flags.nodiratime = false,
            _ => return without_effect(name, value),
        }
        Ok(())
    }

    /// Checks what belongs together.
    pub fn finish(self) -> Result<Self, OptionError> {
        if self.lower.is_empty() {
            return Err(OptionError::Missing("lowerdir"));
        }
        if self.lower.len() > MOST_LAYERS {
            return Err(OptionError::TooMany(self.lower.len()));
        }
        if self.upper.is_some() && self.work.is_none() {
            return Err(OptionError::Missing("workdir"));
        }
        Ok(self)
    }
}

/// Options that change nothing that a caller can see.
const WITHOUT_EFFECT: &[&str] = &[
    // Threads are as many as clients wait.
    "threaded",
    "max_idle_threads",
    "max_threads",
    "clone_fd",
    // Inode numbers are the host's, and need no table.
    "fast_ino",
    // Permissions are always the kernel's to check.
    "default_permissions",
    // How requests and answers are passed on.
    "big_writes",
    "kernel_cache",
    "splice_read",
    "splice_write",
    "splice_move",
    // How mount(8) and fstab use a mount, and times that a mount does not keep.
    "defaults",
    "auto",
    "noauto",
    "nofail",
    "_netdev",
    "relatime",
    "norelatime",
    "strictatime",
    "lazytime",
    "nolazytime",
    "async",
    "user",
    "nouser",
    "users",
    "owner",
    "group",
    "silent",
    "loud",
];

/// Options that change nothing here, and would change nothing that a caller can see; all others
/// are refused.
fn without_effect(name: &str, value: Option<&[u8]>) -> Result<(), OptionError> {
    let refuse = |why| Err(OptionError::Unsupported(name.into(), why));
    let number = || {
        let text = std::str::from_utf8(value.unwrap_or_default()).unwrap_or_default();
        text.parse::<f64>()
            .map_err(|_no_number| OptionError::Value(name.into(), text.into()))
    };
    match name {
        _ if WITHOUT_EFFECT.contains(&name) => Ok(()),
        "xino" if matches!(value, Some(b"on" | b"auto")) => Ok(()),
        "xino" => refuse("inode numbers are always as with xino=on"),
        _ if name.starts_with("x-") || name.starts_with("comment") => Ok(()),
        "timeout" if number()? >= 1e6 => Ok(()),
        "timeout" => refuse("layers must not change beneath a mount, so all is cached for good"),
        "xattr_permissions" | "noxattrs" | "nfs_filehandles" if number()? == 0.0 => Ok(()),
        "xattr_permissions" => refuse("owners and modes are those of the files"),
        "noxattrs" => refuse("extended attributes are always shown"),
        "plugins" if value.is_none_or(<[u8]>::is_empty) => Ok(()),
        "plugins" => refuse("it has no plugins"),
        "index" | "nfs_export" | "verity" if matches!(value, Some(b"off")) => Ok(()),
        "index" => refuse("hard links are always kept, by links of its own in the work directory"),
        "nfs_export" | "verity" => refuse("it is the kernel's"),
        "auto_unmount" => refuse("a daemon that is killed cannot unmount; with -f, a signal can"),
        "nfs_filehandles" => refuse("files have no handles"),
        "ino32_t" | "subtype" | "max_read" | "max_write" | "sync" | "dirsync" => {
            refuse("it cannot be chosen here")
        }
        _ => Err(OptionError::Unknown(name.into())),
    }
}

fn switch(name: &str, value: Option<&[u8]>, without: bool) -> Result<bool, OptionError> {
    match value {
        None => Ok(without),
        Some(b"1" | b"on" | b"y" | b"yes" | b"true") => Ok(true),
        Some(b"0" | b"off" | b"n" | b"no" | b"false") => Ok(false),
        Some(other) => Err(OptionError::Value(name.into(), shown(other))),
    }
}

fn io_mode(value: &[u8]) -> Result<IoModeChoice, OptionError> {
    match value {
        b"auto" => Ok(IoModeChoice::Auto),
        b"cached" => Ok(IoModeChoice::Cached),
        b"writeback" => Ok(IoModeChoice::Writeback),
        b"passthrough" => Err(OptionError::Unsupported(
            "io=passthrough".into(),
            "it is for images only",
        )),
        other => Err(OptionError::Value("io".into(), shown(other))),
    }
}

fn lower(value: &[u8]) -> Result<Vec<PathBuf>, OptionError> {
    let parts = split(value, b':');
    if parts.iter().any(Vec::is_empty) {
        let why = "data-only layers (::) and empty names are not for plain directories";
        return Err(OptionError::Unsupported("lowerdir".into(), why));
    }
    Ok(parts.iter().map(|part| path(part)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Options, OptionError> {
        let mut options = Options::default();
        options.take(OsStr::new(text))?;
        options.finish()
    }

    #[test]
    fn take_splits_at_unescaped_commas_and_colons() {
        let options = parse(r"lowerdir=a\:b:/c\,d:e\\:f,upperdir=u\,p\:per,workdir=w").unwrap();
        let lower = [r"a:b", "/c,d", r"e\", "f"].map(PathBuf::from);
        assert_eq!(options.lower, lower);
        assert_eq!(options.upper, Some(PathBuf::from("u,p:per")));
        assert_eq!(options.work, Some(PathBuf::from("w")));
    }

    #[test]
    fn take_knows_what_callers_pass() {
        // containers-storage, buildah, mount(8).
        let options = parse(
            "rw,lowerdir=a,upperdir=u,workdir=w,volatile,nodev,fsync=0,context=\"system_u:object_r:x:s0:c1,c2\"",
        );
        let unknown = OptionError::Unknown("c2\"".into());
        assert_eq!(options, Err(unknown), "a comma needs its backslash");
        let options =
            parse(r#"ro,lowerdir=a,nodev,nosuid,threaded=1,timeout=1000000000,context="a:b\,c""#)
                .unwrap();
        assert!(options.flags.ro && options.flags.nodev && options.flags.nosuid);
        assert_eq!(
            options.contexts,
            [("context".to_owned(), OsString::from("a:b,c"))]
        );
    }

    #[test]
    fn take_refuses_by_name_what_it_does_not_do() {
        for (text, name) in [
            ("lowerdir=a,timeout=0", "timeout"),
            ("lowerdir=a,xattr_permissions=2", "xattr_permissions"),
            ("lowerdir=a,plugins=x", "plugins"),
            ("lowerdir=a,io=passthrough", "io=passthrough"),
            ("lowerdir=a,io=fast", "io"),
            ("lowerdir=a,squash_to_uid=-1", "squash_to_uid"),
            ("lowerdir=a,squash_to_gid", "squash_to_gid"),
            ("lowerdir=a,uidmapping=0:1", "uidmapping"),
            ("lowerdir=a,gidmapping=0:x:1", "gidmapping"),
            ("lowerdir=a,auto_unmount", "auto_unmount"),
            ("lowerdir=a,nfs_filehandles=1", "nfs_filehandles"),
            ("lowerdir=a,what=ever", "what"),
            ("lowerdir=a,redirect_dir=maybe", "redirect_dir"),
            ("lowerdir=a::b", "lowerdir"),
            ("lowerdir=a,upperdir=b", "workdir"),
            ("lowerdir", "lowerdir"),
            ("", "lowerdir"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(name), "{text}: {error}");
        }
        let many = vec!["l"; 501].join(":");
        assert_eq!(
            parse(&format!("lowerdir={many}")),
            Err(OptionError::TooMany(501))
        );
    }
}
