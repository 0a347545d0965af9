//! Text of images. Separate from `show.rs`, since the parsers that use it are fuzzed without the
//! rest of the program.

use std::fmt::Write as _;

/// Text of an image; bytes that are not UTF-8 are shown as `\xNN`.
pub(crate) fn lossy(bytes: &[u8]) -> String {
    let mut shown = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        shown.push_str(chunk.valid());
        for byte in chunk.invalid() {
            if write!(shown, "\\x{byte:02x}").is_err() {
                // Writing to a string cannot fail.
                shown.push('?');
            }
        }
    }
    shown
}
