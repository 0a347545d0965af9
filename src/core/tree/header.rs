//! Opens a tree: checks the header, the section table and their digest only, so the cost does not
//! depend on the tree's size.

use std::ops::Range;

use zerocopy::FromBytes;

use super::error::{TreeError, corrupt};
use super::format::{
    DIGEST_LEN, KIND_LAYER, KIND_MERGED, MAGIC, MAX_SECTIONS, NONE, RawHeader, RawSection, Section,
    VERSION, header_length,
};
use super::types::TreeKind;
use crate::digest::Sha256Digest;

/// A checked header.
pub(super) struct CheckedHeader {
    pub(super) kind: TreeKind,
    pub(super) owner: Sha256Digest,
    pub(super) numbering: u16,
    pub(super) sections: [Range<usize>; Section::ALL.len()],
}

/// Checks the header, the section table and their digest.
pub(super) fn open_header(all: &[u8]) -> Result<CheckedHeader, TreeError> {
    let (header, rest) = RawHeader::ref_from_prefix(all).map_err(|_short| TreeError::Magic)?;
    if header.magic != MAGIC {
        return Err(TreeError::Magic);
    }
    if header.version.get() != VERSION {
        return Err(TreeError::Version(header.version.get()));
    }
    if header.incompat.get() != 0 {
        return Err(TreeError::Features(header.incompat.get()));
    }
    let found = all.len() as u64;
    if header.length.get() != found {
        return Err(TreeError::Length {
            expected: header.length.get(),
            found,
        });
    }
    let count = header.sections.get();
    if count > MAX_SECTIONS {
        return Err(TreeError::HeaderDigest);
    }
    let count = count as usize;
    let (table, _) = <[RawSection]>::ref_from_prefix_with_elems(rest, count)
        .map_err(|_short| TreeError::HeaderDigest)?;
    let body = header_length(count);
    let (hashed, digest) = all
        .get(..body)
        .and_then(<[u8]>::split_last_chunk::<DIGEST_LEN>)
        .ok_or(TreeError::HeaderDigest)?;
    if blake3::hash(hashed).as_bytes() != digest {
        return Err(TreeError::HeaderDigest);
    }
    let kind = match header.kind {
        KIND_LAYER => TreeKind::Layer,
        KIND_MERGED => TreeKind::Merged,
        other => {
            return Err(corrupt(
                "a kind of tree that is not known",
                u32::from(other),
            ));
        }
    };
    let sections = find_sections(header, table, body..all.len().saturating_sub(DIGEST_LEN))?;
    Ok(CheckedHeader {
        kind,
        owner: Sha256Digest::from_bytes(header.owner),
        numbering: header.numbering.get(),
        sections,
    })
}

/// Finds the sections of format 2 in the table and checks that they fit the file and the counts.
/// Others are left alone: a feature that adds one and can be ignored is a compatible one.
fn find_sections(
    header: &RawHeader,
    table: &[RawSection],
    body: Range<usize>,
) -> Result<[Range<usize>; Section::ALL.len()], TreeError> {
    let mut sections = Section::ALL.map(|_| 0..0);
    for (range, section) in sections.iter_mut().zip(Section::ALL) {
        let id = section as u32;
        let mut entries = table.iter().filter(|entry| entry.id.get() == id);
        let (Some(entry), None) = (entries.next(), entries.next()) else {
            return Err(corrupt("a section is missing or there twice", id));
        };
        let end = entry.offset.get().checked_add(entry.length.get());
        let start = usize::try_from(entry.offset.get());
        let end = end.and_then(|end| usize::try_from(end).ok());
        *range = match (start, end) {
            (Ok(start), Some(end)) if start >= body.start && end <= body.end => start..end,
            _ => return Err(corrupt("a section lies outside the file", id)),
        };
        let record = section.record();
        if entry.record.get() as usize != record
            || range.len() % record != 0
            || range.len() / record > NONE as usize
        {
            return Err(corrupt("a section is not made of its records", id));
        }
    }
    let [nodes, dirents, index, _, _, _, _, objects] = &sections;
    let expected = [
        (nodes, Section::Nodes, u64::from(header.nodes.get())),
        (dirents, Section::Dirents, u64::from(header.dirents.get())),
        (
            index,
            Section::InverseIndex,
            u64::from(header.nodes.get()) + 1,
        ),
        (objects, Section::Objects, u64::from(header.objects.get())),
    ];
    for (range, section, count) in expected {
        if (range.len() / section.record()) as u64 != count {
            return Err(corrupt(
                "a section has another number of records than the header says",
                section as u32,
            ));
        }
    }
    Ok(sections)
}
