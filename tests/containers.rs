//! The promises of `cowl run`, one test each.

use std::io::Write as _;
use std::path::Path;
use std::process::Stdio;

use rustix::process::Signal;

use cowl_tests::busybox::{Running, cgroups, containers, in_shop, shop};
use cowl_tests::command::{binary, program, python, run, system};
use cowl_tests::profile::{directory, root, user};
use cowl_tests::store::{Store, make_image};

/// CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP NET_BIND_SERVICE
/// SYS_CHROOT KILL AUDIT_WRITE
const DOCKERS_CAPABILITIES: &str = "00000000a80425fb";

fn namespaces_are_its_own() {
    let store = shop("store");
    for kind in ["pid", "mnt", "uts", "ipc", "net", "cgroup"] {
        let path = format!("/proc/self/ns/{kind}");
        let inside = in_shop(&store, &["--rm"], &["readlink", &path]).ok();
        let outside = system("readlink", [&path]);
        assert!(inside.starts_with(kind), "{inside}");
        assert_ne!(inside, outside);
    }
}

#[test]
fn namespaces_are_its_own_as_root() {
    root(|| namespaces_are_its_own());
}

#[test]
fn namespaces_are_its_own_as_user() {
    user(|| namespaces_are_its_own());
}

fn only_its_own_processes_are_visible() {
    let store = shop("store");
    let listed = in_shop(&store, &["--rm"], &["ps", "aux"]).ok();
    let lines: Vec<&str> = listed.lines().collect();
    assert_eq!(lines.len(), 2, "a header and ps itself: {listed}");
    assert!(
        lines[1].trim().starts_with("1 ") && lines[1].contains("ps"),
        "{listed}"
    );
}

#[test]
fn only_its_own_processes_are_visible_as_root() {
    root(|| only_its_own_processes_are_visible());
}

#[test]
fn only_its_own_processes_are_visible_as_user() {
    user(|| only_its_own_processes_are_visible());
}

fn proc_dev_and_sys_are_its_own() {
    let store = shop("store");
    let mounts = in_shop(&store, &["--rm"], &["cat", "/proc/self/mountinfo"]).ok();
    let at = |point: &str| {
        mounts
            .lines()
            .find(|line| line.split(' ').nth(4) == Some(point))
            .map(|line| {
                line.split_once(" - ")
                    .unwrap()
                    .1
                    .split(' ')
                    .next()
                    .unwrap()
                    .to_owned()
            })
    };
    assert!(
        at("/").is_some_and(|kind| kind.starts_with("fuse")),
        "{mounts}"
    );
    assert_eq!(at("/proc").as_deref(), Some("proc"), "{mounts}");
    assert_eq!(at("/dev").as_deref(), Some("tmpfs"), "{mounts}");
    assert_eq!(at("/dev/pts").as_deref(), Some("devpts"), "{mounts}");
    assert!(at("/sys").is_some(), "{mounts}");
    let host = directory().display().to_string();
    // As in Docker, the sources of its own files are visible.
    let mut others = mounts.lines().filter(|line| !line.contains(" /etc/"));
    assert!(
        !others.any(|line| line.contains(&host)) && !mounts.contains("/put_old"),
        "the old root is gone: {mounts}"
    );
    let script = "for d in null zero full random urandom tty; do test -c /dev/$d || echo no $d; done
        echo x > /dev/null; head -c 3 /dev/zero | wc -c; test -L /dev/fd; test -d /dev/shm; readlink /dev/ptmx";
    assert_eq!(
        in_shop(&store, &["--rm"], &["sh", "-c", script]).ok(),
        "3\npts/ptmx\n"
    );
    // What only the host may change stays read-only.
    let refused = in_shop(
        &store,
        &["--rm"],
        &["sh", "-c", "echo 1 > /proc/sys/vm/drop_caches"],
    );
    assert_ne!(refused.code(), 0, "{refused}");
}

