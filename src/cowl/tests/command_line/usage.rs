//! Refused command lines.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;

use crate::Cowl;

#[test]
fn usage_errors_are_one_line_with_125() {
    let cowl = Cowl::with_store();
    let table: &[(&[&str], &str)] = &[
        (
            &["run", "--badflag", "x"],
            "unknown option: --badflag; see 'cowl run --help'",
        ),
        (
            &["run", "--nam", "a", "x"],
            "unknown option: --nam (did you mean --name?); see 'cowl run --help'",
        ),
        (
            &["run", "-m"],
            "--memory needs a value; see 'cowl run --help'",
        ),
        (
            &["run", "-m", "5x", "i"],
            "invalid argument \"5x\" for --memory: invalid size: '5x'; see 'cowl run --help'",
        ),
        (
            &["run", "-m", "-5", "i"],
            "invalid argument \"-5\" for --memory: invalid size: '-5'; see 'cowl run --help'",
        ),
        (
            &["run", "--device-read-bps", "-x", "i"],
            "invalid argument \"-x\" for --device-read-bps: bad format: -x; see 'cowl run --help'",
        ),
        (
            &["run", "-m", "1m", "i"],
            "Minimum memory limit allowed is 6MB",
        ),
        (
            &["run", "-e", "=1", "i"],
            "invalid argument \"=1\" for --env: invalid environment variable: =1; see 'cowl run --help'",
        ),
        (
            &["run", "-v", "v1:rel", "i"],
            "invalid volume specification: 'v1:rel': invalid mount path: 'rel' mount path must be absolute",
        ),
        (
            &["run", "--security-opt", "seccomp=my.json", "i"],
            "opening seccomp profile (my.json) failed: No such file or directory",
        ),
        (
            &["run", "Shop"],
            "\"Shop\" is not an image name: capitals are allowed in tags only",
        ),
        (&["run", ""], "\"\" is not an image name: it is empty"),
    ];
    for (arguments, stderr) in table {
        cowl.refused(arguments, 125, stderr);
    }
}

/// As in Docker, where 125 is for options and for `run` itself.
#[test]
fn unknown_commands_and_wrong_numbers_of_arguments_are_one_line_with_1() {
    let cowl = Cowl::with_store();
    let table: &[(&[&str], &str)] = &[
        (
            &["run"],
            "missing <IMAGE> [COMMAND]...; see 'cowl run --help'",
        ),
        (
            &["ps", "extra"],
            "unexpected argument: extra; see 'cowl ps --help'",
        ),
        (&["rmi"], "missing <IMAGE>...; see 'cowl rmi --help'"),
        (
            &["mount", "i", "/", "--work", "w"],
            "missing --upper <DIR>; see 'cowl mount --help'",
        ),
        (
            &["help", "imges"],
            "unknown command: imges; see 'cowl --help'",
        ),
        (
            &["volume", "lss"],
            "unknown command: lss (did you mean list, ls?); see 'cowl volume --help'",
        ),
        (
            &["volume", "rm"],
            "missing <VOLUME>...; see 'cowl volume rm --help'",
        ),
    ];
    for (arguments, stderr) in table {
        cowl.refused(arguments, 1, stderr);
    }
}

