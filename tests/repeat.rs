//! The command that a failing sample prints repeats the failure at the same point alone.

use std::path::Path;

use cowl_tests::command::{program, run};
use cowl_tests::sample::{seeds, strided};

/// Fails at one point of a sample that depends on the seed.
#[test]
#[ignore = "fails on purpose: sample_prints_the_command_that_repeats_its_failure runs it"]
fn fails_at_one_point() {
    for (tried, point) in strided(1, 7).enumerate() {
        let number = point.number();
        assert!(number < 50, "point {number} failed after {tried} others");
    }
}

/// The same with random programs.
#[test]
#[ignore = "fails on purpose: sample_prints_the_command_that_repeats_its_failure runs it"]
fn fails_at_one_seed() {
    for (tried, point) in seeds(20).enumerate() {
        let number = point.number();
        assert!(
            number % 10 != 7,
            "point {number} failed after {tried} others"
        );
    }
}

#[test]
fn sample_prints_the_command_that_repeats_its_failure() {
    for test in ["fails_at_one_point", "fails_at_one_seed"] {
        let exe = std::env::current_exe().unwrap();
        let mut command = program(exe.to_str().unwrap(), ["--ignored", "--exact", test]);
        let first = run(command
            .env_remove("NEXTEST_TEST_NAME")
            .env("COWL_TEST_SEED", "12345"));
        let text = format!("{}{}", first.stdout, first.stderr);
        assert_eq!(first.code(), 101, "{first}");
        let (number, tried) = failure(&text);
        assert!(tried > 0, "{text}");
        let repeat = text
            .lines()
            .find_map(|line| line.strip_prefix("repeat with: "))
            .unwrap_or_else(|| panic!("no command in {text}"));

        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let mut command = program("sh", ["-c", repeat]);
        let second = run(command.current_dir(root).env_remove("NEXTEST_TEST_NAME"));
        assert_ne!(second.code(), 0, "{second}");
        let text = format!("{}{}", second.stdout, second.stderr);
        assert_eq!(failure(&text), (number, 0), "the same point, as the first");
    }
}

/// Which point failed, after how many others.
fn failure(text: &str) -> (u64, u64) {
    let line = text
        .lines()
        .find(|line| line.trim_start().starts_with("point "))
        .unwrap_or_else(|| panic!("no failure in {text}"));
    let words: Vec<&str> = line.split_whitespace().collect();
    (words[1].parse().unwrap(), words[4].parse().unwrap())
}
