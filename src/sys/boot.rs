//! Which boot of the machine this is.

use std::io::{self, Read as _};

/// random(4).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The id of the machine's boot, as `/proc/sys/kernel/random/boot_id` has it: a UUID.
pub fn id() -> io::Result<String> {
    let mut text = String::with_capacity(64);
    std::fs::File::open(BOOT_ID)?
        .take(64)
        .read_to_string(&mut text)?;
    Ok(text.trim_end().to_owned())
}
