//! Names, name servers and namespaces.

use cowl_tests::busybox::{layers, shop};
use cowl_tests::command::shell;
use cowl_tests::profile::{directory, root, user};

use crate::support::{Detached, Doors, inside};

#[test]
fn hosts_names_the_container_and_what_add_host_adds() {
    root(|| {
        let doors = Doors::open();
        let flags = [
            "--hostname",
            "web",
            "--add-host",
            "db:10.9.8.7",
            "--add-host",
            "six:fe80::1",
        ];
        let hosts = doors.out(&flags, "cat /etc/hosts");
        let expected = "127.0.0.1\tlocalhost\n\
            ::1\tlocalhost ip6-localhost ip6-loopback\n\
            fe00::\tip6-localnet\n\
            ff00::\tip6-mcastprefix\n\
            ff02::1\tip6-allnodes\n\
            ff02::2\tip6-allrouters\n\
            10.9.8.7\tdb\n\
            fe80::1\tsix\n\
            127.0.0.1\tweb\n";
        assert_eq!(hosts, expected);
        doors.refused(&["--add-host", "db"], "bad format for add-host: \"db\"");
        doors.refused(
            &["--add-host", "db:1.2"],
            "invalid IP address in add-host: \"1.2\"",
        );
    });
}

#[test]
fn hostname_and_domainname_name_the_container() {
    root(|| {
        let doors = Doors::open();
        let flags = ["-h", "web", "--domainname", "example.org"];
        let script = "hostname; cat /etc/hostname /proc/sys/kernel/domainname; grep web /etc/hosts; echo $HOSTNAME";
        assert_eq!(
            doors.out(&flags, script),
            "web\nweb\nexample.org\n127.0.0.1\tweb.example.org web\nweb\n"
        );
    });
}

#[test]
fn dns_options_replace_those_of_the_host() {
    root(|| {
        let doors = Doors::open();
        let flags = [
            "--dns",
            "10.1.1.1",
            "--dns",
            "fd00::1",
            "--dns-search",
            "a.example",
            "--dns-option",
            "ndots:3",
        ];
        assert_eq!(
            doors.out(&flags, "cat /etc/resolv.conf"),
            "nameserver 10.1.1.1\nnameserver fd00::1\nsearch a.example\noptions ndots:3\n"
        );
        doors.refused(&["--dns", "nobody"], "nobody");
    });
}

fn network_files_are_the_containers_own() {
    let store = shop("store");
    // Changes are visible in the container only, and do not count as changes of the image.
    let script =
        "for f in hosts hostname resolv.conf; do echo x > /etc/$f || exit 1; done; cat /etc/hosts";
    let out = store.ok(["run", "--name", "files", "shop", "sh", "-c", script]);
    assert_eq!(out, "x\n");
    let changes = store.ok(["diff", "files"]);
    assert!(
        !changes.contains("/etc/host") && !changes.contains("resolv"),
        "{changes}"
    );
    let archive = directory().join("files.tar");
    store.ok(["export", "-o", archive.to_str().unwrap(), "files"]);
    let listed = shell(
        &directory(),
        "tar -xOf files.tar etc/hosts etc/resolv.conf || true",
        [""; 0],
    );
    assert!(!listed.contains('x'), "{listed}");
    store.ok(["rm", "files"]);
    // A read-only root has them read-only, too.
    let refused = inside(&store, &["--read-only"], "echo x > /etc/hosts");
    assert!(
        refused.stderr.contains("Read-only file system"),
        "{refused}"
    );
    // The user's own mounts there take precedence.
    let own = directory().join("own");
    std::fs::write(&own, "1.1.1.1 own\n").unwrap();
    let mount = format!("{}:/etc/hosts", own.display());
    assert_eq!(
        inside(&store, &["-v", &mount], "cat /etc/hosts").ok(),
        "1.1.1.1 own\n"
    );
}

#[test]
fn network_files_are_the_containers_own_as_root() {
    root(|| network_files_are_the_containers_own());
}

#[test]
fn network_files_are_the_containers_own_as_user() {
    user(|| network_files_are_the_containers_own());
}

#[test]
fn network_host_is_the_hosts_network_with_its_files() {
    root(|| {
        let doors = Doors::open();
        let script = "readlink /proc/self/ns/net; cat /etc/hosts /etc/resolv.conf; hostname";
        let own = std::fs::read_link("/proc/self/ns/net").unwrap();
        let read = |path: &str| std::fs::read_to_string(path).unwrap();
        let expected = format!(
            "{}\n{}{}{}",
            own.display(),
            read("/etc/hosts"),
            read("/etc/resolv.conf"),
            read("/proc/sys/kernel/hostname")
        );
        assert_eq!(doors.out(&["--network", "host"], script), expected);
    });
}

