//! The installed packages of images, read from their package databases, and the differences between
//! two images.

use std::collections::BTreeSet;
use std::io::Read;

use anyhow::{Context, Result};
use cowl_core::store::Store;
use cowl_core::tree::{FileType, Tree, TreeIno};
use serde::Serialize;

use crate::compare::target;
use crate::ladder::{Damage, verify};
use crate::model::Image;
use crate::packages::{self, Packages};

/// Far above real package databases; a larger one is reported and not read.
const LIMIT: u64 = 256 << 20;

/// A package that is in one image only, or in another version.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct PackageDifference {
    pub(crate) kind: &'static str,
    pub(crate) name: String,
    /// Versions in the first and the second image.
    pub(crate) a: Option<String>,
    pub(crate) b: Option<String>,
}

/// Notes about databases that could not be read.
#[derive(Debug, Default)]
pub(crate) struct Databases {
    pub(crate) notes: Vec<String>,
    /// Those notes that are about damaged objects.
    pub(crate) damage: Vec<String>,
    /// The kinds of damaged databases, which are not compared: all packages would look removed.
    incomplete: BTreeSet<&'static str>,
}

/// Why a database is not read.
enum Unread {
    /// Not a database, or an unsupported one.
    Format(&'static str),
    Damaged(String),
}

impl Databases {
    /// The packages of each database that an image has.
    pub(crate) fn read(
        &mut self,
        tree: &Tree,
        stores: &[Store],
        (image, name): (&Image, &str),
    ) -> Result<Packages> {
        let store = stores.get(image.store).context("a store")?;
        let mut packages = Packages::new();
        for (path, kind) in packages::DATABASES {
            let Some(ino) = tree.resolve(path.as_bytes())? else {
                continue;
            };
            let files = if tree.node(ino)?.file_type == FileType::Directory {
                let files = tree.children(ino)?.map(|dirent| target(&dirent?));
                files.collect::<Result<Vec<_>>>()?
            } else {
                vec![ino]
            };
            for ino in files {
                let read = content(tree, store, ino)?.and_then(|bytes| {
                    packages::read(kind, &bytes, &mut packages).map_err(Unread::Format)
                });
                match read {
                    Ok(()) => {}
                    Err(Unread::Format(why)) => self.notes.push(format!("{name}: /{path}: {why}")),
                    Err(Unread::Damaged(why)) => {
                        let line = format!("{name}: /{path}: {why}");
                        self.notes.push(line.clone());
                        self.damage.push(line);
                        self.incomplete.insert(kind.name());
                    }
                }
            }
            // SQLite's write-ahead log has the newest pages.
            let log = format!("{path}-wal");
            if let Some(ino) = tree.resolve(log.as_bytes())?
                && tree.node(ino)?.size > 0
            {
                self.notes.push(format!(
                    "{name}: /{log} is not read: packages may be missing"
                ));
            }
        }
        Ok(packages)
    }

    /// The packages that differ, of the kinds without damage.
    pub(crate) fn differences(&self, one: &Packages, other: &Packages) -> Vec<PackageDifference> {
        let mut differences = package_differences(one, other);
        differences.retain(|package| !self.incomplete.contains(package.kind));
        differences
    }
}

/// The bytes of a database's file.
fn content(tree: &Tree, store: &Store, ino: TreeIno) -> Result<Result<Vec<u8>, Unread>> {
    let node = tree.node(ino)?;
    let Some(object) = node.object else {
        return Ok(Ok(Vec::new()));
    };
    if node.size > LIMIT {
        let why = "a database of more than 256 MiB is not read";
        return Ok(Err(Unread::Format(why)));
    }
    let id = tree.object_id(object)?;
    let read = || -> Result<Vec<u8>, Damage> {
        let mut bytes = Vec::new();
        let mut file = store.open_object(id)?.take(node.size + 1);
        file.read_to_end(&mut bytes)?;
        verify(id, node.size, &bytes)?;
        Ok(bytes)
    };
    Ok(read().map_err(|damage| {
        Unread::Damaged(format!(
            "object {id} {damage}; load the image again to replace it"
        ))
    }))
}

fn package_differences(one: &Packages, other: &Packages) -> Vec<PackageDifference> {
    let names = one
        .keys()
        .chain(other.keys().filter(|key| !one.contains_key(*key)));
    let mut differences: Vec<_> = names
        .filter(|key| one.get(*key) != other.get(*key))
        .map(|key| PackageDifference {
            kind: key.0,
            name: key.1.clone(),
            a: one
                .get(key)
                .map(|versions| packages::joined(versions, ", ")),
            b: other
                .get(key)
                .map(|versions| packages::joined(versions, ", ")),
        })
        .collect();
    differences.sort_by(|a, b| (a.kind, &a.name).cmp(&(b.kind, &b.name)));
    differences
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packages::{Kind, read};

    #[test]
    fn packages_of_a_kind_with_a_damaged_database_are_not_compared() {
        let packages = |text: &str| {
            let mut packages = Packages::new();
            read(Kind::Dpkg, text.as_bytes(), &mut packages).unwrap();
            packages
        };
        let (one, none) = (packages("Package: a\nVersion: 1\n"), packages(""));
        let mut databases = Databases::default();
        assert_eq!(databases.differences(&one, &none).len(), 1);
        databases.incomplete.insert(Kind::Apk.name());
        assert_eq!(databases.differences(&one, &none).len(), 1);
        databases.incomplete.insert(Kind::Dpkg.name());
        assert_eq!(databases.differences(&one, &none), []);
    }
}
