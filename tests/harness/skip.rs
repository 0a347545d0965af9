//! Tests that cannot run on this machine. They fail, unless `COWL_ALLOW_SKIP` names them; then they
//! count as skipped in the summary of `make test`.

use std::fs::OpenOptions;
use std::io::Write as _;

use crate::profile::test_path;

/// Fails the running test because of `what` is missing, or records it as skipped; the caller then
/// returns.
#[track_caller]
pub fn skip(missing: &str) {
    let test = test_path();
    let allowed = std::env::var("COWL_ALLOW_SKIP").unwrap_or_default();
    assert!(
        names(&allowed, &test),
        "{missing}. COWL_ALLOW_SKIP={test} skips this test"
    );
    eprintln!("skipped: {missing}");
    if let Some(log) = std::env::var_os("COWL_SKIP_LOG") {
        let mut log = OpenOptions::new().append(true).open(log).unwrap();
        writeln!(log, "{test}: {missing}").unwrap();
    }
}

/// Whether a list names a test by its path or by a module that contains it.
fn names(allowed: &str, test: &str) -> bool {
    allowed.split(',').map(str::trim).any(|name| {
        test.strip_prefix(name)
            .is_some_and(|rest| !name.is_empty() && (rest.is_empty() || rest.starts_with("::")))
    })
}

#[cfg(test)]
mod tests {
    use super::names;

    #[test]
    fn a_list_names_tests_and_their_modules() {
        for (allowed, test, expected) in [
            ("", "a::b", false),
            (",", "a::b", false),
            ("a::b", "a::b", true),
            ("x, a::b", "a::b", true),
            ("a", "a::b", true),
            ("a", "ab", false),
            ("a::b", "a", false),
        ] {
            assert_eq!(names(allowed, test), expected, "{allowed} {test}");
        }
    }
}
