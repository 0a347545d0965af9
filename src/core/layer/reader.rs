//! From blocks to entries: extended headers joined with the header they belong to, sizes settled,
//! contents framed.
//!
//! Invariant: where the next header begins is decided here alone, from one size per entry. Where
//! the judges (moby, GNU tar) agree on it, it is there; an archive in which they would find it
//! somewhere else (sizes that disagree, a lone zero block) is refused.
//!
//! Why not the crate `tar-core`: its lenient mode takes an unreadable `size` for absent, its
//! strict mode refuses times before 1970, so every field would have to be read a second time;
//! base-256 sizes of 2^64 and more wrap, a PAX 1.0 sparse map may grow without bound, and a `size`
//! record beside one counts the map as content. Two readings of one header are how smuggling
//! works. The tests compare this reader with it. (`image` indexes outer archives with it: what it
//! finds there is checked by digest.)

use std::ops::ControlFlow::{self, Break, Continue};

use bstr::BString;

use super::Limits;
use super::entry::{Entry, KindFault, is_header_only, kind, stored_size};
use super::error::{EntryFault, HeaderFault, ImportError};
use super::header::{self, BLOCK, Extent, Format, Header};
use super::pax::{Pax, decimal};
use super::sparse::SparseMap;
use super::stream::{HashedRead, LiteralSink, TarStream};
use crate::tree::Timestamp;

/// How an archive ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ArchiveEnd {
    /// With two blocks of zeros, as POSIX demands.
    Marked,
    /// The stream just stopped between two entries: of a writer that was not closed, or cut there.
    Unmarked,
}

/// Headers that say more about the entry after them.
#[derive(Default)]
struct ExtendedHeaders {
    pax: Option<Pax>,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    bytes: u64,
}

pub(super) struct TarReader<'l, R, T> {
    stream: TarStream<R, T>,
    limits: &'l Limits,
    /// Bytes of the current entry's data not consumed so far, and the padding after them.
    data: u64,
    padding: u64,
}

impl<'l, R: HashedRead, T: LiteralSink> TarReader<'l, R, T> {
    pub(super) fn new(source: R, recorder: T, limits: &'l Limits) -> Self {
        Self {
            stream: TarStream::new(source, recorder, limits.stream_bytes),
            limits,
            data: 0,
            padding: 0,
        }
    }

    /// The underlying stream, for its end.
    pub(super) fn into_stream(self) -> TarStream<R, T> {
        self.stream
    }

    /// The next entry, or how the archive ended.
    pub(super) fn next(&mut self) -> Result<ControlFlow<ArchiveEnd, Entry>, ImportError> {
        self.skip_data()?;
        let mut extended = ExtendedHeaders::default();
        loop {
            let offset = self.stream.offset();
            let at = |fault| ImportError::Header { offset, fault };
            let (header, format) = match self.header(offset)? {
                Continue(header) => header,
                Break(ArchiveEnd::Marked) if extended.bytes > 0 => {
                    return Err(at(HeaderFault::Orphan));
                }
                Break(ArchiveEnd::Unmarked) if extended.bytes > 0 => {
                    return Err(ImportError::Truncated {
                        offset: self.stream.offset(),
                        what: "the headers of an entry",
                    });
                }
                Break(end) => return Ok(Break(end)),
            };
            match header.typeflag {
                _ if format == Format::V7 => {}
                b'x' => {
                    if extended.pax.is_some() {
                        return Err(at(HeaderFault::Repeated("PAX")));
                    }
                    let data = self.extension(&header, offset, &mut extended)?;
                    extended.pax = Some(Pax::parse(&data).map_err(at)?);
                    continue;
                }
                // Docker ignores global headers; git archive and others put a comment there
                b'g' => {
                    if extended.bytes > 0 {
                        return Err(at(HeaderFault::Orphan));
                    }
                    self.extension(&header, offset, &mut ExtendedHeaders::default())?;
                    continue;
                }
                b'L' | b'K' => {
                    let data = long_name(self.extension(&header, offset, &mut extended)?);
                    let slot = if header.typeflag == b'L' {
                        &mut extended.long_name
                    } else {
                        &mut extended.long_link
                    };
                    if slot.replace(data).is_some() {
                        return Err(at(HeaderFault::Repeated("GNU long name")));
                    }
                    continue;
                }
                _ => {}
            }
            return self.entry(&header, format, extended, offset).map(Continue);
        }
    }

