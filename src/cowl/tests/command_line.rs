//! What a new user types wrong: one line that names the thing and what to do, the right exit code,
//! nothing left behind.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "helpers of tests, which build their inputs with plain std::fs"
)]

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// A store of its own for each test.
struct Cowl {
    temp: tempfile::TempDir,
}

impl Cowl {
    fn new() -> Self {
        Self {
            temp: tempfile::tempdir().unwrap(),
        }
    }

    /// With an empty store.
    fn with_store() -> Self {
        let cowl = Self::new();
        cowl.prints(&["volume", "create", "first"], "first\n");
        cowl.prints(&["volume", "rm", "first"], "first\n");
        cowl
    }

    fn root(&self) -> std::path::PathBuf {
        self.temp.path().join("store")
    }

    /// `TEMP` in arguments and messages is the test's directory.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cowl"));
        command
            .args(arguments.iter().map(|argument| self.expand(argument)))
            .env("COWL_ROOT", self.root())
            .stdin(Stdio::null());
        command
    }

    fn expand(&self, text: &str) -> String {
        text.replace("TEMP", self.temp.path().to_str().unwrap())
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs what must fail: exit code, standard error, and nothing on standard output.
    #[track_caller]
    fn refused(&self, arguments: &[&str], code: i32, stderr: &str) {
        let output = self.run(arguments);
        let expected = format!("cowl: {}\n", self.expand(stderr));
        assert_eq!(
            String::from_utf8_lossy(&output.stderr),
            expected,
            "{arguments:?}"
        );
        assert_eq!(output.status.code(), Some(code), "{arguments:?}");
        assert!(
            output.stdout.is_empty(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stdout)
        );
    }

    #[track_caller]
    fn prints(&self, arguments: &[&str], stdout: &str) {
        let output = self.run(arguments);
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{arguments:?}");
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            stdout,
            "{arguments:?}"
        );
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
    }
}

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
            &["run"],
            "missing <IMAGE> [COMMAND]...; see 'cowl run --help'",
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
            &["run", "-m", "1m", "i"],
            "Minimum memory limit allowed is 6MB",
        ),
        (
            &["run", "-e", "=1", "i"],
            "invalid environment variable: =1",
        ),
        (
            &["run", "-v", "v1:rel", "i"],
            "invalid volume specification: 'v1:rel': invalid mount path: 'rel' mount path must be absolute",
        ),
        (
            &["run", "--security-opt", "seccomp=my.json", "i"],
            "seccomp profiles of one's own are not supported",
        ),
        (
            &["run", "-it", "i"],
            "the input device is not a TTY; omit -t or run cowl in a terminal",
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
            &["run", "Shop"],
            "\"Shop\" is not an image name: capitals are allowed in tags only",
        ),
        (&["run", ""], "\"\" is not an image name: it is empty"),
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
        cowl.refused(arguments, 125, stderr);
    }
}

