//! Which ids this process's user namespace has.

use std::io;

/// Whether this user namespace maps every id to itself, as only the initial one does, or one that
/// may as well be (user_namespaces(7)).
pub fn is_initial() -> io::Result<bool> {
    std::fs::read_to_string("/proc/self/uid_map").map(|map| is_identity(&map))
}

/// Whether this user namespace has a single user, as `unshare -Ur` makes it: files of all others
/// are those of nobody, and no program can become another user.
pub fn maps_one_id() -> io::Result<bool> {
    std::fs::read_to_string("/proc/self/uid_map").map(|map| is_of_one_id(&map))
}

fn is_of_one_id(map: &str) -> bool {
    let fields: Vec<&str> = map.split_ascii_whitespace().collect();
    matches!(*fields, [_first, _outside, "1"])
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

    #[test]
    fn a_namespace_of_one_id_has_one_line_of_one_id() {
        assert!(is_of_one_id("         0       1000          1\n"));
        assert!(!is_of_one_id("         0          0 4294967295\n"));
        assert!(!is_of_one_id("0 1000 1\n1 100000 65536\n"));
        assert!(!is_of_one_id(""));
    }
}
