//! `load` and `import`: progress, and input that stalls.

use std::io::Write as _;

use cowl_tests::busybox::layers;
use cowl_tests::command::{binary, python, run};
use cowl_tests::profile::{directory, root};
use cowl_tests::store::{Store, make_image};

/// Runs a program with its standard error on a terminal of 100 columns; prints the terminal's
/// output.
const TERMINAL: &str = "
import fcntl, os, pty, struct, sys, termios
pid, terminal = pty.fork()
if pid == 0:
    fcntl.ioctl(2, termios.TIOCSWINSZ, struct.pack('4H', 24, 100, 0, 0))
    os.environ['TERM'] = 'xterm'
    os.execv(sys.argv[1], sys.argv[1:])
shown = b''
while True:
    try: piece = os.read(terminal, 65536)
    except OSError: break
    if not piece: break
    shown += piece
_, status = os.waitpid(pid, 0)
assert status == 0, shown
print(shown.decode())";

#[test]
fn load_and_import_show_a_bar_on_a_terminal_and_nothing_elsewhere() {
    root(|| {
        let base = layers().join("base.tar");
        let archive = directory().join("image.tar");
        make_image("docker", &archive, "shown:1", &[], &[&base]);
        let store = Store::new("store");
        let on_terminal = |arguments: &[&str]| {
            let program = binary("cowl");
            let root = store.root().to_str().unwrap();
            let command = [program.to_str().unwrap(), "--root", root];
            python(&directory(), TERMINAL, command.iter().chain(arguments))
        };
        let other = layers().join("shop.tar");
        let (archive, other) = (archive.to_str().unwrap(), other.to_str().unwrap());
        let shown = on_terminal(&["load", "-i", archive]);
        assert!(
            shown.contains("Loading [") && shown.contains("left"),
            "{shown}"
        );
        assert!(
            shown.trim_end().ends_with("Loaded image: shown:1"),
            "{shown}"
        );
        let shown = on_terminal(&["import", other, "other:1"]);
        assert!(shown.contains("Importing ["), "{shown}");
        assert_eq!(on_terminal(&["load", "-q", "-i", archive]).trim(), "");
        let id = on_terminal(&["import", "-q", other, "other:2"]);
        assert!(id.trim().starts_with("sha256:"), "{id}");
        let plain = store.run(["load", "-i", archive]);
        assert_eq!(plain.stderr, "", "{plain}");
        assert_eq!(plain.ok(), "Loaded image: shown:1\n");
    });
}

/// The writer's end of the pipe stays open, and nothing more comes.
#[test]
fn import_from_a_pipe_that_stalls_fails_at_once() {
    root(|| {
        let store = Store::new("store");
        let tar = [b'x'; 512];
        // A header without a name, and a block of an unknown type.
        let gzip = [&b"\x1f\x8b\x08\0\0\0\0\0\0\x03"[..], &[0xff; 600]].concat();
        for bytes in [&tar[..], &gzip] {
            let (reader, mut writer) = std::io::pipe().unwrap();
            writer.write_all(bytes).unwrap();
            let line = run(store.command(["import", "-", "image"]).stdin(reader)).refused(1);
            assert!(line.starts_with("cowl: "), "{line}");
            drop(writer);
        }
    });
}
