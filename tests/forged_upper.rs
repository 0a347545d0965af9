//! Others can write to an upper, a plain directory, while it is not mounted: whatever its marks
//! say, a mount of it answers, with errors where they make no sense, and the worker never crashes.

use cowl_tests::command::{python, run, shell};
use cowl_tests::profile::{directory, root, user};
use cowl_tests::sample::seeds;
use cowl_tests::store::Store;

/// Ways to forge one upper, drawn for each point.
const FORGERIES: u64 = 40;

const CONTENT: &str = r"
mkdir -p content/dir/sub content/other
for i in 1 2 3 4 5 6; do head -c $((i * 5000)) /bin/bash > content/dir/$i; done
ln content/dir/1 content/other/linked; ln -s dir/2 content/link; echo deep > content/dir/sub/file
";

/// Leaves marks of every kind behind.
const CHANGES: &str = r"
chmod 600 dir/1; echo more >> dir/2; rm dir/3; mv dir/4 other/moved; mv dir/sub other/sub2; ln dir/5 other/five
mkdir dir/sub; echo new > dir/sub/new; chmod 711 other; touch -d @5 dir/6
";

/// Changes, removes, swaps and invents marks of the upper `argv[1]`, as the seed `argv[2]` has it.
const FORGE: &str = r#"
import os, random, sys
upper, draw = sys.argv[1], random.Random(int(sys.argv[2]))
places = [upper]
for at, directories, files in os.walk(upper):
    places += [os.path.join(at, name) for name in directories + files]
marks = []
for place in places:
    for name in os.listxattr(place, follow_symlinks=False):
        if ".overlay." in name: marks.append((place, name, os.getxattr(place, name, follow_symlinks=False)))
if not marks: sys.exit("the upper has no marks")
# The stamp says which image the upper belongs to; a wrong one is refused, so most forgeries leave it alone.
inner = [mark for mark in marks if "stamp" not in mark[1]] or marks
def forge(value):
    value = bytearray(value)
    kind = draw.randrange(6)
    if kind == 0: return b""
    if kind == 1: return bytes(value[:draw.randrange(len(value) + 1)])
    if kind == 2: return bytes(value) + bytes(draw.randrange(256) for _ in range(draw.randrange(1, 200)))
    if kind == 3: return bytes(draw.randrange(256) for _ in range(draw.randrange(1, 64)))
    for _ in range(draw.randrange(1, 4)):
        if value: value[draw.randrange(len(value))] = draw.choice([0, 1, 0x7f, 0xff, draw.randrange(256)])
    return bytes(value)
for _ in range(draw.randrange(1, 6)):
    place, name, value = draw.choice(marks if draw.randrange(10) == 0 else inner)
    other = draw.choice(places)
    try:
        kind = draw.randrange(4)
        if kind == 0: os.setxattr(other, name, value, follow_symlinks=False)
        elif kind == 1 and name in os.listxattr(place, follow_symlinks=False): os.removexattr(place, name, follow_symlinks=False)
        else: os.setxattr(place, name, forge(value), follow_symlinks=False)
    except OSError as error:
        if error.errno not in (1, 34, 95): raise
"#;

/// Reads everything and changes some. ENOTCONN and ECONNABORTED mean that the worker is gone; any
/// other error is an answer.
const USE: &str = r#"
import errno, os, sys
def attempt(call, *arguments):
    try: return call(*arguments)
    except OSError as error:
        if error.errno in (errno.ENOTCONN, errno.ECONNABORTED): sys.exit("the worker is gone: %s" % error)
def read(path):
    with open(path, "rb") as file:
        while file.read(1 << 16): pass
def write(path):
    with open(path, "ab") as file: file.write(b"x")
paths = []
for at, directories, files in os.walk(sys.argv[1], onerror=lambda error: attempt(os.scandir, error.filename)):
    paths += [os.path.join(at, name) for name in directories + files]
for path in paths:
    attempt(os.lstat, path); attempt(os.listxattr, path); attempt(read, path)
for path in paths[::2]:
    attempt(os.chmod, path, 0o755); attempt(write, path); attempt(os.rename, path, path + "~")
for path in paths[1::2]: attempt(os.unlink, path)
os.lstat(sys.argv[1])
os.listdir(sys.argv[1])
"#;

fn forged_upper_is_answered_with_errors() {
    let place = directory();
    shell(&place, CONTENT, [""; 0]);
    let store = Store::new("store");
    store.import_directory(&place.join("content"), "image");
    let objects = store.objects();
    let mount = store.mount_upper("image", "mnt");
    shell(mount.path(), CHANGES, [""; 0]);
    mount.unmount();
    shell(
        &place,
        "mv mnt.upper genuine; ls -d mnt.* >&2 || true",
        [""; 0],
    );

    let (mut mounted, mut refused) = (0, 0);
    for point in seeds(FORGERIES) {
        shell(&place, "rm -rf mnt.* ; cp -a genuine mnt.upper", [""; 0]);
        let upper = place.join("mnt.upper");
        let number = point.number().to_string();
        python(&place, FORGE, [upper.as_os_str(), number.as_ref()]);
        let mut command = store.command(["mount", "image"]);
        let outcome = run(command.arg(place.join("mnt")).arg("--upper").arg(&upper));
        if outcome.code() == 0 {
            mounted += 1;
            python(&place, USE, [place.join("mnt")]);
            store.ok([
                std::ffi::OsStr::new("umount"),
                place.join("mnt").as_os_str(),
            ]);
        } else {
            refused += 1;
            outcome.refused(1);
        }
    }
    assert_eq!(store.objects(), objects, "the image is as it was");
    println!("{mounted} forged uppers mounted, {refused} refused");
    let log = std::fs::read_to_string(store.root().join("mountd.log")).unwrap_or_default();
    assert!(!log.contains("panicked"), "{log}");
}

#[test]
fn forged_upper_is_answered_with_errors_as_root() {
    root(|| forged_upper_is_answered_with_errors());
}

#[test]
fn forged_upper_is_answered_with_errors_as_user() {
    user(|| forged_upper_is_answered_with_errors());
}
