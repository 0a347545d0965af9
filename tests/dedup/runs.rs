//! The end of a run: what it writes, and what it leaves.

use std::fs;
use std::os::unix::fs::{FileTypeExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use cowl_tests::busybox::shop;
use cowl_tests::command::{binary, program, python, run, shell};
use cowl_tests::profile::{directory, root};
use cowl_tests::store::make_image;

/// `--html` replaces a plain file, but writes into a link's target, a pipe or a device; a path it
/// cannot write to is named.
#[test]
fn html_replaces_only_plain_files() {
    root(|| {
        let store = shop("store");
        let at = |name: &str| directory().join(name);
        let write = |name: &str| {
            let path = at(name);
            store.run(["dedup", "--no-ladder", "--html", path.to_str().unwrap()])
        };
        fs::write(at("old"), "old").unwrap();
        fs::hard_link(at("old"), at("kept")).unwrap();
        write("old").ok();
        let page = fs::read_to_string(at("old")).unwrap();
        assert!(page.ends_with("</html>\n"), "{page}");
        assert_eq!(fs::read_to_string(at("kept")).unwrap(), "old");
        symlink("old", at("link")).unwrap();
        write("link").ok();
        assert_eq!(fs::read_link(at("link")).unwrap(), Path::new("old"));
        // The null device under another name.
        shell(&directory(), "mknod null c 1 3", [""; 0]);
        write("null").ok();
        assert!(
            fs::metadata(at("null"))
                .unwrap()
                .file_type()
                .is_char_device()
        );
        for (name, what) in [("none/page", "No such file"), (".", "Is a directory")] {
            let line = write(name).refused(1);
            assert!(line.contains(what) && line.contains(name), "{line}");
        }
        let left = shell(&directory(), "ls -A | grep '^\\.' || true", [""; 0]);
        assert_eq!(left, "", "no temporary file stays");
    });
}

/// A reader that closes the pipe early is not an error.
#[test]
fn a_broken_pipe_is_quiet() {
    root(|| {
        let store = shop("store");
        let script =
            "\"$1\" --root \"$2\" dedup $3 2>err | true; [ ${PIPESTATUS[0]} = 0 ] && [ ! -s err ]";
        for option in ["--json", "--help"] {
            let done = program("bash", ["-c", script, "bash"])
                .arg(binary("cowl"))
                .arg(store.root())
                .arg(option)
                .current_dir(directory())
                .status()
                .unwrap();
            assert!(done.success(), "{option}");
        }
        // Nor does it change the exit code of a condition that holds, even if errors go to the same
        // pipe.
        let script = "
import os, subprocess, sys
read, write = os.pipe()
os.close(read)
print(subprocess.run(sys.argv[1:], stdout=write, stderr=write).returncode)
";
        let (dedup, at) = (binary("cowl-dedup"), store.root());
        let options = ["--fail-if", "logical>1B"].map(Path::new);
        let arguments = [dedup.as_path(), Path::new("--root"), at];
        let code = python(&directory(), script, arguments.into_iter().chain(options));
        assert_eq!(code, "1\n");
        // A page for a closed pipe, by path; and to a file, before the tables.
        let script = "
import os, subprocess, sys
read, write = os.pipe()
os.close(read)
done = subprocess.run(sys.argv[1:], stdout=write, stderr=subprocess.PIPE, timeout=60)
print(done.returncode, done.stderr)
with open('both', 'wb') as both: subprocess.run(sys.argv[1:], stdout=both, check=True)
print(open('both').read().partition('</html>\\n')[2].startswith('IMAGE'))
";
        let options = ["--no-ladder", "--html", "/dev/stdout"].map(Path::new);
        let done = python(&directory(), script, arguments.into_iter().chain(options));
        assert_eq!(done, "0 b''\nTrue\n");
    });
}

/// As for GNU's programs, `>&-` is an error if there is output.
#[test]
fn a_closed_standard_output_is_an_error() {
    root(|| {
        let store = shop("store");
        let script = "\"$@\" >&- 2>err; echo $?; cat err >&2";
        for (name, arguments, code) in [
            ("cowl", &["dedup"][..], "1"),
            ("cowl-dedup", &["--json", "--no-ladder"], "1"),
            ("cowl-dedup", &["--objects"], "0"),
            ("cowl-dedup", &["--help"], "1"),
            ("cowl-bench", &["--help"], "1"),
            ("cowl-mountd", &["--help"], "1"),
            ("cowl-mountd", &["--version"], "1"),
            ("cowl-runtime", &["--version"], "125"),
        ] {
            let closed = program("sh", ["-c", script, "sh"])
                .arg(binary(name))
                .args(arguments)
                .env("COWL_ROOT", store.root())
                .current_dir(directory())
                .output()
                .unwrap();
            let ended = String::from_utf8(closed.stdout).unwrap();
            assert_eq!(ended.trim(), code, "{name} {arguments:?}");
        }
    });
}

/// If an object is missing, the ladder covers the rest, the object and its images are named, and
/// the exit code is 1.
#[test]
fn a_missing_object_is_named_with_its_images() {
    root(|| {
        let store = shop("store");
        let script = "
import json, sys
r = json.loads(sys.argv[1])
print(r['ladder'][1]['chunks'], [(u['bytes'], len(u['object']), u['images'], u['error']) for u in r['unreadable']])
";
        let seen = |report: &str| python(&directory(), script, [report]);
        let whole = seen(&store.ok(["dedup", "--json"]));
        let count: u64 = whole.split(' ').next().unwrap().parse().unwrap();
        let remove = "f=$(ls -S objects/*/* | tail -1); stat -c %s $f; rm $f";
        let length = shell(store.root(), remove, [""; 0]);
        let length = length.trim();
        let run = store.run(["dedup", "--json"]);
        assert_eq!(run.code(), 1, "{run}");
        let images = "['shop:latest']";
        let expected = format!("{} [({length}, 64, {images}, 'is missing')]\n", count - 1);
        assert_eq!(seen(&run.stdout), expected);
        let run = store.run(["dedup", "--ladder"]);
        assert_eq!(run.code(), 1, "{run}");
        assert!(run.stdout.contains("without 1 content of"), "{run}");
        assert!(
            run.stderr
                .contains("is missing; it is of image shop:latest"),
            "{run}"
        );
        // Without the ladder no content is read.
        store.ok(["dedup"]);
    });
}

/// Any byte of a layer's index may be part of a size or object id: damage must never give different
/// figures.
#[test]
fn a_damaged_index_is_named_wherever_the_damage_is() {
    root(|| {
        let store = shop("store");
        let find = "echo layers/*/tree-v*";
        let index = shell(store.root(), find, [""; 0]);
        let index = store.root().join(index.split_whitespace().next().unwrap());
        let whole = fs::read(&index).unwrap();
        shell(store.root(), "chmod u+w \"$1\"", [&index]);
        for place in (0..whole.len()).step_by(whole.len() / 40) {
            let mut damaged = whole.clone();
            damaged[place] ^= 0x15;
            fs::write(&index, damaged).unwrap();
            let run = store.run(["dedup", "shop"]);
            assert_eq!(run.code(), 1, "byte {place}: {run}");
            assert!(run.stderr.contains("layer"), "byte {place}: {run}");
        }
    });
}

/// SIGTERM and SIGINT end a run that holds a lease, and leave nothing in the store.
#[test]
fn an_interrupted_report_leaves_nothing() {
    root(|| {
        let store = shop("store");
        let files = || {
            shell(
                store.root(),
                "find pins tmp trash objects -type f | sort",
                [""; 0],
            )
        };
        let before = files();
        for signal in ["TERM", "INT", "HUP"] {
            // The output is a full pipe that is not read, so the lease is held.
            let script = "
import os, signal, subprocess, sys
read, write = os.pipe()
os.set_blocking(write, False)
try:
    while True: os.write(write, b'x' * 4096)
except BlockingIOError: pass
os.set_blocking(write, True)
process = subprocess.Popen(sys.argv[2:], stdout=write)
root = sys.argv[sys.argv.index('--root') + 1]
while not any(name.startswith('held-mount-dedup') for name in os.listdir(root + '/pins')):
    assert process.poll() is None
process.send_signal(getattr(signal, 'SIG' + sys.argv[1]))
print(-process.wait() == getattr(signal, 'SIG' + sys.argv[1]))
";
            let (cowl, at) = (binary("cowl"), store.root());
            let arguments = [
                Path::new(signal),
                &cowl,
                Path::new("--root"),
                at,
                Path::new("dedup"),
                Path::new("--json"),
            ];
            assert_eq!(
                python(&directory(), script, arguments),
                "True\n",
                "SIG{signal}"
            );
            assert_eq!(files(), before, "SIG{signal}");
        }
    });
}

/// The browser redraws its whole screen when the terminal's size changes, and on SIGWINCH without a
/// change: what was drawn before may have been for another size. The size is changed as soon as the
/// first screen appears, so a change between two screens must not be missed.
#[test]
fn a_resized_terminal_is_redrawn() {
    root(|| {
        let store = shop("store");
        let script = r"
import fcntl, os, pty, re, select, signal, struct, sys, termios, time
def resize(fd, columns): fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack('HHHH', 24, columns, 0, 0))
pid, terminal = pty.fork()
if pid == 0:
    resize(0, 90)
    os.environ['TERM'] = 'xterm'
    os.execv(sys.argv[1], sys.argv[1:])
limit, seen = time.monotonic() + 120, b''
def drawn(columns):
    # Since the screen was last cleared: the last of the keys' words, and corners in the last column, with nothing behind it.
    screen = seen.rpartition(b'\x1b[2J')[2].decode(errors='replace')
    places = [int(column) for column in re.findall(r'\x1b\[\d+;(\d+)H', screen)]
    return 'q quit' in screen and '┐' in screen and max(places) <= columns
def wait_for(columns):
    global seen
    while not drawn(columns):
        ready, _, _ = select.select([terminal], [], [], limit - time.monotonic())
        assert ready, seen
        seen += os.read(terminal, 65536)
    seen = b''
try:
    wait_for(90)
    resize(terminal, 50)
    wait_for(50)
    os.kill(pid, signal.SIGWINCH)
    wait_for(50)
    os.write(terminal, b'q')
    while True:
        ready, _, _ = select.select([terminal], [], [], limit - time.monotonic())
        assert ready, 'it goes on'
        try:
            if not os.read(terminal, 65536): break
        except OSError: break
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    pid = None
    print(code)
finally:
    if pid:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
";
        let (cowl, at) = (binary("cowl"), store.root());
        let options = ["dedup", "--tui"].map(Path::new);
        let arguments = [&cowl, Path::new("--root"), at];
        let seen = python(&directory(), script, arguments.into_iter().chain(options));
        assert_eq!(seen, "0\n");
    });
}

