//! What the upper writes into extended attributes: names, bytes and escaping. The table with the reasons is in [`super`].

use crate::digest::{ChainId, ObjectId, Sha256Digest};
use crate::tree::TreeIno;

/// Which kind of extended attribute carries the marks of an upper.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub enum Namespace {
    /// `trusted.`, on every type of file; needs `CAP_SYS_ADMIN` in the initial user namespace.
    Trusted,
    /// `user.`, on regular files and directories; any owner may set it, so such an upper trusts its owner.
    User,
}

impl Namespace {
    /// The prefix, with its dot.
    pub const fn prefix(self) -> &'static str {
        match self {
            Self::Trusted => "trusted.",
            Self::User => "user.",
        }
    }

    /// Whether a file of this type can bear marks.
    pub const fn marks(self, file_type: crate::tree::FileType) -> bool {
        matches!(
            (self, file_type),
            (Self::Trusted, _)
                | (
                    Self::User,
                    crate::tree::FileType::Regular | crate::tree::FileType::Directory
                )
        )
    }
}

/// The marks.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub enum Mark {
    /// On a directory: what the tree has under it is hidden. overlayfs's own.
    Opaque,
    /// On a directory: some file in it bears marks; without it none needs to be asked. overlayfs's own.
    Impure,
    /// The tree's node that this was copied up from: id and `st_ino` are its.
    Origin,
    /// The content is still the object's, up to the file's length; the file holds none.
    Data,
    /// On the upper's root: what it was written over.
    Stamp,
    /// An empty regular file that stands for a character device 0:0, which by itself would be a whiteout.
    Device,
    /// On a file of `work/index`: what to add to the host's count of links less one.
    Nlink,
}

impl Mark {
    /// The attribute's full name.
    pub const fn name(self, space: Namespace) -> &'static str {
        match (space, self) {
            (Namespace::Trusted, Self::Opaque) => "trusted.overlay.opaque",
            (Namespace::Trusted, Self::Impure) => "trusted.overlay.impure",
            (Namespace::Trusted, Self::Origin) => "trusted.overlay.cowl.origin",
            (Namespace::Trusted, Self::Data) => "trusted.overlay.cowl.data",
            (Namespace::Trusted, Self::Stamp) => "trusted.overlay.cowl.stamp",
            (Namespace::Trusted, Self::Device) => "trusted.overlay.cowl.device",
            (Namespace::Trusted, Self::Nlink) => "trusted.overlay.cowl.nlink",
            (Namespace::User, Self::Opaque) => "user.overlay.opaque",
            (Namespace::User, Self::Impure) => "user.overlay.impure",
            (Namespace::User, Self::Origin) => "user.overlay.cowl.origin",
            (Namespace::User, Self::Data) => "user.overlay.cowl.data",
            (Namespace::User, Self::Stamp) => "user.overlay.cowl.stamp",
            (Namespace::User, Self::Device) => "user.overlay.cowl.device",
            (Namespace::User, Self::Nlink) => "user.overlay.cowl.nlink",
        }
    }
}

/// The value of marks that only say yes, as overlayfs writes it.
pub const YES: &[u8] = b"y";

const VERSION: u8 = 1;

/// Bytes of a mark that this version cannot have written.
#[derive(Copy, Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the mark {} has bytes that this version of cowl does not know", .0.name(Namespace::Trusted))]
pub struct UnknownMark(pub Mark);

/// [`Mark::Origin`]: `01 00 00 00`, node u32.
pub fn encode_origin(node: TreeIno) -> [u8; 8] {
    join(&header(0), &node.0.to_le_bytes())
}

/// Reads [`Mark::Origin`].
pub fn decode_origin(bytes: &[u8]) -> Result<TreeIno, UnknownMark> {
    let (_, node) = split::<4>(bytes, Mark::Origin)?;
    Ok(TreeIno(u32::from_le_bytes(node)))
}

