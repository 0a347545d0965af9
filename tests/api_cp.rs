//! `docker cp` over `cowl serve`: copies into and out of containers, also of hostile containers and
//! tars.

use std::fs::File;
use std::process::Stdio;

use cowl_tests::busybox::shop;
use cowl_tests::command::{program, run, shell};
use cowl_tests::profile::{directory, root, user};
use cowl_tests::server::Server;
use cowl_tests::tree::{assert_same, read};

/// A directory with everything that a tar can record.
const TREE: &str = "mkdir -p tree/below/deep && cd tree && echo one > file && chmod 640 file && ln file below/hard \
    && ln -s ../file below/link && ln -s /nowhere dangling && head -c 100000 /dev/urandom > below/large \
    && chmod 4755 below/large && chmod 1777 below/deep && : > \"$(printf %0150d 7)\" \
    && find . -depth -exec touch -h -d @1000000000 {} +";

fn docker_cp_copies_trees_both_ways() {
    let store = shop("store");
    let server = Server::start(&store);
    let here = directory().join("here");
    std::fs::create_dir_all(&here).unwrap();
    shell(&here, TREE, [""; 0]);
    let path = |name: &str| here.join(name).to_str().unwrap().to_owned();
    let expected = read(&here.join("tree"));
    server.ok(["run", "-di", "--name", "runs", "shop", "cat"]);
    server.ok(["create", "--name", "rests", "shop", "true"]);
    for name in ["runs", "rests"] {
        server.ok(["cp", "-a", &path("tree"), &format!("{name}:/in")]);
        server.ok(["cp", "-a", &format!("{name}:/in"), &path(name)]);
        assert_same(&expected, &read(&here.join(name)), name);
        // A directory's contents into an existing directory.
        server.ok([
            "cp",
            &format!("{}/.", path("tree")),
            &format!("{name}:/tmp"),
        ]);
        let listed = tar_of(&server, &format!("{name}:/tmp/below"), &["-t"]);
        assert!(listed.contains("below/link\n"), "{listed}");
        let one = server.ok(["cp", &format!("{name}:/tmp/file"), &path("one")]);
        assert_eq!(one, "");
        assert_eq!(std::fs::read_to_string(here.join("one")).unwrap(), "one\n");
    }
    let inside = server.ok([
        "exec",
        "runs",
        "sh",
        "-c",
        "cat /in/below/link; stat -c %a /in/below/large",
    ]);
    assert_eq!(inside, "one\n4755\n");
    server.ok(["rm", "-f", "runs"]);
    // The copied files are there when the other container runs: cp has left it startable.
    server.ok(["start", "rests"]);
    assert_eq!(server.ok(["wait", "rests"]), "0\n");
    let changes = server.ok(["diff", "rests"]);
    assert!(changes.contains("A /in/below/hard\n"), "{changes}");
}

#[test]
fn docker_cp_copies_trees_both_ways_as_root() {
    root(|| docker_cp_copies_trees_both_ways());
}

#[test]
fn docker_cp_copies_trees_both_ways_as_user() {
    user(|| docker_cp_copies_trees_both_ways());
}

/// GNU tar's listing of the output of `docker cp SOURCE -`.
#[track_caller]
fn tar_of(server: &Server, source: &str, options: &[&str]) -> String {
    let archive = directory().join("out.tar");
    let output = File::create(&archive).unwrap();
    let status = server.docker(["cp", source, "-"]).stdout(output).status();
    assert!(status.unwrap().success(), "{source}");
    let options = options
        .iter()
        .copied()
        .chain(["-f", archive.to_str().unwrap()]);
    run(&mut program("tar", options)).ok()
}

#[test]
fn docker_cp_reaches_volumes_and_not_proc() {
    root(|| {
        let store = shop("store");
        let server = Server::start(&store);
        let run = ["run", "-di", "--name", "web", "-v", "notes:/data"];
        server.ok([&run[..], &["shop", "cat"]].concat());
        server.ok(["exec", "web", "sh", "-c", "echo kept > /data/file"]);
        let listed = tar_of(&server, "web:/data", &["-t"]);
        assert_eq!(listed, "data/\ndata/file\n");
        let all = tar_of(&server, "web:/", &["-t"]);
        let has = |name: &str| {
            all.lines()
                .any(|line| line.trim_start_matches("./") == name)
        };
        assert!(has("data/file") && has("proc/") && has("dev/"), "{all}");
        assert!(!has("proc/1/") && !has("dev/null"), "{all}");
        server.ok(["stop", "-t", "0", "web"]);
        assert_eq!(tar_of(&server, "web:/data", &["-t"]), listed);
        let all = tar_of(&server, "web:/", &["-t"]);
        assert!(all.lines().any(|line| line.ends_with("data/file")), "{all}");
    });
}

