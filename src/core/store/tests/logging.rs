//! The log of mounts.

use std::io::Write;

use super::*;

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

/// A fifo would hang every mount, and a symbolic link would write elsewhere.
#[test]
fn log_refuses_what_is_no_regular_file() {
    let fixture = fixture();
    let damages: [fn(&Path); 3] = [
        |path| {
            let mode = Mode::RWXU;
            rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, mode, 0)
                .unwrap();
        },
        |path| std::os::unix::fs::symlink("elsewhere", path).unwrap(),
        |path| std::fs::create_dir(path).unwrap(),
    ];
    for damage in damages {
        damage(&fixture.path("mountd.log"));
        let error = fixture.store.log().unwrap_err().to_string();
        assert!(
            error.ends_with("mountd.log is damaged: it is not a regular file; move it away"),
            "{error}"
        );
        let found = fixture.store.check(false).unwrap().problems;
        assert!(
            matches!(&found[..], [Problem::Damaged { path, .. }] if path.ends_with("mountd.log")),
            "{found:?}"
        );
        remove_tree(File::open(fixture.path("")).unwrap(), "mountd.log").unwrap();
    }
    assert!(!fixture.path("elsewhere").exists());
    std::fs::create_dir(fixture.path("mountd.log.old")).unwrap();
    std::fs::write(fixture.path("mountd.log"), vec![b'x'; 2 << 20]).unwrap();
    let error = fixture.store.log().unwrap_err().to_string();
    assert!(error.contains("mountd.log.old is damaged"), "{error}");
}
