//! No bytes make a parser panic or loop: the fuzz targets of `fuzz/`, each for a minute in the long
//! tier.

use std::path::Path;
use std::sync::Mutex;
use std::thread;

use cowl_tests::command::{Outcome, program, run};
use cowl_tests::sample::{scale, seed};

/// Seconds that a target runs, before the scale.
const SECONDS: u64 = 6;

#[test]
fn every_parser_survives_its_fuzz_target() {
    let targets = fuzz(&["list"]).ok();
    let targets: Mutex<Vec<String>> = Mutex::new(targets.lines().map(str::to_owned).collect());
    assert!(targets.lock().unwrap().len() >= 10, "{targets:?}");
    let (seconds, seed) = ((SECONDS * scale()).to_string(), seed().to_string());
    let next = || targets.lock().unwrap().pop();
    let failed = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some(target) = next() {
                    let outcome = fuzz(&["run", &target, &seconds, &seed]);
                    print!("{}", outcome.stdout);
                    if outcome.code() != 0 {
                        failed.lock().unwrap().push(outcome.to_string());
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// Runs the fuzz targets' own program, built on the first call.
fn fuzz(arguments: &[&str]) -> Outcome {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let build = ["run", "--quiet", "--release", "--locked", "--manifest-path"];
    let mut command = program("cargo", build);
    command
        .args(["fuzz/Cargo.toml", "--target-dir"])
        .arg(Path::new(env!("CARGO_TARGET_TMPDIR")).join("../fuzz"))
        .arg("--")
        .args(arguments);
    run(command.current_dir(root))
}
