//! `cowl bench` fills its tables on real mounts, counts requests correctly, and leaves nothing
//! behind.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use cowl_tests::command::{Outcome, binary, run};
use cowl_tests::host::{has_overlayfs, io_modes};
use cowl_tests::profile::{directory, root, user};

fn bench(arguments: &[&str]) -> Outcome {
    run(command(arguments).stdin(Stdio::null()))
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(binary("cowl-bench"));
    command.args(arguments);
    command
}

/// Its temporary directories: TMPDIR is the test's own.
fn assert_nothing_is_left() {
    for entry in fs::read_dir(directory()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(!name.starts_with("cowl-bench"), "left behind: {name}");
    }
}

/// The cells of a Markdown table's rows; the first row has the names of the columns.
fn table(text: &str) -> Vec<Vec<String>> {
    let lines = text.lines().filter(|line| line.starts_with('|'));
    let rows = lines.filter(|line| !line.starts_with("|--"));
    rows.map(|line| {
        let cells = line.trim_matches('|').split('|');
        cells.map(|cell| cell.trim().to_owned()).collect()
    })
    .collect()
}

const ROWS: [&str; 25] = [
    "stat, new names",
    "stat, known names",
    "stat, missing names",
    "open + close",
    "open + read + close",
    "find, first time",
    "find, again",
    "grep -r, warm",
    "tar -c, warm",
    "create",
    "create + write 4 KiB",
    "rename",
    "chmod, image's file",
    "append, image's small file",
    "append, image's 40 MiB",
    "unlink, image's file",
    "unlink, upper file",
    "cp -a",
    "untar",
    "rm -r, image's tree",
    "write, 1 MiB each",
    "write, 4 KiB each",
    "write, random 4 KiB",
    "start python3, 5 times",
    "start true, 200 times",
];

fn bench_times_each_row_on_each_system() {
    let mut systems = vec!["cowl image cached", "cowl dirs cached"];
    if has_overlayfs() {
        systems.insert(0, "overlayfs");
    }
    let mut arguments = vec!["--rounds", "1", "--scale", "0.001"];
    for system in &systems {
        arguments.extend(["--system", system]);
    }
    let text = bench(&arguments).ok();
    let table = table(&text);
    assert_eq!(table[0][1..], systems, "{text}");
    let titles: Vec<&str> = table[1..].iter().map(|row| row[0].as_str()).collect();
    assert_eq!(titles, ROWS, "{text}");
    for row in &table[1..] {
        assert!(row[1].ends_with(" ms") || row[1].ends_with(" s"), "{row:?}");
        for cell in &row[2..] {
            let (ratio, range) = cell.split_once(' ').unwrap();
            assert!(ratio.parse::<f64>().unwrap() > 0.0, "{row:?}");
            // With one round, lowest, median and highest are equal.
            assert_eq!(range, format!("[{ratio}-{ratio}]"), "{row:?}");
        }
    }
    assert_nothing_is_left();
}

#[test]
fn bench_times_each_row_on_each_system_as_root() {
    root(|| bench_times_each_row_on_each_system());
}

#[test]
fn bench_times_each_row_on_each_system_as_user() {
    user(|| bench_times_each_row_on_each_system());
}

/// By the FUSE protocol, a getxattr and an fsync are one request each on any mount. The figures
/// that `tests/requests.rs` holds for cowl are checked here with the other counter.
fn ops_counts_requests_and_calls() {
    let outcome = bench(&["ops", "--system", "cowl", "--system", "fuse-overlayfs"]);
    let (said, text) = (outcome.stderr.clone(), outcome.ok());
    let table = table(&text);
    let mut columns: Vec<String> = Vec::new();
    for (lower, modes) in [("image", io_modes()), ("dirs", vec!["cached", "writeback"])] {
        for mode in ["cached", "passthrough", "writeback"] {
            let name = format!("cowl {lower} {mode}");
            if modes.contains(&mode) {
                columns.push(name);
            } else {
                let left_out = format!("left out: {name}: ");
                assert!(
                    said.lines().any(|line| line.starts_with(&left_out)),
                    "{said}"
                );
            }
        }
    }
    let (peer, ours) = table[0][1..].split_last().unwrap();
    assert_eq!(ours, columns, "{said}");
    assert!(peer.starts_with("fuse-overlayfs 1."), "{peer}");
    assert_eq!(table.len(), 1 + 21, "{text}");

    let counts = |title: &str| -> Vec<(f64, f64)> {
        let row = table.iter().find(|row| row[0] == title);
        let cells = row.unwrap_or_else(|| panic!("no {title}: {text}"))[1..].iter();
        cells
            .map(|cell| {
                let (requests, calls) = cell.split_once(", ").unwrap();
                (requests.parse().unwrap(), calls.parse().unwrap())
            })
            .collect()
    };
    for title in ["getxattr", "fsync"] {
        for (requests, calls) in counts(title) {
            assert!(requests >= 1.0 && calls >= 1.0, "{title}: {text}");
        }
    }
    for (column, (requests, calls)) in table[0][1..].iter().zip(counts("getxattr")) {
        let is_ours = column.starts_with("cowl");
        let expected = (1.0, if is_ours { 1.0 } else { calls });
        assert_eq!((requests, calls), expected, "getxattr on {column}: {text}");
    }
    let (first, known, read) = (
        counts("mkdir")[0],
        counts("stat, known name")[0],
        counts("open + read + close, known file")[0],
    );
    // The first may look up a directory.
    assert!(first.0 >= 1.0 && first.0 <= 3.2, "mkdir: {text}");
    assert!(first.1 >= 1.0 && first.1 <= 3.2, "mkdir: {text}");
    assert_eq!(known, (0.0, 0.0), "stat, known name: {text}");
    assert_eq!(read, (0.0, 0.0), "open + read + close: {text}");
    assert_nothing_is_left();
}