    /// The next piece of the current file's content, at most `at_most` bytes; empty only if that
    /// is 0 or nothing is left.
    pub(super) fn content(&mut self, at_most: u64) -> Result<&[u8], ImportError> {
        let wanted = at_most.min(self.data);
        let position = self.stream.offset();
        let piece = self.stream.content(wanted)?;
        if piece.is_empty() && wanted > 0 {
            return Err(cut_data(position));
        }
        self.data = self.data.saturating_sub(piece.len() as u64);
        Ok(piece)
    }

    /// The recorder, to be told what the content was.
    pub(super) fn recorder(&mut self) -> &mut T {
        self.stream.recorder()
    }

    /// Likewise of data that is no file's content.
    fn piece(&mut self, at_most: u64) -> Result<&[u8], ImportError> {
        let wanted = at_most.min(self.data);
        let position = self.stream.offset();
        let piece = self.stream.chunk(wanted)?;
        if piece.is_empty() && wanted > 0 {
            return Err(cut_data(position));
        }
        self.data = self.data.saturating_sub(piece.len() as u64);
        Ok(piece)
    }

    /// Data that was not asked for, and the padding.
    fn skip_data(&mut self) -> Result<(), ImportError> {
        while self.data > 0 {
            self.piece(self.data)?;
        }
        // padding that is missing at the very end is no loss, and what a writer that was not
        // closed leaves: as in Go
        while self.padding > 0 {
            match self.stream.chunk(self.padding)?.len() as u64 {
                0 => self.padding = 0,
                skipped => self.padding = self.padding.saturating_sub(skipped),
            }
        }
        Ok(())
    }

    /// A header that is not zeros, or the end: two blocks of zeros, or no more bytes (after one
    /// block of zeros as well).
    fn header(
        &mut self,
        offset: u64,
    ) -> Result<ControlFlow<ArchiveEnd, (Header, Format)>, ImportError> {
        let at = |fault| ImportError::Header { offset, fault };
        let block = self.stream.block().map_err(|error| match error {
            ImportError::Truncated { offset: length, .. } if offset == 0 => {
                ImportError::Short { length }
            }
            other => other,
        })?;
        let Some(block) = block else {
            return Ok(Break(ArchiveEnd::Unmarked));
        };
        if let Some(header) = Header::parse(&block).map_err(at)? {
            return Ok(Continue(header));
        }
        match self.stream.block()? {
            None => Ok(Break(ArchiveEnd::Unmarked)),
            Some(second) if second.iter().all(|&byte| byte == 0) => Ok(Break(ArchiveEnd::Marked)),
            Some(_) => Err(at(HeaderFault::LoneZeroBlock)),
        }
    }

    /// The data of an extended header; all of one entry's count against one limit.
    fn extension(
        &mut self,
        header: &Header,
        offset: u64,
        extended: &mut ExtendedHeaders,
    ) -> Result<Vec<u8>, ImportError> {
        let size = header
            .size()
            .map_err(|fault| ImportError::Header { offset, fault })?;
        // a header counts too, so that many empty ones meet the limit
        extended.bytes = extended
            .bytes
            .saturating_add(size)
            .saturating_add(BLOCK as u64);
        if extended.bytes > self.limits.extended_bytes {
            return Err(ImportError::Limit {
                what: "bytes of extended headers for one entry",
                limit: self.limits.extended_bytes,
            });
        }
        self.frame(size);
        let mut data = Vec::new();
        while self.data > 0 {
            data.extend_from_slice(self.piece(size)?);
        }
        self.skip_data()?;
        Ok(data)
    }

