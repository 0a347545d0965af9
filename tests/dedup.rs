//! `cowl dedup`: its figures are those of the archives and of `du`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use cowl_tests::busybox::{add_blog, layers, shop};
use cowl_tests::command::{binary, fixture, program, python, run, shell};
use cowl_tests::profile::{directory, root, user};
use cowl_tests::store::{Store, make_image};

/// Writes layers that have what figures can get wrong: files replaced, deleted, given again with
/// another owner, hard-linked over layers, sparse, twice in one layer, and whiteouts of what was
/// never there.
const LAYERS: &str = r"
import io, sys, tarfile
def layer(name, *entries):
    with tarfile.open(name, 'w', format=tarfile.PAX_FORMAT) as archive:
        for path, kind, value in entries:
            info = tarfile.TarInfo(path)
            info.mtime, info.mode, data = 1, 0o755 if kind == 'dir' else 0o644, None
            if kind == 'dir': info.type = tarfile.DIRTYPE
            elif kind == 'hard': info.type, info.linkname = tarfile.LNKTYPE, value
            elif kind == 'link': info.type, info.linkname = tarfile.SYMTYPE, value
            else:
                data = value.encode() if isinstance(value, str) else value
                info.size = len(data)
                info.uid = 7 if kind == 'owned' else 0
            archive.addfile(info, io.BytesIO(data) if data is not None else None)
big, other = 'B' * 50001, 'O' * 3001
layer('base.tar', ('etc', 'dir', ''), ('etc/conf', 'file', 'old'), ('srv/big', 'file', big), ('srv/link', 'hard', 'srv/big'),
      ('srv/also', 'file', other), ('opt/a', 'file', 'a' * 100), ('opt/b', 'file', 'b' * 200), ('empty', 'file', ''),
      ('sym', 'link', 'etc/conf'))
layer('changes.tar', ('etc/conf', 'file', 'newer'), ('srv/also', 'owned', other), ('srv/.wh.big', 'file', ''),
      ('srv/again', 'hard', 'srv/also'), ('.wh.never', 'file', ''), ('gone/.wh.at-all', 'file', ''),
      ('opt', 'dir', ''), ('opt/.wh..wh..opq', 'file', ''), ('opt/a', 'file', 'a' * 100), ('sym', 'file', 'no link'))
layer('more.tar', ('srv/.wh.link', 'file', ''), ('srv/copy', 'file', other), ('usr/x', 'file', 'a' * 100), ('etc/conf/d', 'file', 'z'))
layer('other.tar', ('data', 'file', other), ('byte', 'file', 'z'), ('holes', 'file', b'\0' * 300000 + b'end'))
layer('alone.tar', ('mine', 'file', 'nothing in common'))
";

/// Loads images of these layers; gives the archives.
fn load_images(store: &Store) -> Vec<PathBuf> {
    let parts = directory().join("parts");
    fs::create_dir(&parts).unwrap();
    python(&parts, LAYERS, [""; 0]);
    let images: [(&str, &str, &[&str]); 5] = [
        ("docker", "one", &["base", "changes", "more"]),
        ("oci", "two", &["base", "other"]),
        ("docker", "three", &["base", "changes"]),
        ("docker", "four", &["alone"]),
        ("oci", "five", &["base", "other", "more"]),
    ];
    let archives = images.map(|(kind, name, layers)| {
        let archive = directory().join(format!("{name}.tar"));
        let layers: Vec<PathBuf> = layers
            .iter()
            .map(|layer| parts.join(format!("{layer}.tar")))
            .collect();
        let layers: Vec<&Path> = layers.iter().map(PathBuf::as_path).collect();
        make_image(kind, &archive, &format!("{name}:latest"), &[], &layers);
        store.load(&archive);
        archive
    });
    archives.into()
}

/// Compares the report on the whole store with what the archives and `du` say.
#[track_caller]
fn check_figures(store: &Store, archives: &[PathBuf]) {
    let report = directory().join("report.json");
    fs::write(&report, store.ok(["dedup", "--json"])).unwrap();
    let objects = store.root().join("objects");
    let arguments = [fixture("dedup.py"), report, objects];
    let script = arguments.iter().chain(archives);
    run(&mut program(
        "python3",
        ["-B"]
            .iter()
            .map(Path::new)
            .chain(script.map(PathBuf::as_path)),
    ))
    .ok();
}