#[test]
fn unsupported_options_of_docker_are_refused_with_the_reason() {
    let cowl = Cowl::with_store();
    let table: &[(&[&str], &str)] = &[
        (
            &["run", "--gpus", "all", "i"],
            "invalid argument \"all\" for --gpus: cowl finds no GPUs: use --device; see 'cowl run --help'",
        ),
        (
            &["create", "-p", "80:80", "i"],
            "invalid argument \"80:80\" for --publish: there are no networks with addresses yet: use --network host, none or container:NAME; see 'cowl create --help'",
        ),
        (
            &["run", "-P", "i"],
            "invalid argument \"true\" for --publish-all: there are no networks with addresses yet: use --network host, none or container:NAME; see 'cowl run --help'",
        ),
        (
            &["rm", "-l", "c"],
            "invalid argument \"true\" for --link: cowl has no links between containers; see 'cowl rm --help'",
        ),
        (
            &["start", "--checkpoint", "x", "c"],
            "invalid argument \"x\" for --checkpoint: cowl has no checkpoints; see 'cowl start --help'",
        ),
        (
            &["rmi", "--no-prune", "i"],
            "invalid argument \"true\" for --no-prune: layers go with the last image that has them; see 'cowl rmi --help'",
        ),
        (
            &["run", "--disable-content-trust=false", "i"],
            "invalid argument \"false\" for --disable-content-trust: cowl verifies no signatures; see 'cowl run --help'",
        ),
        (
            &["volume", "create", "--scope", "multi"],
            "invalid argument \"multi\" for --scope: cowl has no cluster volumes; see 'cowl volume create --help'",
        ),
        (
            &["run", "-a", "stdlog", "i"],
            "valid streams are STDIN, STDOUT and STDERR",
        ),
        (
            &["run", "--expose", "80-79", "i"],
            "invalid range format for --expose: 80-79, error: invalid start port",
        ),
        (
            &["run", "--annotation", "a", "i"],
            "invalid annotation: a: use NAME=VALUE",
        ),
    ];
    for (arguments, stderr) in table {
        cowl.refused(arguments, 125, stderr);
    }
}

/// As in Docker: 125 of `run` is for options and for the engine's errors, of `create` for options
/// only.
#[test]
fn run_and_create_exit_with_dockers_codes() {
    let cowl = Cowl::with_store();
    let no_terminal = "the input device is not a TTY; omit -t or run cowl in a terminal";
    cowl.refused(&["run", "-it", "i"], 1, no_terminal);
    cowl.refused(
        &["container", "run", "-t", "-a", "stdin", "i"],
        1,
        no_terminal,
    );
    cowl.refused(
        &["run", "-d", "-a", "stdout", "i"],
        1,
        "conflicting options: cannot specify both --attach and --detach",
    );
    for (command, code) in [("run", 125), ("create", 1)] {
        let missing = "No such image: nosuch:latest";
        cowl.refused(&[command, "nosuch"], code, missing);
        cowl.refused(&["container", command, "nosuch"], code, missing);
        let opening = "opening seccomp profile (my.json) failed: No such file or directory";
        cowl.refused(
            &[command, "--security-opt", "seccomp=my.json", "i"],
            125,
            opening,
        );
    }
}

#[test]
fn missing_objects_are_named() {
    let cowl = Cowl::with_store();
    let image = |name: &str| format!("No such image: {name}");
    cowl.refused(&["run", "nosuch", "true"], 125, &image("nosuch:latest"));
    cowl.refused(
        &["run", "--rm", "--name", "n1", "nosuch:1"],
        125,
        &image("nosuch:1"),
    );
    cowl.refused(&["history", "nosuch"], 1, &image("nosuch:latest"));
    cowl.refused(&["rmi", "nosuch"], 1, &image("nosuch:latest"));
    // With -f it is reported, but is not a failure.
    cowl.refused(&["rmi", "-f", "nosuch"], 0, &image("nosuch:latest"));
    cowl.refused(&["image", "rm", "-f", "no:1"], 0, &image("no:1"));
    cowl.refused(
        &["rmi", "-f", ""],
        0,
        "\"\" is not an image name: it is empty",
    );
    cowl.refused(
        &["rmi", "-f", "nosuch", "Shop"],
        1,
        "No such image: nosuch:latest\ncowl: \"Shop\" is not an image name: capitals are allowed in tags only",
    );
    cowl.refused(&["rm", "nosuch"], 1, "No such container: nosuch");
    cowl.refused(&["rm", "-f", "nosuch"], 0, "No such container: nosuch");
    cowl.refused(&["volume", "rm", "nosuch"], 1, "get nosuch: no such volume");
    cowl.prints(&["volume", "rm", "-f", "nosuch"], "nosuch\n");
    cowl.refused(
        &["mount", "nosuch", "TEMP/dir"],
        1,
        "mount point TEMP/dir: no such directory; create it first: mkdir -p TEMP/dir",
    );
    std::fs::write(cowl.temp.path().join("file"), "").unwrap();
    cowl.refused(
        &["mount", "nosuch", "TEMP/file"],
        1,
        "mount point TEMP/file: not a directory",
    );
    for root in ["/", "/.."] {
        cowl.refused(
            &["mount", "nosuch", root],
            1,
            "mount point /: the root directory cannot be a mount point; use another directory",
        );
    }
    for hidden in ["TEMP/store", "TEMP/store/volumes", "TEMP"] {
        let refused = format!(
            "mount point {hidden}: it would hide the store TEMP/store; use another directory"
        );
        cowl.refused(&["mount", "nosuch", hidden], 1, &refused);
    }
    cowl.refused(
        &["umount", "/proc"],
        1,
        "umount /proc: not a cowl mount; findmnt -t fuse.cowl lists them",
    );
    cowl.refused(
        &["--root", "TEMP/file", "images"],
        1,
        "store TEMP/file: cannot open TEMP/file: Not a directory",
    );
    cowl.prints(&["ps", "-aq"], "");
    cowl.prints(&["volume", "ls", "-q"], "");
}

