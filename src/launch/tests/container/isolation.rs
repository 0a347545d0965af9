//! What a sandbox and a process ask for, seen from inside: one effect a field.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::path::Path;

use crate::harness::{Fixture, end, wait_for, waiting};
use cowl_launch::process::{Resource, Rlimit};
use cowl_launch::sandbox::{
    Attributes, CgroupNamespace, Device, DeviceRule, Filesystem, Mount, MountSource, Namespace,
    Propagation, Submounts, Sysctl,
};

const KINDS: [&str; 5] = ["pid", "ipc", "uts", "net", "cgroup"];

/// The namespaces of a process, as the links of /proc name them.
fn namespaces(directory: &str) -> Vec<String> {
    let link = |kind: &str| std::fs::read_link(format!("{directory}/ns/{kind}")).unwrap();
    KINDS
        .iter()
        .map(|kind| link(kind).to_str().unwrap().to_owned())
        .collect()
}

fn applets(fixture: &Fixture, names: &[&str]) {
    for name in names {
        symlink("busybox", fixture.path("bin").join(name)).unwrap();
    }
}

const SHOW: &str = "for n in pid ipc uts net cgroup; do readlink /proc/self/ns/$n; done";

#[test]
fn namespaces_are_new_unless_the_hosts_are_asked_for() {
    let fixture = Fixture::new("ns-host");
    applets(&fixture, &["readlink"]);
    let host = namespaces("/proc/self");
    let mut start = fixture.sh(SHOW);
    let own: Vec<String> = fixture
        .run(&start)
        .output
        .lines()
        .map(str::to_owned)
        .collect();
    assert_eq!(own.len(), 5, "{own:?}");
    assert!(
        own.iter().zip(&host).all(|(own, host)| own != host),
        "{own:?}"
    );

    let namespaces = &mut start.sandbox.namespaces;
    for namespace in [
        &mut namespaces.pid,
        &mut namespaces.ipc,
        &mut namespaces.uts,
        &mut namespaces.net,
    ] {
        *namespace = Namespace::Host;
    }
    namespaces.cgroup = CgroupNamespace::Host;
    start.sandbox.sysctls.clear();
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let outcome = fixture.run(&start);
    let lines: Vec<&str> = outcome.output.lines().collect();
    assert_eq!(lines, host);
    // The host keeps its name.
    assert_eq!(
        std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap(),
        name
    );
}

#[test]
fn namespaces_of_another_container_are_joined() {
    let other = Fixture::new("ns-first");
    let running = waiting(&other);
    let of_other = format!("/proc/{}", running.pid);
    let expected = namespaces(&of_other);

    let mut fixture = Fixture::new("ns-second");
    applets(&fixture, &["readlink"]);
    let mut start = fixture.sh(&format!("{SHOW}; hostname; ps -o pid,args"));
    let namespaces = &mut start.sandbox.namespaces;
    for (namespace, kind) in [
        (&mut namespaces.pid, "pid"),
        (&mut namespaces.ipc, "ipc"),
        (&mut namespaces.uts, "uts"),
        (&mut namespaces.net, "net"),
    ] {
        *namespace = Namespace::Join;
        let descriptor: OwnedFd = File::open(format!("{of_other}/ns/{kind}")).unwrap().into();
        fixture.descriptors.push(descriptor);
    }
    let outcome = fixture.run(&start);
    let lines: Vec<&str> = outcome.output.lines().collect();
    assert_eq!(lines[..4], expected[..4]);
    assert_ne!(lines[4], expected[4]);
    assert_eq!(lines[5], other.sh("").sandbox.hostname);
    assert!(
        lines.iter().any(|line| line.trim().starts_with("1 sh -c ")),
        "{lines:?}"
    );
    end(&other, running);
}

#[test]
fn a_process_of_the_hosts_pid_namespace_leaves_no_child() {
    let fixture = Fixture::new("pid-host");
    let mut start = fixture.sh("sleep 1000 & sleep 1001 & exit 5");
    start.sandbox.namespaces.pid = Namespace::Host;
    assert_eq!(fixture.run(&start).exited.exit_code, 5);
}

