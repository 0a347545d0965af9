//! Where there is less: a user namespace, no privilege at all, no `/dev/fuse`. These start other
//! tests, or themselves, in such a place.
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

use std::fs::{self, File};

use common::{Image, USER_NAMESPACE, is_here, modes, there};
use cowl_core::handover::{IoMode, IoModeChoice};
use cowl_tests::host::{has_overlayfs, kernel_has_passthrough};
use cowl_tests::skip::skip;

#[test]
fn mount_in_a_user_namespace_reads_and_writes_without_open() {
    if !is_here() {
        return there(USER_NAMESPACE);
    }
    let image = Image::of(&[("d/old", b"old"), ("d/large", &common::noise(3 << 20))]);
    let mount = image.mount_writable(IoModeChoice::Auto, "upper");
    assert_eq!(mount.io_mode, IoMode::Cached);
    assert_eq!(
        fs::read(mount.path("d/large")).unwrap(),
        common::noise(3 << 20)
    );
    fs::write(mount.path("d/old"), "new").unwrap();
    fs::write(mount.path("d/born"), "born").unwrap();
    fs::rename(mount.path("d/born"), mount.path("d/moved")).unwrap();
    fs::remove_file(mount.path("d/large")).unwrap();
    (0..100).for_each(|_| drop(File::open(mount.path("d/old")).unwrap()));
    // One of each for the kernel to learn that there need be none.
    for (kind, count) in [("OPEN", 1), ("CREATE", 1), ("RELEASE", 0)] {
        assert_eq!(mount.count(kind), count, "{:?}", mount.counts());
    }
    assert_eq!(
        image.refusal(IoModeChoice::Passthrough, None),
        "io=passthrough: it needs root of the initial user namespace"
    );
    assert!(mount.unmount().success());
    let mount = image.mount_writable(IoModeChoice::Auto, "upper");
    assert_eq!(fs::read(mount.path("d/old")).unwrap(), b"new");
    assert_eq!(fs::read(mount.path("d/moved")).unwrap(), b"born");
    assert!(!mount.path("d/large").try_exists().unwrap());
    assert!(mount.unmount().success(), "{}", image.log());
}

/// With a device of its own: the machine's may be open to everyone, as Debian's is.
#[test]
fn mount_without_access_to_dev_fuse_fails_in_one_line() {
    if !is_here() {
        let script = "mount -t tmpfs none /dev && mknod -m 0666 /dev/null c 1 3 && mknod -m 0 /dev/fuse c 10 229 && \
                      setpriv --bounding-set=-dac_override \"$@\"";
        return there(&["unshare", "-m", "sh", "-c", script, "sh"]);
    }
    let error = Image::of(&[]).refusal(IoModeChoice::Auto, None);
    assert_eq!(
        error,
        "cannot open /dev/fuse (it must be readable and writable for this user): Permission denied"
    );
}

#[test]
fn mount_without_cap_sys_admin_fails_in_one_line() {
    if !is_here() {
        return there(&["setpriv", "--bounding-set=-sys_admin"]);
    }
    let error = Image::of(&[]).refusal(IoModeChoice::Auto, None);
    assert_eq!(
        error,
        "no privilege to mount (be root, or run in a user namespace: unshare -Urm): Operation not permitted"
    );
}

#[test]
fn mount_without_dev_fuse_fails_in_one_line() {
    if !is_here() {
        return there(&[
            "unshare",
            "-m",
            "sh",
            "-c",
            "mount -t tmpfs none /dev && mknod /dev/null c 1 3 && \"$@\"",
            "sh",
        ]);
    }
    let error = Image::of(&[]).refusal(IoModeChoice::Auto, None);
    assert_eq!(
        error,
        "cannot open /dev/fuse (is the fuse module loaded? try: modprobe fuse): No such file or directory"
    );
}