#[test]
fn network_none_has_a_loopback_alone() {
    root(|| {
        let doors = Doors::open();
        let script = "tail -n +3 /proc/net/dev | cut -d: -f1; grep -c $HOSTNAME /etc/hosts || true";
        assert_eq!(
            doors.out(&["--network", "none", "-h", "lonely"], script),
            "    lo\n0\n"
        );
        doors.refused(&["--network", "mine"], "network mine not found");
    });
}

#[test]
fn network_and_pid_of_another_container_are_joined() {
    root(|| {
        let doors = Doors::open();
        // A shell that does not exec: its name does not change between two checks.
        let script = "touch /ready; while :; do sleep 1000; done";
        let donor = Detached::start(&doors.store, "donor", &["-h", "donor"], script);
        donor.exec("until test -e /ready; do usleep 10000; done");
        let names = "readlink /proc/self/ns/net; readlink /proc/self/ns/pid";
        let expected = donor.exec(names);
        let flags = ["--network", "container:donor", "--pid", "container:donor"];
        assert_eq!(doors.out(&flags, names), expected);
        assert_eq!(
            doors.out(&flags, "cat /proc/1/comm"),
            donor.exec("cat /proc/1/comm")
        );
        donor.exec("echo 1.2.3.4 shared >> /etc/hosts");
        let script = "hostname; tail -n1 /etc/hosts";
        assert_eq!(doors.out(&flags, script), "donor\n1.2.3.4 shared\n");
        let conflicts = [
            (
                ["-h", "x"],
                "conflicting options: hostname and the network mode",
            ),
            (
                ["--dns", "1.1.1.1"],
                "conflicting options: dns and the network mode",
            ),
            (
                ["--add-host", "a:1.1.1.1"],
                "conflicting options: custom host-to-IP mapping and the network mode",
            ),
        ];
        for (flag, why) in conflicts {
            doors.refused(&[&flags[..2], &flag].concat(), why);
        }
        doors.store.ok(["stop", "-t", "0", "donor"]);
        let late = inside(&doors.store, &flags, "true").refused(125);
        assert!(late.contains("of a non running container"), "{late}");
        doors.refused(
            &["--network", "container:nobody"],
            "No such container: nobody",
        );
    });
}

#[test]
fn pid_uts_ipc_and_cgroupns_host_are_the_hosts() {
    root(|| {
        let doors = Doors::open();
        for kind in ["pid", "uts", "ipc", "cgroup"] {
            let flag = if kind == "cgroup" { "cgroupns" } else { kind };
            let flag = format!("--{flag}=host");
            let script = format!("readlink /proc/self/ns/{kind}");
            let of_host = std::fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
            assert_eq!(
                doors.out(&[&flag], &script),
                format!("{}\n", of_host.display())
            );
            assert_ne!(
                inside(&doors.store, &[], &script).ok(),
                format!("{}\n", of_host.display())
            );
        }
        doors.out(&["--userns", "host"], "readlink /proc/self/ns/user");
        for (flag, why) in [
            ("--pid=x", "--pid: invalid PID mode"),
            ("--uts=x", "--uts: invalid UTS mode"),
            ("--cgroupns=x", "--cgroupns: invalid CGROUP mode"),
            ("--userns=x", "--userns: invalid USER mode"),
            ("--ipc=x", "invalid IPC mode: x"),
        ] {
            doors.refused(&[flag], why);
        }
        doors.refused(
            &["--uts=host", "-h", "x"],
            "conflicting options: hostname and the UTS mode",
        );
    });
}

#[test]
fn ipc_none_has_no_shared_memory_and_ipc_host_has_the_hosts() {
    root(|| {
        let doors = Doors::open();
        let mounted = "grep -c ' /dev/shm ' /proc/self/mountinfo || true";
        assert_eq!(doors.out(&["--ipc", "none"], mounted), "0\n");
        assert_eq!(doors.out(&["--ipc", "private"], mounted), "1\n");
        assert_eq!(doors.out(&["--ipc", "shareable"], mounted), "1\n");
        let device = cowl_tests::command::system("stat", ["-c", "%d:%i", "/dev/shm"]);
        assert_eq!(
            doors.out(&["--ipc", "host"], "stat -c %d:%i /dev/shm"),
            device
        );
    });
}

