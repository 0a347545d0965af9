//! What a container may do: devices, parameters, limits of processes, groups, privileges.

use cowl_tests::busybox::shop;
use cowl_tests::profile::{root, user};

use crate::support::{Doors, inside};

#[test]
fn privileged_has_all_that_the_host_has() {
    root(|| {
        let doors = Doors::open();
        let script = "grep -E '^(CapEff|Seccomp):' /proc/self/status; grep -c ' /proc/.* ro,' /proc/self/mountinfo; \
            grep ' /sys ' /proc/self/mountinfo | cut -d' ' -f6 | cut -d, -f1; ls /dev | grep -c fuse; head -c 0 /dev/fuse && echo opened";
        let own = std::fs::read_to_string("/proc/self/status").unwrap();
        let capabilities = own
            .lines()
            .find(|line| line.starts_with("CapEff:"))
            .unwrap();
        let out = inside(&doors.store, &["--privileged"], script).stdout;
        assert_eq!(
            out,
            format!("{capabilities}\nSeccomp:\t0\n0\nrw\n1\nopened\n")
        );
        doors.out(&["--privileged"], "echo 1 > /proc/sys/net/ipv4/ip_forward");
        let plain = inside(&doors.store, &[], script).stdout;
        assert!(
            plain.contains("Seccomp:\t2\n") && plain.contains("\nro\n0\n"),
            "{plain}"
        );
    });
}

#[test]
fn device_gives_a_node_of_the_host() {
    root(|| {
        let doors = Doors::open();
        let script = "stat -c %t:%T /dev/fuse; head -c 0 /dev/fuse && echo opened";
        assert_eq!(
            doors.out(&["--device", "/dev/fuse"], script),
            "a:e5\nopened\n"
        );
        // Without the right to write, or to read.
        let script = "stat -c %t:%T /dev/mine; (: > /dev/mine) 2>/dev/null || echo refused";
        assert_eq!(
            doors.out(&["--device", "/dev/fuse:/dev/mine:r"], script),
            "a:e5\nrefused\n"
        );
        let missing = "error gathering device information while adding custom device \"/dev/nowhere\": no such file or directory";
        doors.refused(&["--device", "/dev/nowhere"], missing);
        doors.refused(&["--device", "/dev/fuse:/dev/x:q"], "bad mode specified: q");
    });
}

#[test]
fn device_of_a_user_is_the_hosts_node() {
    user(|| {
        let store = shop("store");
        let script = "stat -c %t:%T /dev/mine";
        assert_eq!(
            inside(&store, &["--device", "/dev/fuse:/dev/mine"], script).ok(),
            "a:e5\n"
        );
    });
}

#[test]
fn device_cgroup_rule_allows_what_it_names() {
    root(|| {
        let doors = Doors::open();
        let script = "mknod /tmp/fuse c 10 229 && { (head -c 0 /tmp/fuse) 2>/dev/null && echo opened || echo refused; }";
        assert_eq!(doors.out(&[], script), "refused\n");
        assert_eq!(
            doors.out(&["--device-cgroup-rule", "c 10:229 rwm"], script),
            "opened\n"
        );
        doors.refused(&["--device-cgroup-rule", "c 10"], "device cgroup");
    });
}

#[test]
fn group_add_gives_further_groups() {
    root(|| {
        let doors = Doors::open();
        let flags = ["--group-add", "4711", "--group-add", "root", "-u", "33:33"];
        assert_eq!(doors.out(&flags, "id -G"), "33 0 4711\n");
        let unknown = inside(&doors.store, &["--group-add", "nobodys"], "true");
        assert!(
            unknown.stderr.contains("unable to find group nobodys"),
            "{unknown}"
        );
    });
}

#[test]
fn init_is_the_first_process() {
    root(|| {
        let doors = Doors::open();
        assert_eq!(doors.out(&["--init"], "test $$ -ne 1 && echo $PPID"), "1\n");
        assert_eq!(doors.out(&[], "echo $$"), "1\n");
    });
}

#[test]
fn sysctl_sets_parameters_of_its_namespaces() {
    root(|| {
        let doors = Doors::open();
        let flags = [
            "--sysctl",
            "net.ipv4.ip_forward=1",
            "--sysctl",
            "kernel.shmmax=12345678",
        ];
        let script = "cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/shmmax";
        assert_eq!(doors.out(&flags, script), "1\n12345678\n");
        doors.refused(&["--sysctl", "vm.swappiness=1"], "sysctl 'vm.swappiness");
        let flags = ["--network", "host", "--sysctl", "net.ipv4.ip_forward=1"];
        let shared = inside(&doors.store, &flags, "true").refused(125);
        assert!(
            shared.contains("belongs to no namespace of the container's own"),
            "{shared}"
        );
    });
}

#[test]
fn ulimit_is_that_of_the_programs() {
    root(|| {
        let doors = Doors::open();
        let flags = ["--ulimit", "nofile=64:128", "--ulimit", "core=0"];
        let script = "ulimit -Sn; ulimit -Hn; ulimit -c";
        assert_eq!(doors.out(&flags, script), "64\n128\n0\n");
        doors.refused(&["--ulimit", "fly=1"], "invalid ulimit type: fly");
        doors.refused(&["--ulimit", "nofile=2:1"], "2 > 1");
    });
}

/// To raise a limit takes CAP_SYS_RESOURCE, which an ordinary user has not.
#[test]
fn ulimit_above_the_callers_is_refused_by_name() {
    user(|| {
        let store = shop("store");
        let refused = inside(&store, &["--ulimit", "nofile=2000000:2000000"], "true").refused(125);
        assert!(refused.contains("set a resource limit"), "{refused}");
    });
}

#[test]
fn security_opt_changes_what_docker_lets_it_change() {
    root(|| {
        let doors = Doors::open();
        let script = "grep -E '^(NoNewPrivs|Seccomp):' /proc/self/status";
        let flags = [
            "--security-opt",
            "seccomp=unconfined",
            "--security-opt",
            "no-new-privileges",
        ];
        assert_eq!(doors.out(&flags, script), "NoNewPrivs:\t1\nSeccomp:\t0\n");
        let nothing = [
            "--security-opt",
            "apparmor=unconfined",
            "--security-opt",
            "label=disable",
        ];
        assert_eq!(doors.out(&nothing, script), "NoNewPrivs:\t0\nSeccomp:\t2\n");
        let masked = "grep -c -E ' /proc/(kcore|keys|sys) ' /proc/self/mountinfo || true";
        let flags = ["--security-opt", "systempaths=unconfined"];
        assert_eq!(doors.out(&flags, masked), "0\n");
        assert_ne!(doors.out(&[], masked), "0\n");
        doors.refused(
            &["--security-opt", "apparmor=mine"],
            "AppArmor profiles are not supported: mine",
        );
        doors.refused(
            &["--security-opt", "label=type:x"],
            "SELinux labels are not supported: type:x",
        );
    });
}

#[test]
fn capabilities_are_added_and_dropped() {
    root(|| {
        let doors = Doors::open();
        let flags = ["--cap-drop", "ALL", "--cap-add", "net_admin"];
        let script = "grep ^CapBnd: /proc/self/status";
        assert_eq!(doors.out(&flags, script), "CapBnd:\t0000000000001000\n");
        doors.refused(&["--cap-add", "FLY"], "unknown capability: \"CAP_FLY\"");
    });
}
