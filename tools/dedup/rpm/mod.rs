//! rpm's database in its three formats, and the headers in it.
//!
//! Source of the headers: rpm's lib/header.c. Every access is checked.

mod berkeley;
mod ndb;
mod sqlite;

use crate::lossy::lossy;

/// Name and `[EPOCH:]VERSION-RELEASE` of each package. The error says why it cannot be read.
pub(crate) fn packages(bytes: &[u8]) -> Result<Vec<(String, String)>, &'static str> {
    let packages = if bytes.starts_with(sqlite::MAGIC) {
        sqlite::packages(bytes)
    } else if bytes.starts_with(ndb::MAGIC) {
        ndb::packages(bytes)
    } else if let Some(database) = berkeley::Database::open(bytes) {
        database.packages()
    } else {
        return Err("no rpm database in a format that is known: SQLite, ndb or a Berkeley DB hash");
    };
    packages.ok_or("the rpm database is damaged")
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn le32(bytes: &[u8], at: usize) -> Option<u32> {
    be32(bytes, at).map(u32::swap_bytes)
}

const NAME: u32 = 1000;
const VERSION: u32 = 1001;
const RELEASE: u32 = 1002;
const EPOCH: u32 = 1003;

/// Name and version of an rpm header: counts of index entries and of data, the entries, the data.
fn header(blob: &[u8]) -> Option<(String, String)> {
    let entries = usize::try_from(be32(blob, 0)?).ok()?;
    let index = blob.get(8..)?;
    let data = index.get(entries.checked_mul(16)?..)?;
    let find = |wanted: u32| {
        let entry = index
            .chunks_exact(16)
            .take(entries)
            .find(|entry| be32(entry, 0) == Some(wanted))?;
        data.get(usize::try_from(be32(entry, 8)?).ok()?..)
    };
    let text = |tag| {
        let text = find(tag)?.split(|byte| *byte == 0).next()?;
        Some(lossy(text))
    };
    let (name, version, release) = (text(NAME)?, text(VERSION)?, text(RELEASE)?);
    let epoch = find(EPOCH).and_then(|epoch| be32(epoch, 0));
    let epoch = epoch.map(|epoch| format!("{epoch}:")).unwrap_or_default();
    Some((name, format!("{epoch}{version}-{release}")))
}

/// Recordings in `fixtures/golden/rpm`, all of three packages that rpm 4.18 built: `ndb` was
/// written by rpm's rpmpkg.c and had a fourth package, which was removed; `berkeley-*` by Berkeley
/// DB 5.3's `db_load` with pages of 512 bytes, so that each header is on overflow pages.
#[cfg(test)]
mod tests {
    use super::*;

    const NDB: &[u8] = include_bytes!("../../../fixtures/golden/rpm/ndb");
    const LITTLE: &[u8] = include_bytes!("../../../fixtures/golden/rpm/berkeley-little");
    const BIG: &[u8] = include_bytes!("../../../fixtures/golden/rpm/berkeley-big");

    #[test]
    fn recorded_databases_list_their_packages() {
        for bytes in [NDB, LITTLE, BIG] {
            let mut found = packages(bytes).unwrap();
            found.sort();
            let expected = [
                ("bash", "7:5.1.8-9.el9"),
                ("kernel", "5.14.0-70.el9"),
                ("zlib", "1.2.11-40.el9"),
            ];
            let expected = expected.map(|(name, version)| (name.to_owned(), version.to_owned()));
            assert_eq!(found, expected);
        }
    }

    /// Slots of ndb that all point to one blob: refused before the copies fill the memory.
    #[test]
    fn packages_that_share_their_bytes_are_refused() {
        let mut bytes = NDB.to_vec();
        let used = bytes[32..4096]
            .chunks_exact(16)
            .position(|slot| slot[8] > 0);
        let used: [u8; 16] = bytes[32 + 16 * used.unwrap()..][..16].try_into().unwrap();
        for slot in bytes[32..4096].chunks_exact_mut(16) {
            slot.copy_from_slice(&used);
        }
        assert!(packages(&bytes).is_err());
    }

    /// Items of Berkeley DB whose keys all extend to the end of the page.
    #[test]
    fn keys_that_share_their_bytes_are_refused() {
        let mut bytes = LITTLE.to_vec();
        let is_items = |page: &&mut [u8]| matches!(page[25], 2 | 13) && page[20] > 1;
        let page = bytes.chunks_exact_mut(512).find(is_items).unwrap();
        page[20..22].copy_from_slice(&40_u16.to_le_bytes());
        page[26..].fill(0);
        page[200] = 1;
        for item in 0..40 {
            let offset: u16 = if item % 2 == 0 { 200 } else { 511 };
            page[26 + 2 * item..28 + 2 * item].copy_from_slice(&offset.to_le_bytes());
        }
        assert!(packages(&bytes).is_err());
    }

    /// Truncated at any byte, parsing fails or finds everything; with any byte changed it ends.
    #[test]
    fn parsing_of_damaged_databases_ends() {
        for bytes in [NDB, LITTLE, BIG] {
            let whole = packages(bytes).unwrap();
            for at in (0..bytes.len()).step_by(7) {
                let cut = packages(bytes.get(..at).unwrap());
                assert!(
                    cut.is_err() || cut == Ok(whole.clone()),
                    "cut at {at}: {cut:?}"
                );
            }
            let mut damaged = bytes.to_vec();
            for at in 0..bytes.len() {
                for value in [0, 1, 0xff] {
                    let before = std::mem::replace(&mut damaged[at], value);
                    // Parsing must end, whatever the result.
                    let found = packages(&damaged).unwrap_or_default();
                    assert!(found.len() <= 6, "byte {at} as {value}: {found:?}");
                    damaged[at] = before;
                }
            }
        }
    }
}