#[test]
fn proc_dev_and_sys_are_its_own_as_root() {
    root(|| proc_dev_and_sys_are_its_own());
}

#[test]
fn proc_dev_and_sys_are_its_own_as_user() {
    user(|| proc_dev_and_sys_are_its_own());
}

fn capabilities_are_dockers() {
    let store = shop("store");
    let status = in_shop(&store, &["--rm"], &["cat", "/proc/self/status"]).ok();
    let set = |name: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .unwrap()
            .trim()
            .to_owned()
    };
    for name in ["CapEff:", "CapPrm:", "CapBnd:"] {
        assert_eq!(set(name), DOCKERS_CAPABILITIES, "{name}");
    }
    for name in ["CapInh:", "CapAmb:"] {
        assert_eq!(set(name), "0000000000000000", "{name}");
    }
    assert_eq!(set("Seccomp:"), "2", "a filter of system calls");
}

#[test]
fn capabilities_are_dockers_as_root() {
    root(|| capabilities_are_dockers());
}

#[test]
fn capabilities_are_dockers_as_user() {
    user(|| capabilities_are_dockers());
}

fn system_calls_are_filtered_unless_asked_otherwise() {
    let store = shop("store");
    let command = ["grep", "^Seccomp:", "/proc/self/status"];
    assert_eq!(in_shop(&store, &["--rm"], &command).ok(), "Seccomp:\t2\n");
    let unconfined = ["--rm", "--security-opt", "seccomp=unconfined"];
    let ours = std::fs::read_to_string("/proc/self/status").unwrap();
    let ours = ours
        .lines()
        .find(|line| line.starts_with("Seccomp:"))
        .unwrap();
    assert_eq!(
        in_shop(&store, &unconfined, &command).ok(),
        format!("{ours}\n")
    );
}

#[test]
fn system_calls_are_filtered_unless_asked_otherwise_as_root() {
    root(|| system_calls_are_filtered_unless_asked_otherwise());
}

#[test]
fn system_calls_are_filtered_unless_asked_otherwise_as_user() {
    user(|| system_calls_are_filtered_unless_asked_otherwise());
}

fn exit_codes_are_dockers() {
    let store = shop("store");
    let code = |command: &[&str]| in_shop(&store, &["--rm"], command).code();
    assert_eq!(code(&["true"]), 0);
    assert_eq!(code(&["sh", "-c", "exit 42"]), 42);
    assert_eq!(code(&["/etc/motd"]), 126, "there, but not executable");
    assert_eq!(code(&["/srv"]), 126, "a directory");
    assert_eq!(code(&["no-such-program"]), 127);
    assert_eq!(code(&["/no/such/program"]), 127);
    assert_eq!(code(&[""]), 127, "an empty command");
    assert_eq!(
        store.run(["run", "--rm", "no-such-image", "true"]).code(),
        125
    );
    // A process killed by a signal, but not the first one, which is immune to its own signals.
    assert_eq!(code(&["sh", "-c", "sh -c 'kill -TERM $$'; exit $?"]), 143);
    assert_eq!(containers(&store), [""; 0], "each of them removed itself");
}

#[test]
fn exit_codes_are_dockers_as_root() {
    root(|| exit_codes_are_dockers());
}

#[test]
fn exit_codes_are_dockers_as_user() {
    user(|| exit_codes_are_dockers());
}

fn signals_reach_the_container() {
    let store = shop("store");
    let trapped = Running::start(
        &store,
        &["--rm"],
        "trap 'exit 7' TERM; ready; while :; do read -r line < /host/never; done",
    );
    trapped.signal(Signal::TERM);
    assert_eq!(trapped.end(), 7);
    let removed = Running::start(
        &store,
        &["--name", "victim"],
        "ready; read -r line < /host/never",
    );
    assert_eq!(
        store.ok(["ps"]).lines().count(),
        2,
        "a header and the running one"
    );
    let refusal = store.run(["rm", "victim"]).refused(1);
    assert!(
        refusal.contains("victim") && refusal.contains("force remove"),
        "{refusal}"
    );
    store.ok(["rm", "-f", "victim"]);
    assert_eq!(removed.end(), 137);
    assert_eq!(containers(&store), [""; 0]);
}

