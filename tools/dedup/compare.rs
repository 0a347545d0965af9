//! `cowl diff A B`: what differs between two images, name by name, and in their packages.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::io::Read;

use anyhow::{Context, Result, bail};
use cowl_core::store::Store;
use cowl_core::tree::{Dirent, FileType, Node, Target, Tree, TreeIno, merge};
use serde::Serialize;

use crate::model::{Collection, Image};
use crate::packages::{self, Packages};
use crate::show::{Align::Left, Sizes, Table, note, printable, shown_path, title};

/// Far above real package databases; a larger one is named and not read.
const DATABASE_LIMIT: u64 = 256 << 20;

/// What happened to a name, as Docker's letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Change {
    Added,
    Changed,
    Removed,
}

impl Change {
    const fn letter(self) -> char {
        match self {
            Self::Added => 'A',
            Self::Changed => 'C',
            Self::Removed => 'D',
        }
    }
}

/// One name.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Difference {
    pub(crate) change: Change,
    pub(crate) path: String,
    /// Of a changed name: what of it, from what to what.
    pub(crate) what: Vec<String>,
}

/// A package that is in one image only, or in another version.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct PackageDifference {
    pub(crate) kind: &'static str,
    pub(crate) name: String,
    /// Versions in the first and the second image.
    pub(crate) a: Option<String>,
    pub(crate) b: Option<String>,
}

/// Two images, compared.
#[derive(Debug, Serialize)]
pub(crate) struct Comparison {
    version: u32,
    pub(crate) a: String,
    pub(crate) b: String,
    pub(crate) files: Vec<Difference>,
    pub(crate) packages: Vec<PackageDifference>,
    /// Package databases that could not be read.
    pub(crate) notes: Vec<String>,
}

impl Comparison {
    /// Compares the two chosen images. Two arguments may be one image, in a store and an archive,
    /// say: then they name the sides.
    pub(crate) fn new(collection: &Collection, stores: &[Store], given: &[String]) -> Result<Self> {
        let chosen: Vec<&Image> = collection.chosen().collect();
        let (a, b) = match (chosen.as_slice(), given) {
            ([a, b], _) => ((*a, a.name.as_str()), (*b, b.name.as_str())),
            ([one], [a, b]) => ((*one, a.as_str()), (*one, b.as_str())),
            (images, _) => bail!(
                "a comparison is of two images, and {} has {}",
                given.join(" with "),
                images.len()
            ),
        };
        let (one, other) = (
            merged(collection, stores, a.0)?,
            merged(collection, stores, b.0)?,
        );
        let mut files = Vec::new();
        differ(&one, &other, TreeIno::ROOT, TreeIno::ROOT, &[], &mut files)?;
        let mut notes = Vec::new();
        let one = databases(&one, stores, a, &mut notes)?;
        let other = databases(&other, stores, b, &mut notes)?;
        Ok(Self {
            version: 1,
            a: a.1.to_owned(),
            b: b.1.to_owned(),
            files,
            packages: package_differences(&one, &other),
            notes,
        })
    }

    /// Docker's letters, with what changed behind the path.
    pub(crate) fn text(&self, width: Option<usize>) -> String {
        let mut text = String::new();
        for file in &self.files {
            let what = if file.what.is_empty() {
                String::new()
            } else {
                format!("  ({})", file.what.join(", "))
            };
            let line = format!("{} {}{what}", file.change.letter(), file.path);
            text.push_str(&printable(&line));
            text.push('\n');
        }
        if !self.packages.is_empty() {
            title(&mut text, "Packages");
            let mut table =
                Table::new([("KIND", Left), ("PACKAGE", Left), ("A", Left), ("B", Left)]);
            for package in &self.packages {
                let version = |version: &Option<String>| version.clone().unwrap_or("-".to_owned());
                table.row([
                    package.kind.to_owned(),
                    package.name.clone(),
                    version(&package.a),
                    version(&package.b),
                ]);
            }
            table.write(&mut text, width);
        }
        for line in &self.notes {
            note(&mut text, line);
        }
        text
    }
}

