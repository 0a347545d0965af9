//! A host as Debian ships it: its own kernel, control groups v2 alone, no overlayfs, and in Debian
//! 12 no passthrough. It runs in qemu without KVM (`fixtures/vm.sh`), and what is asked of it is
//! in `fixtures/vm-guest.sh`.

use std::path::{Path, PathBuf};

use cowl_tests::command::{binary, fixture, program, run};

/// What is kept from one run to the next: the unpacked kernel.
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
    // The guest's own last line: a script that ended early with 0 would not have come to it.
    assert_eq!(outcome.code(), 0, "{outcome}");
    assert_eq!(outcome.stdout.lines().last(), Some("all ok"), "{outcome}");
    let checks = outcome
        .stdout
        .lines()
        .filter(|line| line.starts_with("ok: "));
    assert!(checks.count() >= 33, "{outcome}");
}

/// The script's exit status comes out of the machine, so that a check that fails there fails here.
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