#[test]
fn signals_reach_the_container_as_root() {
    root(|| signals_reach_the_container());
}

#[test]
fn signals_reach_the_container_as_user() {
    user(|| signals_reach_the_container());
}

fn run_options_are_set() {
    let store = shop("store");
    let out = |options: &[&str], command: &[&str]| {
        in_shop(&store, &[&["--rm"], options].concat(), command).ok()
    };
    assert_eq!(out(&[], &[]), "this is shop\n", "the image's own command");
    assert_eq!(
        out(
            &["-e", "A=1", "-e", "FROM=caller"],
            &["sh", "-c", "echo $A $FROM $PATH"]
        ),
        "1 caller /bin:/usr/bin\n"
    );
    assert_eq!(out(&[], &["sh", "-c", "echo $FROM"]), "image\n");
    assert_eq!(out(&["-w", "/srv"], &["pwd"]), "/srv\n");
    assert_eq!(
        out(&["-w", "/new/directory"], &["pwd"]),
        "/new/directory\n",
        "made where it is missing, as Docker does"
    );
    assert_eq!(out(&["--name", "named"], &["true"]), "");
    let host = out(&[], &["hostname"]);
    assert_eq!(host.trim().len(), 12, "the short id: {host}");
    let mut command = store.command([
        "run",
        "--rm",
        "-i",
        "shop",
        "sh",
        "-c",
        "read -r line; echo got $line",
    ]);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(b"from outside\n")
        .unwrap();
    assert_eq!(
        String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap(),
        "got from outside\n"
    );
    // Without -i there is no input to wait for.
    assert_eq!(out(&[], &["cat"]), "");
}

#[test]
fn run_options_are_set_as_root() {
    root(|| run_options_are_set());
}

#[test]
fn run_options_are_set_as_user() {
    user(|| run_options_are_set());
}

fn a_terminal_is_the_containers_own() {
    let store = shop("store");
    let cowl = store.command([""; 0]);
    let line = format!(
        "{} --root {} run --rm -it shop sh -c 'tty; test -t 0 && test -t 1 && echo terminal'",
        cowl.get_program().display(),
        store.root().display()
    );
    // A terminal for `cowl run` itself. Its input stays open: at end of file `script` would send a
    // character of its own.
    let (input, _open) = std::io::pipe().unwrap();
    let mut script = program("script", ["-q", "-e", "-c", &line, "/dev/null"]);
    let seen = run(script.stdin(input)).ok();
    assert_eq!(seen.replace('\r', ""), "/dev/pts/0\nterminal\n");
}

#[test]
fn a_terminal_is_the_containers_own_as_root() {
    root(|| a_terminal_is_the_containers_own());
}

#[test]
fn a_terminal_is_the_containers_own_as_user() {
    user(|| a_terminal_is_the_containers_own());
}

#[test]
fn a_memory_limit_is_seen_and_holds() {
    root(|| {
        let store = shop("store");
        let script = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null; true";
        assert_eq!(
            in_shop(&store, &["--rm", "-m", "512m"], &["sh", "-c", script]).ok(),
            "536870912\n"
        );
        let greedy = ["dd", "if=/dev/zero", "of=/dev/null", "bs=64M", "count=1"];
        assert_eq!(in_shop(&store, &["--rm", "-m", "16m"], &greedy).code(), 137);
        assert_eq!(
            in_shop(&store, &["--rm", "-m", "256m"], &greedy).code(),
            0,
            "the limit is the cause"
        );
    });
}

