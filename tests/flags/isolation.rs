//! Isolation: devices, sysctls, ulimits, groups, privileges.

use cowl_tests::busybox::shop;
use cowl_tests::profile::{directory, root, user};

use crate::support::{Detached, Doors, inside};

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
        // Without write or read access.
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

/// Raising a hard limit needs CAP_SYS_RESOURCE, which an ordinary user lacks.
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
        // As in dockerd, without the kernel's module they have no effect, and a warning says so.
        for (option, file, warning) in [
            (
                "apparmor=mine",
                "/sys/module/apparmor/parameters/enabled",
                "This host has no AppArmor. Profile discarded: mine",
            ),
            (
                "label=type:x",
                "/sys/fs/selinux/enforce",
                "This host has no SELinux. Label discarded: type:x",
            ),
        ] {
            let flags = ["--security-opt", option];
            if std::path::Path::new(file).exists() {
                doors.refused(&flags, "not supported");
            } else {
                let own = inside(&doors.store, &flags, "echo runs");
                assert_eq!(own.stdout, "runs\n", "{own}");
                assert!(own.stderr.contains(warning), "{own}");
                let docker = doors
                    .server
                    .run([&["create"], &flags[..], &["shop"]].concat());
                assert!(docker.stderr.contains(warning), "{docker}");
                doors.store.ok(["rm", docker.stdout.trim()]);
            }
        }
        let refused = "invalid --security-opt 2: \"no-new-privileges=maybe\"";
        doors.refused(&["--security-opt", "no-new-privileges=maybe"], refused);
    });
}

/// Writes a profile into the test's directory and gives the flag for it.
fn profile(name: &str, text: &str) -> String {
    let file = directory().join(name);
    std::fs::write(&file, text).unwrap();
    format!("--security-opt=seccomp={}", file.display())
}

#[test]
fn security_opt_seccomp_refuses_what_the_profile_refuses() {
    root(|| {
        let doors = Doors::open();
        // Some calls by name, one by its argument, one with a capability, one without it.
        let deny = profile(
            "deny.json",
            r#"{
                "defaultAction": "SCMP_ACT_ALLOW",
                "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}],
                "syscalls": [
                    {"names": ["mkdir", "mkdirat", "no_such_call"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28},
                    {"names": ["kill"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 1, "value": 10, "op": "SCMP_CMP_EQ"}]},
                    {"name": "symlink", "action": "SCMP_ACT_ERRNO", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
                    {"name": "symlinkat", "action": "SCMP_ACT_ERRNO", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
                    {"names": ["link", "linkat"], "action": "SCMP_ACT_ERRNO", "excludes": {"caps": ["CAP_SYS_ADMIN"]}}
                ]
            }"#,
        );
        let script = "cd /tmp; : > f; grep ^Seccomp: /proc/self/status; mkdir d; kill -USR1 $$; kill -0 $$ && echo kills; ln -s f s; ln f l; ls";
        let script = format!("({script}) 2>&1");
        let out = doors.out(&[&deny], &script);
        let expected = "Seccomp:\t2\n\
            mkdir: can't create directory 'd': No space left on device\n\
            sh: can't kill pid 1: Operation not permitted\n\
            kills\n\
            ln: l: Operation not permitted\n\
            f\ns\n";
        assert_eq!(out, expected);
        let out = doors.out(
            &[&deny, "--cap-add", "SYS_ADMIN", "-u", "33"],
            "cd /tmp; : > f; ln f l; ls",
        );
        assert_eq!(out, "f\nl\n");
        // exec, too.
        let container = Detached::start(&doors.store, "filtered", &[&deny], "sleep 1000");
        assert_eq!(
            container.exec("mkdir /tmp/d 2>/dev/null || echo refused"),
            "refused\n"
        );
        let docker = doors
            .server
            .ok(["exec", "filtered", "sh", "-c", "mkdir /tmp/d || true"]);
        assert_eq!(docker, "");
    });
}

/// Calls that are not listed kill, so the list has all that a start needs beyond the program.
#[test]
fn security_opt_seccomp_need_not_allow_what_the_launcher_does() {
    root(|| {
        let doors = Doors::open();
        let needed = r#""execve", "capset", "exit_group", "arch_prctl", "brk", "set_tid_address", "set_robust_list", "rseq",
            "prlimit64", "readlinkat", "readlink", "getrandom", "mprotect", "write", "getuid", "geteuid", "getpid", "getppid",
            "getgid", "setgid", "setuid", "rt_sigaction", "getcwd", "newfstatat", "stat", "prctl", "mmap", "munmap", "futex""#;
        let list = |names: &str| {
            let text = r#"{"defaultAction": "SCMP_ACT_KILL_PROCESS", "syscalls": [{"names": [NAMES], "action": "SCMP_ACT_ALLOW"}]}"#;
            profile("allow.json", &text.replace("NAMES", names))
        };
        let allow = list(needed);
        for more in [
            &[][..],
            &["-u", "33:33"],
            &["--security-opt", "no-new-privileges"],
            &["-u", "33:33", "--security-opt", "no-new-privileges"],
        ] {
            let flags = [&[allow.as_str()], more].concat();
            assert_eq!(doors.out(&flags, "echo runs"), "runs\n");
        }
        let ends = inside(
            &doors.store,
            &[&list(&needed.replace("\"write\",", ""))],
            "echo runs",
        );
        assert_eq!(ends.code(), 128 + 31, "{ends}");
    });
}

#[test]
fn security_opt_seccomp_refuses_a_bad_profile_by_its_name() {
    root(|| {
        let doors = Doors::open();
        let missing = directory().join("missing.json");
        let flag = format!("--security-opt=seccomp={}", missing.display());
        doors.refused(&[&flag], "missing.json) failed: ");
        let flag = profile("broken.json", "{\"defaultAction\": ");
        doors.refused(&[&flag], "broken.json) failed: ");
        let flag = profile("unknown.json", "{\"defaultAction\": \"SCMP_ACT_FLY\"}");
        let why = "decoding seccomp profile failed: string SCMP_ACT_FLY is not a valid action for seccomp";
        let arguments = ["create", &flag, "shop", "true"];
        let docker = doors.server.run(arguments);
        assert!(docker.stderr.contains(why), "docker: {docker}");
        // The client that reads the file also parses the profile: an error of the named option.
        let own = doors.store.run(arguments).refused(125);
        assert!(own.contains("unknown.json: decoding"), "{own}");
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