#[test]
fn figures_are_those_of_the_archives_as_root() {
    root(|| {
        let store = Store::new("store");
        let mut archives = load_images(&store);
        add_blog(&store);
        archives.push(layers().join("blog.image.tar"));
        check_figures(&store, &archives);
    });
}

#[test]
fn figures_are_those_of_the_archives_as_user() {
    user(|| {
        let store = Store::new("store");
        let archives = load_images(&store);
        check_figures(&store, &archives);
    });
}

/// Bytes of the files in objects/.
fn object_bytes(store: &Store) -> u64 {
    let script =
        "find objects -type f -print0 | du --bytes --total --files0-from=- | tail -n 1 | cut -f 1";
    shell(store.root(), script, [""; 0]).trim().parse().unwrap()
}

/// A figure of the JSON, by a Python expression.
fn figure(store: &Store, arguments: &[&str], expression: &str) -> String {
    let report = directory().join("figure.json");
    fs::write(
        &report,
        store.ok([&["dedup", "--json"], arguments].concat()),
    )
    .unwrap();
    let script = format!("import json, sys; r = json.load(open(sys.argv[1])); print({expression})");
    python(&directory(), &script, [report]).trim().to_owned()
}

/// Each image in turn: what objects/ loses is what was said.
#[test]
fn removal_frees_what_the_report_says() {
    root(|| {
        let store = Store::new("store");
        load_images(&store);
        for image in ["three", "one", "five", "four", "two"] {
            let said: u64 = figure(&store, &[image], "r['removals'][0]['freed']['bytes']")
                .parse()
                .unwrap();
            let before = object_bytes(&store);
            store.ok(["rmi", image]);
            assert_eq!(before - object_bytes(&store), said, "{image}");
        }
        assert_eq!(object_bytes(&store), 0);
    });
}

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

/// Sizes for a person, or exact ones; no colours in a pipe, colours in a terminal, whose width the
/// table keeps to.
#[test]
fn tables_suit_their_reader() {
    root(|| {
        let store = shop("store");
        let plain = store.ok(["dedup"]);
        assert!(plain.contains("MB") && !plain.contains('\x1b'), "{plain}");
        let exact = store.ok(["dedup", "--bytes"]);
        let stored = figure(&store, &[], "r['images'][0]['stored']['bytes']");
        assert!(exact.contains(&stored), "{exact}");
        let terminal = "
import fcntl, os, pty, struct, sys, termios
pid, fd = pty.fork()
if pid == 0:
    fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack('HHHH', 24, 90, 0, 0))
    os.environ.pop('NO_COLOR', None)
    os.environ['TERM'] = 'xterm-256color'
    os.execv(sys.argv[1], sys.argv[1:])
out = b''
while True:
    try: piece = os.read(fd, 65536)
    except OSError: break
    if not piece: break
    out += piece
os.waitpid(pid, 0)
sys.stdout.write(out.decode())
";
        let name = "registry.example/".to_owned() + &"long/".repeat(12) + "name:latest";
        let base = layers().join("base.tar");
        store.ok(["import", base.to_str().unwrap(), &name]);
        let (cowl, at) = (binary("cowl"), store.root());
        let arguments = [cowl.as_path(), Path::new("--root"), at, Path::new("dedup")];
        let shown = python(&directory(), terminal, arguments);
        assert!(shown.contains("\x1b[1m"), "{shown}");
        let mut bare = String::new();
        let mut escape = false;
        for c in shown.chars() {
            escape |= c == '\x1b';
            if !escape {
                bare.push(c);
            }
            escape &= c != 'm';
        }
        let widest = bare
            .lines()
            .map(|line| line.trim_end().chars().count())
            .max()
            .unwrap();
        assert!(widest <= 90, "{widest} columns: {bare}");
    });
}

