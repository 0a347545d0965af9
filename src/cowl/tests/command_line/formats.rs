//! Templates of `--format` that are malformed: docker 28.2's texts and exit codes.

use crate::Cowl;

/// Commands that show single objects end with 64, lists with 1.
#[test]
fn malformed_template_has_dockers_text_and_exit_code() {
    let cowl = Cowl::with_store();
    let tar = cowl.expand("TEMP/empty.tar");
    std::fs::write(&tar, [0; 1024]).unwrap();
    assert!(cowl.run(&["import", &tar, "one:1"]).status.success());
    let parsing = "template parsing error: template: :";
    let table: &[(&[&str], i32, &str)] = &[
        (
            &["version"],
            64,
            "template parsing error: template: version:",
        ),
        (&["info"], 64, parsing),
        (&["system", "info"], 64, parsing),
        (&["inspect", "one:1"], 64, parsing),
        (&["inspect", "nosuch"], 64, parsing),
        (&["image", "inspect", "one:1"], 64, parsing),
        (&["container", "inspect", "nosuch"], 64, parsing),
        (&["volume", "inspect", "nosuch"], 64, parsing),
        (&["events"], 64, "Error parsing format: template: :"),
        (&["ps"], 1, "failed to parse template: template: :"),
        (
            &["container", "ls", "-a"],
            1,
            "failed to parse template: template: :",
        ),
        (&["images"], 1, parsing),
        (&["volume", "ls"], 1, parsing),
        (&["history", "one:1"], 1, parsing),
        (&["system", "df"], 1, parsing),
        (&["stats", "--no-stream"], 1, parsing),
    ];
    for (command, code, before) in table {
        for (format, after) in [
            ("{{.ID", "1: unclosed action"),
            ("{{nosuch .}}", "1: function \"nosuch\" not defined"),
            ("{{end}}", "1: unexpected {{end}}"),
            ("{{$x}}", "1: undefined variable \"$x\""),
            (
                "{{/* */}}\n\n{{nosuch}}",
                "3: function \"nosuch\" not defined",
            ),
        ] {
            let arguments = [command, &["--format", format][..]].concat();
            cowl.refused(&arguments, *code, &format!("{before}{after}"));
        }
    }
}

/// The template is well-formed but names a missing field.
#[test]
fn template_with_a_missing_field_ends_with_1() {
    let cowl = Cowl::with_store();
    for (command, name) in [("version", "version"), ("info", "")] {
        let missing = format!(
            "template: {name}:1:2: executing \"{name}\" at <.Nosuch>: \
             map has no entry for key \"Nosuch\""
        );
        cowl.refused(&[command, "--format", "{{.Nosuch}}"], 1, &missing);
    }
    let missing = "failed to execute template: template: :1:2: executing \"\" at <.Nosuch>: \
                   can't evaluate field Nosuch in type *formatter.ContainerContext";
    cowl.refused(&["ps", "--format", "{{.Nosuch}}"], 1, missing);
    let output = cowl.run(&["inspect", "--format", "{{.Id}}", "nosuch"]);
    // As in Docker: an empty line, and the error.
    assert_eq!(output.stdout, b"\n");
    assert_eq!(output.stderr, b"cowl: No such object: nosuch\n");
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn empty_format_is_none() {
    let cowl = Cowl::with_store();
    for command in [
        &["ps"][..],
        &["images"],
        &["volume", "ls"],
        &["system", "df"],
        &["version"],
    ] {
        let plain = cowl.run(command).stdout;
        assert!(!plain.is_empty(), "{command:?}");
        let output = cowl.run(&[command, &["--format", ""]].concat());
        assert_eq!(output.stdout, plain, "{command:?}");
    }
}
