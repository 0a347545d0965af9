//! Mounts and their options.

use cowl_tests::busybox::shop;
use cowl_tests::command::shell;
use cowl_tests::host::has_docker_28;
use cowl_tests::profile::{directory, root, user};
use cowl_tests::skip::skip;

use crate::support::{Doors, inside};

fn tmpfs_is_empty_and_in_memory() {
    let store = shop("store");
    let script = "stat -f -c %T /scratch; stat -c %a /scratch; grep ' /scratch ' /proc/self/mountinfo | cut -d' ' -f6; \
        df -k /scratch | tail -n1 | awk '{print $2}'";
    assert_eq!(
        inside(&store, &["--tmpfs", "/scratch:size=64k,mode=1770"], script).ok(),
        "tmpfs\n1770\nrw,nosuid,nodev,noexec,relatime\n64\n"
    );
    let mount = "type=tmpfs,target=/scratch,tmpfs-size=64k,tmpfs-mode=700";
    assert_eq!(
        inside(&store, &["--mount", mount], script).ok(),
        "tmpfs\n700\nrw,nosuid,nodev,noexec,relatime\n64\n"
    );
    let read_only = ["--mount", "type=tmpfs,dst=/scratch,readonly", "--read-only"];
    let refused = inside(&store, &read_only, "echo x > /scratch/x");
    assert!(
        refused.stderr.contains("Read-only file system"),
        "{refused}"
    );
}

#[test]
fn tmpfs_is_empty_and_in_memory_as_root() {
    root(|| tmpfs_is_empty_and_in_memory());
}

#[test]
fn tmpfs_is_empty_and_in_memory_as_user() {
    user(|| tmpfs_is_empty_and_in_memory());
}

#[test]
fn tmpfs_is_the_same_with_both_clients() {
    root(|| {
        let doors = Doors::open();
        let flags = [
            "--tmpfs",
            "/a:exec,size=64k",
            "--mount",
            "type=tmpfs,dst=/b,tmpfs-mode=711",
        ];
        let script = "grep -E ' /[ab] ' /proc/self/mountinfo | cut -d' ' -f5,6; stat -c %a /a /b; df -k /a | tail -n1 | awk '{print $2}'";
        assert_eq!(
            doors.out(&flags, script),
            "/b rw,nosuid,nodev,noexec,relatime\n/a rw,nosuid,nodev,relatime\n1777\n711\n64\n"
        );
        doors.refused(&["--tmpfs", "/a:fly"], "invalid tmpfs option \"fly\"");
        doors.refused(
            &["--tmpfs", "/a", "-v", "vol:/a"],
            "Duplicate mount point: /a",
        );
        doors.refused(&["--mount", "type=tmpfs,src=x,dst=/a"], "Source");
    });
}

/// A directory of the host with a mount below it: `below/mounted` has a file of its own.
fn with_submount(name: &str) -> std::path::PathBuf {
    let host = directory().join(name);
    let script = "mkdir -p $1/below; touch $1/below/covered; mount -t tmpfs tmpfs $1/below; touch $1/below/mounted";
    shell(&directory(), script, [&host]);
    host
}

#[test]
fn bind_recursive_controls_the_mounts_below() {
    if !has_docker_28() {
        return skip("docker is older than 28");
    }
    root(|| {
        let doors = Doors::open();
        let host = with_submount("host");
        let bind = |options: &str| format!("type=bind,src={},dst=/host{options}", host.display());
        let script = "ls /host/below; touch /host/below/new 2>/dev/null && rm /host/below/new && echo writable";
        let script = format!("{script}; true");
        let out = |options: &str| doors.out(&["--mount", &bind(options)], &script);
        assert_eq!(out(""), "mounted\nwritable\n");
        assert_eq!(out(",bind-recursive=disabled"), "covered\nwritable\n");
        assert_eq!(out(",readonly"), "mounted\n");
        assert_eq!(
            out(",readonly,bind-recursive=writable"),
            "mounted\nwritable\n"
        );
        let force = ",readonly,bind-recursive=readonly,bind-propagation=rprivate";
        assert_eq!(out(force), "mounted\n");
        doors.refused(&["--mount", &bind(",bind-recursive=x")], "invalid");
        shell(&directory(), "umount host/below", [""; 0]);
    });
}

