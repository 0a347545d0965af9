//! The log of mounts.

use std::io::Write;

use super::fixture;

#[test]
fn log_appends_and_rotates() {
    let fixture = fixture();
    let mut first = fixture.store.log().unwrap();
    let mut second = fixture.store.log().unwrap();
    first.write_all(b"one\n").unwrap();
    second.write_all(b"two\n").unwrap();
    assert_eq!(
        std::fs::read(fixture.path("mountd.log")).unwrap(),
        b"one\ntwo\n"
    );
    first.write_all(&vec![b'\n'; 2 << 20]).unwrap();

    fixture.store.log().unwrap().write_all(b"new\n").unwrap();
    first.write_all(b"late\n").unwrap();
    assert_eq!(std::fs::read(fixture.path("mountd.log")).unwrap(), b"new\n");
    let old = std::fs::read(fixture.path("mountd.log.old")).unwrap();
    assert!(old.starts_with(b"one\ntwo\n") && old.ends_with(b"\nlate\n"));
    assert_eq!(fixture.store.check(false).unwrap().problems, []);
}
