//! Runs the fuzz targets on stable Rust, without a sanitizer: the code under test is safe Rust, so
//! its bugs are panics, failed debug assertions, endless loops and memory, and no instrumentation
//! is needed to see those.
//!
//! ```text
//! cowl-fuzz list
//! cowl-fuzz run TARGET SECONDS SEED     random changes to the seeds of seeds/TARGET and to
//! fixtures/golden cowl-fuzz one TARGET FILE             one input, as a failure says
//! ```
//!
//! A failing input is written to `$TMPDIR` and the command that repeats it is printed.

mod mutate;
// `cowl-dedup` is a program without a library: its parsers are compiled into this one.
#[path = "../../tools/dedup/lossy.rs"]
mod lossy;
#[path = "../../tools/dedup/packages.rs"]
#[expect(dead_code, reason = "where databases are, and how versions are shown")]
mod packages;
#[path = "../../tools/dedup/rpm/mod.rs"]
mod rpm;
mod targets;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use mutate::Mutator;
use targets::{TARGETS, Target};

/// An input may take this long, debug assertions and a busy machine included; more is an endless
/// loop or close to it.
const INPUT_LIMIT: Duration = Duration::from_secs(20);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["list"] => {
            for target in &TARGETS {
                println!("{}", target.name);
            }
            ExitCode::SUCCESS
        }
        ["run", name, seconds, seed] => match (find(name), seconds.parse(), seed.parse()) {
            (Some(target), Ok(seconds), Ok(seed)) => {
                run(target, Duration::from_secs(seconds), seed)
            }
            _ => usage(),
        },
        ["one", name, file] => match (find(name), fs::read(file)) {
            (Some(target), Ok(input)) => {
                (target.parse)(&input);
                println!("{name}: no failure");
                ExitCode::SUCCESS
            }
            _ => usage(),
        },
        _ => usage(),
    }
}

fn usage() -> ExitCode {
    eprintln!("usage: cowl-fuzz list | run TARGET SECONDS SEED | one TARGET FILE");
    ExitCode::from(2)
}

fn find(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

fn run(target: &Target, time: Duration, seed: u64) -> ExitCode {
    let seeds = targets::seeds(target);
    assert!(!seeds.is_empty(), "{} has no seeds", target.name);
    let mut mutator = Mutator::new(seed);
    let (begin, mut inputs, mut accepted) = (Instant::now(), 0_u64, 0_u64);
    for input in &seeds {
        accepted += u64::from((target.parse)(input));
    }
    assert!(accepted > 0, "{}: no seed is accepted", target.name);
    accepted = 0;
    while begin.elapsed() < time {
        let mut input = mutator.change(&seeds);
        (target.repair)(&mut input);
        inputs += 1;
        let start = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| (target.parse)(&input)));
        if let Ok(true) = outcome {
            accepted += 1;
        }
        if outcome.is_err() || start.elapsed() > INPUT_LIMIT {
            let file = std::env::temp_dir().join(format!("cowl-fuzz-{}-{seed}", target.name));
            fs::write(&file, &input).expect("a place for the failing input");
            eprintln!(
                "{}: input {inputs} of the seed {seed} {}; repeat with: cargo run --release --manifest-path fuzz/Cargo.toml one {} {}",
                target.name,
                if outcome.is_err() {
                    "panics"
                } else {
                    "takes too long"
                },
                target.name,
                file.display(),
            );
            return ExitCode::FAILURE;
        }
    }
    assert!(inputs > 0, "{}: no input was tried", target.name);
    println!(
        "{}: {inputs} inputs, {accepted} accepted, seed {seed}, {} s",
        target.name,
        time.as_secs()
    );
    ExitCode::SUCCESS
}
