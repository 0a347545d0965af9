//! `cowl diff A B`: compares two images name by name, and their packages.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use cowl_core::digest::ObjectId;
use cowl_core::store::Store;
use cowl_core::tree::{Dirent, FileType, Node, Target, Tree, TreeIno, merge};
use serde::Serialize;

use crate::installed::{Databases, PackageDifference};
use crate::model::{Collection, Image};
use crate::show::{Align::Left, Sizes, Table, lossy, note, printable, shown_path, title};

/// The change of a name, with Docker's letters.
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
    /// For a changed name: what changed, from what to what, as text.
    pub(crate) what: Vec<String>,
    /// The entries of the first and the second image.
    pub(crate) a: Option<Entry>,
    pub(crate) b: Option<Entry>,
}

/// What an image has at a path.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Entry {
    #[serde(rename = "type")]
    pub(crate) file_type: &'static str,
    /// Permission bits, with set-id and sticky.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Bytes of content, or of a link's target.
    pub(crate) size: u64,
    /// The content's object; None if empty or not a regular file.
    pub(crate) object: Option<ObjectId>,
    /// Of a device: major and minor.
    pub(crate) device: Option<[u32; 2]>,
    /// Of a symbolic link.
    pub(crate) target: Option<String>,
}

impl Entry {
    fn of(tree: &Tree, ino: TreeIno, node: &Node) -> Result<Self> {
        let is_device = matches!(node.file_type, FileType::CharDevice | FileType::BlockDevice);
        let target = match node.file_type {
            FileType::Symlink => Some(lossy(tree.symlink_target(ino)?)),
            _ => None,
        };
        Ok(Self {
            file_type: type_name(node.file_type),
            mode: node.mode,
            uid: node.uid,
            gid: node.gid,
            size: node.size,
            object: object(tree, node)?,
            device: is_device.then_some([node.rdev.major, node.rdev.minor]),
            target,
        })
    }
}

fn object(tree: &Tree, node: &Node) -> Result<Option<ObjectId>> {
    let id = node.object.map(|object| tree.object_id(object));
    Ok(id.transpose()?)
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
    /// Those notes that are about damaged objects.
    #[serde(skip)]
    pub(crate) damage: Vec<String>,
}

impl Comparison {
    /// Compares the two chosen images. If both arguments are one image, in a store and an archive
    /// for example, the arguments name the sides.
    pub(crate) fn new(
        collection: &Collection,
        stores: &[Store],
        given: &[String],
        sizes: Sizes,
    ) -> Result<Self> {
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
        let mut trees = Trees {
            one: &one,
            other: &other,
            sizes,
            found: Vec::new(),
        };
        trees.differ(TreeIno::ROOT, TreeIno::ROOT, &[])?;
        let files = trees.found;
        let mut databases = Databases::default();
        let one = databases.read(&one, stores, a)?;
        let other = databases.read(&other, stores, b)?;
        Ok(Self {
            version: 1,
            a: a.1.to_owned(),
            b: b.1.to_owned(),
            files,
            packages: databases.differences(&one, &other),
            notes: databases.notes,
            damage: databases.damage,
        })
    }

    /// The differences as text: Docker's letters, the path and what changed.
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

/// The inode of a name in a merged tree.
pub(crate) fn target(dirent: &Dirent<'_>) -> Result<TreeIno> {
    match dirent.target {
        Target::Node(ino) => Ok(ino),
        _ => bail!("a merged tree with a whiteout"),
    }
}

/// A comparison of two merged trees.
struct Trees<'t> {
    one: &'t Tree,
    other: &'t Tree,
    /// How the sizes of [`Difference::what`] are written.
    sizes: Sizes,
    found: Vec<Difference>,
}

