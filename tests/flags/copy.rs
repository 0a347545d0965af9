//! `cp`: both clients put the same files in the same places.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use cowl_tests::busybox::shop;
use cowl_tests::command::{Outcome, program, run, shell};
use cowl_tests::profile::{directory, root, user};
use cowl_tests::tree::{assert_same, read};

use crate::support::{Detached, Doors};

/// The files to copy, on either side. `touch` adds the time of day, and tree comparison ignores
/// times after 2001-09-09 01:46:40.
const SOURCES: &str = "mkdir -p dir/sub && echo one > file && chmod 640 file && ln -s file link \
    && ln -s dir linked && ln -s nowhere dangling && echo two > dir/a && ln dir/a dir/sub/hard \
    && ln -s ../a dir/sub/up && chmod 1755 dir/sub && chmod 711 dir && echo large > BZh9 \
    && find . -exec touch -h -d 2001-09-08 {} +";

/// What is at the destination.
const DESTINATIONS: &str = "mkdir -p have/dir && echo old > have/file && echo older > there && ln -s there tofile \
    && ln -s have todir && ln -s coming tonothing";

/// Options, source and destination.
const COPIES: [(&[&str], &str, &str); 26] = [
    (&[], "file", "new"),
    (&[], "file", "."),
    (&[], "file", "have"),
    (&[], "file", "have/"),
    (&[], "file", "there"),
    (&[], "file", "tofile"),
    (&[], "file", "todir"),
    (&[], "file", "tonothing"),
    (&[], "file", "new/"),
    (&[], "file", "none/new"),
    (&[], "file", "have/dir"),
    (&[], "dir", "new"),
    (&[], "dir", "new/"),
    (&[], "dir", "have"),
    (&[], "dir/", "have"),
    (&[], "dir/.", "have"),
    (&[], "dir/.", "new"),
    (&[], "dir", "there"),
    (&[], "dir/sub/..", "have"),
    (&[], "link", "have"),
    (&["-L"], "link", "have"),
    (&["-L"], "link", "new"),
    (&[], "linked", "have"),
    (&["-L"], "linked", "have"),
    (&["-L"], "dangling", "have"),
    (&[], "none", "have"),
];

/// Runs a client in a directory.
#[track_caller]
fn at(place: &Path, mut client: Command) -> Outcome {
    run(client.current_dir(place))
}

/// An empty directory with these files.
fn fresh(name: &str, script: &str) -> PathBuf {
    let place = directory().join(name);
    std::fs::remove_dir_all(&place).unwrap_or_default();
    std::fs::create_dir_all(&place).unwrap();
    shell(&place, script, [""; 0]);
    place
}

#[track_caller]
fn assert_agree(own: &Outcome, docker: &Outcome) {
    assert_eq!(own.code(), docker.code(), "{own}\n{docker}");
    assert_eq!(own.stdout, docker.stdout, "{own}\n{docker}");
    if own.code() == 0 {
        // There is no terminal to report to.
        assert_eq!((&*own.stderr, &*docker.stderr), ("", ""));
    }
}

#[test]
fn cp_puts_files_of_a_container_where_docker_does() {
    root(|| {
        let doors = Doors::open();
        let web = Detached::start(&doors.store, "web", &[], "sleep 1000");
        web.exec(&format!("mkdir /t && cd /t && {SOURCES}"));
        for (flags, source, destination) in COPIES {
            let source = format!("web:/t/{source}");
            let words = [&["cp"], flags, &[&source, destination]].concat();
            let (here, there) = (fresh("own", DESTINATIONS), fresh("dockers", DESTINATIONS));
            let own = at(&here, doors.store.command(&words));
            let docker = at(&there, doors.server.docker(&words));
            assert_agree(&own, &docker);
            let what = format!("{words:?}");
            assert_same(&read(&there), &read(&here), &what);
        }
    });
}

#[test]
fn cp_puts_files_in_a_container_where_docker_does() {
    root(|| {
        let doors = Doors::open();
        let sources = fresh("sources", SOURCES);
        let list =
            "cd /t && find . | sort | xargs stat -c '%N %a %F'; find . -type f | sort | xargs cat";
        for (flags, source, destination) in COPIES {
            let copied = |name: &str| {
                let web = Detached::start(&doors.store, name, &[], "sleep 1000");
                web.exec(&format!("mkdir /t && cd /t && {DESTINATIONS}"));
                let to = format!("{name}:/t/{destination}");
                let words = [&["cp"], flags, &[source, &to]].concat();
                let done = match name {
                    "cowl" => at(&sources, doors.store.command(&words)),
                    _ => at(&sources, doors.server.docker(&words)),
                };
                (done, web.exec(list))
            };
            let ((own, here), (docker, there)) = (copied("cowl"), copied("docker"));
            assert_agree(&own, &docker);
            assert_eq!(here, there, "{flags:?} {source} {destination}");
        }
    });
}

