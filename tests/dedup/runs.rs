//! How a run ends: its exit code, its errors, and what it leaves.

use std::fs;
use std::os::unix::fs::{FileTypeExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use cowl_tests::busybox::{add_blog, layers, shop};
use cowl_tests::command::{binary, program, python, run, shell};
use cowl_tests::profile::{directory, root, user};
use cowl_tests::store::{Store, make_image};

use crate::load_images;

/// 3 of one's logical bytes are overwritten: far below 1 %, but more than 2 bytes.
#[test]
fn a_condition_that_holds_is_exit_code_1() {
    root(|| {
        let store = Store::new("store");
        load_images(&store);
        let passed = store.run([
            "dedup",
            "one",
            "--fail-if",
            "overwritten>1%",
            "--fail-if",
            "waste>99%",
        ]);
        assert_eq!((passed.code(), passed.stderr.as_str()), (0, ""));
        let failed = store.run(["dedup", "one", "--fail-if", "overwritten>2B"]);
        assert_eq!(failed.code(), 1, "{failed}");
        assert!(
            failed.stdout.contains("one:latest"),
            "the report comes all the same: {failed}"
        );
        assert!(
            failed.stderr.contains("one:latest: overwritten is"),
            "{failed}"
        );
        let line = store.run(["dedup", "--fail-if", "wast>5%"]).refused(125);
        assert!(line.contains("wast"), "{line}");
    });
}

/// Of `cowl diff` as of `cowl layers`: 1 if it holds, with the report all the same, also as JSON.
#[test]
fn conditions_of_layers_and_of_two_images() {
    root(|| {
        let store = Store::new("store");
        load_images(&store);
        // Above their base, three adds gone and srv/again, changes etc/conf, srv/also and sym, and
        // deletes srv/big and opt/b; two adds byte, data and holes.
        for (condition, code) in [
            ("files>9", 1),
            ("files>10", 0),
            ("added>=2", 1),
            ("changed>3", 0),
            ("changed>2", 1),
            ("removed<5", 0),
            ("packages>0", 0),
        ] {
            let run = store.run(["diff", "two", "three", "--fail-if", condition]);
            assert_eq!(run.code(), code, "{condition}: {run}");
            assert!(run.stdout.contains("A /srv/again"), "{condition}: {run}");
            let words = format!(
                "two:latest, three:latest: {}",
                condition.split(['<', '>']).next().unwrap()
            );
            assert_eq!(run.stderr.contains(&words), code == 1, "{condition}: {run}");
        }
        let script = "
import json, sys
r = json.loads(sys.argv[1])
if 'layers' in r: print(r['version'], [(l['number'], l['added'], l['waste_bytes']) for l in r['layers']])
else: print(r['version'], r['a'], r['b'], len(r['files']))
";
        let json = |arguments: &[&str], code| {
            let run = store.run(arguments);
            assert_eq!(run.code(), code, "{run}");
            python(&directory(), script, [&run.stdout])
        };
        let diff = [
            "diff",
            "two",
            "two:latest",
            "--json",
            "--fail-if",
            "files>0",
        ];
        assert_eq!(json(&diff, 0), "1 two two:latest 0\n");
        // three: etc/conf of 3 bytes is replaced, srv/also of 3001 given again; srv/big stays as srv/link,
        // opt/a of 100 is given again and opt/b of 200 deleted.
        let layers = ["layers", "three", "--json", "--fail-if", "waste>1B"];
        assert_eq!(json(&layers, 1), "1 [(1, 8, 203), (2, 1, 3101)]\n");
    });
}

/// `cowl help NAME` is `cowl NAME --help`: a line of usage, every argument, an example, the exit
/// codes.
#[test]
fn help_explains_each_command() {
    root(|| {
        let store = Store::new("store");
        for (command, words) in [
            (
                "dedup",
                [
                    "IMAGE is a name",
                    "ARCHIVE is what",
                    "--fail-if",
                    "cowl dedup ./app.tar",
                ],
            ),
            (
                "layers",
                [
                    "IMAGE is a name",
                    "ARCHIVE is what",
                    "--json",
                    "cowl layers shop",
                ],
            ),
            (
                "diff",
                [
                    "CONTAINER",
                    "archive that need",
                    "--json",
                    "cowl diff shop:1 shop:2",
                ],
            ),
            (
                "tree",
                [
                    "<FILE>",
                    "An index in the store",
                    "--help",
                    "cowl tree /var",
                ],
            ),
        ] {
            let help = store.ok(["help", command]);
            assert_eq!(help, store.ok([command, "--help"]), "{command}");
            assert!(help.contains(&format!("Usage: cowl {command} ")), "{help}");
            assert!(help.contains("Exit codes: 0; 1 for an error"), "{help}");
            for word in words {
                assert!(help.contains(word), "{command}: {word}: {help}");
            }
        }
        let help = store.ok(["help", "layers"]);
        assert!(
            !help.contains("--tui") && !help.contains("--objects"),
            "{help}"
        );
    });
}

/// An option that a way of output has no use for is refused by name.
#[test]
fn options_that_would_change_nothing_are_refused() {
    root(|| {
        let store = shop("store");
        for (arguments, named) in [
            (["dedup", "--tui", "--fail-if", "waste>1%"], "--fail-if"),
            (["dedup", "--diff", "--html", "page.html"], "--html"),
            (["dedup", "--objects", "--waste", "shop"], "--waste"),
            (["layers", "shop", "--ladder", "--bytes"], "--ladder"),
            (["tree", "FILE", "--html", "page.html"], "--html"),
            (["dedup", "--json", "--layers", "shop"], "--layers"),
            (["dedup", "--html", "-", "shop"], "./-"),
            (["dedup", "--json", "--diff", "one"], "not 1"),
            (["layers", "shop", "--html", "page.html"], "'cowl layers'"),
            (["dedup", "shop", "--bytes", "--no-zstd"], "--ladder"),
            (
                ["layers", "shop", "--fail-if", "packages>0"],
                "of two images",
            ),
            (
                ["diff", "shop", "blog", "--fail-if=waste>5%"],
                "of one image",
            ),
            (["diff", "shop", "--fail-if", "files>0"], "<B>"),
            (
                ["diff", "shop", "blog", "--fail-if=files>5%"],
                "a whole number",
            ),
            (["tree", "one", "other", "more"], "'other'"),
        ] {
            let line = store.run(arguments).refused(125);
            assert!(line.contains(named), "{arguments:?}: {line}");
        }
        assert!(!directory().join("page.html").exists());
    });
}

/// `--html` gives a path a new file, but writes to what a link, a pipe or a device is; what it
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
        // The device of /dev/null, by another name.
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

/// A reader that goes early is no error.
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
        // Nor does it change the code of a condition that holds, also where errors go to it.
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
    });
}

