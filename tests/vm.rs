//! A stock Debian host: its own kernel, cgroup v2 only, no overlayfs, and in Debian 12 no
//! passthrough. It runs in qemu without KVM (`fixtures/vm.sh`); `fixtures/vm-guest.sh` has the
//! checks.

use std::path::{Path, PathBuf};

use cowl_tests::command::{binary, fixture, program, run};

/// The cache between runs: the unpacked kernel.
fn cache() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("vm")
}

#[test]
fn containers_mounts_and_limits_work_on_debians_own_kernel() {
    let images = tempfile::tempdir().unwrap();
    run(program(fixture("images.sh").to_str().unwrap(), [""; 0]).arg(images.path())).ok();
    let mut machine = program(fixture("vm.sh").to_str().unwrap(), ["-t", "900"]);
    machine
        .arg(cache())
        .arg(fixture("vm-guest.sh"))
        .args(["cowl", "cowl-mountd", "cowl-runtime"].map(binary))
        .arg(images.path().join("shop.image.tar"));
    let outcome = run(&mut machine);
    print!("{}", outcome.stdout);
    // The guest's last line: a script that ended early with 0 would not print it.
    assert_eq!(outcome.code(), 0, "{outcome}");
    assert_eq!(outcome.stdout.lines().last(), Some("all ok"), "{outcome}");
    let checks = outcome
        .stdout
        .lines()
        .filter(|line| line.starts_with("ok: "));
    assert!(checks.count() >= 33, "{outcome}");
}

/// The machine passes on the script's exit status, so that a check that fails there fails here.
#[test]
fn exit_status_of_the_guest_is_the_machines() {
    let directory = tempfile::tempdir().unwrap();
    let script = directory.path().join("script");
    std::fs::write(&script, "echo before; exit 42\n").unwrap();
    let mut machine = program(fixture("vm.sh").to_str().unwrap(), ["-t", "900"]);
    let outcome = run(machine.arg(cache()).arg(script));
    assert_eq!(
        (outcome.code(), outcome.stdout.as_str()),
        (42, "before\n"),
        "{outcome}"
    );
}