#[test]
fn host_and_domain_name_are_the_sandboxes() {
    let fixture = Fixture::new("names");
    applets(&fixture, &["dnsdomainname"]);
    let mut start = fixture.sh("hostname; cat /proc/sys/kernel/domainname");
    start.sandbox.hostname = "box".to_owned();
    start.sandbox.domainname = "example.org".to_owned();
    assert_eq!(fixture.run(&start).output, "box\nexample.org\n");
}

#[test]
fn sysctls_are_set_in_the_containers_namespaces_only() {
    let fixture = Fixture::new("sysctl");
    let sysctl = |name: &str, value: &str| Sysctl {
        name: name.to_owned(),
        value: value.to_owned(),
        optional: false,
    };
    let host = std::fs::read_to_string("/proc/sys/kernel/shmmni").unwrap();
    let mut start = fixture.sh("cat /proc/sys/kernel/shmmni /proc/sys/net/ipv4/ip_default_ttl");
    start.sandbox.sysctls.extend([
        sysctl("kernel.shmmni", "123"),
        sysctl("net/ipv4/ip_default_ttl", "77"),
    ]);
    assert_eq!(fixture.run(&start).output, "123\n77\n");
    assert_eq!(
        std::fs::read_to_string("/proc/sys/kernel/shmmni").unwrap(),
        host
    );

    start.sandbox.sysctls.push(sysctl("net.no.such", "1"));
    assert_eq!(
        fixture.fail(&start).to_string(),
        "set sysctl \"net.no.such\": No such file or directory (os error 2)"
    );
    // Those of the whole host, and ways to them, are refused.
    for name in [
        "kernel.core_pattern",
        "net/../kernel/core_pattern",
        "vm.swappiness",
    ] {
        start.sandbox.sysctls = vec![sysctl(name, "1")];
        let expected = format!("sysctl \"{name}\" belongs to no namespace of the container's own");
        assert_eq!(fixture.fail(&start).to_string(), expected);
    }
    start.sandbox.sysctls = vec![sysctl("net.ipv4.ip_forward", "1")];
    start.sandbox.namespaces.net = Namespace::Host;
    assert!(fixture.fail(&start).what.starts_with("sysctl \"net.ipv4"));
}

#[test]
fn groups_are_added_by_name_and_number() {
    let fixture = Fixture::new("groups");
    let mut start = fixture.plan(&["id", "-G"]);
    start.process.user = b"app".to_vec();
    start.process.groups = vec![b"root".to_vec(), b"4711".to_vec()];
    let outcome = fixture.run(&start);
    let mut groups: Vec<&str> = outcome.output.split_whitespace().collect();
    groups.sort_unstable();
    assert_eq!(groups, ["0", "10", "1000", "4711"]);
    start.process.groups = vec![b"nobody".to_vec()];
    assert_eq!(
        fixture.fail(&start).to_string(),
        "unable to find group nobody: no matching entries in group file"
    );
}

#[test]
fn rlimits_and_the_oom_score_are_the_processes() {
    let fixture = Fixture::new("rlimits");
    let mut start = fixture.sh("ulimit -n; ulimit -Hn; ulimit -c; cat /proc/self/oom_score_adj");
    let limit = |name: &str, soft, hard| Rlimit {
        resource: Resource::named(name).unwrap(),
        soft: Some(soft),
        hard: Some(hard),
    };
    start.process.rlimits = vec![limit("nofile", 77, 99), limit("core", 0, 0)];
    start.process.oom_score_adj = Some(321);
    assert_eq!(fixture.run(&start).output, "77\n99\n0\n321\n");
    assert_eq!(Resource::named("files"), None);
    start.process.rlimits = vec![limit("nofile", 9, 8)];
    assert_eq!(
        fixture.fail(&start).to_string(),
        "set a resource limit: Invalid argument (os error 22)"
    );
}