/// SIGTERM and SIGINT end a run that holds a lease; nothing of it stays in the store.
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

/// `--tui` whose terminal goes away gives back its lease, although nothing can be written any more.
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

/// Without --root and COWL_ROOT, `cowl-dedup` reads the store that `cowl` makes.
#[test]
fn the_default_store_of_a_user_is_that_of_cowl() {
    user(|| {
        let here = |name: &str| {
            let mut command = Command::new(binary(name));
            command.env_remove("COWL_ROOT").stdin(Stdio::null());
            command
        };
        let archive = layers().join("shop.image.tar");
        for (variable, store) in [("XDG_DATA_HOME", "cowl"), ("HOME", ".local/share/cowl")] {
            let home = directory().join(variable);
            fs::create_dir(&home).unwrap();
            let at_home = |mut command: Command| {
                command.env_remove("XDG_DATA_HOME").env(variable, &home);
                command
            };
            run(at_home(here("cowl"))
                .arg("load")
                .arg("--input")
                .arg(&archive))
            .ok();
            assert!(home.join(store).is_dir(), "{variable}");
            let report = run(&mut at_home(here("cowl-dedup"))).ok();
            assert!(report.contains("shop:latest"), "{variable}: {report}");
        }
    });
}

/// No store, a store of a newer format, an unknown name: one line each.
#[test]
fn mistakes_are_answered_in_one_line() {
    root(|| {
        let store = shop("store");
        let line = store.run(["dedup", "shop:none"]).refused(1);
        assert!(line.contains("no image shop:none in the store"), "{line}");
        let line = store.run(["dedup", "nothere.tar"]).refused(1);
        assert!(
            line.contains("no image nothere.tar:latest in the store")
                && line.contains("./nothere.tar"),
            "{line}"
        );
        let empty = Store::new("nothing");
        let line = run(Command::new(binary("cowl-dedup"))
            .arg("--root")
            .arg(empty.root())
            .stdin(Stdio::null()))
        .refused(1);
        assert!(line.contains("nothing"), "{line}");
        let format = store.root().join("format.json");
        let newer = "
import json, sys
format = json.load(open(sys.argv[1]))
json.dump({**format, 'version': 99}, open(sys.argv[1], 'w'))
";
        python(&directory(), newer, [&format]);
        let line = store.run(["dedup"]).refused(1);
        assert!(line.contains("99"), "{line}");
    });
}