/// A line on standard error is one write, so that lines of several programs do not mix. Each write
/// to a SOCK_SEQPACKET socket is one packet.
#[test]
fn an_error_is_written_at_once() {
    root(|| {
        let store = shop("store");
        let script = "
import socket, subprocess, sys
def packets(*command):
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    subprocess.run(command, stderr=theirs, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
    theirs.close()
    return [packet.decode() for packet in iter(lambda: ours.recv(65536), b'')]
dedup, bench, mountd, root = sys.argv[1:]
for command in ([dedup, '--root', root, 'nosuch'], [bench, '--nosuch'], [mountd, '-o', 'nosuch', '/nowhere']):
    written, name = packets(*command), command[0].split('/')[-1]
    print(len(written), all(line.startswith(name + ': ') and line.endswith('\\n') for line in written))
";
        let programs = ["cowl-dedup", "cowl-bench", "cowl-mountd"].map(binary);
        let arguments = programs.iter().map(PathBuf::as_path).chain([store.root()]);
        let seen = python(&directory(), script, arguments);
        assert_eq!(seen, "1 True\n1 True\n1 True\n");
    });
}

/// If its terminal closes, `--tui` releases its lease, although nothing can be written any more.
#[test]
fn a_closed_terminal_ends_the_browser() {
    root(|| {
        let store = shop("store");
        let script = "
import fcntl, os, pty, struct, sys, termios
root = sys.argv[3]
pid, terminal = pty.fork()
if pid == 0:
    fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack('HHHH', 24, 90, 0, 0))
    os.environ['TERM'] = 'xterm'
    os.execv(sys.argv[1], sys.argv[1:])
seen = b''
while b'layer' not in seen: seen += os.read(terminal, 4096)
assert any(name.startswith('held-mount-dedup') for name in os.listdir(root + '/pins'))
os.close(terminal)
_, status = os.waitpid(pid, 0)
code = os.waitstatus_to_exitcode(status)
print(code in (-1, 1, 2), os.listdir(root + '/pins'))
";
        let (cowl, at) = (binary("cowl"), store.root());
        let options = ["dedup", "--tui"].map(Path::new);
        let arguments = [&cowl, Path::new("--root"), at];
        let seen = python(&directory(), script, arguments.into_iter().chain(options));
        assert_eq!(seen, "True []\n");
    });
}