#[test]
fn missing_things_are_named() {
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
    cowl.refused(&["rm", "nosuch"], 1, "No such container: nosuch");
    cowl.refused(&["rm", "-f", "nosuch"], 0, "No such container: nosuch");
    cowl.refused(&["volume", "rm", "nosuch"], 1, "get nosuch: no such volume");
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

/// What Docker's flags take (spf13/pflag, Go's `strconv.ParseBool`); the last of several holds.
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
    // A value is for a switch only with `=`; the word after it is the image.
    let image = "No such image: false:latest";
    cowl.refused(&["run", "--rm", "false"], 125, image);
    // What follows the image is the command's.
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

#[test]
fn help_and_dash_dash_help_agree() {
    let cowl = Cowl::new();
    let shown = |arguments: &[&str]| {
        let output = cowl.run(arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(shown(&["help", "run"]), shown(&["run", "--help"]));
    assert_eq!(
        shown(&["help", "volume", "rm"]),
        shown(&["volume", "rm", "--help"])
    );
    assert_eq!(shown(&["help"]), shown(&["--help"]));
    // No command at all is a wrong command line; a store in the environment is none.
    for group in [&[][..], &["volume"]] {
        let output = cowl.run(group);
        assert_eq!(output.status.code(), Some(125));
        let help = shown(&[group, &["--help"]].concat());
        assert_eq!(String::from_utf8_lossy(&output.stderr), help);
    }
    for command in ["load", "images", "run", "volume"] {
        assert!(
            shown(&["help"]).contains(&format!("\n  {command} ")),
            "{command}"
        );
    }
}

#[test]
fn unknown_command_runs_cowl_name_or_gets_a_suggestion() {
    let cowl = Cowl::new();
    cowl.refused(
        &["imges"],
        125,
        "'imges' is not a cowl command; did you mean 'cowl images'?; see 'cowl --help'",
    );
    cowl.refused(
        &["xyzzy"],
        125,
        "'xyzzy' is not a cowl command; see 'cowl --help'",
    );
    cowl.refused(
        &["../xyzzy"],
        125,
        "'../xyzzy' is not a cowl command; see 'cowl --help'",
    );

    let program = cowl.temp.path().join("cowl-greet");
    std::fs::write(
        &program,
        "#!/bin/sh\necho hello \"$@\" from $COWL_ROOT\nexit 7\n",
    )
    .unwrap();
    std::fs::set_permissions(
        &program,
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    let path = format!("{}:/usr/bin:/bin", cowl.temp.path().display());
    // On the same store as a command of cowl's own.
    let table: &[(&[&str], &str, &str)] = &[
        (
            &["greet", "--all", "x y"],
            "TEMP/store",
            "--all x y from TEMP/store",
        ),
        (
            &["--root", "TEMP/other", "greet"],
            "TEMP/store",
            "from TEMP/other",
        ),
        (&["greet"], "", "from TEMP/home/cowl"),
    ];
    for (arguments, variable, said) in table {
        let mut command = Command::new("unshare");
        command
            .args(["-Ur", env!("CARGO_BIN_EXE_cowl")])
            .args(arguments.iter().map(|argument| cowl.expand(argument)))
            .env("COWL_ROOT", cowl.expand(variable))
            .env("XDG_DATA_HOME", cowl.expand("TEMP/home"))
            .env("PATH", &path);
        let output = command.output().unwrap();
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            format!("hello {}\n", cowl.expand(said))
        );
        assert_eq!(output.status.code(), Some(7));
    }
}

#[test]
fn volume_create_ls_inspect_rm() {
    let cowl = Cowl::new();
    cowl.prints(&["volume", "create", "vol1"], "vol1\n");
    cowl.prints(&["volume", "create", "vol1"], "vol1\n");
    cowl.prints(&["volume", "ls"], "DRIVER    VOLUME NAME\nlocal     vol1\n");
    cowl.refused(
        &["volume", "create", "a/b"],
        1,
        "create a/b: \"a/b\" includes invalid characters for a local volume name, only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. \
         If you intended to pass a host directory, use absolute path",
    );
    let shown = cowl.run(&["volume", "inspect", "vol1"]).stdout;
    let shown: serde_json::Value = serde_json::from_slice(&shown).unwrap();
    assert_eq!(
        shown[0]["Mountpoint"],
        cowl.root().join("volumes/vol1/_data").to_str().unwrap()
    );
    cowl.prints(&["volume", "rm", "vol1"], "vol1\n");
    cowl.prints(&["volume", "rm", "-f", "vol1"], "vol1\n");
    assert!(!cowl.root().join("volumes/vol1").exists());
}

#[test]
fn closed_standard_output_is_no_error() {
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

#[test]
fn directory_that_is_not_a_store_is_left_alone() {
    let cowl = Cowl::new();
    std::fs::create_dir(cowl.root()).unwrap();
    std::fs::write(cowl.root().join("thesis.txt"), "work of years").unwrap();
    let output = cowl.run(&["volume", "create", "data"]);
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        told.starts_with("cowl: ")
            && told.contains("is not a cowl store")
            && told.lines().count() == 1,
        "{told}"
    );
    assert_eq!(names(&cowl.root()), ["thesis.txt"]);
}

/// The name may be mistyped.
#[test]
fn commands_that_add_nothing_make_no_store() {
    let cowl = Cowl::new();
    let told = "there is no cowl store at TEMP/store; cowl load and cowl import make one";
    let commands: [&[&str]; 13] = [
        &["images"],
        &["images", "--root", "TEMP/store"],
        &["history", "image"],
        &["rmi", "image"],
        &["info"],
        &["check"],
        &["mount", "image", "TEMP"],
        &["umount", "TEMP"],
        &["ps"],
        &["rm", "container"],
        &["volume", "ls"],
        &["volume", "inspect", "data"],
        &["volume", "rm", "data"],
    ];
    for command in commands {
        cowl.refused(command, 1, told);
    }
    cowl.refused(&["run", "image"], 125, told);
    assert_eq!(names(cowl.temp.path()), [""; 0]);
    // Nor in a directory that is there.
    std::fs::create_dir(cowl.root()).unwrap();
    cowl.refused(&["images"], 1, told);
    assert_eq!(names(&cowl.root()), [""; 0]);
    cowl.prints(&["volume", "create", "data"], "data\n");
    cowl.prints(&["volume", "ls", "-q"], "data\n");
}

#[test]
fn default_store_is_the_users_own() {
    let temp = tempfile::tempdir().unwrap();
    // Root of a user namespace is an ordinary user; root of the machine has /var/lib/cowl.
    let mut command = Command::new("unshare");
    command.args(["-Ur", env!("CARGO_BIN_EXE_cowl"), "images"]);
    command
        .env_remove("COWL_ROOT")
        .env_remove("HOME")
        .env("XDG_DATA_HOME", temp.path())
        .stdin(Stdio::null());
    assert!(command.status().unwrap().success());
    assert_eq!(names(temp.path()), ["cowl"]);
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_small_stack_is_enough() {
    let cowl = Cowl::with_store();
    for arguments in [
        &["images"][..],
        &["ps"],
        &["run", "--help"],
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