#[test]
fn ops_counts_requests_and_calls_as_root() {
    root(|| ops_counts_requests_and_calls());
}

#[test]
fn ops_counts_requests_and_calls_as_user() {
    user(|| ops_counts_requests_and_calls());
}

/// The signal comes while file systems are mounted; the harness checks for mounts and processes.
#[test]
fn an_interrupted_bench_leaves_nothing() {
    root(|| {
        let mut bench = command(&["--scale", "0.001", "--rounds", "1000", "--system", "cowl"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(bench.stderr.take().unwrap()).lines();
        let is_measuring = |line: Result<String, _>| line.unwrap().starts_with("round 2 of");
        assert!(lines.any(is_measuring), "no second round");
        kill_process(Pid::from_child(&bench), Signal::TERM).unwrap();
        let status = bench.wait().unwrap();
        assert_eq!(status.signal(), Some(Signal::TERM.as_raw()), "{status}");
        assert_nothing_is_left();
    });
}

#[test]
fn bench_start_times_cowl_beside_others() {
    root(|| {
        let outcome = bench(&["start", "--times", "2"]);
        assert!(outcome.status.success(), "{outcome}");
        let rows = table(&outcome.stdout);
        let columns = ["bare calls", "cowl-runtime", "cowl run", "runc"];
        for column in columns {
            assert!(rows[0].iter().any(|name| name == column), "{outcome}");
        }
        let titles: Vec<&str> = rows[1..].iter().map(|row| row[0].as_str()).collect();
        assert_eq!(titles, ["true, back to back", "true, 50 ms apart"]);
        for row in &rows[1..] {
            assert_eq!(row.len(), rows[0].len(), "{outcome}");
            assert!(row[1].ends_with(" ms"), "{outcome}");
            // A ratio with its lowest and highest value.
            assert!(row[2..].iter().all(|cell| cell.ends_with(']')), "{outcome}");
        }
        // Another system to compare with.
        let two = ["start", "--times", "1", "--row", "back", "--system"];
        let outcome = bench(&[&two[..], &["runc", "--system", "cowl run"]].concat());
        let rows = table(&outcome.stdout);
        assert_eq!(rows[0], ["", "runc", "cowl run"], "{outcome}");
        assert_eq!(rows.len(), 2, "{outcome}");
        assert_nothing_is_left();
    });
}

#[test]
fn bench_refuses_what_it_does_not_know() {
    root(|| {
        for (arguments, code, said) in [
            (&["--rounds", "0"][..], 125, "--rounds"),
            (&["--scale", "0"], 125, "--scale"),
            (&["ops", "--times", "many"], 125, "--times"),
            (&["start", "--times", "0"], 125, "--times"),
            (&["start", "--row", "dancing"], 1, "dancing"),
            (&["--bin", "nowhere"], 1, "nowhere/cowl: no such program"),
            (&["--row", "dancing"], 1, "dancing"),
            (&["ops", "--row", "dancing"], 1, "dancing"),
        ] {
            let line = bench(arguments).refused(code);
            assert!(line.contains(said), "{line}");
        }
        let small = ["--scale", "0.001", "--row", "create"];
        for (option, value, said) in [
            ("--system", "zfs", "no system \"zfs\""),
            ("--peer", "./nowhere", "no such program"),
        ] {
            let line = bench(&[&small[..], &[option, value]].concat()).refused(1);
            assert!(line.contains(said), "{line}");
        }
        assert_nothing_is_left();
    });
}
