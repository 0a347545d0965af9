//! Errors of import: each names the entry or the offset in the stream.

use std::fmt;
use std::io;

use bstr::BString;
use thiserror::Error;

use crate::tree::BuildError;

/// Why a layer was not imported.
#[derive(Debug, Error)]
pub enum ImportError {
    /// The source failed; what it says is in the source (a decompressor reports damage this way
    /// too).
    #[error("cannot read the layer at byte {offset}")]
    Read {
        /// Bytes of the uncompressed stream read before.
        offset: u64,
        /// What the reader said.
        source: io::Error,
    },
    /// The stream ends inside a header or a content.
    #[error("the layer is cut off: it ends at byte {offset}, in the middle of {what}")]
    Truncated {
        /// Length of the stream.
        offset: u64,
        /// What was being read.
        what: &'static str,
    },
    /// Not even one header, so nothing says that it is a tar.
    #[error("not a tar archive: it has only {length} bytes")]
    Short {
        /// Length of the stream.
        length: u64,
    },
    /// A block that should be a tar header is none, or one that readers would not agree on.
    #[error("{}byte {offset}: {fault}", if *.fault == HeaderFault::Checksum && *.offset == 0 { "not a tar archive: " } else { "malformed tar archive: " })]
    Header {
        /// Where the block begins in the uncompressed stream.
        offset: u64,
        /// What is wrong with it.
        fault: HeaderFault,
    },
    /// An entry that is well framed, but means something we refuse.
    #[error("entry {path:?}: {fault}")]
    Entry {
        /// The name as the archive spells it; printed quoted and escaped, since it may hold
        /// anything.
        path: BString,
        /// What is refused.
        fault: EntryFault,
    },
    /// The layer is larger than the caller allows.
    #[error("the layer has more than {limit} {what}, which is the limit")]
    Limit {
        /// What was counted.
        what: &'static str,
        /// How much is allowed.
        limit: u64,
    },
    /// The content could not be stored.
    #[error("entry {path:?}: cannot store its content")]
    Sink {
        /// The name as the archive spells it.
        path: BString,
        /// What the sink said.
        source: io::Error,
    },
    /// Files of the layer could not be stored.
    #[error("cannot store the files of the layer")]
    Settle(#[source] io::Error),
    /// The system has no thread to read the layer on.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
    /// What was recorded for the recipe cannot be read again.
    #[error("cannot make the layer's recipe")]
    Recipe(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The tree refuses an entry, which the error names: an ancestor is no directory in this
    /// layer, a hard link to a directory, an extended attribute that Linux could not hold, and the
    /// like.
    #[error("entry {0}")]
    Tree(#[from] BuildError),
}

/// What is wrong with a header block or the extended headers before an entry.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum HeaderFault {
    /// Neither the unsigned nor the signed sum of the bytes is what the header says.
    #[error("the header checksum does not match")]
    Checksum,
    /// `ustar` with a version that is neither POSIX nor GNU: readers disagree on its fields.
    #[error("unknown version of the ustar format")]
    Version,
    /// A numeric field that is no number, or one outside the range of the field's meaning.
    #[error("field {0} is not a valid number")]
    Number(&'static str),
    /// One zero block followed by more: the end for some readers, nothing for others.
    #[error("a single zero block inside the archive")]
    LoneZeroBlock,
    /// Two extended headers of one kind for one entry.
    #[error("two {0} headers for one entry")]
    Repeated(&'static str),
    /// A name given by a PAX record and by a GNU long name header: readers disagree on which one
    /// wins.
    #[error("a name given both by PAX and by GNU headers")]
    NamedTwice,
    /// ExtendedHeaders headers that belong to no entry.
    #[error("an extended header without an entry after it")]
    Orphan,
    /// A PAX record that is not `length key=value`.
    #[error("malformed PAX record at byte {0} of its header")]
    PaxRecord(usize),
    /// The value of a PAX key that we honour cannot be what it says.
    #[error("PAX record {key}: invalid value {value:?}")]
    PaxValue {
        /// The key.
        key: BString,
        /// The value, cut to a readable length.
        value: BString,
    },
    /// PAX and header sizes disagree although the header could hold the value: the way files are
    /// smuggled past a scanner.
    #[error("PAX says the size is {pax}, the header says {header}")]
    SizeDisagreement {
        /// Of the `size` record.
        pax: u64,
        /// Of the header block.
        header: u64,
    },
    /// The map of a sparse file makes no sense.
    #[error("sparse map: {0}")]
    Sparse(&'static str),
}

/// What about an entry is refused.
#[derive(Debug, Error)]
pub enum EntryFault {
    /// No name at all.
    #[error("the name is empty")]
    EmptyName,
    /// `..` in a name: nothing that can leave the root is accepted, wherever it would end.
    #[error("{0} contains \"..\" and could escape the root")]
    DotDot(Role),
    /// A NUL byte.
    #[error("{0} contains a NUL byte")]
    Nul(Role),
    /// A component that no Linux filesystem can hold.
    #[error("{0} has a component of more than 255 bytes")]
    LongComponent(Role),
    /// Longer than the limit.
    #[error("{role} is {len} bytes long; the limit is {limit}")]
    LongName {
        /// Which name.
        role: Role,
        /// Its length.
        len: usize,
        /// The limit.
        limit: usize,
    },
    /// More components than the limit.
    #[error("{role} is more than {limit} directories deep")]
    Deep {
        /// Which name.
        role: Role,
        /// The limit.
        limit: usize,
    },
    /// The root is a directory.
    #[error("the root of a layer can only be a directory")]
    RootNotDirectory,
    /// A trailing slash on something else than a directory.
    #[error("the name ends in a slash, but the entry is not a directory")]
    NotDirectory,
    /// A link without a target, or a hard link to the root.
    #[error("the link has no target")]
    NoTarget,
    /// A type that has no meaning in a layer.
    #[error("entries of type {0} are not supported")]
    Type(TypeName),
    /// Data on what some readers take for a directory and others for a file.
    #[error(
        "a name that ends in a dot is a directory's, which cannot have a content, but its size is {0}"
    )]
    UnexpectedContent(u64),
    /// A number outside its range.
    #[error("{field} {value} is out of range")]
    OutOfRange {
        /// Which one.
        field: &'static str,
        /// The value found.
        value: i64,
    },
    /// `.wh.` without a name, or with one that is no name.
    #[error("a whiteout that names nothing")]
    EmptyWhiteout,
    /// A name that only whiteouts may have, on something that is none.
    #[error("names that begin with \".wh.\" are whiteouts, which are empty files; this is {0}")]
    NotWhiteout(&'static str),
}

/// Which name of an entry a fault is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Its own.
    Name,
    /// That of the hard link's target.
    LinkName,
    /// The symbolic link's target.
    Target,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Name => "the name",
            Self::LinkName => "the name of the hard link's target",
            Self::Target => "the symbolic link's target",
        })
    }
}

/// A tar type byte, said as a person would.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TypeName(pub u8);

impl fmt::Display for TypeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let meaning = match self.0 {
            b'D' => " (GNU incremental directory)",
            b'M' => " (continued from another volume)",
            b'N' => " (old GNU long names)",
            b'V' => " (volume label)",
            b'A' => " (Solaris ACL)",
            _ => "",
        };
        write!(f, "'{}'{meaning}", self.0.escape_ascii())
    }
}