fn merged(collection: &Collection, stores: &[Store], image: &Image) -> Result<Tree> {
    let store = stores.get(image.store).context("a store")?;
    let mut trees = Vec::new();
    for layer in collection.stack(&image.layers) {
        let tree = store.layer_tree(layer.diff)?;
        trees.push(tree.with_context(|| format!("layer {} is not in the store", layer.diff))?);
    }
    let bytes = merge(&trees).with_context(|| format!("image {}", image.name))?;
    Ok(Tree::from_bytes(bytes)?)
}

fn target(dirent: &Dirent<'_>) -> Result<TreeIno> {
    match dirent.target {
        Target::Node(ino) => Ok(ino),
        _ => bail!("a merged tree with a whiteout"),
    }
}

/// Compares two directories whose own attributes are equal or were compared.
fn differ(
    one: &Tree,
    other: &Tree,
    in_one: TreeIno,
    in_other: TreeIno,
    path: &[u8],
    found: &mut Vec<Difference>,
) -> Result<()> {
    let mut left = one.children(in_one)?.peekable();
    let mut right = other.children(in_other)?.peekable();
    loop {
        let order = match (left.peek(), right.peek()) {
            (None, None) => return Ok(()),
            (Some(Ok(a)), Some(Ok(b))) => a.name.cmp(b.name),
            // The end of one, or an error that is returned below.
            (Some(_), None) | (Some(Err(_)), _) => Ordering::Less,
            (None, Some(_)) | (_, Some(Err(_))) => Ordering::Greater,
        };
        let gone = if order == Ordering::Greater {
            None
        } else {
            left.next().transpose()?
        };
        let come = if order == Ordering::Less {
            None
        } else {
            right.next().transpose()?
        };
        let Some(name) = gone.or(come).map(|dirent| dirent.name) else {
            continue;
        };
        let below = [path, b"/", name].concat();
        match (gone, come) {
            (Some(gone), Some(come)) => {
                let (from, to) = (target(&gone)?, target(&come)?);
                both(one, other, from, to, &below, found)?;
            }
            (Some(gone), None) => all(one, target(&gone)?, &below, Change::Removed, found)?,
            (None, Some(come)) => all(other, target(&come)?, &below, Change::Added, found)?,
            (None, None) => {}
        }
    }
}

/// Compares a name that both images have.
fn both(
    one: &Tree,
    other: &Tree,
    from: TreeIno,
    to: TreeIno,
    path: &[u8],
    found: &mut Vec<Difference>,
) -> Result<()> {
    let (before, after) = (one.node(from)?, other.node(to)?);
    let directories = [before.file_type, after.file_type].map(|t| t == FileType::Directory);
    let what = changes(one, other, from, to, &before, &after)?;
    if !what.is_empty() {
        found.push(difference(Change::Changed, path, what));
    }
    match directories {
        [true, true] => differ(one, other, from, to, path, found),
        [true, false] => below(one, from, path, Change::Removed, found),
        [false, true] => below(other, to, path, Change::Added, found),
        [false, false] => Ok(()),
    }
}

fn difference(change: Change, path: &[u8], what: Vec<String>) -> Difference {
    Difference {
        change,
        path: shown_path(path.strip_prefix(b"/").unwrap_or(path)),
        what,
    }
}

/// A name that one image has, with all below it.
fn all(
    tree: &Tree,
    ino: TreeIno,
    path: &[u8],
    change: Change,
    found: &mut Vec<Difference>,
) -> Result<()> {
    found.push(difference(change, path, Vec::new()));
    if tree.node(ino)?.file_type == FileType::Directory {
        below(tree, ino, path, change, found)?;
    }
    Ok(())
}

fn below(
    tree: &Tree,
    dir: TreeIno,
    path: &[u8],
    change: Change,
    found: &mut Vec<Difference>,
) -> Result<()> {
    for dirent in tree.children(dir)? {
        let dirent = dirent?;
        let path = [path, b"/", dirent.name].concat();
        all(tree, target(&dirent)?, &path, change, found)?;
    }
    Ok(())
}

