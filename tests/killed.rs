//! A worker or an engine may be killed at any time: finished changes stay intact, and everything
//! can be removed.

use std::fs;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};

use cowl_tests::busybox::{Running, containers, shop};
use cowl_tests::command::{program, run, shell};
use cowl_tests::profile::{
    NEVER, directory, open_process, processes, readable, root, user, wait_for_lines,
};
use cowl_tests::requests::{cut_off, keeper, worker};
use cowl_tests::server::until;
use cowl_tests::store::Store;

/// How often a worker is killed.
const ROUNDS: usize = 8;

/// Files with predictable contents, so that each existing one can be verified. `made` lists the
/// finished ones.
const CHANGER: &str = r#"
cd "$1"
i=0
while :; do
  i=$((i + 1)); name=$2-$i
  mkdir "$name" && echo "$name" > "$name/file" && mv "$name" "dir-$name" && rm -f "old/$i" && echo "more of $name" >> lower/$((i % 50)) || exit 0
  echo "dir-$name" >> "$3"
done
"#;

fn an_upper_survives_its_worker() {
    let place = directory();
    shell(
        &place,
        "mkdir -p content/lower content/old; for i in $(seq 0 49); do echo $i > content/lower/$i; done; for i in $(seq 2000); do : > content/old/$i; done",
        [""; 0],
    );
    let store = Store::new("store");
    store.import_directory(&place.join("content"), "content");
    let before = store.objects();
    for round in 0..ROUNDS {
        let mount = store.mount_upper("content", "mnt");
        let made = place.join("made");
        fs::write(&made, "").unwrap();
        let mut changer = program("sh", ["-c", CHANGER, "sh"]);
        let mut changer = changer
            .arg(mount.path())
            .arg(format!("{round}"))
            .arg(&made)
            .stderr(fs::File::create(place.join("errors")).unwrap())
            .spawn()
            .unwrap();
        wait_for_lines(&made, 20 + round * 7);
        cut_off();
        changer.wait().unwrap();
        mount.unmount();

        let mount = store.mount_upper("content", "mnt");
        for name in fs::read_to_string(&made).unwrap().lines() {
            let file = mount.path().join(name).join("file");
            let content = fs::read_to_string(&file)
                .unwrap_or_else(|error| panic!("round {round}: {name} was made, but: {error}"));
            assert_eq!(format!("dir-{content}"), format!("{name}\n"));
        }
        // Every existing file has its expected content, and everything can be removed.
        let odd = shell(
            mount.path(),
            "for f in lower/*; do head -n 1 $f | grep -qx \"${f#lower/}\" || echo $f; done",
            [""; 0],
        );
        assert_eq!(odd, "", "round {round}");
        if round == ROUNDS - 1 {
            shell(
                mount.path(),
                "rm -rf ./*; mkdir lower; echo new > lower/1",
                [""; 0],
            );
            assert_eq!(
                shell(mount.path(), "find . | sort", [""; 0]),
                ".\n./lower\n./lower/1\n"
            );
        }
        mount.unmount();
    }
    assert_eq!(store.objects(), before);
}

#[test]
fn an_upper_survives_its_worker_as_root() {
    root(|| an_upper_survives_its_worker());
}

#[test]
fn an_upper_survives_its_worker_as_user() {
    user(|| an_upper_survives_its_worker());
}

/// `cowl run` is a client: if it is killed, its container keeps running, is listed, and can be
/// removed.
fn a_container_survives_cowl_run() {
    let store = shop("store");
    let running = Running::start(
        &store,
        &["--name", "alone"],
        "ready; read -r line < /host/never",
    );
    running.signal(Signal::KILL);
    assert_eq!(running.end_by_signal(), Signal::KILL.as_raw());
    let listed = store.ok(["ps"]);
    assert!(
        listed.contains("alone") && listed.contains("Up"),
        "{listed}"
    );
    store.ok(["rm", "-f", "alone"]);
    assert_eq!(containers(&store), [""; 0]);
}

#[test]
fn a_container_survives_cowl_run_as_root() {
    root(|| a_container_survives_cowl_run());
}

#[test]
fn a_container_survives_cowl_run_as_user() {
    user(|| a_container_survives_cowl_run());
}

/// All processes of a container killed at once, its monitor too: the next command finds it ended,
/// and removes it.
#[test]
fn a_killed_monitor_leaves_nothing_that_cannot_be_removed() {
    root(|| {
        let store = shop("store");
        let running = Running::start(
            &store,
            &["--name", "victim", "-m", "64m"],
            "ready; read -r line < /host/never",
        );
        let id = containers(&store).remove(0);
        kill_all("cowl-runtime");
        assert_ne!(running.end(), 0);
        store.ok(["rm", "-f", "victim"]);
        assert_eq!(cowl_tests::busybox::cgroups(&id), "");
        assert_eq!(containers(&store), [""; 0]);
    });
}