/// If no contents are needed, only an archive's trees are read: no content is written to a file,
/// and nothing is synced. For a ladder each of the 300 contents is a file, still without a sync.
#[test]
fn an_archive_is_not_unpacked_without_need() {
    root(|| {
        let make = "
import io, tarfile
with tarfile.open('many.tar', 'w') as archive:
    for number in range(300):
        info = tarfile.TarInfo(f'f{number}')
        info.size = 5
        archive.addfile(info, io.BytesIO(b'%05d' % number))
";
        python(&directory(), make, [""; 0]);
        let archive = directory().join("many.image.tar");
        make_image(
            "docker",
            &archive,
            "many:1",
            &[],
            &[&directory().join("many.tar")],
        );
        let calls = |arguments: &[&str]| {
            let mut traced = program("strace", ["-f", "-qq", "-o", "calls", "-e"]);
            traced.arg("trace=openat,fsync,fdatasync,syncfs,sync_file_range");
            traced
                .arg(binary("cowl-dedup"))
                .args(arguments)
                .arg(&archive);
            run(traced.current_dir(directory()).stdin(Stdio::null())).ok();
            let calls = fs::read_to_string(directory().join("calls")).unwrap();
            let made = calls
                .lines()
                .filter(|line| line.contains("O_CREAT"))
                .count();
            (
                made,
                calls.lines().filter(|line| line.contains("sync")).count(),
            )
        };
        for arguments in [
            &["--only-layers"][..],
            &["--json", "--no-ladder"],
            &["--waste"],
        ] {
            let (made, synced) = calls(arguments);
            assert!(made < 30, "{arguments:?}: {made} files");
            assert_eq!(synced, 0, "{arguments:?}");
        }
        let (made, synced) = calls(&["--ladder", "--no-zstd"]);
        assert!((300..330).contains(&made), "{made} files");
        assert_eq!(synced, 0);
    });
}
