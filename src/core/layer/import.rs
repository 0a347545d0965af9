//! Entries become nodes: names are cleaned, whiteouts told apart, contents handed to the sink,
//! everything given to the tree's builder.

use std::io::{self, Read, Write};
use std::ops::ControlFlow::Continue;

use bstr::BString;

use super::ahead::{Ahead, reading_ahead};
use super::entry::{Content, Entry, EntryKind};
use super::error::{EntryFault, ImportError, Role};
use super::path::{self, Meaning};
use super::reader::TarReader;
use super::recipe::{RECIPE_BYTES, compose, too_large};
use super::sink::{ObjectSink, ObjectWrite, StoredObject};
use super::sparse::Stretch;
use super::stop::Stop;
use super::stream::HashedRead;
use super::{ImportStats, ImportedLayer, Limits};
use crate::digest::DiffId;
use crate::recipe::Recorder;
use crate::tree::{Kind, LayerBuilder, Meta, Tree};

/// What a node costs beyond its names and attributes, roughly: a record of the builder and an
/// entry of a map.
const NODE_COST: u64 = 256;

/// Shorter runs of zeros are not worth a hole.
const HOLE: usize = 64 * 1024;

/// Reads an uncompressed layer to the end of the stream: contents into `sink`, everything else
/// into a tree.
///
/// Nothing is published: on an error the caller drops the sink's transaction, and it is as if
/// nothing had happened. No bytes make this panic or run longer than their length and [`Limits`]
/// allow; with [`HashOnly`](super::HashOnly) it is the entry for fuzzers.
///
/// The stream is read, and with it inflated, on a thread of its own.
pub fn import<R: Read + Send, S: ObjectSink>(
    source: R,
    sink: &S,
    limits: &Limits,
) -> Result<ImportedLayer, ImportError> {
    import_with(source, None, sink, limits)
}

/// [`import`] of a source that may block, made by `stop`: a failure is reported at once.
pub fn import_until<R: Read + Send, S: ObjectSink>(
    source: R,
    stop: &Stop,
    sink: &S,
    limits: &Limits,
) -> Result<ImportedLayer, ImportError> {
    import_with(source, Some(stop), sink, limits)
}

fn import_with<R: Read + Send, S: ObjectSink>(
    source: R,
    stop: Option<&Stop>,
    sink: &S,
    limits: &Limits,
) -> Result<ImportedLayer, ImportError> {
    reading_ahead(source, stop, |stream| import_stream(stream, sink, limits))
        .map_err(ImportError::Thread)?
}

fn import_stream<S: ObjectSink>(
    source: Ahead,
    sink: &S,
    limits: &Limits,
) -> Result<ImportedLayer, ImportError> {
    let recorder = Recorder::new(RECIPE_BYTES).map_err(|error| too_large(&error))?;
    let mut reader = TarReader::new(source, recorder, limits);
    let mut importer = Importer {
        sink,
        limits,
        builder: LayerBuilder::new(),
        stats: ImportStats::default(),
        metadata: 0,
        last: Vec::new(),
    };
    while let Continue(entry) = reader.next()? {
        importer.entry(&mut reader, entry)?;
    }
    let Importer {
        builder, mut stats, ..
    } = importer;
    let (digest, stream_bytes, recorder) = reader.into_stream().finish()?;
    stats.stream_bytes = stream_bytes;
    let diff_id = DiffId(digest);
    // Before the tree is put together: a sink then frees what it needs to take contents.
    sink.settle().map_err(ImportError::Settle)?;
    let recording = recorder.finish().map_err(|error| too_large(&error))?;
    let (tree, placed) = builder.finish_placed(diff_id)?;
    let tree = Tree::from_bytes(tree).map_err(|error| ImportError::Recipe(error.into()))?;
    let recipe = compose(&recording, &tree, &placed, diff_id, sink)?;
    Ok(ImportedLayer {
        diff_id,
        tree_bytes: tree.into_bytes(),
        recipe,
        stats,
    })
}

struct Importer<'i, S> {
    sink: &'i S,
    limits: &'i Limits,
    builder: LayerBuilder,
    stats: ImportStats,
    /// What counts against [`Limits::metadata_bytes`].
    metadata: u64,
    /// The last entry's name, to tell how many directories a new one may imply.
    last: Vec<u8>,
}