/// A reader that goes early is no error.
#[test]
fn a_broken_pipe_is_quiet() {
    root(|| {
        let store = shop("store");
        let script = "\"$1\" --root \"$2\" dedup --json 2>err | true; [ ${PIPESTATUS[0]} = 0 ] && [ ! -s err ]";
        let done = program("bash", ["-c", script, "bash"])
            .arg(binary("cowl"))
            .arg(store.root())
            .current_dir(directory())
            .status()
            .unwrap();
        assert!(done.success());
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
            // The output is a pipe that nobody reads until it is full, so the lease is held.
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

/// No store, a store of a newer format, an unknown name: one line each.
#[test]
fn mistakes_are_answered_in_one_line() {
    root(|| {
        let store = shop("store");
        let line = store.run(["dedup", "shop:none"]).refused(1);
        assert!(line.contains("no image shop:none in the store"), "{line}");
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
        let archives = ["shop", "blog"].map(|name| layers().join(format!("{name}.image.tar")));
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
        let of_layout = report(&[layout], Path::new("/nowhere"));
        assert!(of_layout.contains("one:1"), "{of_layout}");
        // Beside images of the store: the same contents, in both.
        let both = report(&["shop".into(), archives[1].clone()], store.root());
        let script = "
import json, sys
r = json.loads(sys.argv[1])
print([i['name'] for i in r['images']], r['matrix'][0]['jaccard'] > 0.9, r['unattributed_bytes'])
";
        let seen = python(&directory(), script, [both]);
        assert_eq!(seen, "['shop:latest', 'blog:latest'] True 0\n");
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
    });
}

/// Names of files and commands that are markup stay text: the page has its own two scripts only,
/// and loads nothing.
#[test]
fn the_page_takes_no_markup_from_images() {
    root(|| {
        let parts = directory().join("parts");
        fs::create_dir(&parts).unwrap();
        let make = r"
import io, tarfile
with tarfile.open('</script><img src=x onerror=alert(1)>'.replace('/', '') + '.tar', 'w') as archive:
    for name in ('</script><script>alert(1)</script>', '<img src=x onerror=alert(2)>', '\x1b[2J\u202e', '\x3c!--'):
        for copy in 'ab':
            info = tarfile.TarInfo(copy + name.replace('/', ''))
            info.size = len(name.encode())
            archive.addfile(info, io.BytesIO(name.encode()))
";
        python(&parts, make, [""; 0]);
        let layer = fs::read_dir(&parts)
            .unwrap()
            .next()
            .unwrap()
            .unwrap()
            .path();
        let archive = directory().join("hostile.tar");
        make_image("docker", &archive, "hostile:1", &[], &[&layer]);
        let page = directory().join("page.html");
        let mut dedup = Command::new(binary("cowl-dedup"));
        dedup
            .arg(&archive)
            .arg("--all")
            .arg("--html")
            .arg(&page)
            .stdin(Stdio::null());
        let tables = run(&mut dedup).ok();
        assert!(
            !tables.contains('\x1b') && !tables.contains('\u{202e}'),
            "{tables:?}"
        );
        let script = "
import html.parser, json, sys
found = [('', {})]
class Parser(html.parser.HTMLParser):
    def handle_starttag(self, tag, attributes):
        found.append((tag, dict(attributes)))
    def handle_endtag(self, tag):
        found.append(('', {}))
    def handle_data(self, data):
        if found[-1][0] == 'script' and 'type' in found[-1][1]:
            json.loads(data)
            print('alert(2)' in data)
Parser().feed(open(sys.argv[1]).read())
print([tag for tag, _ in found].count('script'), [tag for tag, _ in found].count('img'))
print([attributes for _, attributes in found if {'src', 'href', 'onerror', 'onload'} & set(attributes)])
";
        assert_eq!(python(&directory(), script, [&page]), "True\n2 0\n[]\n");
    });
}

/// `cowl layers`, `diff` and `tree`: the changes of the layers above, and what lists of packages
/// say.
#[test]
fn images_are_compared_and_explained() {
    root(|| {
        let store = Store::new("store");
        load_images(&store);
        let listed = store.ok(["layers", "one"]);
        let row = |number: usize| {
            listed
                .lines()
                .nth(number)
                .unwrap()
                .split_whitespace()
                .collect::<Vec<_>>()
        };
        assert_eq!(row(1)[2..5], ["8", "0", "0"], "{listed}");
        // New: srv/again. Changed: etc/conf, srv/also, opt/a, sym. Gone: srv/big, opt/b.
        assert_eq!(row(2)[2..5], ["1", "4", "2"], "{listed}");
        assert_eq!(row(2).last(), Some(&"changes.tar"));
        let found = store.ok(["diff", "two", "three"]);
        for line in [
            "D /byte",
            "A /srv/again",
            "D /srv/big",
            "C /etc/conf  (content 3B -> 5B)",
            "C /srv/also  (owner 0:0 -> 7:0)",
            "C /sym  (type symlink -> file, content",
        ] {
            assert!(
                found
                    .lines()
                    .any(|found| found.starts_with(line.trim_end_matches(", content"))),
                "{line}: {found}"
            );
        }
        assert_eq!(
            store.ok(["diff", "one", "one:latest"]).lines().count(),
            0,
            "nothing differs"
        );
        let line = store.run(["diff", "one", "nosuch"]).refused(1);
        assert!(line.contains("nosuch"), "{line}");
    });
}

/// Versions of packages in the databases of dpkg, apk and rpm, of which rpm's is an SQLite file that
/// Python's own SQLite writes.
#[test]
fn packages_of_three_databases_are_compared() {
    root(|| {
        let store = Store::new("store");
        let make = r"
import io, os, sqlite3, struct, sys, tarfile
def header(name, version, release, epoch=None):
    entries, data = [], b''
    for tag, kind, value in ((1000, 6, name), (1001, 6, version), (1002, 6, release), (1003, 4, epoch), (1004, 6, 'x' * 9000)):
        if value is None: continue
        entries.append(struct.pack('>IIII', tag, kind, len(data), 1))
        data += struct.pack('>I', value) if kind == 4 else value.encode() + b'\0'
    return struct.pack('>II', len(entries), len(data)) + b''.join(entries) + data
def rpmdb(packages):
    if os.path.exists('db'): os.remove('db')
    with sqlite3.connect('db') as db:
        db.execute('CREATE TABLE other (x)')
        db.execute('CREATE TABLE Packages (hnum INTEGER PRIMARY KEY AUTOINCREMENT, blob BLOB NOT NULL)')
        db.executemany('INSERT INTO Packages (blob) VALUES (?)', [(header(*p),) for p in packages])
    db.close()
    return open('db', 'rb').read()
def layer(name, dpkg, apk, rpm):
    with tarfile.open(name, 'w') as archive:
        for path, data in (('var/lib/dpkg/status', ''.join(f'Package: {n}\nStatus: install ok installed\nVersion: {v}\n\n' for n, v in dpkg).encode()),
                           ('lib/apk/db/installed', ''.join(f'P:{n}\nV:{v}\n\n' for n, v in apk).encode()),
                           ('var/lib/rpm/rpmdb.sqlite', rpmdb(rpm))):
            info = tarfile.TarInfo(path)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
many = [(f'p{n}', '1', '1') for n in range(300)]
layer('one.tar', [('libc6', '2.36-9'), ('dash', '0.5')], [('musl', '1.2.5-r0')], [('bash', '5.1', '2.el9', 7), *many])
layer('two.tar', [('libc6', '2.41-1')], [('musl', '1.2.5-r1'), ('zlib', '1.3')], [*many, ('bash', '5.2', '1.el9', 7)])
";
        let parts = directory().join("parts");
        fs::create_dir(&parts).unwrap();
        python(&parts, make, [""; 0]);
        for name in ["one", "two"] {
            let archive = directory().join(format!("{name}.tar"));
            make_image(
                "docker",
                &archive,
                name,
                &[],
                &[&parts.join(format!("{name}.tar"))],
            );
            store.load(&archive);
        }
        let found = store.ok(["diff", "one", "two"]);
        let packages: Vec<Vec<&str>> = found
            .lines()
            .skip_while(|line| !line.starts_with("KIND"))
            .skip(1)
            .map(|line| line.split_whitespace().collect())
            .collect();
        let expected = [
            ["apk", "musl", "1.2.5-r0", "1.2.5-r1"],
            ["apk", "zlib", "-", "1.3"],
            ["dpkg", "dash", "0.5", "-"],
            ["dpkg", "libc6", "2.36-9", "2.41-1"],
            ["rpm", "bash", "7:5.1-2.el9", "7:5.2-1.el9"],
        ];
        assert_eq!(packages, expected, "{found}");
    });
}

/// `cowl tree`: every name that the second reader of the format finds, and damage is named.
#[test]
fn an_index_is_made_readable() {
    root(|| {
        let store = Store::new("store");
        load_images(&store);
        let trees = shell(
            store.root(),
            "ls -d $PWD/layers/*/tree $PWD/merged/*",
            [""; 0],
        );
        for tree in trees.lines() {
            let shown = store.ok(["tree", tree]);
            let script = "
import subprocess, sys
told = subprocess.run(['python3', '-B', *sys.argv[1:]], check=True, capture_output=True, text=True).stdout
print(len(told.splitlines()))
";
            let names = python(&directory(), script, [fixture("readtree.py"), tree.into()]);
            // Both have a line for the tree, one for the root and one for each name.
            let count: usize = names.trim().parse().unwrap();
            assert_eq!(shown.lines().count(), count, "{tree}: {shown}");
        }
        let broken = directory().join("broken");
        let tree = trees.lines().next().unwrap();
        let mut bytes = fs::read(tree).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&broken, bytes).unwrap();
        let line = store.run(["tree", broken.to_str().unwrap()]).refused(1);
        assert!(line.contains("broken"), "{line}");
    });
}

/// `--tui` in a real terminal: layers and files, a search, a sort, the end. A hostile name is shown
/// as text.
#[test]
fn layers_are_browsed_in_a_terminal() {
    root(|| {
        let store = Store::new("store");
        let archives = load_images(&store);
        let parts = directory().join("parts");
        let make = r"
import io, tarfile
with tarfile.open('evil.tar', 'w') as archive:
    info = tarfile.TarInfo('e\x1b]0;owned\x07vil\x1b[31m')
    info.size = 4
    archive.addfile(info, io.BytesIO(b'evil'))
";
        python(&parts, make, [""; 0]);
        let archive = directory().join("evil.tar");
        make_image("docker", &archive, "evil", &[], &[&parts.join("evil.tar")]);
        drop(archives);
        store.load(&archive);
        let script = r"
import subprocess, sys
socket, *command = sys.argv[1:]
def tmux(*arguments):
    return subprocess.run(['tmux', '-S', socket, *arguments], check=True, capture_output=True, text=True).stdout
def screen(*wanted, without=()):
    # Drawing takes what it takes: the screen is read until it shows what must come.
    while True:
        seen = tmux('capture-pane', '-p')
        if all(text in seen for text in wanted) and not any(text in seen for text in without): return seen
def keys(*names): tmux('send-keys', *names)
tmux('-f', '/dev/null', 'new-session', '-d', '-x', '150', '-y', '30', *command)
tmux('set-option', 'remain-on-exit', 'on')
screen('one:latest (1/2)', 'after layer 1', 'A', 'srv', 'opt', '+8 ~0 -0', 'waste')
keys('Down')
screen('after layer 2', 'changes.tar')
keys('/'); keys('b', 'i', 'g'); keys('Enter')
found = screen('search: big', 'D', 'big', without=('opt',))
assert [line for line in found.splitlines() if 'big' in line and ' D ' in line.replace('│D', ' D')], found
keys('Escape')
screen('opt', without=('search: big',))
keys('s')
by_size = screen('by size')
keys('u')
screen('etc', without=('sym2',))
keys(']')
evil = screen('evil:latest (2/2)', 'vil')
assert '\\u{1b}]0;owned' in evil, evil
assert tmux('display-message', '-p', '#{pane_title}').strip() != 'owned'
keys('q')
while tmux('display-message', '-p', '#{pane_dead}').strip() != '1': pass
assert tmux('display-message', '-p', '#{pane_dead_status}').strip() == '0', tmux('capture-pane', '-p')
tmux('kill-server')
print('done')
";
        let socket = directory().join("tmux");
        let (cowl, at) = (binary("cowl"), store.root());
        let command = ["dedup", "--tui", "one", "evil"].map(Path::new);
        let arguments = [socket.as_path(), &cowl, Path::new("--root"), at];
        assert_eq!(
            python(&directory(), script, arguments.into_iter().chain(command)),
            "done\n"
        );
    });
}
