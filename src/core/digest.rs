//! Digests: BLAKE3 names objects of the store, SHA-256 names OCI content.
//!
//! Invariant: the two never mix, and neither do the three meanings of a SHA-256 (one layer, a
//! stack of layers, an image): each is a type of its own. Every module uses these; nothing here
//! does I/O.
//!
//! Texts: an [`ObjectId`] is 64 lower-case hex digits, the others are `sha256:` and 64 of them.
//! Parsing accepts exactly what printing gives, since these texts are compared, used as file names
//! and hashed again.

mod ids;

use std::fmt;
use std::io;
use std::str::FromStr;

use data_encoding::HEXLOWER;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha2::Digest as _;

pub use self::ids::ObjectIds;

/// An invalid digest string.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// The algorithm in front of the colon is missing or another one.
    #[error("\"{}\" is not a sha256 digest (sha256:<64 hex digits>)", .0.escape_debug())]
    Algorithm(String),
    /// Not exactly 64 lower-case hex digits.
    #[error("\"{}\" is not 64 lower-case hex digits", .0.escape_debug())]
    Hex(String),
}

/// Length of both kinds of digest in bytes.
const LEN: usize = 32;

/// The prefix of every OCI digest here.
const SHA256_PREFIX: &str = "sha256:";

fn write_hex(bytes: [u8; LEN], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    write!(f, "{}", HEXLOWER.encode_display(&bytes))
}

fn parse_hex(text: &str) -> Result<[u8; LEN], DigestError> {
    let bytes = HEXLOWER.decode(text.as_bytes()).ok();
    bytes
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or_else(|| DigestError::Hex(text.chars().take(2 * LEN + 8).collect()))
}

/// The BLAKE3 of a file's content: the name of an object in the store.
#[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub struct ObjectId([u8; LEN]);

impl ObjectId {
    /// Wraps a digest that was computed or read elsewhere.
    pub const fn from_bytes(bytes: [u8; LEN]) -> Self {
        Self(bytes)
    }

    /// The raw digest.
    pub const fn as_bytes(&self) -> &[u8; LEN] {
        &self.0
    }

    /// The id of a content that is in memory.
    pub fn of(content: &[u8]) -> Self {
        Self(*blake3::hash(content).as_bytes())
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(self.0, f)
    }
}

impl fmt::Debug for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(self.0, f)
    }
}

impl FromStr for ObjectId {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        parse_hex(text).map(Self)
    }
}

impl Serialize for ObjectId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ObjectId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

/// A SHA-256 as OCI writes it. [`DiffId`], [`ChainId`] and [`ImageId`] say what it is the digest
/// of.
#[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub struct Sha256Digest([u8; LEN]);

impl Sha256Digest {
    /// Wraps a digest that was computed or read elsewhere.
    pub const fn from_bytes(bytes: [u8; LEN]) -> Self {
        Self(bytes)
    }

    /// The raw digest.
    pub const fn as_bytes(&self) -> &[u8; LEN] {
        &self.0
    }

    /// The digest of bytes that are in memory.
    pub fn of(bytes: &[u8]) -> Self {
        Self(sha2::Sha256::digest(bytes).into())
    }

    /// Reads 64 hex digits without `sha256:`, as in file names; none if it is anything else.
    pub fn from_hex(digits: &str) -> Option<Self> {
        parse_hex(digits).ok().map(Self)
    }

    /// The 64 hex digits without `sha256:`, as in file names and short ids.
    pub fn hex(&self) -> String {
        Hex(self.0).to_string()
    }
}

struct Hex([u8; LEN]);

impl fmt::Display for Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(self.0, f)
    }
}

impl fmt::Display for Sha256Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(SHA256_PREFIX)?;
        write_hex(self.0, f)
    }
}

impl fmt::Debug for Sha256Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Sha256Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let hex = text
            .strip_prefix(SHA256_PREFIX)
            .ok_or_else(|| DigestError::Algorithm(text.chars().take(2 * LEN + 16).collect()))?;
        parse_hex(hex).map(Self)
    }
}

impl Serialize for Sha256Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Sha256Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

macro_rules! sha256_meaning {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Sha256Digest);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl FromStr for $name {
            type Err = DigestError;

            fn from_str(text: &str) -> Result<Self, DigestError> {
                text.parse().map(Self)
            }
        }
    };
}

sha256_meaning! {
    /// One layer: the SHA-256 of its *uncompressed* tar, to the last byte of padding.
    DiffId
}
sha256_meaning! {
    /// A stack of layers (OCI image-spec, config.md, "Layer ChainID").
    ChainId
}
sha256_meaning! {
    /// An image: the SHA-256 of its configuration's JSON as received.
    ImageId
}

impl ChainId {
    /// The stack of no layers, for which the image-spec has no name: no SHA-256 is known that is all
    /// zeros.
    pub const NO_LAYERS: Self = Self(Sha256Digest::from_bytes([0; 32]));