impl<S: ObjectSink> Importer<'_, S> {
    fn entry<R: HashedRead>(
        &mut self,
        reader: &mut TarReader<'_, R, Recorder>,
        entry: Entry,
    ) -> Result<(), ImportError> {
        self.stats.entries += 1;
        if self.stats.entries > self.limits.entries {
            return Err(ImportError::Limit {
                what: "entries",
                limit: self.limits.entries,
            });
        }
        self.count_metadata(&entry)?;
        let name = entry.path.clone();
        let refuse = |fault| ImportError::Entry {
            path: BString::from(name.as_slice()),
            fault,
        };
        let components = path::components(&name, Role::Name, self.limits).map_err(refuse)?;
        if !matches!(entry.kind, EntryKind::Directory) {
            if components.is_empty() {
                return Err(refuse(EntryFault::RootNotDirectory));
            }
            if path::names_a_directory(&name) {
                return Err(refuse(EntryFault::NotDirectory));
            }
        }
        match path::meaning(&components).map_err(refuse)? {
            Meaning::Plain => self.node(reader, entry, &components),
            Meaning::Bookkeeping => {
                self.stats.skipped += 1;
                Ok(())
            }
            Meaning::Opaque => {
                is_whiteout(&entry.kind).map_err(refuse)?;
                self.stats.whiteouts += 1;
                let (_, directory) = components.split_last().unwrap_or((&b"".as_slice(), &[]));
                Ok(self.builder.opaque(directory)?)
            }
            Meaning::Whiteout(hidden) => {
                is_whiteout(&entry.kind).map_err(refuse)?;
                self.stats.whiteouts += 1;
                let mut target = components;
                target.pop();
                target.push(hidden);
                Ok(self.builder.whiteout(&target)?)
            }
        }
    }

    fn node<R: HashedRead>(
        &mut self,
        reader: &mut TarReader<'_, R, Recorder>,
        entry: Entry,
        path: &[&[u8]],
    ) -> Result<(), ImportError> {
        let Entry {
            path: name,
            kind,
            mode,
            uid,
            gid,
            mtime,
            xattrs,
        } = entry;
        let refuse = |fault| ImportError::Entry {
            path: BString::from(name.as_slice()),
            fault,
        };
        let mut meta = Meta {
            mode,
            uid,
            gid,
            mtime,
            xattrs,
        };
        let kind = match kind {
            EntryKind::HardLink(target) => {
                self.stats.hard_links += 1;
                let target =
                    path::components(&target, Role::LinkName, self.limits).map_err(refuse)?;
                if target.is_empty() {
                    return Err(refuse(EntryFault::NoTarget));
                }
                return Ok(self.builder.hard_link(path, &target)?);
            }
            EntryKind::Symlink(target) => {
                check_symlink(&target, self.limits).map_err(refuse)?;
                // Linux has no other, whatever the archive says
                meta.mode = 0o777;
                Kind::Symlink(target)
            }
            EntryKind::Regular(content) => self.regular(reader, &name, &content)?,
            EntryKind::Directory => Kind::Directory,
            EntryKind::CharDevice(number) => Kind::CharDevice(number),
            EntryKind::BlockDevice(number) => Kind::BlockDevice(number),
            EntryKind::Fifo => Kind::Fifo,
        };
        Ok(self.builder.insert(path, meta, kind)?)
    }

    fn regular<R: HashedRead>(
        &mut self,
        reader: &mut TarReader<'_, R, Recorder>,
        name: &[u8],
        content: &Content,
    ) -> Result<Kind, ImportError> {
        let size = content.size();
        self.stats.files += 1;
        self.stats.content_bytes = self.stats.content_bytes.saturating_add(size);
        if self.stats.content_bytes > self.limits.content_bytes {
            return Err(ImportError::Limit {
                what: "bytes of contents",
                limit: self.limits.content_bytes,
            });
        }
        if size == 0 {
            return Ok(Kind::Regular {
                size,
                object: None,
                elf: false,
            });
        }
        let failed = |source| ImportError::Sink {
            path: name.into(),
            source,
        };
        let stretches = content.stretches();
        self.count_holes(&stretches)?;
        let mut writer = self.sink.object().map_err(failed)?;
        for stretch in &stretches {
            match *stretch {
                Stretch::Hole(length) => writer.zeros(length).map_err(failed)?,
                Stretch::Data(length) => {
                    let mut left = length;
                    while left > 0 {
                        let piece = reader.content(left)?;
                        if is_hole(piece) {
                            writer.zeros(piece.len() as u64).map_err(failed)?;
                        } else {
                            writer.write_all(piece).map_err(failed)?;
                        }
                        left = left.saturating_sub(piece.len() as u64);
                    }
                }
            }
        }
        let StoredObject { id, elf } = writer.finish().map_err(failed)?;
        let number = self.builder.content(id)?;
        record_content(reader.recorder(), number, &stretches).map_err(|error| too_large(&error))?;
        Ok(Kind::Regular {
            size,
            object: Some(id),
            elf,
        })
    }

    fn count_holes(&mut self, stretches: &[Stretch]) -> Result<(), ImportError> {
        for stretch in stretches {
            if let Stretch::Hole(length) = stretch {
                self.stats.hole_bytes = self.stats.hole_bytes.saturating_add(*length);
            }
        }
        if self.stats.hole_bytes > self.limits.hole_bytes {
            return Err(ImportError::Limit {
                what: "bytes of holes in sparse files",
                limit: self.limits.hole_bytes,
            });
        }
        Ok(())
    }

    /// Counts what the entry may add to the tree: its strings, and a node for it and for each
    /// directory it may imply, which are those that its name does not have in common with the name
    /// before it.
    fn count_metadata(&mut self, entry: &Entry) -> Result<(), ImportError> {
        let target = match &entry.kind {
            EntryKind::Symlink(target) | EntryKind::HardLink(target) => target.len(),
            _ => 0,
        };
        let attributes: usize = entry
            .xattrs
            .iter()
            .map(|(name, value)| name.len() + value.len() + 8)
            .sum();
        let common = entry
            .path
            .iter()
            .zip(&self.last)
            .take_while(|(a, b)| a == b)
            .count();
        let fresh = entry
            .path
            .iter()
            .skip(common)
            .filter(|&&byte| byte == b'/')
            .count() as u64;
        let strings = (entry.path.len() + target + attributes) as u64;
        self.metadata = self
            .metadata
            .saturating_add(strings)
            .saturating_add(NODE_COST.saturating_mul(fresh + 1));
        self.last.clone_from(&entry.path);
        if self.metadata > self.limits.metadata_bytes {
            return Err(ImportError::Limit {
                what: "bytes of metadata",
                limit: self.limits.metadata_bytes,
            });
        }
        Ok(())
    }
}

