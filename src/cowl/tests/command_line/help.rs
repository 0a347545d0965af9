//! Help, and unknown commands.

use std::process::Command;

use crate::Cowl;

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
    // As in Docker, without a command help goes to standard error, even if the environment names a
    // store.
    for group in [&[][..], &["volume"]] {
        let output = cowl.run(group);
        assert_eq!(output.status.code(), Some(0));
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

/// A flag without a row, or a row without a test, is a promise without a check.
#[test]
fn each_flag_of_run_has_a_row_and_a_test() {
    let project = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let page = std::fs::read_to_string(project.join("docs/run-flags.md")).unwrap();
    let rows: Vec<Vec<&str>> = page
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| line.split(" | ").collect())
        .collect();
    let is_of_flag = |c: char| c.is_ascii_alphanumeric() || c == '-';
    // Rows of other commands begin with their names.
    let of_run = rows.iter().filter(|row| row[0].starts_with("| `-"));
    let documented: Vec<&str> = of_run
        .flat_map(|row| row[0].split(|c| !is_of_flag(c)))
        .filter(|word| word.starts_with('-'))
        .collect();
    let cowl = Cowl::new();
    for command in ["run", "create"] {
        let help = cowl.run(&[command, "--help"]).stdout;
        let help = String::from_utf8(help).unwrap();
        // "-m, --memory <BYTES>", and "[aliases: --net]" where it is told.
        let (_, options) = help.split_once("\nOptions:\n").unwrap();
        let words = options.split(|c| !is_of_flag(c));
        let flags: Vec<&str> = words
            .filter(|word| word.len() > 2 && word.starts_with("--"))
            .collect();
        assert!(flags.len() > 80, "{flags:?}");
        for flag in flags {
            // These belong to every command.
            if !matches!(flag, "--help" | "--root") {
                assert!(documented.contains(&flag), "{flag} has no row");
            }
        }
    }
    for row in &rows {
        let tests: Vec<&str> = row[2].split('`').skip(1).step_by(2).collect();
        assert!(!tests.is_empty(), "{row:?}");
        for test in tests {
            let found = match test.split_once("::") {
                Some(("cowl-tests", file)) => {
                    project.join("tests").join(format!("{file}.rs")).exists()
                }
                Some((module, name)) => {
                    let file = project.join("tests/flags").join(format!("{module}.rs"));
                    std::fs::read_to_string(file)
                        .is_ok_and(|text| text.contains(&format!("\nfn {name}() {{")))
                }
                None => false,
            };
            assert!(found, "{test} is no test");
        }
    }
}

#[test]
fn unknown_command_runs_cowl_name_or_gets_a_suggestion() {
    let cowl = Cowl::new();
    cowl.refused(
        &["imges"],
        1,
        "'imges' is not a cowl command; did you mean 'cowl images'?; see 'cowl --help'",
    );
    cowl.refused(
        &["xyzzy"],
        1,
        "'xyzzy' is not a cowl command; see 'cowl --help'",
    );
    cowl.refused(
        &["../xyzzy"],
        1,
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
    // On the same store as cowl's own commands.
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
