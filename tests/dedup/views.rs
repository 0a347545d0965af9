//! The views: tables, the page, the terminal, and comparisons of images.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};

use cowl_tests::busybox::{layers, shop};
use cowl_tests::command::{binary, fixture, python, run, shell};
use cowl_tests::profile::{directory, root};
use cowl_tests::store::{Store, make_image};

use crate::{figure, load_images};

/// Rounded or exact sizes; no colours in a pipe; colours in a terminal, whose width tables keep to.
#[test]
fn tables_fit_pipe_and_terminal() {
    root(|| {
        let store = shop("store");
        let plain = store.ok(["dedup"]);
        assert!(plain.contains("MB") && !plain.contains('\x1b'), "{plain}");
        // Sizes have the heading SIZE in every table.
        for report in [store.ok(["dedup", "--all"]), store.ok(["layers"])] {
            assert!(
                report.contains("SIZE") && !report.contains("BYTES"),
                "{report}"
            );
        }
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
        // A terminal of unknown width counts as 80 columns.
        for (told, limit) in [("90", 90), ("0", 80)] {
            let terminal = terminal.replace("90", told);
            let shown = python(&directory(), &terminal, arguments);
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
            assert!(widest <= limit, "{widest} columns: {bare}");
        }
    });
}

/// Names and commands that contain markup stay text: the page has only its own two scripts, and
/// loads nothing.
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

/// `cowl layers`, `diff` and `tree`: the layers' changes, and package lists.
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
        // Added: srv/again. Changed: etc/conf, srv/also, opt/a, sym. Deleted: srv/big, opt/b.
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

/// Versions of packages in the databases of dpkg, apk and rpm. One of rpm's is an SQLite file that
/// Python's own SQLite writes, one a recording of rpm's ndb, and one is damaged.
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
def layer(name, dpkg, apk, rpm, more):
    with tarfile.open(name, 'w') as archive:
        for path, data in (more, ('var/lib/dpkg/status', ''.join(f'Package: {n}\nStatus: install ok installed\nVersion: {v}\n\n' for n, v in dpkg).encode()),
                           ('lib/apk/db/installed', ''.join(f'P:{n}\nV:{v}\n\n' for n, v in apk).encode()),
                           ('var/lib/rpm/rpmdb.sqlite', rpmdb(rpm))):
            info = tarfile.TarInfo(path)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
many = [(f'p{n}', '1', '1') for n in range(300)]
layer('one.tar', [('libc6', '2.36-9'), ('dash', '0.5')], [('musl', '1.2.5-r0')], [('bash', '5.1', '2.el9', 7), *many],
      ('usr/lib/sysimage/rpm/Packages.db', open(sys.argv[1], 'rb').read()))
layer('two.tar', [('libc6', '2.41-1')], [('musl', '1.2.5-r1'), ('zlib', '1.3')], [*many, ('bash', '5.2', '1.el9', 7)],
      ('var/lib/rpm/Packages', b'no database'))
";
        let parts = directory().join("parts");
        fs::create_dir(&parts).unwrap();
        python(&parts, make, [fixture("golden/rpm/ndb")]);
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
        let (packages, notes) = packages.split_at(packages.len() - 1);
        let note = notes[0].join(" ");
        assert!(
            note.starts_with("two:latest: /var/lib/rpm/Packages: no rpm database"),
            "{note}"
        );
        let expected = [
            ["apk", "musl", "1.2.5-r0", "1.2.5-r1"].as_slice(),
            &["apk", "zlib", "-", "1.3"],
            &["dpkg", "dash", "0.5", "-"],
            &["dpkg", "libc6", "2.36-9", "2.41-1"],
            &[
                "rpm",
                "bash",
                "7:5.1-2.el9,",
                "7:5.1.8-9.el9",
                "7:5.2-1.el9",
            ],
            &["rpm", "kernel", "5.14.0-70.el9", "-"],
            &["rpm", "zlib", "1.2.11-40.el9", "-"],
        ];
        assert_eq!(packages, expected, "{found}");
    });
}

/// `cowl tree` lists every name that the second reader of the format finds, and reports damage.
#[test]
fn tree_prints_an_index() {
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
        // Neither file is read to its end.
        let sparse = File::create(directory().join("sparse")).unwrap();
        sparse.set_len(1 << 40).unwrap();
        let sparse = directory().join("sparse");
        for none in [sparse.to_str().unwrap(), "/dev/zero"] {
            let line = store.run(["tree", none]).refused(1);
            assert!(line.contains(none) && line.contains("tree"), "{line}");
        }
    });
}

