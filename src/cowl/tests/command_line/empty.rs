//! Options with an empty value: docker 28.2 treats some as absent and refuses others.

use crate::Cowl;

#[test]
fn empty_value_of_some_options_is_none() {
    let cowl = Cowl::with_store();
    for option in [
        "--cidfile",
        "--platform",
        "--name",
        "--workdir",
        "--entrypoint",
        "--user",
        "--hostname",
        "--domainname",
        "--dns-option",
        "--pid",
        "--ipc",
        "--uts",
        "--userns",
        "--cgroupns",
        "--cgroup-parent",
        "--pull",
        "--stop-signal",
        "--restart",
        "--log-driver",
        "--cpuset-cpus",
        "--cpuset-mems",
        "--health-cmd",
        "--detach-keys",
        "--runtime",
        "--volume-driver",
        "--isolation",
        "--mac-address",
        "--ip",
    ] {
        let missing = "No such image: nosuch:latest";
        cowl.refused(&["run", option, "", "nosuch"], 125, missing);
    }
}

#[test]
fn empty_value_of_other_options_is_refused() {
    let cowl = Cowl::with_store();
    let table = [
        ("--network", "no name set for network"),
        ("--env-file", "open : No such file or directory"),
        ("--label-file", "open : No such file or directory"),
        ("--volume", "invalid empty volume spec"),
        (
            "--label",
            "invalid argument \"\" for --label: invalid label '': empty name; see 'cowl run --help'",
        ),
        ("--add-host", "bad format for add-host: \"\""),
        ("--dns-search", " is not a valid domain"),
        (
            "--tmpfs",
            "invalid mount path: '' mount path must be absolute",
        ),
        ("--security-opt", "invalid --security-opt: \"\""),
        ("--sysctl", "sysctl '' is not allowed"),
        ("--attach", "valid streams are STDIN, STDOUT and STDERR"),
    ];
    for (option, why) in table {
        cowl.refused(&["run", option, "", "nosuch"], 125, why);
    }
}

#[test]
fn empty_name_is_none_where_docker_takes_it() {
    let cowl = Cowl::with_store();
    let tar = cowl.expand("TEMP/empty.tar");
    std::fs::write(&tar, [0; 1024]).unwrap();
    assert!(cowl.run(&["import", &tar, "one:1"]).status.success());
    let listed = cowl.run(&["images", "-q"]).stdout;
    let listed = String::from_utf8(listed).unwrap();
    cowl.prints(&["images", "-q", ""], &listed);
    cowl.prints(&["images", "-q", "--filter", ""], &listed);
    cowl.prints(&["ps", "-q", "--filter", ""], "");
    let container = "invalid container name or ID: value is empty";
    for command in [
        &["rm", ""][..],
        &["rm", "-f", ""],
        &["stop", ""],
        &["logs", ""],
        &["commit", "", "x"],
        &["kill", "-s", "", ""],
    ] {
        cowl.refused(command, 1, container);
    }
    let volume = "invalid volume name or ID: value is empty";
    cowl.refused(&["volume", "rm", ""], 1, volume);
    cowl.refused(&["volume", "rm", "-f", ""], 1, volume);
    cowl.refused(
        &["volume", "create", "--label", "", "v"],
        125,
        "invalid argument \"\" for --label: invalid label '': empty name; see 'cowl volume create --help'",
    );
    cowl.refused(
        &["volume", "create", "--label", "a b=1", "v"],
        125,
        "invalid argument \"a b=1\" for --label: label 'a b' contains whitespaces; see 'cowl volume create --help'",
    );
    cowl.refused(
        &["inspect", "--type", "", "one:1"],
        1,
        "type is empty: must be one of \"container\", \"image\", \"volume\"",
    );
    cowl.refused(&["import", ""], 1, "importing : No such file or directory");
}

/// An empty name of an archive is standard output or input.
#[test]
fn empty_file_of_an_archive_is_a_standard_stream() {
    let cowl = Cowl::new();
    let tar = cowl.expand("TEMP/empty.tar");
    std::fs::write(&tar, [0; 1024]).unwrap();
    assert!(cowl.run(&["import", &tar, "one:1"]).status.success());
    let named = cowl.run(&["save", "one:1"]);
    assert!(named.stdout.len() > 1024);
    let unnamed = cowl.run(&["save", "-o", "", "--platform", "", "one:1"]);
    assert_eq!(unnamed.stdout, named.stdout);
    assert!(unnamed.status.success());
    // Standard input is not an archive.
    let loaded = cowl.run(&["load", "-i", "", "--platform", ""]);
    let plain = cowl.run(&["load"]);
    assert_eq!(loaded.stderr, plain.stderr);
    assert_eq!(loaded.status.code(), Some(1));
}