#[test]
fn devices_are_created_below_dev() {
    let fixture = Fixture::new("device");
    applets(&fixture, &["stat"]);
    let device = |path: &str| Device {
        path: path.as_bytes().to_vec(),
        host: b"/dev/zero".to_vec(),
        block: false,
        major: 1,
        minor: 5,
        mode: 0o640,
        owner: (7, 8),
    };
    let mut start = fixture.sh("stat -c '%F %t:%T %a %u:%g' /dev/sub/nothing; dd if=/dev/sub/nothing bs=4 count=1 | od -An -c");
    applets(&fixture, &["od"]);
    start.sandbox.devices.push(device("/dev/sub/nothing"));
    let output = fixture.run(&start).output;
    assert!(
        output.starts_with("character special file 1:5 640 7:8\n"),
        "{output}"
    );
    assert!(output.contains(r"\0  \0  \0  \0"), "{output}");
    for path in ["/etc/zero", "/dev", "dev/zero", "/dev/.."] {
        start.sandbox.devices = vec![device(path)];
        let expected = format!("a device can't be at \"{path}\", only below /dev");
        assert_eq!(fixture.fail(&start).to_string(), expected);
    }
}

#[test]
fn mounts_have_their_size_and_attributes() {
    let fixture = Fixture::new("tmpfs");
    applets(&fixture, &["grep", "df", "awk"]);
    std::fs::create_dir(fixture.path("srv")).unwrap();
    symlink("srv", fixture.path("link")).unwrap();
    let mut start = fixture.sh(
        "df -k /dev/shm /srv/scratch | awk 'NR>1{print $2}'; grep ' /srv/scratch ' /proc/self/mounts",
    );
    start.sandbox.set_mount(Mount::shm(1 << 20));
    let attributes = Attributes {
        no_exec: true,
        read_only: true,
        ..Attributes::default()
    };
    // Where the container's own links lead.
    start.sandbox.set_mount(Mount::filesystem(
        "/link/scratch",
        Filesystem::Tmpfs,
        &["size=2m", "mode=1770"],
        attributes,
    ));
    let output = fixture.run(&start).output;
    assert!(output.starts_with("1024\n2048\n"), "{output}");
    assert!(output.contains("tmpfs ro,noexec,relatime"), "{output}");
    assert!(output.contains("mode=1770"), "{output}");
}

/// A directory of the host with a mount below it.
struct Tree {
    directory: tempfile::TempDir,
}

impl Tree {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let tree = Self { directory };
        mount_tmpfs(tree.directory.path());
        rustix::mount::mount_change(
            tree.directory.path(),
            rustix::mount::MountPropagationFlags::SHARED,
        )
        .unwrap();
        std::fs::create_dir(tree.directory.path().join("below")).unwrap();
        std::fs::create_dir(tree.directory.path().join("later")).unwrap();
        mount_tmpfs(&tree.directory.path().join("below"));
        std::fs::write(tree.directory.path().join("below/file"), "").unwrap();
        tree
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let flags = rustix::mount::UnmountFlags::DETACH;
        rustix::mount::unmount(self.directory.path(), flags).unwrap();
    }
}

fn mount_tmpfs(at: &Path) {
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("tmpfs", at, "tmpfs", flags, None).unwrap();
}

#[test]
fn mounts_below_a_volume_come_along_as_asked() {
    let tree = Tree::new();
    let mut fixture = Fixture::new("submounts");
    let mut start = fixture.sh("ls /v/below; touch /v/x; touch /v/below/x && echo written");
    fixture.volume(&mut start, tree.directory.path(), "/v", true);
    let denied = "touch: /v/x: Read-only file system\n";
    for (submounts, expected) in [
        (
            Submounts::Same,
            format!("file\n{denied}touch: /v/below/x: Read-only file system\n"),
        ),
        (Submounts::Unchanged, format!("file\n{denied}written\n")),
        (
            Submounts::None,
            format!("{denied}touch: /v/below/x: Read-only file system\n"),
        ),
    ] {
        start.sandbox.mounts.last_mut().unwrap().source = MountSource::Descriptor {
            submounts,
            propagation: Propagation::Private,
        };
        assert_eq!(fixture.run(&start).output, expected, "{submounts:?}");
        drop(std::fs::remove_file(tree.directory.path().join("below/x")));
    }
}