const fn type_name(file_type: FileType) -> &'static str {
    match file_type {
        FileType::Regular => "file",
        FileType::Directory => "directory",
        FileType::Symlink => "symlink",
        FileType::CharDevice => "character device",
        FileType::BlockDevice => "block device",
        FileType::Fifo => "fifo",
        FileType::Socket => "socket",
    }
}

/// What of a name differs; times do not count.
fn changes(
    one: &Tree,
    other: &Tree,
    from: TreeIno,
    to: TreeIno,
    before: &Node,
    after: &Node,
) -> Result<Vec<String>> {
    let mut what = Vec::new();
    if before.file_type != after.file_type {
        let (from, to) = (type_name(before.file_type), type_name(after.file_type));
        what.push(format!("type {from} -> {to}"));
    }
    if before.mode != after.mode {
        what.push(format!("mode {:04o} -> {:04o}", before.mode, after.mode));
    }
    if (before.uid, before.gid) != (after.uid, after.gid) {
        let owners = [before, after].map(|node| format!("{}:{}", node.uid, node.gid));
        what.push(format!("owner {}", owners.join(" -> ")));
    }
    if before.rdev != after.rdev {
        let devices = [before, after].map(|n| format!("{}:{}", n.rdev.major, n.rdev.minor));
        what.push(format!("device {}", devices.join(" -> ")));
    }
    let id =
        |tree: &Tree, node: &Node| node.object.map(|object| tree.object_id(object)).transpose();
    if before.file_type == FileType::Regular
        && after.file_type == FileType::Regular
        && id(one, before)? != id(other, after)?
    {
        let sizes = [before, after].map(|node| Sizes::Human.show(node.size));
        what.push(format!("content {}", sizes.join(" -> ")));
    }
    if before.file_type == FileType::Symlink && after.file_type == FileType::Symlink {
        let targets = [one.symlink_target(from)?, other.symlink_target(to)?];
        if targets[0] != targets[1] {
            what.push(format!(
                "target {}",
                targets.map(crate::show::lossy).join(" -> ")
            ));
        }
    }
    let xattrs = |tree: &Tree, ino| -> Result<BTreeMap<Vec<u8>, Vec<u8>>> {
        let all = tree
            .xattrs(ino)?
            .map(|xattr| xattr.map(|(name, value)| (name.to_vec(), value.to_vec())));
        Ok(all.collect::<Result<_, _>>()?)
    };
    let (old, new) = (xattrs(one, from)?, xattrs(other, to)?);
    for name in old
        .keys()
        .chain(new.keys().filter(|name| !old.contains_key(*name)))
    {
        if old.get(name) != new.get(name) {
            what.push(format!("xattr {}", crate::show::lossy(name)));
        }
    }
    Ok(what)
}

/// The packages of each database that an image has.
fn databases(
    tree: &Tree,
    stores: &[Store],
    (image, name): (&Image, &str),
    notes: &mut Vec<String>,
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
            let read = match content(tree, store, ino)? {
                Ok(bytes) => packages::read(kind, &bytes, &mut packages),
                Err(why) => Err(why),
            };
            if let Err(why) = read {
                notes.push(format!("{name}: /{path}: {why}"));
            }
        }
        // SQLite's newest pages are there until they are written back.
        let log = format!("{path}-wal");
        if let Some(ino) = tree.resolve(log.as_bytes())?
            && tree.node(ino)?.size > 0
        {
            notes.push(format!(
                "{name}: /{log} is not read: packages may be missing"
            ));
        }
    }
    Ok(packages)
}

/// The bytes of a database's file, none of what is no file; or why they are not read.
fn content(
    tree: &Tree,
    store: &Store,
    ino: TreeIno,
) -> Result<std::result::Result<Vec<u8>, &'static str>> {
    let node = tree.node(ino)?;
    let Some(object) = node.object else {
        return Ok(Ok(Vec::new()));
    };
    if node.size > DATABASE_LIMIT {
        return Ok(Err("a database of more than 256 MiB is not read"));
    }
    let mut bytes = Vec::new();
    store
        .open_object(tree.object_id(object)?)?
        .read_to_end(&mut bytes)
        .context("a package database")?;
    Ok(Ok(bytes))
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
