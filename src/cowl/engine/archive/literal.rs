//! Writes tar entries with their names unchanged. The tar crate drops a leading `./`, by which
//! docker's client recognises what to rename.

use std::io::{self, Read, Write};
use std::ops::{Deref, DerefMut};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use tar::{Builder, EntryType, Header};

/// The entry name that GNU tar gives to the header of a long name.
const LONG: &[u8] = b"././@LongLink";

/// A [`Builder`] whose [`Literal::append_data`] and [`Literal::append_link`] take any relative
/// path.
pub(super) struct Literal<W: Write>(pub(super) Builder<W>);

impl<W: Write> Literal<W> {
    pub(super) fn append_data(
        &mut self,
        header: &mut Header,
        path: impl AsRef<Path>,
        content: impl Read,
    ) -> io::Result<()> {
        self.name(header, EntryType::GNULongName, path.as_ref())?;
        header.set_cksum();
        self.0.append(header, content)
    }

    pub(super) fn append_link(
        &mut self,
        header: &mut Header,
        path: impl AsRef<Path>,
        target: impl AsRef<Path>,
    ) -> io::Result<()> {
        self.name(header, EntryType::GNULongLink, target.as_ref())?;
        self.append_data(header, path, io::empty())
    }

    /// Sets the name or link target of an entry. One too long for the header gets an entry of its
    /// own before, and the header has its first bytes.
    fn name(&mut self, header: &mut Header, long: EntryType, path: &Path) -> io::Result<()> {
        let name = path.as_os_str().as_bytes();
        let old = header.as_old_mut();
        let field = match long {
            EntryType::GNULongLink => &mut old.linkname,
            _ => &mut old.name,
        };
        field.fill(0);
        for (to, byte) in field.iter_mut().zip(name) {
            *to = *byte;
        }
        if name.len() <= field.len() {
            return Ok(());
        }
        let mut own = Header::new_gnu();
        for (to, byte) in own.as_old_mut().name.iter_mut().zip(LONG) {
            *to = *byte;
        }
        own.set_entry_type(long);
        own.set_mode(0o644);
        own.set_uid(0);
        own.set_gid(0);
        own.set_mtime(0);
        own.set_size(name.len() as u64 + 1);
        own.set_cksum();
        self.0.append(&own, name.chain(&[0][..]))
    }
}

impl<W: Write> Deref for Literal<W> {
    type Target = Builder<W>;

    fn deref(&self) -> &Builder<W> {
        &self.0
    }
}

impl<W: Write> DerefMut for Literal<W> {
    fn deref_mut(&mut self) -> &mut Builder<W> {
        &mut self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gnu_tar_reads_the_names_as_they_were_given() {
        let mut tar = Literal(Builder::new(Vec::new()));
        let long = format!("./{}", "n".repeat(150));
        for name in ["./", "./a", "b", &long] {
            let mut header = Header::new_gnu();
            header.set_size(0);
            tar.append_data(&mut header, name, io::empty()).unwrap();
        }
        for (name, target) in [("./c", "./a"), ("./d", long.as_str())] {
            let mut header = Header::new_gnu();
            header.set_entry_type(EntryType::Link);
            header.set_size(0);
            tar.append_link(&mut header, name, target).unwrap();
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), tar.0.into_inner().unwrap()).unwrap();
        let listed = std::process::Command::new("tar")
            .arg("-tvf")
            .arg(file.path())
            .output()
            .unwrap();
        let listed = String::from_utf8(listed.stdout).unwrap();
        let names: Vec<&str> = listed
            .lines()
            .filter_map(|line| line.split("1970-01-01 00:00 ").nth(1))
            .collect();
        let link = format!("./d link to {long}");
        assert_eq!(names, ["./", "./a", "b", &long, "./c link to ./a", &link]);
    }
}
