//! Entry point for fuzzers and property tests: reads any bytes as a tree, through the whole
//! interface. Errors are fine; panics and endless loops are bugs.

use super::error::TreeError;
use super::merge::merge;
use super::reader::Tree;
use super::types::{ObjectRef, TreeIno};

/// Most nodes and names to visit one by one: enough for a fuzzer's input, and a bound for a
/// hostile count.
const MOST: u32 = 4096;

/// Reads bytes as a tree in every way. Returns whether [`Tree::verify`] accepts them.
pub fn read(bytes: Vec<u8>) -> Result<(), TreeError> {
    let tree = Tree::from_bytes(bytes)?;
    for number in 0..tree.node_count().min(MOST) {
        // What one node answers says nothing about the next, and errors are fine.
        drop(read_node(&tree, TreeIno(number)));
        drop(tree.object_id(ObjectRef(number)));
    }
    drop(read_node(&tree, TreeIno(u32::MAX)));
    for number in 0..tree.dirent_count().min(MOST) {
        drop(
            tree.dirent(number)
                .and_then(|dirent| tree.link_target(&dirent).map(<[u8]>::len)),
        );
    }
    let count = tree.object_ids().count();
    debug_assert_eq!(u32::try_from(count).ok(), Some(tree.object_count()));
    let verified = tree.verify();
    drop(merge(std::slice::from_ref(&tree)));
    verified
}

fn read_node(tree: &Tree, ino: TreeIno) -> Result<(), TreeError> {
    tree.node(ino)?;
    let path = tree.path_of(ino);
    drop(path.and_then(|path| tree.resolve(&path)));
    drop(tree.symlink_target(ino));
    drop(tree.xattr(ino, b"user.x"));
    drop(
        tree.names_of(ino)
            .map(|names| names.take(MOST as usize).count()),
    );
    drop(tree.lookup(ino, b"x"));
    drop(tree.subdir_count(ino));
    drop(tree.child(ino, u32::MAX));
    for dirent in tree.children(ino)?.take(MOST as usize) {
        let dirent = dirent?;
        drop(tree.lookup(ino, dirent.name));
    }
    Ok(())
}
