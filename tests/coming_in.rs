//! What comes in while it comes: from pipes that stall, and what is told of it.

use std::io::Write as _;
use std::process::Stdio;

use cowl_tests::profile::root;
use cowl_tests::store::Store;

/// A pipe that nobody writes to or closes any more is not waited for.
#[test]
fn import_reports_a_bad_tar_at_once_from_a_pipe_that_stalls() {
    root(|| {
        let store = Store::new("store");
        for (kind, head) in [("tar", &[b'x'; 512][..]), ("gzip", b"\x1f\x8b\x08 bad")] {
            let (reader, mut writer) = std::io::pipe().unwrap();
            writer.write_all(head).unwrap();
            let mut command = store.command(["import", "-", "stalled:1"]);
            command.stdin(reader).stderr(Stdio::piped());
            let done = command.spawn().unwrap().wait_with_output().unwrap();
            let message = String::from_utf8_lossy(&done.stderr);
            assert_eq!(done.status.code(), Some(1), "{kind}: {message}");
            assert!(message.contains("standard input"), "{kind}: {message}");
            drop(writer);
        }
        assert!(!store.ok(["images"]).contains("stalled"));
    });
}
