//! An index of a tar's members by name, built in one pass over the headers.
//!
//! Digests are checked when a member is read, not here. Readers disagree on which of two members
//! of one name counts; [`Index::is_ambiguous`] reports such a name.

use std::collections::{HashMap, HashSet};

use tar_core::parse::{Limits, ParseError, ParseEvent, ParsedEntry, Parser};

use super::ImageError;
use super::input::Input;

/// Memory limit of an index. A member costs its name, its link target and [`MEMBER_COST`].
const MAX_INDEX: usize = 128 << 20;
/// Memory of a map entry besides its strings.
const MEMBER_COST: usize = 128;
/// Old `docker save` links a repeated layer to the first; chains are short.
const MAX_LINKS: usize = 16;
const BLOCK: u64 = 512;
/// Where a header has its type.
const TYPE: usize = 156;

pub(super) struct Index {
    members: HashMap<Vec<u8>, Member>,
    repeated: HashSet<Vec<u8>>,
}

enum Member {
    /// Where the content begins and how long it is.
    Content { start: u64, size: u64 },
    /// Another member's name.
    Link(Vec<u8>),
}

impl Index {
    /// Where a member's content begins, and its size. Links are followed within the archive.
    pub(super) fn find(&self, name: &str) -> Option<(u64, u64)> {
        let mut name = normal(name.as_bytes());
        for _ in 0..MAX_LINKS {
            match self.members.get(&name)? {
                Member::Content { start, size } => return Some((*start, *size)),
                Member::Link(target) => name.clone_from(target),
            }
        }
        None
    }

    /// Whether two members have this name.
    pub(super) fn is_ambiguous(&self, name: &str) -> bool {
        self.repeated.contains(&normal(name.as_bytes()))
    }

    /// Whether there is a member of exactly this name, of any type.
    pub(super) fn contains(&self, name: &str) -> bool {
        self.members.contains_key(name.as_bytes())
    }

    /// Reads all headers of a tar; the contents are skipped, so this costs one read per member.
    pub(super) fn read(name: &str, input: &mut Input<'_>) -> Result<Self, ImageError> {
        Self::read_within(name, input, MAX_INDEX)
    }

    fn read_within(name: &str, input: &mut Input<'_>, limit: usize) -> Result<Self, ImageError> {
        let cut = |what: String| ImageError::Truncated {
            name: name.to_owned(),
            what,
        };
        let mut index = Self {
            members: HashMap::new(),
            repeated: HashSet::new(),
        };
        let mut parser = Parser::new(Limits {
            max_path_len: Some(4096),
            ..Limits::default()
        });
        let mut at = 0;
        let mut wanted = 2 * BLOCK;
        let mut size = 0_usize;
        loop {
            let header = input.read_at(name, at, wanted)?;
            match parser.parse(&header) {
                Ok(ParseEvent::NeedData { min_bytes })
                    if (min_bytes as u64) > wanted && header.len() as u64 == wanted =>
                {
                    wanted = min_bytes as u64;
                }
                // Some writers leave out the end marker, or half of it.
                Ok(ParseEvent::NeedData { .. })
                    if header.iter().all(|byte| *byte == 0) && !index.members.is_empty() =>
                {
                    return Ok(index);
                }
                Ok(ParseEvent::NeedData { .. }) if index.members.is_empty() => {
                    return Err(not_a_tar(name, "it is too short for one".to_owned()));
                }
                Ok(ParseEvent::NeedData { .. }) => {
                    return Err(cut("it ends within a header".to_owned()));
                }
                Ok(ParseEvent::End { .. }) => return Ok(index),
                Ok(ParseEvent::GlobalExtensions { consumed, .. }) => {
                    at += consumed as u64;
                    wanted = 2 * BLOCK;
                }
                Ok(ParseEvent::Entry { consumed, entry }) => {
                    let start = at.saturating_add(consumed as u64);
                    let (path, member, content) = place(&entry, start);
                    let too_long = || {
                        cut(format!(
                            "{} should have {content} bytes",
                            path.escape_ascii()
                        ))
                    };
                    let end = start.checked_add(content).ok_or_else(too_long)?;
                    if !input.reaches(end)? {
                        return Err(too_long());
                    }
                    at = end.checked_next_multiple_of(BLOCK).ok_or_else(too_long)?;
                    wanted = 2 * BLOCK;
                    size = size.saturating_add(cost(&path, member.as_ref()));
                    if size > limit {
                        let what = "it has more members than an image archive could have";
                        return Err(not_a_tar(name, what.to_owned()));
                    }
                    index.add(path, member);
                }
                Ok(ParseEvent::SparseEntry { .. }) => {
                    return Err(not_a_tar(name, "it holds sparse files".to_owned()));
                }
                Err(error) if at == 0 => return Err(not_a_tar(name, first_error(&error))),
                Err(error) => return Err(not_a_tar(name, format!("byte {at}: {error}"))),
            }
        }
    }