/// A program may tell the kernel not to end it with its monitor (as any does that becomes another
/// user by a set-user-ID program). The next command ends it: `cowl run` itself, or any later
/// command.
fn a_program_that_outlives_its_monitor_is_ended() {
    let store = shop("store");
    // setpriv, with the libraries that it needs, comes from the host.
    let libraries: Vec<String> = ["/usr", "/lib", "/lib64"]
        .iter()
        .filter(|path| fs::exists(path).unwrap())
        .map(|path| format!("{path}:{path}:ro"))
        .collect();
    let mut options = vec!["--name", "stubborn"];
    options.extend(libraries.iter().flat_map(|library| ["-v", library]));
    let script = "exec /usr/bin/setpriv --pdeathsig clear sh -c 'echo > /host/ready; read -r line < /host/never'";
    for cowl_run_lives in [true, false] {
        let running = Running::start(&store, &options, script);
        if !cowl_run_lives {
            running.signal(Signal::KILL);
        }
        kill_all("cowl-runtime");
        if cowl_run_lives {
            assert_eq!(running.end(), 125);
        } else {
            running.end_by_signal();
        }
        let listed = store.ok(["ps", "-a"]);
        assert!(listed.contains("Exited (255)"), "{listed}");
        store.ok(["rm", "stubborn"]);
        assert_eq!(containers(&store), [""; 0]);
        let left: Vec<_> = processes()
            .into_iter()
            .filter(|(_, line)| line.contains("/host/never"))
            .collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

#[test]
fn a_program_that_outlives_its_monitor_is_ended_as_root() {
    root(|| a_program_that_outlives_its_monitor_is_ended());
}

#[test]
fn a_program_that_outlives_its_monitor_is_ended_as_user() {
    user(|| a_program_that_outlives_its_monitor_is_ended());
}

/// A command that examines a container during its start does not mistake it for one whose monitor
/// was killed, and kill it. The command is stopped between two of its checks.
#[test]
fn ps_does_not_kill_a_container_that_is_started_meanwhile() {
    root(|| {
        let store = shop("store");
        let script = "test -e /again && exec sleep 1000; : > /again";
        let run = ["run", "--name", "web", "shop", "sh", "-c", script];
        store.ok(run);
        // Before and after its checks of the locks.
        for look in ["1", "2"] {
            let log = directory().join(format!("strace-{look}.log"));
            let own = store.command(["ps", "-a"]);
            let stop = format!("inject=openat:signal=STOP:when={look}");
            let options = [
                "-P",
                "running.json",
                "-e",
                "trace=openat",
                "-e",
                &stop,
                "-o",
            ];
            let mut strace = program("strace", options);
            strace.arg(&log).arg("--").arg(own.get_program());
            let mut strace = strace.args(own.get_args()).spawn().unwrap();
            until(|| {
                let log = fs::read_to_string(&log).unwrap_or_default();
                log.contains("stopped by SIGSTOP")
            });
            store.ok(["start", "web"]);
            for (pid, line) in processes() {
                if line.ends_with(" ps -a ") && !line.starts_with("strace") {
                    kill_process(pid, Signal::CONT).unwrap();
                }
            }
            assert!(strace.wait().unwrap().success());
            let status = store.ok(["inspect", "-f", "{{.State.Status}}", "web"]);
            assert_eq!(status, "running\n", "{look}");
            store.ok(["stop", "-t", "0", "web"]);
        }
        store.ok(["rm", "-f", "web"]);
    });
}

/// A process that holds a descriptor of a container's files, such as another container that was
/// sent one, blocks no command.
fn a_mount_kept_busy_blocks_no_command() {
    let store = shop("store");
    let options = ["--rm", "--name", "held"];
    let running = Running::start(&store, &options, "ready; read -r line < /host/never");
    let (init, _) = processes()
        .into_iter()
        .find(|(_, line)| line.starts_with("sh -c ready()"))
        .unwrap();
    let held = fs::File::open(format!("/proc/{}/root", init.as_raw_nonzero())).unwrap();
    let id = containers(&store).remove(0);
    running.signal(Signal::KILL);
    running.end_by_signal();
    kill_process(init, Signal::KILL).unwrap();
    let exit = store.root().join("containers").join(id).join("exit.json");
    until(|| exit.exists());
    for arguments in [["ps", "-a"], ["run", "--rm"]] {
        let mut command = store.command(arguments);
        if arguments[0] == "run" {
            command.args(["shop", "true"]);
        }
        let mut child = command.spawn().unwrap();
        let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).unwrap();
        assert!(readable(&pidfd, NEVER), "cowl {arguments:?} waits");
        assert!(child.wait().unwrap().success());
    }
    assert!(store.ok(["ps", "-a"]).contains("Exited (137)"));
    drop(held);
    // A command waits two seconds for a mount to end, and leaves it to the next.
    until(|| {
        store.ok(["ps"]);
        containers(&store).is_empty()
    });
}

#[test]
fn a_mount_kept_busy_blocks_no_command_as_root() {
    root(|| a_mount_kept_busy_blocks_no_command());
}

#[test]
fn a_mount_kept_busy_blocks_no_command_as_user() {
    user(|| a_mount_kept_busy_blocks_no_command());
}

/// A container may ignore failing files; its exit code must still report the loss.
fn a_container_that_loses_its_worker_fails() {
    let store = shop("store");
    // The program sends no request meanwhile: a request that killed two workers fails before the
    // mount is cut off, which could end the program.
    let script = "ready; read -r line < /host/never; exit 0";
    let running = Running::start(&store, &["--name", "cut"], script);
    cut_off();
    fs::write(directory().join("host/never"), "line\n").unwrap();
    assert_eq!(running.end(), 125);
    store.ok(["rm", "cut"]);
    assert_eq!(containers(&store), [""; 0]);
}

#[test]
fn a_container_that_loses_its_worker_fails_as_root() {
    root(|| a_container_that_loses_its_worker_fails());
}

#[test]
fn a_container_that_loses_its_worker_fails_as_user() {
    user(|| a_container_that_loses_its_worker_fails());
}

/// They are dead when it returns.
fn kill_all(name: &str) {
    for (pid, line) in processes() {
        if line.contains(name) {
            let Some(pidfd) = open_process(pid) else {
                continue;
            };
            match pidfd_send_signal(&pidfd, Signal::KILL) {
                Ok(()) | Err(Errno::SRCH) => assert!(readable(&pidfd, NEVER)),
                Err(errno) => panic!("{errno}"),
            }
        }
    }
}

/// The fate of a mount is in the store's log, since its processes have no terminal.
fn the_death_of_a_worker_is_in_the_log() {
    let store = shop("store");
    let mount = store.mount("shop", "mnt");
    // It is dead before the others are killed: SIGKILL would overtake its pending signal.
    let first = pidfd_open(worker(), PidfdFlags::empty()).unwrap();
    pidfd_send_signal(&first, Signal::ABORT).unwrap();
    assert!(readable(&first, NEVER));
    // Answered by its successor, if there is one.
    run(program("ls", ["-lR"]).arg(mount.path()));
    cut_off();
    let log = fs::read_to_string(store.root().join("mountd.log")).unwrap();
    assert!(
        log.contains("shop") && log.contains("the worker died (signal: 6"),
        "{log}"
    );
    mount.unmount();
    store.ok(["check"]);
}

#[test]
fn the_death_of_a_worker_is_in_the_log_as_root() {
    root(|| the_death_of_a_worker_is_in_the_log());
}

#[test]
fn the_death_of_a_worker_is_in_the_log_as_user() {
    user(|| the_death_of_a_worker_is_in_the_log());
}

/// The arguments of the processes of mounts, as `ps` shows them, sorted.
fn roles_in_ps() -> Vec<String> {
    let mut roles: Vec<String> = processes()
        .into_iter()
        .filter_map(|(_, line)| Some(line.split_once("cowl-mountd ")?.1.trim().to_owned()))
        .collect();
    roles.sort();
    roles
}

fn ps_tells_a_mount_s_keeper_from_its_worker() {
    let store = shop("store");
    let mount = store.mount("shop", "mnt");
    assert_eq!(roles_in_ps(), ["keeper", "worker"]);
    let first = pidfd_open(worker(), PidfdFlags::empty()).unwrap();
    pidfd_send_signal(&first, Signal::KILL).unwrap();
    assert!(readable(&first, NEVER));
    // A successor has answered: it has begun.
    run(program("ls", ["-lR"]).arg(mount.path()));
    assert_eq!(roles_in_ps(), ["keeper", "worker"]);
    mount.unmount();
}

#[test]
fn ps_tells_a_mount_s_keeper_from_its_worker_as_root() {
    root(|| ps_tells_a_mount_s_keeper_from_its_worker());
}

#[test]
fn ps_tells_a_mount_s_keeper_from_its_worker_as_user() {
    user(|| ps_tells_a_mount_s_keeper_from_its_worker());
}

/// A keeper without a worker, and a worker without a keeper, end by themselves.
#[test]
fn a_mount_without_its_keeper_never_hangs() {
    root(|| {
        let store = shop("store");
        let mount = store.mount("shop", "mnt");
        let keeper = keeper();
        let pidfd = pidfd_open(keeper, PidfdFlags::empty()).unwrap();
        kill_process(keeper, Signal::KILL).unwrap();
        assert!(readable(&pidfd, NEVER));
        // Served or cut off, never hanging.
        run(program("ls", ["-lR"]).arg(mount.path()));
        mount.unmount();
    });
}