#[test]
fn passthrough_over_a_store_on_overlayfs_is_refused() {
    if !is_here() {
        if !has_overlayfs() {
            return skip("this kernel has no overlayfs");
        }
        let script = "t=$(mktemp -d) && mount -t tmpfs none $t && mkdir $t/l $t/u $t/w $t/m && mount -t overlay -o lowerdir=$t/l,upperdir=$t/u,workdir=$t/w none $t/m && \
                      TMPDIR=$t/m \"$@\"; s=$?; umount $t/m $t && rmdir $t; exit $s";
        return there(&["unshare", "-m", "sh", "-c", script, "sh"]);
    }
    let image = Image::of(&[("large", &common::noise(3 << 20))]);
    let refused = image.refusal(IoModeChoice::Passthrough, None);
    let expected = if kernel_has_passthrough() {
        "io=passthrough: store or upper are on overlayfs or FUSE"
    } else {
        "io=passthrough: the kernel does not offer it (it needs Linux 6.9)"
    };
    assert_eq!(refused, expected);
    let mount = image.mount(IoModeChoice::Auto);
    assert_eq!(mount.io_mode, IoMode::Cached);
    assert_eq!(
        fs::read(mount.path("large")).unwrap(),
        common::noise(3 << 20)
    );
    assert!(mount.unmount().success(), "{}", image.log());
}

/// What `/proc/PID/status` says of a process.
fn status(process: u32, name: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    field(&status, name).to_owned()
}

fn field<'s>(status: &'s str, name: &str) -> &'s str {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap().trim()
}

#[test]
fn keeper_and_worker_inherit_no_limits_or_signals() {
    if !is_here() {
        let script = "ulimit -S -f 100; ulimit -S -n 200; ulimit -S -v 8000000; ulimit -t 1000; umask 077; cd /tmp
            trap '' TERM HUP XFSZ; echo 500 > /proc/self/oom_score_adj
            exec env --block-signal=TERM --block-signal=INT --block-signal=CHLD \"$@\"";
        return there(&["bash", "-c", script, "bash"]);
    }
    let image = Image::of(&[("x", b"y")]);
    let mount = image.mount(IoModeChoice::Auto);
    for process in [mount.keeper.id(), mount.worker] {
        assert_eq!(status(process, "SigBlk:"), "0000000000000000");
        // SIGPIPE and SIGXFSZ: what they stand for are errors of system calls.
        assert_eq!(status(process, "SigIgn:"), "0000000001001000");
        let limits = fs::read_to_string(format!("/proc/{process}/limits")).unwrap();
        for limit in [
            "Max cpu time",
            "Max file size",
            "Max address space",
            "Max open files",
        ] {
            let line = limits.lines().find_map(|line| line.strip_prefix(limit));
            let mut words = line.unwrap().split_whitespace();
            assert_eq!(words.next(), words.next(), "{limit}");
        }
        let score = fs::read_to_string(format!("/proc/{process}/oom_score_adj")).unwrap();
        assert_eq!(score, "0\n");
        assert_eq!(status(process, "Umask:"), "0000");
        // Nothing of the caller's keeps it busy, and no terminal of the caller's sends it signals.
        let cwd = fs::read_link(format!("/proc/{process}/cwd")).unwrap();
        assert_eq!(cwd.to_str(), Some("/"));
        let session = fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
        let session = session.rsplit_once(") ").unwrap().1.split(' ').nth(3);
        assert_eq!(session.unwrap(), process.to_string());
    }
    assert!(mount.unmount().success(), "{}", image.log());
}

/// Some kernels back a thread's stack with huge pages, and a worker starts threads as it needs
/// them.
#[test]
fn keeper_and_worker_take_no_huge_pages() {
    let image = Image::of(&[("x", b"y")]);
    let mount = image.mount(IoModeChoice::Auto);
    for process in [mount.keeper.id(), mount.worker] {
        assert_eq!(status(process, "THP_enabled:"), "0");
    }
    assert!(mount.unmount().success(), "{}", image.log());
}

/// Those that serving takes, by their numbers (capability.h).
fn capabilities(names: &[u32]) -> String {
    format!(
        "{:016x}",
        names.iter().fold(0_u64, |set, one| set | 1 << one)
    )
}

