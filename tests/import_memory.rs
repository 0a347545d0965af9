//! A command's memory is bounded by the number of files, whatever they contain.

use std::ffi::OsStr;

use cowl_tests::command::{python, shell};
use cowl_tests::profile::{directory, root};
use cowl_tests::sample::scale;
use cowl_tests::store::Store;

/// Writes a tar of N files: all empty, or each with a unique content.
const ARCHIVE: &str = "
import sys
def header(name, size):
    block = bytearray(512)
    block[:len(name)] = name
    block[100:124] = b'0000644\\0' b'0000000\\0' b'0000000\\0'
    block[124:136] = b'%011o\\0' % size
    block[136:156] = b'00000000000\\0' b'        '
    block[156:157] = b'0'
    block[257:265] = b'ustar\\0' b'00'
    block[148:156] = b'%06o\\0 ' % sum(block)
    return block
path, files, contents = sys.argv[1:]
with open(path, 'wb') as archive:
    for number in range(int(files)):
        content = b'' if contents == 'empty' else b'%d' % number
        archive.write(header(b'dir%d/file%d' % (number // 1000, number), len(content)))
        archive.write(content + bytes(-len(content) % 512))
    archive.write(bytes(1024))";

/// Runs a program and prints its peak memory in KiB, as counted by the kernel.
const PEAK: &str = "
import os, sys
child = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=[(os.POSIX_SPAWN_OPEN, 1, '/dev/null', os.O_WRONLY, 0)])
_, status, usage = os.wait4(child, 0)
assert status == 0, status
print(usage.ru_maxrss)";

fn import_needs_200_bytes_a_file_at_most(contents: &str) {
    // The peak cost per file shows with a million files: below that, the 64 MiB hide it.
    let files: u64 = if scale() > 1 { 1_000_000 } else { 300_000 };
    let place = directory();
    let archive = place.join("many.tar");
    let count = files.to_string();
    let arguments: [&OsStr; 3] = [archive.as_ref(), count.as_ref(), contents.as_ref()];
    python(&place, ARCHIVE, arguments);
    // In memory: a disk takes minutes for so many files, and longer to remove them.
    shell(
        &place,
        "mkdir memory && mount -t tmpfs tmpfs memory",
        [""; 0],
    );
    let store = Store::new("memory/store");
    let import = store.command(["import".as_ref(), archive.as_os_str(), "many:1".as_ref()]);
    let program = std::iter::once(import.get_program());
    let run = python(&place, PEAK, program.chain(import.get_args()));
    shell(&place, "umount memory", [""; 0]);
    let peak: u64 = run.trim().parse().unwrap();
    let limit = (64 << 10) + 200 * files / 1024;
    assert!(peak <= limit, "{peak} KiB, {limit} are allowed");
    assert!(peak > 200 * files / 2 / 1024, "{peak} KiB: it did not run");
}

#[test]
fn import_of_empty_files_needs_200_bytes_each_at_most() {
    root(|| import_needs_200_bytes_a_file_at_most("empty"));
}

#[test]
fn import_of_files_that_all_differ_needs_200_bytes_each_at_most() {
    root(|| import_needs_200_bytes_a_file_at_most("distinct"));
}