fn cp_copies_a_tree_there_and_back() {
    let store = shop("store");
    let sources = fresh("sources", SOURCES);
    let expected = read(&sources.join("dir"));
    let running = Detached::start(&store, "runs", &[], "sleep 1000");
    store.ok(["create", "--name", "rests", "shop", "true"]);
    for name in ["runs", "rests"] {
        let place = format!("{name}:/copy");
        let there = at(&sources, store.command(["cp", "-aq", "dir", &place]));
        assert_eq!((there.code(), there.stderr.as_str()), (0, ""), "{there}");
        let back = at(&sources, store.command(["cp", "-a", &place, name]));
        assert_eq!((back.code(), back.stderr.as_str()), (0, ""), "{back}");
        assert_same(&expected, &read(&sources.join(name)), name);

        // As a tar, both ways.
        let tar = sources.join("tar");
        let mut out = store.command(["cp", &place, "-"]);
        let code = out.stdout(std::fs::File::create(&tar).unwrap()).status();
        assert!(code.unwrap().success());
        let listed = run(&mut program("tar", ["-tf", tar.to_str().unwrap()])).ok();
        assert!(listed.starts_with("copy/\n"), "{listed}");
        let mut into = store.command(["cp", "-", &format!("{name}:/tmp")]);
        let code = into.stdin(std::fs::File::open(&tar).unwrap()).status();
        assert!(code.unwrap().success());
        let back = format!("{name}.tar");
        at(
            &sources,
            store.command(["cp", "-a", &format!("{name}:/tmp/copy"), &back]),
        )
        .ok();
        assert_same(&expected, &read(&sources.join(&back)), "the tar");
    }
    assert_eq!(running.exec("cat /copy/sub/up"), "two\n");
    // A name that begins with the magic bytes of a compressed tar.
    at(&sources, store.command(["cp", "BZh9", "runs:/tmp"])).ok();
    at(&sources, store.command(["cp", "runs:/tmp/BZh9", "dir"])).ok();
    assert_eq!(shell(&sources, "cat dir/BZh9", [""; 0]), "large\n");
    for (words, text) in [
        (
            ["cp", "a", "b"],
            "must specify at least one container source",
        ),
        (
            ["cp", "runs:/a", "rests:/b"],
            "copying between containers is not supported",
        ),
        (
            ["cp", "-", "runs:/bin/sh"],
            "destination \"runs:/bin/sh\" must be a directory",
        ),
        (["cp", "/dev/null", "runs:/dev/null"], "got a device"),
        (
            ["cp", "runs:/none", "x"],
            "Could not find the file /none in container runs",
        ),
        (["cp", "none:/a", "x"], "No such container: none"),
    ] {
        let refused = store.run(words).refused(1);
        assert!(refused.contains(text), "{refused}");
    }
}

#[test]
fn cp_copies_a_tree_there_and_back_as_root() {
    root(|| cp_copies_a_tree_there_and_back());
}

#[test]
fn cp_copies_a_tree_there_and_back_as_user() {
    user(|| cp_copies_a_tree_there_and_back());
}

/// A container swaps a directory for a link out of the destination while it is copied.
#[test]
fn cp_to_the_host_stays_below_the_destination() {
    root(|| {
        let store = shop("store");
        let outside = fresh("outside", ":");
        let target = outside.to_str().unwrap();
        let script = format!(
            "mkdir -p /t/a /real && for n in $(seq 50); do echo x > /real/$n; done; \
             while :; do rm -rf /t/b; ln -s {target} /t/b; rm /t/b; cp -r /real /t/b; : > /began; done"
        );
        let web = Detached::start(&store, "web", &[], &script);
        web.exec("until test -e /began; do usleep 10000; done");
        let inside = fresh("inside", ":");
        for _ in 0..30 {
            // Files that disappear meanwhile may cause an error.
            let mut copy = store.command(["cp", "-q", "web:/t", "."]);
            copy.stderr(Stdio::null()).current_dir(&inside);
            copy.status().unwrap();
        }
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
        assert!(inside.join("t/a").is_dir());
        drop(web);
    });
}