/// [`Mark::Data`]: `01 00 00 00`, the object's id.
pub fn encode_data(object: ObjectId) -> [u8; 36] {
    join(&header(0), object.as_bytes())
}

/// Reads [`Mark::Data`].
pub fn decode_data(bytes: &[u8]) -> Result<ObjectId, UnknownMark> {
    let (_, object) = split::<32>(bytes, Mark::Data)?;
    Ok(ObjectId::from_bytes(object))
}

/// [`Mark::Device`]: `01 00 00 00`.
pub fn encode_device() -> [u8; 4] {
    header(0)
}

/// Reads [`Mark::Device`].
pub fn decode_device(bytes: &[u8]) -> Result<(), UnknownMark> {
    split::<0>(bytes, Mark::Device).map(|_| ())
}

/// [`Mark::Nlink`]: `01 00 00 00`, difference i32.
pub fn encode_nlink(delta: i32) -> [u8; 8] {
    join(&header(0), &delta.to_le_bytes())
}

/// Reads [`Mark::Nlink`].
pub fn decode_nlink(bytes: &[u8]) -> Result<i32, UnknownMark> {
    let (_, delta) = split::<4>(bytes, Mark::Nlink)?;
    Ok(i32::from_le_bytes(delta))
}

/// What an upper was written over: its marks mean nothing over anything else.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub struct Stamp {
    /// The stack of layers.
    pub chain: ChainId,
    /// How the merged tree of that stack was numbered ([`Tree::numbering`](crate::tree::Tree::numbering)).
    pub numbering: u16,
}

impl Stamp {
    /// [`Mark::Stamp`]: `01 00`, numbering u16, chain id.
    pub fn encode(&self) -> [u8; 36] {
        join(&header(self.numbering), self.chain.0.as_bytes())
    }

    /// Reads [`Mark::Stamp`].
    pub fn decode(bytes: &[u8]) -> Result<Self, UnknownMark> {
        let [version, zero, rest @ ..] = bytes else {
            return Err(UnknownMark(Mark::Stamp));
        };
        let Some((numbering, chain)) = rest.split_first_chunk::<2>() else {
            return Err(UnknownMark(Mark::Stamp));
        };
        let Ok(chain) = <[u8; 32]>::try_from(chain) else {
            return Err(UnknownMark(Mark::Stamp));
        };
        if (*version, *zero) != (VERSION, 0) {
            return Err(UnknownMark(Mark::Stamp));
        }
        Ok(Self {
            chain: ChainId(Sha256Digest::from_bytes(chain)),
            numbering: u16::from_le_bytes(*numbering),
        })
    }
}

fn header(extra: u16) -> [u8; 4] {
    let [low, high] = extra.to_le_bytes();
    [VERSION, 0, low, high]
}

fn join<const N: usize>(head: &[u8], rest: &[u8]) -> [u8; N] {
    let mut bytes = [0; N];
    for (to, from) in bytes.iter_mut().zip(head.iter().chain(rest)) {
        *to = *from;
    }
    bytes
}

fn split<const N: usize>(bytes: &[u8], mark: Mark) -> Result<([u8; 4], [u8; N]), UnknownMark> {
    let (head, rest) = bytes.split_first_chunk::<4>().ok_or(UnknownMark(mark))?;
    match (<[u8; N]>::try_from(rest), *head == header(0)) {
        (Ok(rest), true) => Ok((*head, rest)),
        _ => Err(UnknownMark(mark)),
    }
}

/// Both namespaces are escaped whichever the marks are in, so that an upper read in the other one later has no forged mark.
const GUARDED: [&[u8]; 2] = [b"trusted.overlay.", b"user.overlay."];

const ESCAPE: &[u8] = b"overlay.";

/// The name that an attribute set through the mount is stored under. overlayfs's way: `trusted.overlay.x` becomes
/// `trusted.overlay.overlay.x`.
pub fn escape(name: &[u8]) -> Vec<u8> {
    for prefix in GUARDED {
        if let Some(rest) = name.strip_prefix(prefix) {
            return [prefix, ESCAPE, rest].concat();
        }
    }
    name.to_vec()
}