#[test]
fn bind_propagation_passes_mounts_on() {
    root(|| {
        let doors = Doors::open();
        let host = directory().join("shared");
        shell(
            &directory(),
            "mkdir shared; mount -t tmpfs tmpfs shared; mkdir shared/late; mount --make-shared shared",
            [""; 0],
        );
        let groups = "grep ' /host ' /proc/self/mountinfo | cut -d' ' -f7 | cut -d: -f1";
        let out = |how: &str| {
            let bind = format!("{}:/host:{how}", host.display());
            doors.out(&["-v", &bind], groups)
        };
        assert_eq!(out("rslave"), "master\n");
        assert_eq!(out("rshared"), "shared\n");
        assert_eq!(out("rprivate"), "-\n");
        let mount = format!(
            "type=bind,src={},dst=/host,bind-propagation=rslave",
            host.display()
        );
        assert_eq!(doors.out(&["--mount", &mount], groups), "master\n");
        shell(
            &directory(),
            "umount shared; mkdir private; mount -t tmpfs tmpfs private; mount --make-private private",
            [""; 0],
        );
        let bind = format!("{}:/host:rshared", directory().join("private").display());
        doors.refused(&["-v", &bind], "but it is not a shared mount");
        let bind = format!("{}:/host:rslave", directory().join("private").display());
        doors.refused(&["-v", &bind], "but it is not a shared or slave mount");
        shell(&directory(), "umount private", [""; 0]);
    });
}

#[test]
fn volume_subpath_is_a_part_of_a_volume() {
    if !has_docker_28() {
        return skip("docker is older than 28");
    }
    root(|| {
        let doors = Doors::open();
        let fill = "mkdir -p /vol/a/b; echo deep > /vol/a/b/file; ln -s /etc /vol/out";
        inside(&doors.store, &["-v", "parts:/vol"], fill).ok();
        let mount = |path: &str| format!("src=parts,dst=/part,volume-subpath={path}");
        assert_eq!(
            doors.out(&["--mount", &mount("a/b")], "cat /part/file"),
            "deep\n"
        );
        // A link is resolved inside the volume.
        let climbs = inside(&doors.store, &["--mount", &mount("out")], "true").refused(125);
        assert!(
            climbs.contains("cannot access path out of the volume"),
            "{climbs}"
        );
        let why = "subpath must be a relative path within the volume";
        doors.refused(&["--mount", &mount("../x")], why);
    });
}

#[test]
fn volume_nocopy_begins_empty() {
    root(|| {
        let doors = Doors::open();
        // The image has /etc/passwd.
        let count = "ls /etc | grep -c passwd || true";
        assert_eq!(doors.out(&["--mount", "src=copied,dst=/etc"], count), "1\n");
        let mount = "src=empty,dst=/etc,volume-nocopy";
        assert_eq!(doors.out(&["--mount", mount], count), "0\n");
        assert_eq!(doors.out(&["-v", "bare:/etc:nocopy"], count), "0\n");
    });
}

#[test]
fn volume_driver_and_volume_opt_make_the_volume() {
    root(|| {
        let doors = Doors::open();
        let options = "volume-driver=local,volume-opt=type=tmpfs,volume-opt=device=tmpfs,\"volume-opt=o=size=64k,mode=711\"";
        let script = "stat -f -c %T /m; stat -c %a /m; df -k /m | tail -n1 | awk '{print $2}'";
        let anonymous = format!("dst=/m,{options}");
        assert_eq!(
            doors.out(&["--mount", &anonymous], script),
            "tmpfs\n711\n64\n"
        );
        let shown = ["volume", "inspect", "-f", "{{.Driver}} {{.Options}}"];
        let named = |name: &str| format!("src={name},{anonymous}");
        let create = |name: &str| ["create", "--mount", name, "shop", "true"].map(str::to_owned);
        doors.store.ok(create(&named("own")));
        doors.server.ok(create(&named("docker")));
        for name in ["own", "docker"] {
            assert_eq!(
                doors.store.ok([&shown[..], &[name]].concat()),
                "local map[device:tmpfs o:size=64k,mode=711 type:tmpfs]\n"
            );
        }
        // They apply to new volumes only: it exists now.
        let again = "src=own,dst=/m,volume-opt=type=nosuch";
        doors.store.ok(["create", "--mount", again, "shop", "true"]);
        doors.refused(
            &["--mount", "src=new,dst=/m,volume-opt=nosuch=1"],
            "create new: invalid option: \"nosuch\"",
        );
        let nosuch = "src=new,dst=/m,volume-driver=nosuch";
        let refused = doors
            .store
            .run(["create", "--mount", nosuch, "shop"])
            .refused(1);
        let why = "error looking up volume plugin nosuch: plugin \"nosuch\" not found";
        assert!(refused.contains(why), "{refused}");
        assert!(!doors.store.ok(["volume", "ls", "-q"]).contains("new"));
    });
}

#[test]
fn read_only_leaves_mounts_writable() {
    root(|| {
        let doors = Doors::open();
        let script =
            "touch /x 2>/dev/null || echo refused; touch /data/x /dev/shm/x && echo written";
        assert_eq!(
            doors.out(&["--read-only", "-v", "/data"], script),
            "refused\nwritten\n"
        );
    });
}
