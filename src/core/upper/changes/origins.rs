//! What marks of the upper say of the nodes of a tree.

use rustix::io::Errno;

use super::super::marks::Origin;
use super::super::scan::{OriginNode, Origins};
use super::super::spelling::Spelling;
use crate::tree::{FileType, Rdev, Target, Tree, TreeIno};

/// Damage of the tree is EIO, as in a mount.
impl Origins for Tree {
    type Node = TreeIno;

    fn spelling(&self) -> Spelling {
        Spelling::Tree
    }

    fn origin(&self, origin: &Origin) -> rustix::io::Result<Option<OriginNode<TreeIno>>> {
        let Origin::Node(node) = *origin else {
            return Ok(None);
        };
        let Ok(record) = self.node(node) else {
            return Ok(None);
        };
        let null_device =
            record.file_type == FileType::CharDevice && record.rdev == Rdev::default();
        Ok(Some(OriginNode {
            node,
            stored_type: if null_device {
                FileType::Regular
            } else {
                record.file_type
            },
            null_device,
            has_content: record.object.is_some(),
        }))
    }

    fn child(&self, dir: TreeIno, name: &[u8]) -> rustix::io::Result<Option<OriginNode<TreeIno>>> {
        match self.lookup(dir, name).map_err(|_damaged| Errno::IO)? {
            Some(dirent) => match dirent.target {
                Target::Node(ino) => self.origin(&Origin::Node(ino)),
                Target::Whiteout | Target::LinkBelow => Ok(None),
            },
            None => Ok(None),
        }
    }
}