    /// The chain of the lowest layer alone.
    pub const fn first(layer: DiffId) -> Self {
        Self(layer.0)
    }

    /// This chain with one more layer on top: the SHA-256 of both texts with a space between.
    #[must_use]
    pub fn extend(self, layer: DiffId) -> Self {
        Self(Sha256Digest::of(format!("{self} {layer}").as_bytes()))
    }

    /// The chain of a whole stack, lowest layer first.
    pub fn of(layers: &[DiffId]) -> Self {
        let Some((lowest, above)) = layers.split_first() else {
            return Self::NO_LAYERS;
        };
        above
            .iter()
            .fold(Self::first(*lowest), |chain, layer| chain.extend(*layer))
    }
}

/// Computes an [`ObjectId`] of a content that arrives in pieces.
#[derive(Debug, Clone, Default)]
pub struct ObjectHasher(blake3::Hasher);

impl ObjectHasher {
    /// A new hasher.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next piece. BLAKE3 is fastest with pieces of 64 KiB or more.
    pub fn update(&mut self, piece: &[u8]) {
        self.0.update(piece);
    }

    /// The id of all pieces so far.
    pub fn finish(self) -> ObjectId {
        ObjectId(*self.0.finalize().as_bytes())
    }
}

impl io::Write for ObjectHasher {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        self.update(piece);
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Computes a [`Sha256Digest`] of bytes that arrive in pieces.
#[derive(Debug, Clone, Default)]
pub struct Sha256Hasher(sha2::Sha256);

impl Sha256Hasher {
    /// A new hasher.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next piece.
    pub fn update(&mut self, piece: &[u8]) {
        self.0.update(piece);
    }

    /// The digest of all pieces so far.
    pub fn finish(self) -> Sha256Digest {
        Sha256Digest(self.0.finalize().into())
    }
}

impl io::Write for Sha256Hasher {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        self.update(piece);
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // FIPS 180-2, appendix B.1, and the BLAKE3 repository's test vector for no input.
    const SHA256_ABC: &str =
        "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    const BLAKE3_EMPTY: &str = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262";

    #[test]
    fn hashers_match_published_vectors() {
        assert_eq!(Sha256Digest::of(b"abc").to_string(), SHA256_ABC);
        assert_eq!(ObjectId::of(b"").to_string(), BLAKE3_EMPTY);
    }

    #[test]
    fn hashers_take_any_split() {
        let mut object = ObjectHasher::new();
        let mut sha256 = Sha256Hasher::new();
        for piece in [b"a".as_slice(), b"", b"bc"] {
            object.update(piece);
            sha256.update(piece);
        }
        assert_eq!(object.finish(), ObjectId::of(b"abc"));
        assert_eq!(sha256.finish(), Sha256Digest::of(b"abc"));
    }

    #[test]
    fn parse_accepts_only_printed_digests() {
        let diff: DiffId = SHA256_ABC.parse().unwrap();
        assert_eq!(diff.to_string(), SHA256_ABC);
        assert_eq!(BLAKE3_EMPTY.parse::<ObjectId>().unwrap(), ObjectId::of(b""));
        let upper = SHA256_ABC.to_uppercase();
        let long = format!("{SHA256_ABC}0");
        let bare = Sha256Digest::of(b"abc").hex();
        let short = &SHA256_ABC.replacen("ad", "", 1);
        let multibyte = format!("sha256:{}", "é".repeat(32));
        for bad in [
            "",
            "sha256:",
            "sha512:00",
            &bare,
            short,
            &upper,
            &long,
            &multibyte,
        ] {
            assert!(bad.parse::<Sha256Digest>().is_err(), "{bad}");
        }
    }

    #[test]
    fn digests_serialize_as_text() {
        let diff: DiffId = SHA256_ABC.parse().unwrap();
        let json = serde_json::to_string(&diff).unwrap();
        assert_eq!(json, format!("\"{SHA256_ABC}\""));
        assert_eq!(serde_json::from_str::<DiffId>(&json).unwrap(), diff);
        assert!(serde_json::from_str::<DiffId>("\"sha256:zz\"").is_err());
    }

    #[test]
    fn chain_id_follows_the_image_spec() {
        let [a, b, c] = [b"a", b"b", b"c"].map(|name| DiffId(Sha256Digest::of(name)));
        let two = Sha256Digest::of(format!("{a} {b}").as_bytes());
        let three = Sha256Digest::of(format!("{two} {c}").as_bytes());
        assert_eq!(ChainId::of(&[]), ChainId::NO_LAYERS);
        assert_eq!(ChainId::of(&[a]), ChainId(a.0));
        assert_eq!(ChainId::of(&[a, b, c]), ChainId(three));
    }
}
