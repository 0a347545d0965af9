//! `update`: limits and the restart policy of a container that runs, and of one that does not.

use cowl_tests::profile::root;

use crate::limits::{cgroup, expected};
use crate::support::{Detached, Doors};

#[test]
fn update_changes_the_limits_of_a_running_container() {
    root(|| {
        let doors = Doors::open();
        let flags = ["-m", "32m", "--pids-limit", "100", "--cpu-quota", "20000"];
        let running = Detached::start(&doors.store, "running", &flags, "sleep 1000");
        let read = |legacy, unified| running.exec(&cgroup(legacy, unified));
        let updated = doors
            .store
            .ok(["update", "-m", "48m", "--cpu-shares", "512", "running"]);
        assert_eq!(updated, "running\n");
        assert_eq!(read("memory.limit_in_bytes", "memory.max"), "50331648\n");
        assert_eq!(
            read("cpu.shares", "cpu.weight"),
            expected("cpu", "512\n", "20\n")
        );
        assert_eq!(
            read("pids.max", "pids.max"),
            "100\n",
            "what is left open stays"
        );
        let updated = doors.server.ok([
            "update",
            "--pids-limit",
            "-1",
            "--cpuset-cpus",
            "0",
            "running",
        ]);
        assert_eq!(updated, "running\n");
        assert_eq!(read("pids.max", "pids.max"), "max\n");
        assert_eq!(
            running.exec("grep ^Cpus_allowed_list /proc/1/status"),
            "Cpus_allowed_list:\t0\n"
        );
        let template = "{{.HostConfig.Memory}} {{.HostConfig.CpuShares}} {{.HostConfig.PidsLimit}} {{.HostConfig.CpusetCpus}}";
        assert_eq!(running.field(template), "50331648 512 0 0");
        // As in Docker, the limit of memory and swap together prevents it.
        for refused in [
            doors.store.run(["update", "-m", "500m", "running"]),
            doors.server.run(["update", "-m", "500m", "running"]),
        ] {
            let why = "Memory limit should be smaller than already set memoryswap limit, update the memoryswap at the same time";
            assert!(
                refused.code() != 0 && refused.stderr.contains(why),
                "{refused}"
            );
        }
        let conflict = doors.server.run(["update", "--cpus", "1", "running"]);
        let why =
            "Conflicting options: Nano CPUs cannot be updated as CPU Quota has already been set";
        assert!(conflict.stderr.contains(why), "{conflict}");
    });
}

#[test]
fn update_is_kept_for_the_next_start() {
    root(|| {
        let doors = Doors::open();
        let script = cgroup("memory.limit_in_bytes", "memory.max");
        doors
            .store
            .ok(["create", "--name", "rests", "shop", "sh", "-c", &script]);
        doors
            .server
            .ok(["update", "-m", "32m", "--restart", "on-failure:3", "rests"]);
        assert_eq!(doors.store.ok(["start", "-a", "rests"]), "33554432\n");
        let policy = doors
            .store
            .ok(["inspect", "-f", "{{.HostConfig.RestartPolicy}}", "rests"]);
        assert!(
            policy.contains("on-failure") && policy.contains('3'),
            "{policy}"
        );
        // A new policy does not start a container that has already ended.
        doors.store.ok(["update", "--restart", "always", "rests"]);
        doors.store.ok(["ps"]);
        assert_eq!(
            doors
                .store
                .ok(["inspect", "-f", "{{.State.Status}}", "rests"]),
            "exited\n"
        );
        doors
            .store
            .ok(["create", "--rm", "--name", "brief", "shop", "true"]);
        let refused = doors
            .store
            .run(["update", "--restart", "always", "brief"])
            .refused(1);
        let why =
            "Restart policy cannot be updated because AutoRemove is enabled for the container";
        assert!(refused.contains(why), "{refused}");
        let nothing = doors.store.run(["update", "brief"]).refused(1);
        assert!(
            nothing.contains("you must provide one or more flags"),
            "{nothing}"
        );
        doors.store.ok(["rm", "rests", "brief"]);
    });
}