#[test]
fn later_mounts_of_the_host_are_seen_by_a_slave() {
    for (propagation, expected) in [(Propagation::Private, ""), (Propagation::Slave, "file\n")] {
        let tree = Tree::new();
        let mut fixture = Fixture::new("propagation");
        let mut start =
            fixture.sh("touch /ready; while [ ! -e /go ]; do sleep 0.01; done; ls /v/later");
        fixture.volume(&mut start, tree.directory.path(), "/v", false);
        start.sandbox.mounts.last_mut().unwrap().source = MountSource::Descriptor {
            submounts: Submounts::Same,
            propagation,
        };
        let running = fixture.start(&start).unwrap();
        wait_for(&fixture.path("ready"));
        let later = tree.directory.path().join("later");
        mount_tmpfs(&later);
        std::fs::write(later.join("file"), "").unwrap();
        std::fs::write(fixture.path("go"), "").unwrap();
        assert_eq!(fixture.finish(running).output, expected, "{propagation:?}");
    }
}

#[test]
fn the_hosts_cgroup_namespace_shows_the_containers_own_cgroup() {
    let fixture = Fixture::new("cgroupns");
    let mut start = fixture.sh("cat /sys/fs/cgroup/memory/memory.limit_in_bytes || cat /sys/fs/cgroup/cowl-test/*/memory.max; cat /proc/self/cgroup");
    start.sandbox.limits.memory = Some(64 << 20);
    start.sandbox.namespaces.cgroup = CgroupNamespace::Host;
    let output = fixture.run(&start).output;
    assert!(output.contains("67108864\n"), "{output}");
    let own = format!("/cowl-test/{}", start.sandbox.id);
    assert!(output.contains(&own), "{output}");
}

#[test]
fn a_sandbox_without_its_own_dev_is_refused() {
    let fixture = Fixture::new("nodev");
    let mut start = fixture.plan(&["true"]);
    start
        .sandbox
        .mounts
        .retain(|mount| mount.destination != b"/dev");
    assert_eq!(
        fixture.fail(&start).to_string(),
        "the sandbox has no tmpfs at /dev, or no terminals at /dev/pts for a terminal"
    );
}

#[test]
fn device_rules_allow_what_the_list_does_not() {
    let fixture = Fixture::new("rules");
    let mut start = fixture.sh("dd if=/dev/fuse of=/dev/null count=0 && echo opened");
    start.sandbox.devices.push(Device {
        path: b"/dev/fuse".to_vec(),
        host: b"/dev/fuse".to_vec(),
        block: false,
        major: 10,
        minor: 229,
        mode: 0o666,
        owner: (0, 0),
    });
    let output = fixture.run(&start).output;
    assert!(output.contains("Operation not permitted"), "{output}");
    for rule in [
        DeviceRule {
            block: Some(false),
            major: Some(10),
            minor: Some(229),
            ..DeviceRule::ALL
        },
        DeviceRule::ALL,
    ] {
        start.sandbox.device_rules = vec![rule];
        let output = fixture.run(&start).output;
        assert!(output.ends_with("opened\n"), "{output}");
    }
}

#[test]
fn init_forwards_signals_and_reaps_orphans() {
    let fixture = Fixture::new("init");
    applets(&fixture, &["grep"]);
    // Orphans that end at once: they are seen as zombies until they are reaped.
    let mut start = fixture.sh(
        "echo $$; for i in 1 2 3; do (true &); done; \
         while grep -qs '^State:.Z' /proc/[0-9]*/status; do :; done; cat /proc/1/comm; ls /proc/self/fd; exit 7",
    );
    start.sandbox.init = true;
    let outcome = fixture.run(&start);
    assert_eq!(outcome.output, "2\ncowl-init\n0\n1\n2\n3\n");
    assert_eq!(outcome.exited.exit_code, 7);

    // As the first process, sleep would get none of these signals.
    for (signal, code) in [(15, 143), (9, 137)] {
        let mut start = fixture.plan(&["sleep", "1000"]);
        start.sandbox.init = true;
        start.process.user = b"app".to_vec();
        let running = fixture.start(&start).unwrap();
        running.monitor.signal(signal).unwrap();
        assert_eq!(fixture.finish(running).exited.exit_code, code);
    }
    let mut start = fixture.plan(&["no-such-program"]);
    start.sandbox.init = true;
    assert_eq!(fixture.fail(&start).exit_code, 127);
}