fn a_container_stays_with_its_upper() {
    let store = shop("store");
    in_shop(
        &store,
        &["--name", "kept"],
        &[
            "sh",
            "-c",
            "echo changed > /etc/motd; rm /srv/hello; exit 3",
        ],
    );
    let ids = containers(&store);
    assert_eq!(ids.len(), 1);
    assert_eq!(store.ok(["ps"]).lines().count(), 1, "it does not run");
    let listed = store.ok(["ps", "-a"]);
    assert!(
        listed.contains("kept") && listed.contains("Exited (3)"),
        "{listed}"
    );
    let upper = store.root().join("containers").join(&ids[0]).join("upper");
    assert_eq!(
        std::fs::read_to_string(upper.join("etc/motd")).unwrap(),
        "changed\n"
    );
    assert_eq!(
        in_shop(&store, &["--rm"], &["cat", "/etc/motd"]).ok(),
        "welcome to the base\n",
        "the image is as it was"
    );
    store.ok(["rm", "kept"]);
    assert_eq!(containers(&store), [""; 0]);
    assert!(!upper.exists());
    gone(&store, &ids[0]);
}

#[test]
fn a_container_stays_with_its_upper_as_root() {
    root(|| a_container_stays_with_its_upper());
}

#[test]
fn a_container_stays_with_its_upper_as_user() {
    user(|| a_container_stays_with_its_upper());
}

/// Nothing of a container is left; the harness checks for processes and mounts.
fn gone(store: &Store, id: &str) {
    assert_eq!(cgroups(id), "");
    assert_eq!(
        std::fs::read_dir(store.root().join("containers"))
            .unwrap()
            .count(),
        0
    );
}

#[test]
fn nothing_of_a_limited_container_is_left() {
    root(|| {
        let store = shop("store");
        in_shop(&store, &["--name", "one", "-m", "64m"], &["true"]).ok();
        let id = containers(&store).remove(0);
        store.ok(["rm", "one"]);
        gone(&store, &id);
    });
}

fn orphans_end_with_their_container() {
    let store = shop("store");
    // Two generations that outlive their parents die with the container, and run does not wait for
    // them.
    let script = "sh -c '(trap \"\" HUP; while :; do :; done) & (read -r line < /tmp/never) &' & mkfifo /tmp/never; exit 5";
    assert_eq!(in_shop(&store, &["--rm"], &["sh", "-c", script]).code(), 5);
}

#[test]
fn orphans_end_with_their_container_as_root() {
    root(|| orphans_end_with_their_container());
}

#[test]
fn orphans_end_with_their_container_as_user() {
    user(|| orphans_end_with_their_container());
}

/// The monitor makes itself non-dumpable before it starts anything, and its children inherit that;
/// nothing reverts it, including what joins the container for `exec`, until it executes the
/// program. So no process of the container can trace it or open its descriptors.
#[test]
fn a_process_that_enters_a_container_is_not_dumpable() {
    user(|| {
        let store = shop("store");
        let script = r#"
import re, subprocess, sys
cowl = sys.argv[1:]
trace = 'trace=prctl,setns,execve,clone,clone3,fork,vfork'
strace = ['strace', '-f', '-qq', '-o', 'calls', '-e', trace, '--']
tracer = subprocess.Popen([*strace, *cowl, 'run', '-d', '--name', 'box', 'shop', 'sleep', '1000'], stdout=subprocess.PIPE)
assert tracer.stdout.readline(), 'the container does not start'
subprocess.run([*cowl, 'exec', 'box', 'true'], check=True)
subprocess.run([*cowl, 'rm', '-f', 'box'], check=True, stdout=subprocess.DEVNULL)
tracer.wait()
lines = [line.split(None, 1) for line in open('calls')]
# A child's first lines may come before the line that made it.
parents = {}
for pid, call in lines:
    if child := re.search(r'(?:clone3?|fork).* = (\d+)$', call): parents[child[1]] = pid
dumpable = [(pid, call) for pid, call in lines if 'PR_SET_DUMPABLE' in call]
assert all('SUID_DUMP_DISABLE' in call for _, call in dumpable), dumpable
protected = {pid for pid, _ in dumpable}
joined = {pid for pid, call in lines if call.startswith('setns(')}
assert all(parents[pid] in protected for pid in joined), lines
entered = [pid for pid, call in lines if call.startswith('execve(') and '"true"' in call and parents.get(pid) in joined]
print(len(entered))
"#;
        let (cowl, root) = (binary("cowl"), store.root());
        let arguments = [cowl.as_path(), Path::new("--root"), root];
        assert_eq!(python(&directory(), script, arguments), "1\n");
    });
}

