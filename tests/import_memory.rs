//! What a command holds in memory is bounded by the number of files, whatever they are.

use cowl_tests::command::python;
use cowl_tests::profile::{directory, root};
use cowl_tests::sample::scale;
use cowl_tests::store::Store;

/// Writes a tar of so many empty files.
const ARCHIVE: &str = "
import sys
def header(name):
    block = bytearray(512)
    block[:len(name)] = name
    block[100:136] = b'0000644\\0' b'0000000\\0' b'0000000\\0' b'00000000000\\0'
    block[136:156] = b'00000000000\\0' b'        '
    block[156:157] = b'0'
    block[257:265] = b'ustar\\0' b'00'
    block[148:156] = b'%06o\\0 ' % sum(block)
    return block
with open(sys.argv[1], 'wb') as archive:
    for number in range(int(sys.argv[2])): archive.write(header(b'dir%d/file%d' % (number // 1000, number)))
    archive.write(bytes(1024))";

/// Runs a program and prints the KiB that it had in memory at most, as the kernel counted them.
const PEAK: &str = "
import os, sys
child = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=[(os.POSIX_SPAWN_OPEN, 1, '/dev/null', os.O_WRONLY, 0)])
_, status, usage = os.wait4(child, 0)
assert status == 0, status
print(usage.ru_maxrss)";

#[test]
fn import_needs_200_bytes_a_file_at_most() {
    root(|| {
        // What a file costs at the worst moment shows with a million: 64 MiB hide it before.
        let files: u64 = if scale() > 1 { 1_000_000 } else { 300_000 };
        let place = directory();
        let archive = place.join("many.tar");
        python(
            &place,
            ARCHIVE,
            [archive.as_os_str(), files.to_string().as_ref()],
        );
        let store = Store::new("store");
        let import = store.command(["import".as_ref(), archive.as_os_str(), "many:1".as_ref()]);
        let program = std::iter::once(import.get_program());
        let run = python(&place, PEAK, program.chain(import.get_args()));
        let peak: u64 = run.trim().parse().unwrap();
        let limit = (64 << 10) + 200 * files / 1024;
        assert!(peak <= limit, "{peak} KiB, {limit} are allowed");
        assert!(peak > 200 * files / 2 / 1024, "{peak} KiB: it did not run");
    });
}