/// `--tui` in a real terminal: layers and files, search, sort, quit. A hostile name is shown as
/// text.
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
import os, subprocess, sys, time
socket, *command = sys.argv[1:]
def tmux(*arguments):
    return subprocess.run(['tmux', '-S', socket, *arguments], check=True, capture_output=True, text=True).stdout
def screen(*wanted, without=(), row=lambda line: True):
    # Drawing takes what it takes, and may be seen half done: the screen is read until it shows all that must come.
    limit = time.monotonic() + 120
    while True:
        seen = tmux('capture-pane', '-p')
        assert time.monotonic() < limit, seen
        if (all(text in seen for text in wanted) and not any(text in seen for text in without)
            and any(row(line) for line in seen.splitlines())): return
def keys(*names): tmux('send-keys', *names)
# tmux 3.3 may miss how a program ends: the shell writes it to a pipe.
os.mkfifo('ended')
keep = '$@; echo $? > ended'
tmux('-f', '/dev/null', 'new-session', '-d', '-x', '150', '-y', '30', 'sh', '-c', keep, 'sh', *command)
tmux('set-option', 'remain-on-exit', 'on')
screen('one:latest (1/2)', 'after layer 1', 'A', 'srv', 'opt', '+8 ~0 -0', 'waste')
keys('Down')
screen('after layer 2', 'changes.tar', 'command of layer 2')
# Both panes have little place, and the command all the same.
tmux('resize-window', '-x', '80', '-y', '24')
screen('command of layer 2', '┐┌ files after layer 2', row=lambda line: line.startswith('│changes.tar'))
tmux('resize-window', '-x', '40', '-y', '12')
screen('layer 2: changes.tar', 'Tab ↑↓ ←→ / s u [ ] q', 'files after layer 2')
tmux('resize-window', '-x', '150', '-y', '30')
screen('after layer 2', 'q quit  wasted: in all layers')
keys('/'); keys('z', 'z', 'z'); keys('Enter')
screen('no match for', '(Esc ends the search)')
keys('Escape')
screen('opt', without=('no match',))
keys('/'); keys('b', 'i', 'g'); keys('Enter')
screen('search: big', without=('opt',), row=lambda line: 'big' in line and ' D ' in line.replace('│D', ' D'))
keys('Escape')
screen('opt', without=('search: big',))
keys('s')
screen('by size')
keys('u')
screen('changes of layer 2', 'etc', without=('sym2',))
keys(']')
screen('evil:latest (2/2)', '\\u{1b}]0;owned')
# In a narrow terminal one pane is above the other, and the keys have several lines.
tmux('resize-window', '-x', '40')
screen('┌ evil:latest (2/2) ──', 'changes of layer 1', '[ ] image', 'q quit', without=('││', '┐┌'))
assert tmux('display-message', '-p', '#{pane_title}').strip() != 'owned'
keys('q')
assert open('ended').read() == '0\n', tmux('capture-pane', '-p')
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

/// An archive on standard input is browsed with keys from the controlling terminal. Whether a key
/// or a signal ends it, the cursor is restored.
#[test]
fn an_archive_of_a_pipe_is_browsed_in_a_terminal() {
    root(|| {
        let script = r"
import fcntl, os, pty, select, signal, struct, sys, termios, time
pid, terminal = pty.fork()
if pid == 0:
    fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack('HHHH', 24, 90, 0, 0))
    os.environ['TERM'] = 'xterm'
    os.dup2(os.open(sys.argv[1], os.O_RDONLY), 0)
    os.execv(sys.argv[2], [sys.argv[2], '--tui', '-'])
limit, seen = time.monotonic() + 120, b''
while True:
    ready, _, _ = select.select([terminal], [], [], limit - time.monotonic())
    assert ready, seen
    try: piece = os.read(terminal, 65536)
    except OSError: break
    if not piece: break
    if b'q quit' not in seen and b'q quit' in seen + piece:
        if sys.argv[3] == 'key': os.write(terminal, b'q')
        else: os.kill(pid, signal.SIGTERM)
    seen += piece
code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
print(code, b'shop' in seen, seen.rfind(b'\x1b[?25h') > seen.rfind(b'\x1b[?25l') >= 0)
";
        let archive = layers().join("shop.image.tar");
        let dedup = binary("cowl-dedup");
        for (end, code) in [("key", 0), ("signal", -15)] {
            let arguments = [archive.as_path(), &dedup, Path::new(end)];
            let seen = python(&directory(), script, arguments);
            assert_eq!(seen, format!("{code} True True\n"), "{end}");
        }
    });
}
