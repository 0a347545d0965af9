//! The page's text.

use super::TestStore;
use crate::html;
use crate::report::Report;
use crate::sharing::Sharing;

/// Bidirectional marks and zero-width characters are escaped in all names on the page: in the
/// treemap, waste and missed files.
#[test]
fn the_page_escapes_what_reorders_text() {
    let store = TestStore::new();
    let file = "f a\u{202e}gpj.exe\u{2066} a10\nf twice\u{200b} a10";
    store.put(&["one"], &[file, file]);
    let collection = store.collect(&[]).unwrap();
    let sharing = Sharing::of(&collection);
    let report = Report::new(&collection, &sharing).unwrap();
    let page = html::page(&collection, &sharing, &report).unwrap();
    for raw in ['\u{202e}', '\u{2066}', '\u{200b}'] {
        assert!(!page.contains(raw), "{raw:?}");
    }
    // JSON doubles a backslash.
    assert!(page.contains(r"a\\u{202e}gpj.exe\\u{2066}"), "{page}");
    assert!(page.contains(r"twice\\u{200b}"), "{page}");
}
