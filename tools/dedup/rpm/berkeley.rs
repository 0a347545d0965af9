//! rpm's Berkeley DB, `Packages` until 2020: a hash of package numbers to headers.
//!
//! Source: Berkeley DB 5.3, src/dbinc/db_page.h. All pages are read in order, so buckets need not
//! be known. Every access is checked, and overflow pages are counted, so no input loops.

use super::header;

/// `DB_HASHMAGIC`.
const MAGIC: u32 = 0x0006_1561;
/// Size of a page's header: `SIZEOF_PAGE`.
const PAGE_HEADER: usize = 26;

pub(super) struct Database<'b> {
    bytes: &'b [u8],
    page: usize,
    big_endian: bool,
}

/// Page types: with items, and overflow pages for long items.
const HASH_UNSORTED: u8 = 2;
const HASH: u8 = 13;
const OVERFLOW: u8 = 7;
/// The types of items: in place, or on overflow pages.
const KEY_DATA: u8 = 1;
const OFF_PAGE: u8 = 3;

impl<'b> Database<'b> {
    /// None if the bytes are not a Berkeley DB hash.
    pub(super) fn open(bytes: &'b [u8]) -> Option<Self> {
        let magic: [u8; 4] = *bytes.get(12..)?.first_chunk()?;
        let big_endian = u32::from_be_bytes(magic) == MAGIC;
        (big_endian || u32::from_le_bytes(magic) == MAGIC).then_some(Self {
            bytes,
            page: 0,
            big_endian,
        })
    }

    /// The packages; None if the database is damaged, encrypted or checksummed, which rpm's is not.
    pub(super) fn packages(mut self) -> Option<Vec<(String, String)>> {
        self.page = self.number(self.bytes, 20)?;
        let (encryption, flags) = (*self.bytes.get(24)?, *self.bytes.get(26)?);
        let sizes = 512..=65536;
        if !sizes.contains(&self.page) || encryption != 0 || flags & 1 != 0 {
            return None;
        }
        let pages = self.number(self.bytes, 32)?.checked_add(1)?;
        let bytes = self.bytes.get(..pages.checked_mul(self.page)?)?;
        // Each overflow page belongs to one item.
        let mut overflow = pages;
        let mut packages = Vec::new();
        for page in bytes.chunks_exact(self.page).skip(1) {
            if !matches!(*page.get(25)?, HASH | HASH_UNSORTED) {
                continue;
            }
            for pair in 0..self.short(page, 20)? / 2 {
                // Keys are read too, so that no two items share bytes.
                let key = self.item(page, 2 * pair, &mut overflow)?;
                let value = self.item(page, 2 * pair + 1, &mut overflow)?;
                // Package 0 is where rpm keeps the largest package number.
                if key.iter().any(|byte| *byte != 0) {
                    packages.push(header(&value)?);
                }
            }
        }
        Some(packages)
    }

    /// The bytes of a page's item. Items are stored from the end of the page downwards.
    fn item(&self, page: &[u8], number: usize, overflow: &mut usize) -> Option<Vec<u8>> {
        let offset = |number: usize| self.short(page, PAGE_HEADER + 2 * number);
        let end = match number.checked_sub(1) {
            Some(before) => offset(before)?,
            None => self.page,
        };
        let item = page.get(offset(number)?..end)?;
        match *item.first()? {
            KEY_DATA => Some(item.get(1..)?.to_vec()),
            OFF_PAGE => self.overflow(self.number(item, 4)?, self.number(item, 8)?, overflow),
            _ => None,
        }
    }

    /// The bytes in a chain of overflow pages.
    fn overflow(&self, first: usize, length: usize, left: &mut usize) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut next = first;
        while next != 0 {
            *left = left.checked_sub(1)?;
            let start = next.checked_mul(self.page)?;
            let page = self.bytes.get(start..start.checked_add(self.page)?)?;
            if *page.get(25)? != OVERFLOW {
                return None;
            }
            let used = self.short(page, 22)?;
            bytes.extend_from_slice(page.get(PAGE_HEADER..)?.get(..used)?);
            next = self.number(page, 16)?;
        }
        (bytes.len() == length).then_some(bytes)
    }

    fn number(&self, bytes: &[u8], at: usize) -> Option<usize> {
        let bytes = *bytes.get(at..)?.first_chunk()?;
        let number = if self.big_endian {
            u32::from_be_bytes(bytes)
        } else {
            u32::from_le_bytes(bytes)
        };
        usize::try_from(number).ok()
    }

    fn short(&self, bytes: &[u8], at: usize) -> Option<usize> {
        let bytes = *bytes.get(at..)?.first_chunk()?;
        let number = if self.big_endian {
            u16::from_be_bytes(bytes)
        } else {
            u16::from_le_bytes(bytes)
        };
        Some(number.into())
    }
}