/// dockerd mounts a stopped container's volumes and bind mounts for a copy; read-only ones stay so.
fn docker_cp_reaches_the_mounts_of_a_stopped_container() {
    let store = shop("store");
    let server = Server::start(&store);
    let place = directory();
    let (host, file) = (place.join("host"), place.join("file"));
    std::fs::create_dir_all(host.join("below")).unwrap();
    std::fs::write(host.join("below/there"), "bound").unwrap();
    std::fs::write(&file, "copied").unwrap();
    let (host, file) = (host.to_str().unwrap(), file.to_str().unwrap());
    let binds = [format!("{host}:/bind"), format!("{host}:/fixed:ro")];
    let create = |name: &str, flags: &[&str]| {
        let mounts = ["-v", "notes:/data", "-v", &binds[0], "-v", &binds[1]];
        let fixed = ["-v", "notes:/data/fixed:ro", "--tmpfs", "/scratch"];
        let words = [&["create", "--name", name], flags, &mounts, &fixed].concat();
        server.ok([&words[..], &["shop", "cat", "/data/own"]].concat());
    };
    create("web", &[]);
    for (door, name) in [(0, "own"), (1, "docker")] {
        let cp = |from: &str, to: &str| match door {
            0 => store.run(["cp", "-q", from, to]),
            // Docker 20.10 is quiet, and has no option for it.
            _ => server.run(["cp", from, to]),
        };
        cp(file, &format!("web:/data/{name}")).ok();
        cp(file, &format!("web:/bind/below/{name}")).ok();
        let out = place.join(format!("out-{name}"));
        std::fs::create_dir(&out).unwrap();
        let out = out.to_str().unwrap();
        cp(&format!("web:/data/{name}"), out).ok();
        cp("web:/fixed/below/there", out).ok();
        let read = |path: String| std::fs::read_to_string(path).unwrap();
        assert_eq!(read(format!("{out}/{name}")), "copied");
        assert_eq!(read(format!("{out}/there")), "bound");
        assert_eq!(read(format!("{host}/below/{name}")), "copied");
        let data = store.root().join("volumes/notes/_data").join(name);
        assert_eq!(std::fs::read_to_string(data).unwrap(), "copied");
        for to in ["web:/fixed/below/", "web:/data/fixed/"] {
            let why = "mounted volume is marked read-only";
            let refused = cp(file, to).refused(1);
            assert!(refused.contains(why), "{refused}");
        }
    }
    // Nothing was written to the container's own root, except for mount points.
    let changed = store.ok(["diff", "web"]);
    assert!(
        !changed.contains("own") && !changed.contains("there"),
        "{changed}"
    );
    assert_eq!(store.ok(["start", "-a", "web"]), "copied");
    create("still", &["--read-only"]);
    server.ok(["cp", file, "still:/data/again"]);
    let refused = server.run(["cp", file, "still:/tmp/"]).refused(1);
    let why = "container rootfs is marked read-only";
    assert!(refused.contains(why), "{refused}");
}

#[test]
fn docker_cp_reaches_the_mounts_of_a_stopped_container_as_root() {
    root(|| docker_cp_reaches_the_mounts_of_a_stopped_container());
}

#[test]
fn docker_cp_reaches_the_mounts_of_a_stopped_container_as_user() {
    user(|| docker_cp_reaches_the_mounts_of_a_stopped_container());
}