/// A docker-archive of two images without names: the one has a file twice, the other once.
const UNNAMED: &str = r"
import hashlib, io, json, sys, tarfile
files, manifest = {}, []
for paths in ('ab', 'a'):
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode='w') as archive:
        for path in paths:
            info = tarfile.TarInfo(path)
            info.size = 3
            archive.addfile(info, io.BytesIO(b'abc'))
    digest = hashlib.sha256(layer.getvalue()).hexdigest()
    config = json.dumps({'architecture': 'amd64', 'os': 'linux', 'config': {},
                         'rootfs': {'type': 'layers', 'diff_ids': ['sha256:' + digest]}}).encode()
    name = hashlib.sha256(config).hexdigest() + '.json'
    files.update({name: config, digest + '/layer.tar': layer.getvalue()})
    manifest.append({'Config': name, 'RepoTags': [], 'Layers': [digest + '/layer.tar']})
files['manifest.json'] = json.dumps(manifest).encode()
with tarfile.open(sys.argv[1], 'w') as archive:
    for name, data in files.items():
        info = tarfile.TarInfo(name)
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
";

/// Images without names, of one archive: each has its id behind the path.
#[test]
fn unnamed_images_of_one_archive_are_told_apart_by_their_ids() {
    root(|| {
        let unnamed = directory().join("unnamed.tar");
        python(&directory(), UNNAMED, [&unnamed]);
        let report = run(Command::new(binary("cowl-dedup"))
            .arg("--json")
            .arg(&unnamed)
            .stdin(Stdio::null()))
        .ok();
        let script = "
import json, sys
r = json.loads(sys.argv[1])
ids = [i['id'].split(':')[1][:12] for i in r['images']]
print([i['name'] for i in r['images']] == [sys.argv[2] + ' ' + i for i in ids], sorted(i['waste_bytes'] for i in r['images']))
";
        let seen = python(&directory(), script, [Path::new(&report), &unnamed]);
        assert_eq!(seen, "True [0, 3]\n");
        // Its two images are compared if it is alone; beside another it is no side.
        let compared = run(Command::new(binary("cowl-dedup"))
            .arg("--diff")
            .arg(&unnamed)
            .stdin(Stdio::null()));
        // Which is the first is by their ids.
        let compared = compared.ok();
        assert!(
            ["A /b\n", "D /b\n"].contains(&compared.as_str()),
            "{compared}"
        );
        let line = run(Command::new(binary("cowl-dedup"))
            .arg("--diff")
            .args([&unnamed, &unnamed])
            .stdin(Stdio::null()))
        .refused(1);
        assert!(line.contains("unnamed.tar has 2, not 1"), "{line}");
        let failed = run(Command::new(binary("cowl-dedup"))
            .args(["--fail-if", "duplicate>2B"])
            .arg(&unnamed)
            .stdin(Stdio::null()));
        assert_eq!(failed.stderr.lines().count(), 1, "{failed}");
    });
}