#[test]
fn ipc_of_another_container_is_joined_with_its_shared_memory() {
    root(|| {
        let doors = Doors::open();
        let flags = ["--ipc", "shareable", "--shm-size", "1m"];
        let donor = Detached::start(&doors.store, "donor", &flags, "sleep 1000");
        donor.exec("echo secret > /dev/shm/file");
        let shared = "readlink /proc/self/ns/ipc; stat -c %d:%i /dev/shm; cat /dev/shm/file; df /dev/shm | tail -n1 | tr -s ' ' | cut -d' ' -f2; \
            grep ' /dev/shm ' /proc/self/mountinfo | cut -d' ' -f6";
        let expected = donor.exec(shared);
        assert!(expected.contains("secret\n"), "{expected}");
        assert_eq!(doors.out(&["--ipc", "container:donor"], shared), expected);
        // The first container sees what the second one writes.
        let write = "echo back > /dev/shm/answer; cat /proc/sysvipc/shm | wc -l";
        doors.out(&["--ipc=container:donor", "--read-only"], write);
        assert_eq!(donor.exec("cat /dev/shm/answer"), "back\n");
        // A container that joined can itself be joined.
        let second = Detached::start(
            &doors.store,
            "second",
            &["--ipc=container:donor"],
            "sleep 1000",
        );
        assert_eq!(doors.out(&["--ipc", "container:second"], shared), expected);
        drop(second);

        let private = Detached::start(&doors.store, "private", &[], "sleep 1000");
        let refused = inside(&doors.store, &["--ipc", "container:private"], "true").refused(125);
        let id = private.field("{{.Id}}");
        let why = format!(
            "can't join IPC of container {id}: non-shareable IPC (hint: use IpcMode:shareable for the donor container)"
        );
        assert!(refused.contains(&why), "{refused}");
        doors.store.ok(["stop", "-t", "0", "donor"]);
        let late = inside(&doors.store, &["--ipc", "container:donor"], "true").refused(125);
        assert!(
            late.contains("cannot join IPC of a non running container"),
            "{late}"
        );
        doors.refused(&["--ipc", "container:nobody"], "No such container: nobody");
        let _running = private;
    });
}

/// If the donor replaces /dev/shm, the replacement is joined, and nothing of the host.
#[test]
fn ipc_of_another_container_takes_no_link_to_the_host() {
    root(|| {
        let doors = Doors::open();
        let flags = ["--ipc", "shareable", "--privileged"];
        let script = "umount /dev/shm && rmdir /dev/shm && ln -s /proc/1/root/etc /dev/shm && : > /tmp/ready && sleep 1000";
        let donor = Detached::start(&doors.store, "donor", &flags, script);
        donor.exec("until [ -e /tmp/ready ]; do :; done");
        let refused = inside(&doors.store, &["--ipc", "container:donor"], "true").refused(125);
        assert!(refused.contains("it has no /dev/shm"), "{refused}");
    });
}

#[test]
fn ipc_of_another_container_is_joined_as_user() {
    user(|| {
        let store = shop("store");
        let donor = Detached::start(&store, "donor", &["--ipc", "shareable"], "sleep 1000");
        donor.exec("echo secret > /dev/shm/file");
        let out = inside(&store, &["--ipc", "container:donor"], "cat /dev/shm/file").ok();
        assert_eq!(out, "secret\n");
    });
}

/// One link of the image leads through an absolute link, and one points above its root.
#[test]
fn network_files_are_mounted_where_dangling_links_of_the_image_lead() {
    root(|| {
        let store = shop("store");
        let tree = directory().join("links");
        std::fs::create_dir_all(&tree).unwrap();
        let make = "tar -xf \"$1\" && rm -rf etc run && mkdir etc run && ln -s /elsewhere there \
            && ln -s ../run/systemd/resolve/stub.conf etc/resolv.conf && ln -s /there/hosts etc/hosts \
            && ln -s ../../../../../tmp/outside/./name etc/hostname && tar -cf ../links.tar .";
        shell(&tree, make, [layers().join("base.tar")]);
        store.ok([
            "import",
            directory().join("links.tar").to_str().unwrap(),
            "links",
        ]);
        let script = "cat /etc/hostname /tmp/outside/name /elsewhere/hosts /run/systemd/resolve/stub.conf; readlink /etc/resolv.conf";
        let expected = "linked\nlinked\n127.0.0.1\tlocalhost\n";
        let end = "127.0.0.1\tlinked\nnameserver 10.1.1.1\n../run/systemd/resolve/stub.conf\n";
        for more in [
            &[][..],
            &["--tmpfs", "/run"],
            &["--read-only", "--tmpfs", "/run"],
        ] {
            let flags = ["run", "--rm", "-h", "linked", "--dns", "10.1.1.1"];
            let out = store.ok([&flags[..], more, &["links", "sh", "-c", script]].concat());
            assert!(out.starts_with(expected) && out.ends_with(end), "{out}");
        }
        assert!(!std::path::Path::new("/tmp/outside").exists());
    });
}
