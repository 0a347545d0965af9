//! POSIX: pjdfstest, an external suite of 398 cases, on our mounts.
//!
//! `pjdfstest.expected` lists the failing cases, each with its cause; the test fails if a case is
//! missing from it or listed wrongly. To check the suite on this machine, it also runs on the test
//! directory's own file system, where no case may fail.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use cowl_tests::command::{binary, program, run, shell};
use cowl_tests::host::{has_overlayfs, io_modes};
use cowl_tests::profile::{await_processes, directory, root, user};
use cowl_tests::skip::skip;
use cowl_tests::store::Store;

const CASES: usize = 398;
/// Skipped where pathconf has no limit of links, as on FUSE but not on ext4; so are the 13 `erofs_`
/// cases, which would remount the file system read-only.
const UNBOUNDED: &str = "link::link_count_max";
/// In passthrough this may pass or fail: it depends on whether a program truncated while running
/// crashes before the kernel checks for ETXTBSY (docs/posix.md).
const RACE_IN_PASSTHROUGH: &str = "open::etxtbsy";

#[test]
fn the_hosts_directory_passes_every_case_as_root() {
    root(|| {
        let place = directory().join("plain");
        open_to_all(&place);
        assert_eq!(failing(&place), BTreeSet::new());
    });
}

#[test]
fn a_mount_fails_only_the_listed_cases_as_root() {
    root(|| {
        let expected = listed(include_str!("pjdfstest.expected"));
        for io_mode in io_modes() {
            assert_same(&expected, &failing_on_a_mount(io_mode));
        }
    });
}

/// Over plain directories, as `cowl-mountd` mounts them.
#[test]
fn a_mount_of_plain_directories_fails_only_the_listed_cases_as_root() {
    root(|| {
        let place = directory().join("plain");
        open_to_all(&place);
        for part in ["lower", "upper", "work", "mnt"] {
            open_to_all(&place.join(part));
        }
        let mountd = binary("cowl-mountd");
        let options = "lowerdir=lower,upperdir=upper,workdir=work";
        let mut command = program(mountd.to_str().unwrap(), ["-o", options, "mnt"]);
        run(command.current_dir(&place)).ok();
        let found = failing(&place.join("mnt"));
        shell(&place, "umount mnt", [""; 0]);
        assert_same(&listed(include_str!("pjdfstest.expected")), &found);
    });
}

/// With an upper on the kernel's overlayfs, where whiteouts are files.
#[test]
fn a_mount_with_an_upper_on_overlayfs_fails_only_the_listed_cases_as_root() {
    if !has_overlayfs() {
        return skip("this kernel has no overlayfs");
    }
    root(|| {
        let host = "mount -t overlay overlay -o lowerdir=host.lower,upperdir=host.upper,workdir=host.work host";
        let found = failing_with_an_upper_on(host, "trusted .wh.\n");
        assert_same(&listed(include_str!("pjdfstest.expected")), &found);
    });
}

/// With an upper on a ramfs, where marks are links.
#[test]
fn a_mount_with_an_upper_on_ramfs_fails_only_the_listed_cases_as_root() {
    root(|| {
        let found = failing_with_an_upper_on("mount -t ramfs ramfs host", "links .wh.\n");
        assert_same(&listed(include_str!("pjdfstest.expected")), &found);
    });
}

/// The cases that fail on a mount with an upper on a host file system.
fn failing_with_an_upper_on(host: &str, record: &str) -> BTreeSet<String> {
    let place = directory().join("plain");
    open_to_all(&place);
    for part in [
        "lower",
        "mnt",
        "host",
        "host.lower",
        "host.upper",
        "host.work",
    ] {
        open_to_all(&place.join(part));
    }
    shell(&place, host, [""; 0]);
    for part in ["upper", "work"] {
        open_to_all(&place.join("host").join(part));
    }
    let mountd = binary("cowl-mountd");
    let options = "lowerdir=lower,upperdir=host/upper,workdir=host/work";
    let mut command = program(mountd.to_str().unwrap(), ["-o", options, "mnt"]);
    run(command.current_dir(&place)).ok();
    let found = failing(&place.join("mnt"));
    shell(&place, "umount mnt", [""; 0]);
    await_processes();
    let recorded = shell(&place, "cat host/work/lock; umount host", [""; 0]);
    assert_eq!(recorded, record);
    found
}