/// The name that a stored attribute is shown under; None for a mark.
pub fn unescape(name: &[u8]) -> Option<Vec<u8>> {
    for prefix in GUARDED {
        if let Some(rest) = name.strip_prefix(prefix) {
            return rest
                .strip_prefix(ESCAPE)
                .map(|rest| [prefix, rest].concat());
        }
    }
    Some(name.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        use std::fmt::Write as _;
        bytes.iter().fold(String::new(), |mut text, byte| {
            write!(text, "{byte:02x}").unwrap();
            text
        })
    }

    #[test]
    fn marks_have_these_bytes_for_ever() {
        let golden = include_str!("../../../fixtures/golden/upper/marks.txt");
        let object = ObjectId::from_bytes(std::array::from_fn(|i| u8::try_from(i).unwrap()));
        let chain = ChainId(Sha256Digest::from_bytes(std::array::from_fn(|i| {
            0xff - u8::try_from(i).unwrap()
        })));
        let written = [
            ("origin", hex(&encode_origin(TreeIno(0x0102_0304)))),
            ("data", hex(&encode_data(object))),
            (
                "stamp",
                hex(&Stamp {
                    chain,
                    numbering: 0x0102,
                }
                .encode()),
            ),
            ("device", hex(&encode_device())),
            ("nlink", hex(&encode_nlink(-2))),
        ];
        let written: String = written
            .map(|(name, bytes)| format!("{name} {bytes}\n"))
            .concat();
        assert_eq!(written, golden);
    }

    #[test]
    fn what_was_written_is_read_back_and_nothing_else_is() {
        let chain = ChainId(Sha256Digest::of(b"chain"));
        let stamp = Stamp {
            chain,
            numbering: 7,
        };
        assert_eq!(Stamp::decode(&stamp.encode()), Ok(stamp));
        assert_eq!(decode_origin(&encode_origin(TreeIno(9))), Ok(TreeIno(9)));
        assert_eq!(
            decode_data(&encode_data(ObjectId::of(b"x"))),
            Ok(ObjectId::of(b"x"))
        );
        assert_eq!(decode_nlink(&encode_nlink(-3)), Ok(-3));
        assert_eq!(decode_device(&encode_device()), Ok(()));
        for bytes in [
            &b""[..],
            b"y",
            &[2, 0, 0, 0, 1, 2, 3, 4],
            &[1, 1, 0, 0, 1, 2, 3, 4],
            &[1, 0, 0, 0, 1, 2, 3, 4, 5],
        ] {
            assert_eq!(decode_origin(bytes), Err(UnknownMark(Mark::Origin)));
            assert_eq!(decode_data(bytes), Err(UnknownMark(Mark::Data)));
            assert_eq!(decode_nlink(bytes), Err(UnknownMark(Mark::Nlink)));
            assert_eq!(decode_device(bytes), Err(UnknownMark(Mark::Device)));
            assert_eq!(Stamp::decode(bytes), Err(UnknownMark(Mark::Stamp)));
        }
    }

    #[test]
    fn names_go_there_and_back() {
        for (shown, stored) in [
            ("user.mime", "user.mime"),
            ("trusted.overlay.opaque", "trusted.overlay.overlay.opaque"),
            ("user.overlay.overlay.x", "user.overlay.overlay.overlay.x"),
            ("security.capability", "security.capability"),
            ("trusted.overlayx", "trusted.overlayx"),
        ] {
            assert_eq!(escape(shown.as_bytes()), stored.as_bytes());
            assert_eq!(unescape(stored.as_bytes()), Some(shown.as_bytes().to_vec()));
        }
        for mark in [
            "trusted.overlay.opaque",
            "user.overlay.cowl.origin",
            "trusted.overlay.metacopy",
        ] {
            assert_eq!(unescape(mark.as_bytes()), None);
        }
    }
}
