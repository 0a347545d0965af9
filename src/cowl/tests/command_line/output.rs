//! Standard output that is closed or full, and a small stack.

use std::process::{Command, Stdio};

use crate::Cowl;

#[test]
fn closed_standard_output_is_not_an_error() {
    let cowl = Cowl::with_store();
    for arguments in [&["images"][..], &["--help"], &["info"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = cowl
            .command(arguments)
            .stdout(writer)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
            .wait_with_output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{arguments:?}");
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
    }
}

#[test]
fn full_standard_output_is_reported() {
    let cowl = Cowl::with_store();
    let full = std::fs::File::options()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let output = cowl.command(&["images"]).stdout(full).output().unwrap();
    assert_eq!(
        String::from_utf8_lossy(&output.stderr),
        "cowl: writing to standard output: No space left on device\n"
    );
    assert_eq!(output.status.code(), Some(1));
}

/// `>&-` is an error as for GNU's tools, but not for commands that print nothing.
#[test]
fn output_that_the_caller_closed_is_reported() {
    let cowl = Cowl::with_store();
    for (arguments, code) in [
        (&["images"][..], 1),
        (&["--help"], 1),
        (&["help", "run"], 1),
        (&["--version"], 1),
        (&["version"], 1),
        (&["info"], 1),
        (&["ps", "-q"], 0),
    ] {
        let command = cowl.command(arguments);
        let mut closed = Command::new("sh");
        closed
            .args(["-c", "exec \"$0\" \"$@\" >&-"])
            .arg(command.get_program())
            .args(command.get_args())
            .env("COWL_ROOT", cowl.root());
        let closed = closed.output().unwrap();
        let expected = match code {
            0 => "",
            _ => "cowl: writing to standard output: Bad file descriptor\n",
        };
        assert_eq!(
            String::from_utf8_lossy(&closed.stderr),
            expected,
            "{arguments:?}"
        );
        assert_eq!(closed.status.code(), Some(code), "{arguments:?}");
    }
}

#[test]
fn a_small_stack_is_enough() {
    let cowl = Cowl::with_store();
    for arguments in [
        &["images"][..],
        &["ps"],
        &["run", "--help"],
        &["run", "--rm", "nothing", "true"],
        &["version"],
        &["xyzzy"],
    ] {
        let plain = cowl.run(arguments);
        let command = cowl.command(arguments);
        let mut small = Command::new("sh");
        small
            .args(["-c", "ulimit -s 128; exec \"$0\" \"$@\""])
            .arg(command.get_program())
            .args(command.get_args())
            .env("COWL_ROOT", cowl.root());
        let small = small.output().unwrap();
        assert_eq!(
            (small.status.code(), small.stdout),
            (plain.status.code(), plain.stdout),
            "{arguments:?}"
        );
    }
}

/// The output for one name is written before the next name is handled: here before its error.
#[test]
fn output_of_each_name_is_written_before_the_next() {
    let cowl = Cowl::with_store();
    for name in ["one", "two"] {
        cowl.prints(&["volume", "create", name], &format!("{name}\n"));
    }
    let file = cowl.expand("TEMP/both");
    let both = std::fs::File::create(&file).unwrap();
    let status = cowl
        .command(&["volume", "rm", "one", "nosuch", "two"])
        .stdout(both.try_clone().unwrap())
        .stderr(both)
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(1));
    assert_eq!(
        std::fs::read_to_string(&file).unwrap(),
        "one\ncowl: get nosuch: no such volume\ntwo\n"
    );
}
