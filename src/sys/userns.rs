//! Whether this process is in the initial user namespace.

use std::io;

/// Whether this user namespace maps every id to itself, as only the initial one does, or one that
/// may as well be (user_namespaces(7)).
pub fn is_initial() -> io::Result<bool> {
    std::fs::read_to_string("/proc/self/uid_map").map(|map| is_identity(&map))
}

fn is_identity(map: &str) -> bool {
    map.split_ascii_whitespace().eq(["0", "0", "4294967295"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_identity_map_is_the_initial_namespace() {
        assert!(is_identity("         0          0 4294967295\n"));
        assert!(!is_identity("         0       1000          1\n"));
        assert!(!is_identity("         0          0      65536\n"));
        assert!(!is_identity("0 0 4294967295\n1 1 1\n"));
        assert!(!is_identity(""));
    }
}