/// Most cases change to users that a user namespace of one id does not have; those fail on any
/// file system.
#[test]
fn a_mount_fails_the_cases_of_a_plain_directory_as_user() {
    user(|| {
        let place = directory().join("plain");
        open_to_all(&place);
        let plain = failing(&place);
        assert!(
            plain.len() < CASES / 2,
            "{} cases fail on a plain directory",
            plain.len()
        );
        for io_mode in io_modes() {
            assert_same(&plain, &failing_on_a_mount(io_mode));
        }
    });
}

fn assert_same(expected: &BTreeSet<String>, found: &BTreeSet<String>) {
    let (new, gone): (Vec<_>, Vec<_>) = (
        found.difference(expected).collect(),
        expected.difference(found).collect(),
    );
    assert!(
        new.is_empty() && gone.is_empty(),
        "fail and should not: {new:#?}\nshould fail and do not: {gone:#?}"
    );
}

fn failing_on_a_mount(io_mode: &'static str) -> BTreeSet<String> {
    let content = directory().join(format!("content-{io_mode}"));
    open_to_all(&content);
    let store = Store::new(&format!("store-{io_mode}")).with_io(io_mode);
    store.import_directory(&content, "empty");
    println!("{io_mode}:");
    let mount = store.mount_upper("empty", io_mode);
    let mut found = failing(mount.path());
    mount.unmount();
    if io_mode == "passthrough" {
        found.remove(RACE_IN_PASSTHROUGH);
    }
    found
}

/// The suite switches to other users, who must be able to reach the directory.
fn open_to_all(place: &Path) {
    fs::create_dir(place).unwrap();
    fs::set_permissions(place, Permissions::from_mode(0o755)).unwrap();
}

/// Lines `case  # cause`; the cause is mandatory.
fn listed(text: &str) -> BTreeSet<String> {
    text.lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| match line.split_once(" # ") {
            Some((case, cause)) if !cause.trim().is_empty() => case.trim().to_owned(),
            _ => panic!("pjdfstest.expected: `{line}` names no cause"),
        })
        .collect()
}

/// Names of the cases that fail on a directory.
fn failing(place: &Path) -> BTreeSet<String> {
    let other = directory().join("other");
    if !other.exists() {
        fs::create_dir(&other).unwrap();
        shell(&directory(), "mount -t tmpfs tmpfs other", [""; 0]);
    }
    let suite = std::env::var("COWL_PJDFSTEST")
        .expect("COWL_PJDFSTEST names the suite's binary: `make test` sets it");
    let settings = directory().join("pjdfstest.toml");
    fs::write(&settings, include_str!("pjdfstest.toml")).unwrap();
    let arguments = [
        OsStr::new("-c"),
        settings.as_os_str(),
        OsStr::new("-p"),
        place.as_os_str(),
        OsStr::new("-s"),
        other.as_os_str(),
    ];
    let outcome = run(&mut program(&suite, arguments));
    shell(&directory(), "umount other && rmdir other", [""; 0]);
    let text = &outcome.stdout;
    let failed: BTreeSet<String> = text
        .lines()
        .filter(|line| line.ends_with(" FAILED"))
        .filter_map(|line| line.split_whitespace().next().map(str::to_owned))
        .collect();
    let skipped: BTreeSet<&str> = text
        .lines()
        .filter(|line| line.ends_with(" skipped"))
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    let odd: Vec<_> = skipped
        .iter()
        .filter(|case| !case.contains("erofs_") && **case != UNBOUNDED)
        .collect();
    assert!(odd.is_empty(), "skipped without need: {odd:?}");
    let summary = format!(
        "Summary: {} failed, {} skipped, {} passed, 0 expected failures, {CASES} total",
        failed.len(),
        skipped.len(),
        CASES - skipped.len() - failed.len()
    );
    assert!(
        text.contains(&summary),
        "`{summary}` was to come, but: {outcome}"
    );
    print!("{summary}\n{}", failures_in_short(text));
    failed
}

/// A failed case's name and reason, without its backtrace.
fn failures_in_short(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let mut short = String::new();
    for pair in lines.windows(2).filter(|pair| pair[0].ends_with(" FAILED")) {
        let case = pair[0].split_whitespace().next().unwrap_or_default();
        short.extend([case, ": ", pair[1].trim(), "\n"]);
    }
    short
}
