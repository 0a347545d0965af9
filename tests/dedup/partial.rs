//! Archives that lack images they name, disks too small for an archive, and progress on a terminal.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use cowl_tests::busybox::shop;
use cowl_tests::command::{Outcome, binary, python, run, shell};
use cowl_tests::profile::{directory, root};
use cowl_tests::store::{Store, make_image};

use crate::archives::TWO_PLATFORMS;

/// Runs `cowl` in the test's directory.
fn cowl(store: &Path, arguments: &[&str]) -> Outcome {
    let mut cowl = Command::new(binary("cowl"));
    cowl.arg("--root").arg(store).args(arguments);
    run(cowl.current_dir(directory()).stdin(Stdio::null()))
}

/// Unpacks the archive of two platforms; prints the blobs of this machine's layer, configuration
/// and manifest.
const LAYOUT: &str = "
import json, sys, tarfile
tarfile.open(sys.argv[1]).extractall(sys.argv[2])
def blob(descriptor): return 'blobs/sha256/' + descriptor['digest'].split(':')[1]
def document(name): return json.load(open(sys.argv[2] + '/' + name))
manifest = document(blob(document('index.json')['manifests'][0]))['manifests'][0]
image = document(blob(manifest))
print(blob(image['layers'][0]), blob(image['config']), blob(manifest), manifest['platform']['architecture'])
";

/// An image whose blobs are missing from the archive is reported by every reader of the archive,
/// and the rest is listed.
#[test]
fn a_platform_with_missing_blobs_is_reported() {
    root(|| {
        let archive = directory().join("multi.tar");
        python(&directory(), TWO_PLATFORMS, [&archive]);
        for (place, part) in ["layer", "config", "manifest"].iter().enumerate() {
            let layout = directory().join(part);
            let found = python(&directory(), LAYOUT, [&archive, &layout]);
            let found: Vec<&str> = found.split_whitespace().collect();
            let (blob, machine) = (found[place], found[3]);
            fs::remove_file(layout.join(blob)).unwrap();
            let here = format!("./{part}");
            let told = format!(
                "image multi:1 for linux/{machine} is left out: the archive has no {blob}\n"
            );
            let of_archive = format!("cowl-dedup: warning: {here}: {told}");
            let store = directory().join(format!("store-{part}"));
            for command in [&["dedup"][..], &["layers"], &["diff", &here]] {
                let run = cowl(&store, &[command, &[&here]].concat());
                assert_eq!(
                    (run.code(), run.stderr.as_str()),
                    (0, of_archive.as_str()),
                    "{run}"
                );
            }
            for options in [&[][..], &["-q"]] {
                let run = cowl(&store, &[&["load"], options, &["-i", &here]].concat());
                // It is followed by the warning that the rest is for another machine.
                let line = format!("cowl: warning: {told}");
                assert!(run.code() == 0 && run.stderr.starts_with(&line), "{run}");
            }
        }
    });
}

/// The displayed `multi:1 (linux/riscv64)` selects the image, in a store and in an archive; the two
/// images of one name can be compared.
#[test]
fn a_displayed_name_with_platform_selects_its_image() {
    root(|| {
        let archive = directory().join("multi.tar");
        python(&directory(), TWO_PLATFORMS, [&archive]);
        let store = Store::new("store");
        store.load(&archive);
        let machine = if cfg!(target_arch = "aarch64") {
            "arm64"
        } else {
            "amd64"
        };
        let (own, other) = (
            format!("multi:1 (linux/{machine})"),
            "multi:1 (linux/riscv64)",
        );
        let of_archive = format!("./multi.tar:{other}");
        let differs = "C /a  (content 5B -> 7B)\n";
        for sides in [
            &["multi:1", other][..],
            &[&own, other],
            &["./multi.tar:multi:1", &of_archive],
            &["./multi.tar", &of_archive],
            &["./multi.tar"],
        ] {
            let arguments = [&["diff"], sides].concat();
            assert_eq!(cowl(store.root(), &arguments).ok(), differs, "{sides:?}");
        }
        let listed = cowl(store.root(), &["layers", "--json", other]).ok();
        let script = "
import json, sys
print([layer['bytes'] for layer in json.loads(sys.argv[1])['layers']])
";
        assert_eq!(python(&directory(), script, [&listed]), "[7]\n");
        // The report shows its platform, whatever else is given.
        let names = |images: &[&str]| {
            let report = cowl(
                store.root(),
                &[&["dedup", "--json", "--no-ladder"], images].concat(),
            );
            let script = "
import json, sys
print([image['name'] for image in json.loads(sys.argv[1])['images']])
";
            python(&directory(), script, [&report.ok()])
        };
        assert_eq!(names(&[&of_archive]), format!("['{other}']\n"));
        assert_eq!(
            names(&["./multi.tar", &of_archive]),
            format!("['multi:1', '{other}']\n")
        );
        assert_eq!(
            names(&[other, &of_archive]),
            format!("['{other} (store, ./multi.tar)']\n")
        );
        let line = cowl(store.root(), &["layers", "multi:1 (linux/mips)"]).refused(1);
        let expected = "no image multi:1 (linux/mips) in the store; `cowl dedup multi:1` lists";
        assert!(line.contains(expected), "{line}");
        let line = cowl(
            store.root(),
            &["layers", "./multi.tar:multi:1 (linux/mips)"],
        )
        .refused(1);
        assert!(
            line.contains("no image for linux/mips, only for linux/"),
            "{line}"
        );
    });
}

