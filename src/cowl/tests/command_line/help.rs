//! Help, and commands that there are not.

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
    // Without a command it is help on standard error, as Docker's; a store in the environment is
    // none.
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
