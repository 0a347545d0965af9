//! `cowl tree FILE`: prints an index file as text.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail};
use cowl_core::tree::{FileType, Node, Target, Tree, TreeError, TreeIno, TreeKind};
use rustix::fs::{Mode, OFlags};

use crate::show::{lossy, printable};

/// More bytes than the header of any tree.
const BEGINNING: u64 = 4096;

/// The header and every name of a tree, which is verified first.
pub(crate) fn text(path: &Path) -> Result<String> {
    let what = || path.display().to_string();
    let (tree, length) = open(path).with_context(what)?;
    tree.verify().with_context(what)?;
    let of = match tree.kind() {
        TreeKind::Layer => tree.diff_id().map(|id| format!("layer {id}")),
        TreeKind::Merged => tree.chain_id().map(|id| format!("merged {id}")),
    };
    let mut lines = vec![format!(
        "{}: {} nodes, {} names, {} contents, {length} bytes",
        of.unwrap_or_default(),
        tree.node_count(),
        tree.dirent_count(),
        tree.object_count(),
    )];
    lines.push(line(&tree, TreeIno::ROOT, "/")?);
    let mut pending = vec![(TreeIno::ROOT, Vec::new())];
    while let Some((dir, path)) = pending.pop() {
        for dirent in tree.children(dir)? {
            let dirent = dirent?;
            let below = [path.as_slice(), b"/", dirent.name].concat();
            let shown = lossy(&below);
            lines.push(match dirent.target {
                Target::Node(ino) => {
                    if dirent.file_type == Some(FileType::Directory) {
                        pending.push((ino, below));
                    }
                    line(&tree, ino, &shown)?
                }
                Target::Whiteout => format!("{:>7} whiteout {shown}", ""),
                Target::LinkBelow => {
                    let target = lossy(tree.link_target(&dirent)?);
                    format!(
                        "{:>7} hard link {shown} -> /{target} (in the layers below)",
                        ""
                    )
                }
            });
        }
    }
    let lines: String = lines.iter().map(|line| printable(line) + "\n").collect();
    Ok(lines)
}

/// Reads a tree; returns its length too. A file that is not a tree is refused by its first bytes,
/// however long it is.
fn open(path: &Path) -> Result<(Tree, u64)> {
    // NONBLOCK: do not wait for the writer of a pipe. The file is read, not mapped: it may be
    // outside the store and change.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    let meta = file.metadata()?;
    if !meta.is_file() {
        bail!("a tree is a regular file");
    }
    let found = meta.len();
    let mut bytes = Vec::new();
    file.by_ref().take(BEGINNING).read_to_end(&mut bytes)?;
    let tree = match Tree::from_bytes(bytes.clone()) {
        Err(TreeError::Length { expected, .. }) if expected == found => {
            file.by_ref().take(found).read_to_end(&mut bytes)?;
            Tree::from_bytes(bytes)
        }
        Err(TreeError::Length { expected, .. }) => Err(TreeError::Length { expected, found }),
        whole => whole,
    }?;
    Ok((tree, found))
}

fn line(tree: &Tree, ino: TreeIno, path: &str) -> Result<String> {
    let node = tree.node(ino)?;
    let mut more = Vec::new();
    if let Some(object) = node.object {
        let id = tree.object_id(object)?.to_string();
        more.push(format!("  {}", id.get(..12).unwrap_or(&id)));
    }
    match node.file_type {
        FileType::Symlink => more.push(format!(" -> {}", lossy(tree.symlink_target(ino)?))),
        FileType::CharDevice | FileType::BlockDevice => {
            more.push(format!("  {}:{}", node.rdev.major, node.rdev.minor));
        }
        _ => {}
    }
    for (flag, word) in [
        (node.opaque, "opaque"),
        (node.implied, "implied"),
        (node.elf, "ELF"),
    ] {
        if flag {
            more.push(format!("  {word}"));
        }
    }
    for xattr in tree.xattrs(ino)? {
        let (name, value) = xattr?;
        more.push(format!("  {}={} bytes", lossy(name), value.len()));
    }
    let owner = format!("{}:{}", node.uid, node.gid);
    let links = if node.file_type == FileType::Directory {
        1
    } else {
        node.nlink
    };
    if links > 1 {
        more.push(format!("  {links} links"));
    }
    let more = more.concat();
    Ok(format!(
        "{:>7} {} {owner:>9} {:>10} {path}{more}",
        ino.0,
        mode(&node),
        node.size
    ))
}

/// As `ls -l` writes it.
fn mode(node: &Node) -> String {
    let mut shown = String::new();
    shown.push(match node.file_type {
        FileType::Regular => '-',
        FileType::Directory => 'd',
        FileType::Symlink => 'l',
        FileType::CharDevice => 'c',
        FileType::BlockDevice => 'b',
        FileType::Fifo => 'p',
        FileType::Socket => 's',
    });
    for (shift, special, letter) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let bits = node.mode >> shift & 7;
        shown.push(if bits & 4 != 0 { 'r' } else { '-' });
        shown.push(if bits & 2 != 0 { 'w' } else { '-' });
        shown.push(match (node.mode & special != 0, bits & 1 != 0) {
            (true, true) => letter,
            (true, false) => letter.to_ascii_uppercase(),
            (false, true) => 'x',
            (false, false) => '-',
        });
    }
    shown
}