#[test]
fn argument_that_is_not_utf_8_is_shown() {
    let cowl = Cowl::new();
    let output = cowl
        .command(&["images"])
        .arg(OsStr::from_bytes(b"caf\xe9"))
        .output()
        .unwrap();
    assert_eq!(
        String::from_utf8_lossy(&output.stderr),
        "cowl: an argument is not valid UTF-8: caf\u{fffd}; see 'cowl images --help'\n"
    );
    assert_eq!(output.status.code(), Some(125));
}

#[test]
fn import_refuses_a_digest_as_name() {
    let cowl = Cowl::new();
    let digest = format!("sha256:{}", "a".repeat(64));
    cowl.refused(
        &["import", "-", &format!("x@{digest}")],
        1,
        &format!("import: x@{digest}: an image cannot be given a digest; name it NAME[:TAG]"),
    );
}

/// As Docker's flags (spf13/pflag, Go's `strconv.ParseBool`); the last of several wins.
#[test]
fn every_switch_takes_a_value() {
    let cowl = Cowl::with_store();
    for switches in [
        &["-q=true", "--no-trunc=false"][..],
        &["--quiet=1", "--no-trunc=F"],
        &["--quiet=TRUE", "--quiet"],
        &["-aq=True", "--all=0"],
        &["-qa=t"],
        &["-q=false", "-q"],
    ] {
        let arguments: Vec<&str> = ["ps"].iter().chain(switches).copied().collect();
        cowl.prints(&arguments, "");
    }
    // Off: the header is there.
    for switches in [
        &["-q=false"][..],
        &["--quiet=0"],
        &["-aq=f"],
        &["-q", "-q=False"],
    ] {
        let arguments: Vec<&str> = ["ps"].iter().chain(switches).copied().collect();
        let output = cowl.run(&arguments);
        let shown = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(shown.starts_with("CONTAINER ID"), "{arguments:?}: {shown}");
    }
    // A switch takes a value only with `=`; the next word is the image.
    let image = "No such image: false:latest";
    cowl.refused(&["run", "--rm", "false"], 125, image);
    // What follows the image belongs to the command.
    cowl.refused(&["run", "--rm=true", "false", "--rm=what"], 125, image);
    cowl.refused(
        &["run", "-it=", "i"],
        125,
        "invalid argument \"\" for --tty: use true or false; see 'cowl run --help'",
    );
    for command in [
        &["load", "--quiet=what"][..],
        &["load", "--verify=what"],
        &["images", "-q=what"],
        &["history", "--no-trunc=what", "i"],
        &["rmi", "--force=what", "i"],
        &["check", "--deep=what"],
        &["run", "--interactive=what", "i"],
        &["rm", "-v=what", "c"],
        &["volume", "ls", "-q=what"],
        &["volume", "rm", "--force=what", "v"],
    ] {
        let output = cowl.run(command);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(told.contains("use true or false"), "{command:?}: {told}");
        assert_eq!(output.status.code(), Some(125));
    }
}