/// A file with an archive's extension is an archive, unless a container has that name. If there is
/// no store, none is created.
#[test]
fn diff_of_one_archive_compares_its_two_images() {
    root(|| {
        let archive = directory().join("two.tar");
        python(&directory(), TWO_PLATFORMS, [&archive]);
        let none = directory().join("none");
        let differs = "C /a  (content 5B -> 7B)\n";
        assert_eq!(cowl(&none, &["diff", "two.tar"]).ok(), differs);
        let failed = cowl(&none, &["diff", "two.tar", "--fail-if", "files>0"]);
        assert_eq!(
            (failed.code(), failed.stdout.as_str()),
            (1, differs),
            "{failed}"
        );
        let line = cowl(&none, &["diff", "two.tar:multi:1"]).refused(1);
        assert!(line.contains("give two images to compare, not 1"), "{line}");
        assert!(!none.exists());
        let store = shop("store");
        store.ok(["create", "--name", "two.tar", "shop", "true"]);
        assert_eq!(cowl(store.root(), &["diff", "two.tar"]).ok(), "");
        store.ok(["rm", "two.tar"]);
        assert_eq!(cowl(store.root(), &["diff", "two.tar"]).ok(), differs);
        let line = cowl(store.root(), &["diff", "none.tar"]).refused(1);
        assert!(line.contains("No such container: none.tar"), "{line}");
    });
}

/// The message names TMPDIR, not the store.
#[test]
fn a_full_scratch_disk_is_named() {
    root(|| {
        let place = directory();
        let make = "
head -c 6000000 /dev/urandom > large; tar -c -f large-layer.tar large; rm large
mkdir small; mount -t tmpfs -o size=3m small small
";
        shell(&place, make, [""; 0]);
        let archive = place.join("large.tar");
        make_image(
            "docker",
            &archive,
            "large:1",
            &[],
            &[&place.join("large-layer.tar")],
        );
        shell(&place, "gzip -1 -k large.tar", [""; 0]);
        let small = place.join("small");
        for name in ["./large.tar", "./large.tar.gz"] {
            let mut dedup = Command::new(binary("cowl-dedup"));
            dedup.args([name, "--ladder"]);
            dedup.env("TMPDIR", &small).current_dir(&place);
            let line = run(dedup.stdin(Stdio::null())).refused(1);
            let expected = format!(
                "cowl-dedup: no space left: {name} is unpacked below {}; free some there, or set TMPDIR to a directory of a larger disk",
                small.display()
            );
            assert_eq!(line.trim_end(), expected);
            assert_eq!(fs::read_dir(&small).unwrap().count(), 0);
        }
        shell(&place, "umount small", [""; 0]);
    });
}

/// An empty TMPDIR counts as unset; a missing directory is named, with what to do.
#[test]
fn an_unusable_tmpdir_is_named() {
    root(|| {
        let archive = directory().join("multi.tar");
        python(&directory(), TWO_PLATFORMS, [&archive]);
        let dedup = |temporary: &str| {
            let mut dedup = Command::new(binary("cowl-dedup"));
            dedup
                .arg(&archive)
                .env("TMPDIR", temporary)
                .current_dir(directory());
            run(dedup.stdin(Stdio::null()))
        };
        assert!(dedup("").ok().contains("multi:1"));
        assert_eq!(
            dedup("/nowhere/at/all").refused(1),
            "cowl-dedup: making a scratch store: /nowhere/at/all (set TMPDIR to a directory that can be written to): No such file or directory"
        );
    });
}

/// Runs a program on a terminal of 100 columns; with `fifo`, sends SIGINT once that is read. Prints
/// its exit status and output.
const TERMINAL: &str = "
import fcntl, os, pty, signal, struct, sys, termios
fifo, *command = sys.argv[1:]
pid, terminal = pty.fork()
if pid == 0:
    fcntl.ioctl(2, termios.TIOCSWINSZ, struct.pack('4H', 24, 100, 0, 0))
    os.environ['TERM'] = 'xterm'
    os.execv(command[0], command)
if fifo:
    writer = open(fifo, 'wb')
    os.kill(pid, signal.SIGINT)
shown = b''
while True:
    try: piece = os.read(terminal, 65536)
    except OSError: break
    if not piece: break
    shown += piece
_, status = os.waitpid(pid, 0)
print(os.waitstatus_to_exitcode(status), shown.decode())
";

/// The progress of reading an archive, and after an interrupt what takes a while.
#[test]
fn a_terminal_shows_reading_and_removing_an_archive() {
    root(|| {
        let archive = directory().join("multi.tar");
        python(&directory(), TWO_PLATFORMS, [&archive]);
        let temporary = directory().join("tmp");
        fs::create_dir(&temporary).unwrap();
        let shown = |fifo: &str, input: &Path| {
            let dedup = binary("cowl-dedup");
            let variable = format!("TMPDIR={}", temporary.display());
            let words = [
                Path::new(fifo),
                Path::new("/usr/bin/env"),
                Path::new(&variable),
            ];
            let command = [dedup.as_path(), Path::new("--only-layers"), input];
            python(&directory(), TERMINAL, words.into_iter().chain(command))
        };
        let read = shown("", &archive);
        assert!(
            read.starts_with("0 ") && read.contains("loading ["),
            "{read}"
        );
        let fifo = directory().join("fifo.tar");
        shell(&directory(), "mkfifo fifo.tar", [""; 0]);
        let ended = shown(fifo.to_str().unwrap(), &fifo);
        let line = format!(
            "removing scratch files: {}/cowl-dedup-",
            temporary.display()
        );
        assert!(ended.starts_with("-2 ") && ended.contains(&line), "{ended}");
        assert_eq!(fs::read_dir(&temporary).unwrap().count(), 0);
    });
}