#[test]
fn docker_cp_is_refused_as_dockerd_does() {
    root(|| {
        let store = shop("store");
        let server = Server::start(&store);
        server.ok(["create", "--name", "web", "shop", "true"]);
        server.ok(["create", "--name", "fixed", "--read-only", "shop", "true"]);
        let file = directory().join("file");
        std::fs::write(&file, "x").unwrap();
        let file = file.to_str().unwrap();
        // The words of Docker 20.10 for a 404 are its own.
        for (from, to, why, older) in [
            (
                "web:/nope",
                "-",
                "Could not find the file /nope in container web",
                "web:/nope",
            ),
            (
                "web:/etc/motd/x",
                "-",
                "Could not find the file /etc/motd/x in container web",
                "web:/etc/motd/x",
            ),
            (
                file,
                "web:/nodir/x",
                "Could not find the file /nodir in container web",
                "web:/nodir",
            ),
            (
                file,
                "fixed:/tmp/x",
                "container rootfs is marked read-only",
                "fixed:/tmp",
            ),
            (
                file,
                "absent:/tmp/x",
                "No such container: absent",
                "absent:/tmp",
            ),
        ] {
            let refused = server.run(["cp", from, to]);
            assert_eq!(refused.code(), 1, "{refused}");
            let older = format!("No such container:path: {older}\n");
            assert!(
                refused.stderr.contains(why) || refused.stderr.ends_with(&older),
                "{refused}"
            );
        }
        for path in ["/nope", "/etc/motd/x"] {
            let answer = server.request(
                &format!("GET /v1.51/containers/web/archive?path={path}"),
                "",
            );
            let why = format!("Could not find the file {path} in container web");
            assert!(answer.contains(&why), "{answer}");
        }
        let put = |query: &str| {
            server.request(&format!("PUT /v1.51/containers/web/archive?{query}"), "x")
        };
        assert!(put("").contains("missing parameter: path"));
        let file = put("path=/etc/motd");
        assert!(
            file.contains("400") && file.contains("extraction point is not a directory"),
            "{file}"
        );
    });
}

/// Neither links of the container nor entries of a tar lead out of the container.
#[test]
fn docker_cp_stays_inside_the_container() {
    root(|| {
        let store = shop("store");
        let server = Server::start(&store);
        let host = directory().join("host");
        std::fs::create_dir_all(&host).unwrap();
        std::fs::write(host.join("secret"), "secret").unwrap();
        let outside = host.to_str().unwrap();
        let script = format!(
            "mkdir -p {outside} && ln -s {outside} /tmp/away && ln -s ../../../../../..{outside}/secret /tmp/up && ln -s /proc/1/root /tmp/magic"
        );
        server.ok(["run", "-di", "--name", "web", "shop", "cat"]);
        server.ok(["exec", "web", "sh", "-c", &script]);
        for path in [
            "web:/tmp/away/secret",
            "web:/tmp/up/",
            "web:/tmp/magic/etc/",
        ] {
            let refused = server.run(["cp", path, "-"]);
            assert_eq!(refused.code(), 1, "{refused}");
            assert!(!refused.stdout.contains("secret"), "{refused}");
        }
        let file = directory().join("file");
        std::fs::write(&file, "x").unwrap();
        server.ok(["cp", file.to_str().unwrap(), "web:/tmp/away/put"]);
        server.ok(["exec", "web", "test", "-f", &format!("{outside}/put")]);
        // An archive that creates a link and writes through it, and one with `..`.
        let archive = directory().join("hostile.tar");
        let pack = |make: &str, transform: &str| {
            let source = directory().join("source");
            shell(&directory(), "rm -rf source && mkdir source", [""; 0]);
            shell(&source, make, [outside]);
            let tar = format!(
                "tar -cf ../hostile.tar -P --no-recursion --transform '{transform}' link evil"
            );
            shell(&source, &tar, [""; 0]);
            let mut docker = server.docker(["cp", "-", "web:/srv"]);
            run(docker.stdin(Stdio::from(File::open(&archive).unwrap())))
        };
        let through = pack("ln -s \"$1\" link; echo x > evil", "s,^evil,link/evil,");
        assert_eq!(through.code(), 0, "{through}");
        server.ok(["exec", "web", "test", "-f", &format!("{outside}/evil")]);
        let up = pack("ln -s x link; echo x > evil", "s,^evil,../../evil,");
        assert_eq!(up.code(), 1, "{up}");
        assert!(up.stderr.contains("it leads out of the archive"), "{up}");
        let there: Vec<_> = std::fs::read_dir(&host).unwrap().collect();
        assert_eq!(there.len(), 1, "{there:?}");
        server.ok(["rm", "-f", "web"]);
    });
}
