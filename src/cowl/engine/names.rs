//! Ids and names of containers and volumes.
//!
//! An id is 32 random bytes in hex, of which 12 digits are usually shown. A generated name is an
//! adjective and a garment.

use super::error::{Context, Result};
use data_encoding::HEXLOWER;

const ADJECTIVES: [&str; 32] = [
    "amber", "brisk", "calm", "crisp", "dapper", "deft", "eager", "faded", "gentle", "hazy",
    "ivory", "jaunty", "keen", "lucid", "mellow", "nimble", "opal", "plain", "quiet", "rustic",
    "silken", "smoky", "snug", "spry", "stout", "sunny", "tidy", "velvet", "warm", "woven",
    "young", "zesty",
];

const GARMENTS: [&str; 32] = [
    "anorak",
    "apron",
    "beret",
    "bonnet",
    "boot",
    "cape",
    "cardigan",
    "cloak",
    "clog",
    "coat",
    "cravat",
    "fedora",
    "gaiter",
    "glove",
    "habit",
    "hood",
    "jacket",
    "jerkin",
    "kilt",
    "mantle",
    "mitten",
    "parka",
    "poncho",
    "robe",
    "sash",
    "scarf",
    "shawl",
    "slipper",
    "smock",
    "tunic",
    "vest",
    "waistcoat",
];

/// Number of digits of a short id.
pub(super) const SHORT: usize = 12;

/// A new id: 64 lower-case hex digits.
pub(crate) fn new_id() -> Result<String> {
    let mut bytes = [0_u8; 32];
    getrandom::fill(&mut bytes).context(|| "reading random bytes for an id")?;
    Ok(HEXLOWER.encode(&bytes))
}

/// The first 12 digits of an id.
pub fn short(id: &str) -> &str {
    id.get(..SHORT).unwrap_or(id)
}

/// Generates a name that is not `taken`.
pub(super) fn new_name(taken: impl Fn(&str) -> Result<bool>) -> Result<String> {
    let mut attempt = 0_u32;
    loop {
        let mut bytes = [0_u8; 2];
        getrandom::fill(&mut bytes).context(|| "reading random bytes for a name")?;
        let [first, second] = bytes;
        let name = match attempt {
            0..10 => format!("{}_{}", pick(&ADJECTIVES, first), pick(&GARMENTS, second)),
            // After ten collisions a number makes the name unique.
            _ => format!(
                "{}_{}{attempt}",
                pick(&ADJECTIVES, first),
                pick(&GARMENTS, second)
            ),
        };
        if !taken(&name)? {
            return Ok(name);
        }
        attempt = attempt.saturating_add(1);
    }
}

fn pick<'a>(list: &[&'a str; 32], random: u8) -> &'a str {
    list.get(usize::from(random % 32))
        .copied()
        .unwrap_or("plain")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::is_name;

    #[test]
    fn ids_are_64_hex_digits_and_differ() {
        let (a, b) = (new_id().unwrap(), new_id().unwrap());
        assert!(a.len() == 64 && a.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f')));
        assert_ne!(a, b);
        assert_eq!(short(&a).len(), 12);
    }

    #[test]
    fn generated_names_are_valid_and_numbered_after_collisions() {
        assert!(is_name(&new_name(|_| Ok(false)).unwrap()));
        let name = new_name(|name| Ok(!name.ends_with(|c: char| c.is_ascii_digit()))).unwrap();
        assert!(name.ends_with("10"), "{name}");
    }
}
