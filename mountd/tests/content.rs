//! A file's bytes under random use, on a mount and on the host at once: they never differ.
//!
//! In the spirit of fsx: writes, cuts, holes, copies and shared mappings, through descriptors that
//! stay open and through new ones. The file starts as one of the image, so the first change copies
//! it up while it is open.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    clippy::print_stderr,
    missing_docs,
    dead_code,
    unreachable_pub,
    clippy::verbose_file_reads,
    reason = "a test stops at the first surprise and builds its inputs with plain std::fs"
)]

mod common;

use std::fs;
use std::process::Command;

use common::{Image, eventually, modes, noise};

/// Steps a run. Each compares a part, every hundredth all.
const STEPS: u32 = 1200;

const USE: &str = r#"
import mmap, os, random, sys
ours, hosts, seed, steps = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
dice = random.Random(seed)
longest = max(os.path.getsize(ours), 1 << 16) * 3 // 2
FALLOCATE = None

def fallocate(fd, mode, offset, length):
    global FALLOCATE
    if FALLOCATE is None:
        import ctypes
        FALLOCATE = ctypes.CDLL(None, use_errno=True).fallocate64
        FALLOCATE.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    assert FALLOCATE(fd, mode, offset, length) == 0

class Pair:
    """The same file in both places, open for reading and writing."""
    def __init__(self): self.fds = [os.open(path, os.O_RDWR) for path in (ours, hosts)]
    def both(self, act):
        first, second = [act(fd) for fd in self.fds]
        assert first == second, (step, name, first if not isinstance(first, bytes) else 'contents differ')
        return first
    def size(self): return self.both(lambda fd: os.fstat(fd).st_size)
    def close(self): self.both(os.close)

pairs = [Pair(), Pair()]
for step in range(steps):
    pair = dice.choice(pairs)
    name, size = 'size', pair.size()
    offset, length = dice.randrange(longest), dice.randrange(1, 1 << dice.randrange(1, 17))
    name = dice.choice(['write', 'write', 'read', 'read', 'cut', 'punch', 'reserve', 'map', 'append', 'copy', 'sync', 'reopen', 'truncate'])
    if name == 'write':
        data = dice.randbytes(length)
        pair.both(lambda fd: os.pwrite(fd, data, offset))
    elif name == 'read':
        pair.both(lambda fd: os.pread(fd, length, offset))
    elif name == 'cut':
        pair.both(lambda fd: os.ftruncate(fd, offset))
    elif name == 'punch':
        pair.both(lambda fd: fallocate(fd, 3, offset, length))
    elif name == 'reserve' and offset + length < longest:
        pair.both(lambda fd: fallocate(fd, 0, offset, length))
    elif name == 'map' and size > 4096:
        at = dice.randrange(size - 1)
        data = dice.randbytes(min(length, size - at))
        def through(fd):
            with mmap.mmap(fd, size) as view:
                was = view[at:at + len(data)]
                view[at:at + len(data)] = data
                if step % 3 == 0: view.flush()
                return was
        pair.both(through)
    elif name == 'append' and size < longest:
        data = dice.randbytes(min(length, 5000))
        def append(path):
            fd = os.open(path, os.O_WRONLY | os.O_APPEND)
            os.write(fd, data); os.close(fd)
        for path in (ours, hosts): append(path)
    elif name == 'copy' and offset + length < size and size + length < longest:
        pair.both(lambda fd: os.copy_file_range(fd, fd, length, offset, size))
    elif name == 'sync':
        pair.both(lambda fd: os.fsync(fd) if step % 2 else os.fdatasync(fd))
    elif name == 'reopen':
        pair.close()
        pairs[pairs.index(pair)] = Pair()
    elif name == 'truncate':
        for path in (ours, hosts): os.truncate(path, offset)
    if step % 100 == 0:
        name += ', then all'
        dice.choice(pairs).both(lambda fd: os.pread(fd, longest * 2, 0))
for pair in pairs: pair.close()
with open(ours, 'rb') as first, open(hosts, 'rb') as second: assert first.read() == second.read()
"#;

#[test]
fn random_reads_and_writes_match_a_plain_file() {
    for (size, seed) in [(70_000, 1), (3 << 20, 2)] {
        let content = noise(size);
        let image = Image::of(&[("file", &content)]);
        for choice in modes() {
            let upper = choice.name();
            let plain = image.path(&format!("plain-{upper}"));
            fs::write(&plain, &content).unwrap();
            let mount = image.mount_writable(choice, upper);
            let mut command = Command::new("python3");
            command
                .args(["-c", USE])
                .arg(mount.path_for_others("file"))
                .arg(&plain)
                .args([seed.to_string(), STEPS.to_string()]);
            let status = command.status().unwrap();
            assert!(
                status.success(),
                "size {size}, seed {seed}, {:?}",
                mount.io_mode
            );
            assert!(mount.unmount().success());
            let mount = image.mount_writable(choice, upper);
            assert!(
                fs::read(mount.path("file")).unwrap() == fs::read(&plain).unwrap(),
                "after a remount"
            );
            assert!(mount.unmount().success(), "{}", image.log());
        }
    }
}

const MAP: &str = r"
import mmap, os, sys
ours, host = sys.argv[1:]
size = 1 << 20

def shown(path):
    seen = os.stat(path)
    return seen.st_size, seen.st_blocks, seen.st_mtime_ns

def settle():
    # Blocks that are allocated while the host writes its cache out are counted bit by bit.
    file = os.open(host, os.O_RDONLY)
    os.fsync(file)
    os.close(file)

for outlives in (False, True):
    file = os.open(ours, os.O_RDWR | os.O_CREAT)
    os.ftruncate(file, size)
    mapping = mmap.mmap(file, size)
    before = shown(ours)
    if outlives:
        os.close(file)
    for part in range(4):
        begin = part * (size >> 2)
        mapping[begin:begin + 4096] = bytes([part + 1]) * 4096
        mapping.flush()
        settle()
        assert shown(ours) == shown(host), (outlives, part)
    assert shown(ours) != before, outlives
    mapping.close()
    if not outlives:
        os.close(file)
    assert shown(ours) == shown(host), outlives
    os.truncate(ours, 0)
";

/// No request tells of a write through a mapping, so the attributes of a file that is open for
/// writing, or still mapped, are not cached.
#[test]
fn stat_shows_what_was_written_through_a_shared_mapping() {
    let image = Image::of(&[("lower", &noise(1 << 20))]);
    for choice in modes() {
        let upper = choice.name();
        let mount = image.mount_writable(choice, upper);
        if mount.io_mode == cowl_core::handover::IoMode::Writeback {
            continue; // what is held back has no blocks on the host yet
        }
        for name in ["new", "lower"] {
            let host = image.path(upper).join(name);
            let output = Command::new("python3")
                .args(["-c", MAP])
                .args([mount.path_for_others(name), host])
                .output()
                .unwrap();
            let text = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{name}: {text}");
        }
        // Once the RELEASE of the last writer has come, one more GETATTR will do for good.
        let asks = || {
            let before = mount.count("GETATTR");
            fs::metadata(mount.path("new")).unwrap();
            mount.count("GETATTR") > before
        };
        assert!(eventually(|| !asks()), "the kernel asks for ever");
    }
}