    fn add(&mut self, path: Vec<u8>, member: Option<Member>) {
        let Some(member) = member else {
            return;
        };
        if self.members.contains_key(&path) {
            self.repeated.insert(path.clone());
        }
        self.members.insert(path, member);
    }
}

/// Name and place of an entry whose content begins at `start`, and how long that is.
fn place(entry: &ParsedEntry<'_>, start: u64) -> (Vec<u8>, Option<Member>, u64) {
    let path = normal(&entry.path);
    let link = entry.is_symlink() || entry.is_hard_link();
    // As of the entries of a layer: the size of these is no data's.
    let of_old_directory = entry.header.as_bytes().get(TYPE) == Some(&0);
    let header_only = matches!(entry.entry_type.to_byte(), b'1'..=b'6')
        || of_old_directory && entry.path.ends_with(b"/");
    let size = if header_only { 0 } else { entry.size };
    let member = match &entry.link_target {
        Some(target) if entry.is_symlink() => Some(Member::Link(resolve(&path, target))),
        Some(target) if link => Some(Member::Link(normal(target))),
        _ if entry.is_file() => Some(Member::Content { start, size }),
        _ => None,
    };
    (path, member, size)
}

/// The cost of a member; skipped members count too, since they take time.
fn cost(path: &[u8], member: Option<&Member>) -> usize {
    let target = match member {
        Some(Member::Link(target)) => target.len(),
        Some(Member::Content { .. }) | None => 0,
    };
    MEMBER_COST + path.len() + target
}

fn first_error(error: &ParseError) -> String {
    match error {
        ParseError::Header(_) => "it is not a tar at all".to_owned(),
        other => other.to_string(),
    }
}

fn not_a_tar(name: &str, what: String) -> ImageError {
    ImageError::NotAnArchive {
        name: name.to_owned(),
        what,
    }
}

/// Normalises a name: drops `.` and empty components; `..` removes the one before, if any.
pub(super) fn normal(name: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in name.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join(&b'/')
}

/// A symbolic link's target, seen from the archive's root.
fn resolve(link: &[u8], target: &[u8]) -> Vec<u8> {
    if target.starts_with(b"/") {
        return normal(target);
    }
    let dir = link
        .iter()
        .rposition(|byte| *byte == b'/')
        .and_then(|slash| link.get(..slash))
        .unwrap_or_default();
    normal(&[dir, target].join(&b'/'))
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    /// Names of 4,000 bytes compress to nothing.
    #[test]
    fn index_refuses_too_many_members() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("many.tar");
        let script = "
import sys, tarfile
with tarfile.open(sys.argv[1], 'w', format=tarfile.GNU_FORMAT) as archive:
    for number in range(100): archive.addfile(tarfile.TarInfo('p/' * 2000 + str(number)))";
        let made = std::process::Command::new("python3")
            .args(["-c", script])
            .arg(&path)
            .status();
        assert!(made.unwrap().success());
        let indexed = |limit| {
            let mut input = Input::file("many.tar", File::open(&path).unwrap())?;
            Index::read_within("many.tar", &mut input, limit)
        };
        assert_eq!(indexed(100 * 4200).unwrap().members.len(), 100);
        assert!(matches!(
            indexed(50 * 4200),
            Err(ImageError::NotAnArchive { .. })
        ));
    }

    /// As in a layer, the next header follows at once.
    #[test]
    fn index_ignores_sizes_of_entries_without_data() {
        let dir = tempfile::tempdir().unwrap();
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/tars.py");
        let made = std::process::Command::new("python3")
            .args([script, "odd"])
            .arg(dir.path())
            .status();
        assert!(made.unwrap().success());
        let mut found = 0;
        for entry in std::fs::read_dir(dir.path()).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if !name.contains("-size") {
                continue;
            }
            let path = dir.path().join(&name);
            let mut input = Input::file(&name, File::open(&path).unwrap()).unwrap();
            let index = Index::read(&name, &mut input).unwrap();
            let member = index.find("z").or_else(|| index.find("x/z"));
            let (start, size) = member.unwrap_or_else(|| panic!("{name}: z is missing"));
            let start = usize::try_from(start).unwrap();
            let bytes = std::fs::read(&path).unwrap();
            assert_eq!(
                (&bytes[start..start + 4], size),
                (&b"next"[..], 4),
                "{name}"
            );
            found += 1;
        }
        assert_eq!(found, 8);
    }

    #[test]
    fn normal_resolves_names_from_the_root() {
        assert_eq!(normal(b"./blobs//sha256/./x"), b"blobs/sha256/x");
        assert_eq!(normal(b"../../etc/passwd"), b"etc/passwd");
        assert_eq!(resolve(b"b/layer.tar", b"../a/layer.tar"), b"a/layer.tar");
        assert_eq!(resolve(b"layer.tar", b"a.tar"), b"a.tar");
        assert_eq!(resolve(b"b/layer.tar", b"/a/layer.tar"), b"a/layer.tar");
    }
}
