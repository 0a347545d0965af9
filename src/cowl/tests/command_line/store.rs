//! What commands leave in the store, and where the store is.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::Cowl;

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

/// As docker 28: scripts count names with it.
#[test]
fn images_q_prints_an_id_for_each_name() {
    let cowl = Cowl::new();
    let tar = cowl.expand("TEMP/empty.tar");
    std::fs::write(&tar, [0; 1024]).unwrap();
    let id = cowl.run(&["import", &tar, "one:1"]).stdout;
    let id = String::from_utf8(id).unwrap();
    cowl.prints(&["tag", "one:1", "two:1"], "");
    cowl.prints(&["tag", "one:1", "one:2"], "");
    cowl.prints(&["images", "-q", "--no-trunc"], &id.repeat(3));
    cowl.prints(&["images", "-q", "--no-trunc", "one"], &id.repeat(2));
    // Docker sorts the tags of a repository, but not the repositories.
    let format = "{{.Repository}}:{{.Tag}}";
    cowl.prints(&["images", "--format", format], "one:1\none:2\ntwo:1\n");
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
    // Nor in an existing directory.
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