impl<'t> Trees<'t> {
    /// Compares the contents of two directories.
    fn differ(&mut self, in_one: TreeIno, in_other: TreeIno, path: &[u8]) -> Result<()> {
        let mut left = self.one.children(in_one)?.peekable();
        let mut right = self.other.children(in_other)?.peekable();
        loop {
            let order = match (left.peek(), right.peek()) {
                (None, None) => return Ok(()),
                (Some(Ok(a)), Some(Ok(b))) => a.name.cmp(b.name),
                // One list has ended, or there is an error, which is returned below.
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
                (Some(gone), Some(come)) => self.both(target(&gone)?, target(&come)?, &below)?,
                (Some(gone), None) => self.all(Change::Removed, target(&gone)?, &below)?,
                (None, Some(come)) => self.all(Change::Added, target(&come)?, &below)?,
                (None, None) => {}
            }
        }
    }

    /// Compares a name that both images have.
    fn both(&mut self, from: TreeIno, to: TreeIno, path: &[u8]) -> Result<()> {
        let (before, after) = (self.one.node(from)?, self.other.node(to)?);
        let what = self.changes((from, &before), (to, &after))?;
        if !what.is_empty() {
            self.found.push(Difference {
                change: Change::Changed,
                path: shown(path),
                what,
                a: Some(Entry::of(self.one, from, &before)?),
                b: Some(Entry::of(self.other, to, &after)?),
            });
        }
        match [before.file_type, after.file_type].map(|t| t == FileType::Directory) {
            [true, true] => self.differ(from, to, path),
            [true, false] => self.below(Change::Removed, from, path),
            [false, true] => self.below(Change::Added, to, path),
            [false, false] => Ok(()),
        }
    }

    /// Adds a name that only one image has, with everything below it.
    fn all(&mut self, change: Change, ino: TreeIno, path: &[u8]) -> Result<()> {
        let tree = self.side(change);
        let node = tree.node(ino)?;
        let entry = Some(Entry::of(tree, ino, &node)?);
        let (a, b) = if change == Change::Removed {
            (entry, None)
        } else {
            (None, entry)
        };
        self.found.push(Difference {
            change,
            path: shown(path),
            what: Vec::new(),
            a,
            b,
        });
        if node.file_type == FileType::Directory {
            self.below(change, ino, path)?;
        }
        Ok(())
    }

    fn below(&mut self, change: Change, dir: TreeIno, path: &[u8]) -> Result<()> {
        for dirent in self.side(change).children(dir)? {
            let dirent = dirent?;
            let path = [path, b"/", dirent.name].concat();
            self.all(change, target(&dirent)?, &path)?;
        }
        Ok(())
    }

    /// The tree that has an added or removed name.
    fn side(&self, change: Change) -> &'t Tree {
        match change {
            Change::Removed => self.one,
            Change::Added | Change::Changed => self.other,
        }
    }

    /// The differences of a name; times do not count.
    fn changes(&self, from: (TreeIno, &Node), to: (TreeIno, &Node)) -> Result<Vec<String>> {
        let ((from, before), (to, after)) = (from, to);
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
        let both = |file_type| before.file_type == file_type && after.file_type == file_type;
        if both(FileType::Regular) && object(self.one, before)? != object(self.other, after)? {
            let sizes = self.sizes.show_both(before.size, after.size);
            what.push(format!("content {}", sizes.join(" -> ")));
        }
        if both(FileType::Symlink) {
            let targets = [
                self.one.symlink_target(from)?,
                self.other.symlink_target(to)?,
            ];
            if targets[0] != targets[1] {
                what.push(format!("target {}", targets.map(lossy).join(" -> ")));
            }
        }
        let (old, new) = (xattrs(self.one, from)?, xattrs(self.other, to)?);
        for name in old
            .keys()
            .chain(new.keys().filter(|name| !old.contains_key(*name)))
        {
            if old.get(name) != new.get(name) {
                what.push(format!("xattr {}", lossy(name)));
            }
        }
        Ok(what)
    }
}

fn xattrs(tree: &Tree, ino: TreeIno) -> Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let all = tree
        .xattrs(ino)?
        .map(|xattr| xattr.map(|(name, value)| (name.to_vec(), value.to_vec())));
    Ok(all.collect::<Result<_, _>>()?)
}

fn shown(path: &[u8]) -> String {
    shown_path(path.strip_prefix(b"/").unwrap_or(path))
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