/// Zeros enough to be left out of an object's file, so that a bomb of zeros takes no disk.
fn is_hole(piece: &[u8]) -> bool {
    piece.len() >= HOLE && piece.iter().all(|&byte| byte == 0)
}

/// Tells the recipe which ranges of an object the tar has.
fn record_content(recorder: &mut Recorder, number: u32, stretches: &[Stretch]) -> io::Result<()> {
    let mut offset = 0_u64;
    for stretch in stretches {
        match *stretch {
            Stretch::Hole(length) => offset = offset.saturating_add(length),
            Stretch::Data(length) => {
                recorder.object(number, offset, length)?;
                offset = offset.saturating_add(length);
            }
        }
    }
    Ok(())
}

/// Image-spec: a whiteout is an empty regular file; in layers made by aufs it is a hard link to
/// one.
fn is_whiteout(kind: &EntryKind) -> Result<(), EntryFault> {
    Err(EntryFault::NotWhiteout(match kind {
        EntryKind::Regular(content) if content.size() == 0 => return Ok(()),
        EntryKind::HardLink(_) => return Ok(()),
        EntryKind::Regular(_) => "a file with content",
        EntryKind::Directory => "a directory",
        EntryKind::Symlink(_) => "a symbolic link",
        EntryKind::CharDevice(_) | EntryKind::BlockDevice(_) => "a device",
        EntryKind::Fifo => "a named pipe",
    }))
}

/// A target is data and may lead anywhere; only what symlink(2) would refuse is refused.
fn check_symlink(target: &[u8], limits: &Limits) -> Result<(), EntryFault> {
    match target {
        [] => Err(EntryFault::NoTarget),
        target if target.contains(&0) => Err(EntryFault::Nul(Role::Target)),
        target if target.len() >= limits.path_bytes => Err(EntryFault::LongName {
            role: Role::Target,
            len: target.len(),
            limit: limits.path_bytes - 1,
        }),
        _ => Ok(()),
    }
}
