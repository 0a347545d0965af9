//! The container's environment as the launcher reads it: the search path of the program, and
//! whether `HOME` is still to be set. Defaults are the engine's to add. Caller: [`crate::setup`].

/// The value of a variable in a list of `KEY=VALUE`.
pub(crate) fn value<'e>(variables: &'e [Vec<u8>], key: &[u8]) -> Option<&'e [u8]> {
    variables
        .iter()
        .find_map(|variable| variable.strip_prefix(key)?.strip_prefix(b"="))
}

/// Paths to try for a program, in order: its own if it has a slash, else one per directory of
/// `PATH`. None for the empty name, and for a name alone without a `PATH`.
pub(crate) fn search(variables: &[Vec<u8>], name: &[u8]) -> Vec<Vec<u8>> {
    if name.is_empty() {
        return Vec::new();
    }
    if name.contains(&b'/') {
        return vec![name.to_vec()];
    }
    // To a shell an empty directory means the current one. Here that is the image's choice, so it
    // is left out.
    value(variables, b"PATH")
        .unwrap_or_default()
        .split(|byte| *byte == b':')
        .filter(|directory| !directory.is_empty())
        .map(|directory| [directory, b"/", name].concat())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn search_tries_each_directory_of_path() {
        let variables = ["A=1", "PATHS=/a", "PATH=/x::/y"].map(|text| text.as_bytes().to_vec());
        let found = |name: &[u8]| search(&variables, name).concat();
        assert_eq!(search(&variables, b"sh").len(), 2);
        assert_eq!(found(b"sh"), b"/x/sh/y/sh");
        assert_eq!(found(b"./sh"), b"./sh");
        assert_eq!(found(b""), b"");
        assert!(search(&[], b"sh").is_empty());
        assert_eq!(value(&variables, b"PATHS"), Some(&b"/a"[..]));
        assert_eq!(value(&variables, b"P"), None);
    }
}