    /// Expects `size` bytes and their padding next.
    fn frame(&mut self, size: u64) {
        self.data = size;
        self.padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
    }

    fn entry(
        &mut self,
        header: &Header,
        format: Format,
        extended: ExtendedHeaders,
        offset: u64,
    ) -> Result<Entry, ImportError> {
        let at = |fault| ImportError::Header { offset, fault };
        let ExtendedHeaders {
            pax,
            long_name,
            long_link,
            ..
        } = extended;
        let named_twice = |pax: Option<&Vec<u8>>, gnu: Option<&Vec<u8>>| {
            pax.is_some() && gnu.is_some() && pax != gnu
        };
        let pax = pax.unwrap_or_default();
        if named_twice(pax.path.as_ref(), long_name.as_ref())
            || named_twice(pax.link.as_ref(), long_link.as_ref())
        {
            return Err(at(HeaderFault::NamedTwice));
        }
        let mut path = pax
            .path
            .or(long_name)
            .unwrap_or_else(|| header.path(format));
        let stored = if is_header_only(header, &path) {
            header.size().map(|_ignored| 0).map_err(at)?
        } else {
            stored_size(header, pax.size).map_err(at)?
        };
        self.frame(stored);
        let link = pax
            .link
            .or(long_link)
            .unwrap_or_else(|| header.link().to_vec());
        let sparse = self.sparse(header, format, pax.sparse, stored, offset)?;
        if let Some((Some(name), _)) = &sparse {
            path.clone_from(name);
        }
        let map = sparse.map(|(_, map)| map);
        let refuse = |fault| ImportError::Entry {
            path: BString::from(path.as_slice()),
            fault,
        };
        let kind = kind(header, format, &path, link, stored, map).map_err(|fault| match fault {
            KindFault::Header(fault) => at(fault),
            KindFault::Entry(fault) => refuse(fault),
        })?;
        let id = |field, pax: Option<u64>, own: Result<i64, HeaderFault>| {
            let value = pax.map_or_else(
                || own.map_err(at),
                |value| Ok(value.try_into().unwrap_or(i64::MAX)),
            )?;
            // 2^32 - 1 is no id: chown(2) takes it for "leave it"
            u32::try_from(value)
                .ok()
                .filter(|&id| id != u32::MAX)
                .ok_or_else(|| refuse(EntryFault::OutOfRange { field, value }))
        };
        let mtime = match pax.mtime {
            Some(mtime) => mtime,
            None => Timestamp {
                secs: header.mtime().map_err(at)?,
                nanos: 0,
            },
        };
        let uid = id("owner", pax.uid, header.uid())?;
        let gid = id("group", pax.gid, header.gid())?;
        Ok(Entry {
            kind,
            mode: header.mode().map_err(at)?,
            uid,
            gid,
            mtime,
            xattrs: pax.xattrs,
            path,
        })
    }