/// After a power cut a container of `--rm` is removed, so its files need not be durable. Syncs of
/// another container's files show that the tracer would see them.
fn run_rm_syncs_nothing() {
    let store = shop("store");
    let syncs = |options: &[&str]| {
        let place = directory();
        let mut traced = program("strace", ["-f", "-qq", "--seccomp-bpf", "-o", "calls"]);
        traced.args(["-e", "trace=fsync,fdatasync,syncfs,sync,sync_file_range"]);
        traced.args(["-e", "signal=none", "--"]);
        traced.arg(binary("cowl")).arg("--root").arg(store.root());
        traced.arg("run").args(options);
        traced.args(["shop", "sh", "-c", "echo new > /bin/file"]);
        run(traced.current_dir(&place)).ok();
        let calls = std::fs::read_to_string(place.join("calls")).unwrap();
        // strace writes `???(` for a call of a process that is killed before strace can read the
        // call.
        let named = calls.lines().filter(|line| line.contains("sync"));
        named.collect::<Vec<_>>().join("\n")
    };
    assert_eq!(syncs(&["--rm"]), "");
    assert_ne!(syncs(&["--name", "kept"]), "");
    store.ok(["rm", "kept"]);
}

#[test]
fn run_rm_syncs_nothing_as_root() {
    root(|| run_rm_syncs_nothing());
}

#[test]
fn run_rm_syncs_nothing_as_user() {
    user(|| run_rm_syncs_nothing());
}

/// `FROM scratch` alone: as in Docker, only programs from mounts can be run.
fn an_image_without_layers_runs_what_is_mounted_into_it() {
    let store = Store::new("store");
    let archive = directory().join("none.tar");
    make_image("docker", &archive, "none:1", &[], &[]);
    store.load(&archive);
    let message = store.run(["run", "--rm", "none:1"]).refused(125);
    assert!(message.contains("no command specified"), "{message}");
    store.run(["run", "--rm", "none:1", "/absent"]).refused(127);

    let box_of_host = ["-v", "/bin/busybox:/busybox:ro"];
    let run = |options: &[&str], image: &str, command: &[&str]| {
        let options = [
            &["run"],
            options,
            &box_of_host,
            &[image, "/busybox"],
            command,
        ];
        store.ok(options.concat())
    };
    let files = run(&["--rm"], "none:1", &["ls", "/"]);
    assert_eq!(files, "busybox\ndev\netc\nproc\nsys\n");
    let write = ["sh", "-c", "echo written > /file"];
    run(&["--name", "made"], "none:1", &write);
    store.ok(["commit", "made", "made:1"]);
    store.ok(["rm", "made"]);
    let read = run(&["--rm"], "made:1", &["cat", "/file"]);
    assert_eq!(read, "written\n");
    store.ok(["rmi", "made:1", "none:1"]);
    assert!(store.objects_by_name().is_empty());
}

#[test]
fn an_image_without_layers_runs_what_is_mounted_into_it_as_root() {
    root(|| an_image_without_layers_runs_what_is_mounted_into_it());
}

#[test]
fn an_image_without_layers_runs_what_is_mounted_into_it_as_user() {
    user(|| an_image_without_layers_runs_what_is_mounted_into_it());
}
