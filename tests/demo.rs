//! The demonstration of `make run` shows its claims, and leaves nothing behind, whether it ends,
//! fails half-way or is interrupted. (The harness checks for mounts and processes.)

use std::io::{BufRead as _, BufReader, Read as _, Seek as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process_group};

use cowl_tests::command::{Outcome, binary, fixture, program, run, shell};
use cowl_tests::profile::{directory, root};

/// The demonstration with these binaries, not yet started.
fn demo(binaries: &Path) -> Command {
    let mut command = program(fixture("demo/run.sh").to_str().unwrap(), [binaries]);
    command.arg("busybox");
    command
}

fn finished(binaries: &Path) -> Outcome {
    run(&mut demo(binaries))
}

/// What is still in the directory for temporary files.
fn left() -> String {
    shell(
        &directory(),
        "find . -name 'cowl-demo*' -o -name 'tmp.*' -o -name '.layers.*'",
        [""; 0],
    )
}

#[test]
fn demo_shows_its_claims() {
    root(|| {
        let text = finished(&binary("")).ok();
        assert!(text.ends_with("all shown; cleaning up\n"), "{text}");
        assert_eq!(left(), "");
    });
}

/// The first commands of the README, verbatim.
#[test]
fn readme_commands_work() {
    root(|| {
        let readme = include_str!("../README.md");
        let commands = readme
            .split("```sh\n")
            .nth(1)
            .and_then(|rest| rest.split("```").next())
            .unwrap();
        shell(
            &directory(),
            "mkdir target && ln -s \"$1\" target/bin",
            [binary("")],
        );
        let text = shell(&directory(), commands, [""; 0]);
        for expected in ["hello from process 1\n", "changed\n", "box:latest"] {
            assert!(text.contains(expected), "{expected:?} is not in:\n{text}");
        }
    });
}

#[test]
fn a_failing_demo_leaves_nothing() {
    root(|| {
        shell(
            &directory(),
            "mkdir bin; cp \"$1\"/cowl \"$1\"/cowl-mountd \"$1\"/cowl-runtime bin",
            [binary("")],
        );
        let outcome = finished(&directory().join("bin"));
        assert_ne!(outcome.code(), 0, "there is no cowl-dedup: {outcome}");
        assert!(
            outcome.stdout.contains("a volume outlives"),
            "it came that far: {outcome}"
        );
        assert_eq!(left(), "");
    });
}

#[test]
fn an_interrupted_demo_leaves_nothing() {
    root(|| {
        // At each of its claims; as from a terminal, the signals go to the whole process group.
        for claim in 1..=8 {
            let mut command = demo(&binary(""));
            let mut errors = tempfile::tempfile().unwrap();
            let mut child = command
                .stdout(Stdio::piped())
                .stderr(errors.try_clone().unwrap())
                .process_group(0)
                .spawn()
                .unwrap();
            let lines = BufReader::new(child.stdout.take().unwrap()).lines();
            let heading = lines
                .map(Result::unwrap)
                .filter(|line| line.starts_with("== "))
                .nth(claim - 1);
            assert!(heading.is_some(), "claim {claim}");
            let group = Pid::from_child(&child);
            kill_process_group(group, Signal::INT).unwrap();
            // Impatient users press Ctrl-C again. Not for ever: fork fails while signals arrive.
            for _ in 0..if claim % 2 == 0 { 40 } else { 0 } {
                kill_process_group(group, Signal::INT).unwrap();
                std::thread::yield_now();
            }
            let status = child.wait().unwrap();
            let mut said = String::new();
            errors.rewind().unwrap();
            errors.read_to_string(&mut said).unwrap();
            assert!(!status.success(), "interrupted at {heading:?}: {said}");
            assert_eq!(left(), "", "interrupted at {heading:?}: {said}");
        }
    });
}