    /// The map of a sparse file in whichever of the four spellings, and its real name if that is
    /// in the map's records.
    #[expect(
        clippy::type_complexity,
        reason = "a pair that one caller takes apart at once"
    )]
    fn sparse(
        &mut self,
        header: &Header,
        format: Format,
        pax: super::pax::PaxSparse,
        stored: u64,
        offset: u64,
    ) -> Result<Option<(Option<Vec<u8>>, SparseMap)>, ImportError> {
        let at = |fault| ImportError::Header { offset, fault };
        if header.typeflag == b'S' && format == Format::Gnu {
            let (first, real_size) = header.gnu_sparse().map_err(at)?;
            let extents = self.gnu_extents(first, offset)?;
            return SparseMap::new(extents, real_size, stored)
                .map(|map| Some((None, map)))
                .map_err(at);
        }
        let missing = || at(HeaderFault::Sparse("the size of the file is missing"));
        let (extents, stored) = match (pax.major, pax.minor, pax.map) {
            (None, None, None) if pax.name.is_none() && pax.real_size.is_none() => return Ok(None),
            (Some(1), Some(0), None) => {
                let before = self.data;
                let extents = self.leading_extents(offset)?;
                (
                    extents,
                    stored.saturating_sub(before.saturating_sub(self.data)),
                )
            }
            (None | Some(0), None | Some(0 | 1), Some(extents)) => (extents, stored),
            _ => return Err(at(HeaderFault::Sparse("unknown version"))),
        };
        if extents.len() > self.limits.sparse_extents {
            return Err(self.too_many_extents());
        }
        let real_size = pax.real_size.ok_or_else(missing)?;
        let map = SparseMap::new(extents, real_size, stored).map_err(at)?;
        Ok(Some((pax.name, map)))
    }

    /// Old GNU: four extents in the header, more in blocks right after it, which the size does not
    /// count.
    fn gnu_extents(
        &mut self,
        first: header::SparsePart,
        offset: u64,
    ) -> Result<Vec<Extent>, ImportError> {
        let at = |fault| ImportError::Header { offset, fault };
        let header::SparsePart {
            mut extents,
            mut extended,
        } = first;
        while extended {
            let block = self.stream.block()?;
            let block = block.ok_or(ImportError::Truncated {
                offset: self.stream.offset(),
                what: "a sparse map",
            })?;
            let part = header::gnu_sparse_block(&block).map_err(at)?;
            if part.extents.is_empty() {
                return Err(at(HeaderFault::Sparse("an empty block")));
            }
            extents.extend(part.extents);
            extended = part.extended;
            if extents.len() > self.limits.sparse_extents {
                return Err(self.too_many_extents());
            }
        }
        Ok(extents)
    }

    /// PAX 1.0: the map stands before the data and within its size: decimal numbers, one a line,
    /// padded to a block.
    fn leading_extents(&mut self, offset: u64) -> Result<Vec<Extent>, ImportError> {
        let at = |problem| ImportError::Header {
            offset,
            fault: HeaderFault::Sparse(problem),
        };
        let limit = self.limits.sparse_extents as u64;
        let mut block = [0; BLOCK];
        let mut position = BLOCK;
        let mut number = || -> Result<u64, ImportError> {
            let mut line = Vec::new();
            loop {
                if position == BLOCK {
                    block = self
                        .data_block()?
                        .ok_or_else(|| at("longer than the data"))?;
                    position = 0;
                }
                let byte = block.get(position).copied().unwrap_or_default();
                position = position.saturating_add(1);
                match byte {
                    b'\n' => return decimal(&line).ok_or_else(|| at("not a number")),
                    // 2^63 has 19 digits
                    _ if line.len() == 19 => return Err(at("not a number")),
                    digit => line.push(digit),
                }
            }
        };
        let count = number()?;
        if count > limit {
            return Err(self.too_many_extents());
        }
        let mut extents = Vec::new();
        for _ in 0..count {
            extents.push(Extent {
                offset: number()?,
                length: number()?,
            });
        }
        Ok(extents)
    }

    /// A whole block of the current entry's data; `None` where there is less left.
    fn data_block(&mut self) -> Result<Option<[u8; BLOCK]>, ImportError> {
        if self.data < BLOCK as u64 {
            return Ok(None);
        }
        self.data = self.data.saturating_sub(BLOCK as u64);
        let block = self.stream.block()?;
        block.map(Some).ok_or(ImportError::Truncated {
            offset: self.stream.offset(),
            what: "a sparse map",
        })
    }

    fn too_many_extents(&self) -> ImportError {
        ImportError::Limit {
            what: "extents in one sparse file",
            limit: self.limits.sparse_extents as u64,
        }
    }
}

fn cut_data(offset: u64) -> ImportError {
    ImportError::Truncated {
        offset,
        what: "the data of an entry",
    }
}

/// GNU long names end in a NUL.
fn long_name(mut data: Vec<u8>) -> Vec<u8> {
    while data.last() == Some(&0) {
        data.pop();
    }
    data
}