/// Figures of archives that were never imported are those of the imported images, in whatever form
/// they come, and no store is needed. Nothing stays in TMPDIR.
#[test]
fn archives_are_read_without_a_store() {
    root(|| {
        let store = shop("store");
        add_blog(&store);
        let temporary = directory().join("tmp");
        fs::create_dir(&temporary).unwrap();
        let report = |images: &[PathBuf], at: &Path| {
            let dedup = Command::new(binary("cowl-dedup"))
                .args(["--json", "--root"])
                .arg(at)
                .args(images)
                .env("TMPDIR", &temporary)
                .stdin(Stdio::null())
                .output()
                .unwrap();
            assert!(
                dedup.status.success(),
                "{}",
                String::from_utf8_lossy(&dedup.stderr)
            );
            String::from_utf8(dedup.stdout).unwrap()
        };
        let archives = ["blog", "shop"].map(|name| layers().join(format!("{name}.image.tar")));
        let imported = report(&[], store.root());
        assert_eq!(report(&archives, Path::new("/nowhere")), imported);
        let layout = directory().join("layout");
        let base = layers().join("base.tar");
        make_image(
            "oci",
            &layout,
            "one:1",
            &[],
            &[&base, &layers().join("shop.tar")],
        );
        let of_layout = report(std::slice::from_ref(&layout), Path::new("/nowhere"));
        assert!(of_layout.contains("one:1"), "{of_layout}");
        let here = run(Command::new(binary("cowl-dedup"))
            .args(["--json", "."])
            .env("TMPDIR", &temporary)
            .current_dir(&layout)
            .stdin(Stdio::null()));
        assert_eq!(here.ok(), of_layout);
        // Two archives with the same name are two images, told apart by their paths.
        let again = directory().join("again.tar");
        make_image("docker", &again, "one:1", &[], &[&base]);
        let mut diff = Command::new(binary("cowl-dedup"));
        diff.args(["--json", "--diff"]).args([&again, &layout]);
        diff.env("TMPDIR", &temporary).stdin(Stdio::null());
        let script = "
import json, sys
r = json.loads(sys.argv[1])
print(r['a'] == 'one:1 (%s)' % sys.argv[2], r['b'] == 'one:1 (%s)' % sys.argv[3], {f['change'] for f in r['files']})
";
        let compared = run(&mut diff).ok();
        let arguments = [Path::new(&compared), &again, &layout];
        let seen = python(&directory(), script, arguments);
        assert_eq!(seen, "True True {'added'}\n", "{compared}");
        // Beside images of the store: the blog of the store is the same image.
        let both = report(&["shop".into(), archives[0].clone()], store.root());
        let script = "
import json, sys
r = json.loads(sys.argv[1])
print([i['name'].split('/')[0] for i in r['images']], r['matrix'][0]['jaccard'] > 0.9, r['unattributed_bytes'],
      r['in_shared_layers'] == json.loads(sys.argv[2])['in_shared_layers'])
";
        let seen = python(&directory(), script, [both, imported]);
        assert_eq!(
            seen,
            "['shop:latest', 'blog:latest (store, '] True 0 True\n"
        );
        assert_eq!(fs::read_dir(&temporary).unwrap().count(), 0);
    });
}

/// A truncated archive, and what is none: one line, and nothing stays. A signal while an archive is
/// read, and a run that was killed: nothing stays after the next.
#[test]
fn archives_that_end_early_leave_nothing() {
    root(|| {
        let temporary = directory().join("tmp");
        fs::create_dir(&temporary).unwrap();
        let dedup = |archive: &Path| {
            let mut command = Command::new(binary("cowl-dedup"));
            command
                .arg(archive)
                .env("TMPDIR", &temporary)
                .stdin(Stdio::null());
            command
        };
        let left = || fs::read_dir(&temporary).unwrap().count();
        let whole = fs::read(layers().join("shop.image.tar")).unwrap();
        let cut = directory().join("cut.tar");
        fs::write(&cut, &whole[..whole.len() / 2]).unwrap();
        let line = run(&mut dedup(&cut)).refused(1);
        assert!(line.contains("cut.tar is cut off"), "{line}");
        let line = run(&mut dedup(Path::new("/etc/passwd"))).refused(1);
        assert!(
            line.contains("/etc/passwd is not an image archive"),
            "{line}"
        );
        assert_eq!(left(), 0);
        let script = "
import os, signal, subprocess, sys
name, program, fifo, temporary = sys.argv[1:]
if not os.path.exists(fifo): os.mkfifo(fifo)
process = subprocess.Popen([program, fifo], env={**os.environ, 'TMPDIR': temporary})
with open(fifo, 'wb') as writer:
    # It reads the pipe, so its scratch store is there.
    number = getattr(signal, name)
    process.send_signal(number)
    assert process.wait() == -number
";
        let fifo = directory().join("pipe.tar");
        for (signal, files) in [("SIGTERM", 0), ("SIGINT", 0), ("SIGHUP", 0), ("SIGKILL", 1)] {
            let program = binary("cowl-dedup");
            let arguments = [Path::new(signal), &program, &fifo, &temporary];
            python(&directory(), script, arguments);
            assert_eq!(left(), files, "{signal}");
        }
        run(&mut dedup(&layers().join("shop.image.tar"))).ok();
        assert_eq!(left(), 0, "what the killed run left is gone");
        // As after nohup: a signal that it was started to ignore does nothing.
        let script = "
import os, signal, subprocess, sys
program, fifo, temporary, archive = sys.argv[1:]
signal.signal(signal.SIGHUP, signal.SIG_IGN)
process = subprocess.Popen([program, fifo], env={**os.environ, 'TMPDIR': temporary}, stdout=subprocess.DEVNULL)
with open(fifo, 'wb') as writer, open(archive, 'rb') as reader:
    process.send_signal(signal.SIGHUP)
    writer.write(reader.read())
assert process.wait() == 0
";
        let (program, archive) = (binary("cowl-dedup"), layers().join("shop.image.tar"));
        let arguments = [&program, &fifo, &temporary, &archive];
        python(&directory(), script, arguments);
        assert_eq!(left(), 0);
    });
}