const CHOWN: u32 = 0;
const DAC_OVERRIDE: u32 = 1;
const DAC_READ_SEARCH: u32 = 2;
const FOWNER: u32 = 3;
const FSETID: u32 = 4;
const SETGID: u32 = 6;
const SETUID: u32 = 7;
const SYS_ADMIN: u32 = 21;
const MKNOD: u32 = 27;
const LEASE: u32 = 28;
const SETFCAP: u32 = 31;

#[test]
fn keeper_and_worker_keep_only_the_capabilities_they_use() {
    if !is_here() {
        modes().into_iter().for_each(check_capabilities);
        return there(USER_NAMESPACE);
    }
    check_capabilities(IoModeChoice::Auto);
}

fn check_capabilities(choice: IoModeChoice) {
    let image = Image::of(&[("x", b"y")]);
    let writable = image.mount_writable(choice, "upper");
    let read_only = image.mount(choice);
    let mut reading = vec![DAC_READ_SEARCH];
    if read_only.io_mode == IoMode::Passthrough {
        reading.push(SYS_ADMIN);
    }
    let mut writing = vec![
        CHOWN,
        DAC_OVERRIDE,
        DAC_READ_SEARCH,
        FOWNER,
        FSETID,
        SETGID,
        SETUID,
        SYS_ADMIN,
        MKNOD,
        SETFCAP,
    ];
    if writable.io_mode == IoMode::Passthrough {
        writing.push(LEASE);
    }
    // A thread that has answered has been what they become.
    fs::write(writable.path("x"), "changed").unwrap();
    let none = capabilities(&[]);
    let (writing, reading) = (capabilities(&writing), capabilities(&reading));
    for (process, held, effective) in [
        // What a successor of the worker would need, out of effect.
        (writable.keeper.id(), writing.clone(), &none),
        (read_only.keeper.id(), reading.clone(), &none),
        (writable.worker, writing.clone(), &writing),
        (read_only.worker, reading.clone(), &reading),
    ] {
        for thread in fs::read_dir(format!("/proc/{process}/task")).unwrap() {
            // One that was started for a request ends when it is idle.
            let Ok(status) = fs::read_to_string(thread.unwrap().path().join("status")) else {
                continue;
            };
            assert_eq!(field(&status, "CapPrm:"), held);
            assert_eq!(field(&status, "CapEff:"), effective);
            for empty in ["CapInh:", "CapBnd:", "CapAmb:"] {
                assert_eq!(field(&status, empty), none, "{empty}");
            }
            assert_eq!(field(&status, "NoNewPrivs:"), "1");
        }
    }
    assert!(writable.unmount().success(), "{}", image.log());
    assert!(read_only.unmount().success(), "{}", image.log());
}

/// A user namespace that maps every id to itself cannot be told from the initial one by its map;
/// the kernel refuses backing files all the same.
#[test]
fn passthrough_is_refused_where_the_kernel_takes_no_backing_files() {
    if !is_here() {
        let script = "d=$(mktemp -d); mkfifo $d/ready $d/go
            unshare -Um sh -c 'echo > $0/ready; read go < $0/go; exec \"$@\"' $d \"$@\" &
            read ready < $d/ready
            echo 0 0 4294967295 > /proc/$!/uid_map; echo 0 0 4294967295 > /proc/$!/gid_map
            echo > $d/go; wait $!; s=$?; rm -r $d; exit $s";
        return there(&["sh", "-c", script, "sh"]);
    }
    let image = Image::of(&[("large", &common::noise(3 << 20))]);
    for upper in [None, Some("upper")] {
        let said = image.refusal(IoModeChoice::Passthrough, upper);
        let expected = if kernel_has_passthrough() {
            "io=passthrough: the kernel takes no files of this host: Operation not permitted"
        } else {
            "io=passthrough: the kernel does not offer it (it needs Linux 6.9)"
        };
        assert_eq!(said, expected);
        assert!(!image.is_leased());
    }
    let mount = image.mount_writable(IoModeChoice::Auto, "upper");
    assert!(fs::read(mount.path("large")).unwrap() == common::noise(3 << 20));
    assert!(mount.unmount().success(), "{}", image.log());
}
