//! Real containers over a busybox root: what is promised of `cowl-runtime`, promise by promise.

use std::io::{Read, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::symlink;

use crate::harness::Fixture;
use cowl_launch::control::{Streams, Target};
use cowl_launch::message::{Event, Start};
use cowl_launch::process::WindowSize;
use cowl_launch::status::is_running;

#[test]
fn the_program_sees_only_its_own_processes() {
    let fixture = Fixture::new("ps");
    let outcome = fixture.run(&fixture.sh("sleep 100 & ps -o pid,args; true"));
    let lines: Vec<&str> = outcome.output.lines().map(str::trim).collect();
    assert_eq!(lines.len(), 4, "{}", outcome.output);
    // By number: the two that sh starts may not have got to their programs yet.
    assert!(
        lines[1].starts_with("1 sh -c") && lines[2].starts_with("2 ") && lines[3].starts_with("3 "),
        "{lines:?}"
    );
    assert_eq!(
        (outcome.exited.exit_code, outcome.exited.oom_killed),
        (0, false)
    );
}

#[test]
fn exit_codes_are_dockers() {
    let fixture = Fixture::new("codes");
    fixture.write("bin/data", b"not a program", 0o644);
    fixture.write("bin/garbage", b"\x7fELFgarbage", 0o755);
    fixture.write("bin/lost", b"#!/no/such/interpreter\n", 0o755);
    for (argv, code) in [
        (&["true"][..], 0),
        (&["sh", "-c", "exit 7"], 7),
        (&["/bin/sh", "-c", "exit 255"], 255),
    ] {
        assert_eq!(
            fixture.run(&fixture.plan(argv)).exited.exit_code,
            code,
            "{argv:?}"
        );
    }
    for (program, code, text) in [
        (
            "no-such-program",
            127,
            "exec \"no-such-program\": No such file or directory (os error 2)",
        ),
        (
            "/no/such",
            127,
            "exec \"/no/such\": No such file or directory (os error 2)",
        ),
        ("", 127, "exec \"\": No such file or directory (os error 2)"),
        (
            "lost",
            127,
            "exec \"lost\": No such file or directory (os error 2)",
        ),
        (
            "data",
            126,
            "exec \"data\": Permission denied (os error 13)",
        ),
        (
            "/bin/data",
            126,
            "exec \"/bin/data\": Permission denied (os error 13)",
        ),
        (
            "/etc",
            126,
            "exec \"/etc\": Permission denied (os error 13)",
        ),
        (
            "garbage",
            126,
            "exec \"garbage\": Exec format error (os error 8)",
        ),
    ] {
        let failed = fixture.fail(&fixture.plan(&[program]));
        assert_eq!(
            (failed.exit_code, failed.to_string().as_str()),
            (code, text)
        );
        let record = fixture.record();
        assert!(
            record.contains("\"pid\":0,") && record.contains(&format!("\"exit_code\":{code}")),
            "{record}"
        );
        assert!(!is_running(fixture.status().as_fd()).unwrap());
    }
}

#[test]
fn exec_error_quotes_at_most_256_bytes_of_the_name() {
    let fixture = Fixture::new("longname");
    let failed = fixture.fail(&fixture.plan(&[&"x".repeat(100_000)]));
    assert_eq!(failed.exit_code, 126);
    assert_eq!(
        failed.to_string(),
        format!(
            "exec \"{}...\": File name too long (os error 36)",
            "x".repeat(256)
        )
    );
}

#[test]
fn capabilities_are_dockers() {
    let fixture = Fixture::new("caps");
    let status = "grep -E '^(Cap|NoNewPrivs)' /proc/self/status";
    symlink("busybox", fixture.path("bin/grep")).unwrap();
    let expected = |inherited: &str, permitted: &str, bounding: &str, nnp: u8| {
        format!(
            "CapInh:\t{inherited}\nCapPrm:\t{permitted}\nCapEff:\t{permitted}\nCapBnd:\t{bounding}\nCapAmb:\t{inherited}\nNoNewPrivs:\t{nnp}\n"
        )
    };
    let (none, default) = ("0000000000000000", "00000000a80425fb");
    assert_eq!(
        fixture.run(&fixture.sh(status)).output,
        expected(none, default, default, 0)
    );
    let mut plan = fixture.sh(status);
    plan.process.user = b"app".to_vec();
    assert_eq!(fixture.run(&plan).output, expected(none, none, default, 0));
    plan.process.no_new_privileges = true;
    plan.process.capabilities = 0;
    plan.process.user.clear();
    assert_eq!(fixture.run(&plan).output, expected(none, none, none, 1));
}

#[test]
fn user_sets_ids_groups_home_and_environment() {
    let fixture = Fixture::new("user");
    let script = "id; echo $HOME $A; pwd; umask; hostname";
    let mut plan = fixture.sh(script);
    plan.process.user = b"app".to_vec();
    plan.process.env.push(b"A=b c".to_vec());
    plan.process.cwd = b"/made/by us".to_vec();
    plan.sandbox.hostname = "box".to_owned();
    let outcome = fixture.run(&plan);
    assert_eq!(
        outcome.output,
        "uid=1000(app) gid=1000(app) groups=10(wheel),1000(app)\n/home/app b c\n/made/by us\n0022\nbox\n"
    );
    plan.process.user = b"nobody".to_vec();
    let failed = fixture.fail(&plan);
    assert_eq!(
        failed.to_string(),
        "unable to find user nobody: no matching entries in passwd file"
    );
    assert_eq!(failed.exit_code, 125);
    plan.process.user.clear();
    plan.process.cwd = b"/etc/passwd".to_vec();
    assert_eq!(
        fixture.fail(&plan).to_string(),
        "enter the working directory \"/etc/passwd\": Not a directory (os error 20)"
    );
}

#[test]
fn a_passwd_that_is_a_fifo_or_too_large_is_refused() {
    let fixture = Fixture::new("fifo");
    std::fs::remove_file(fixture.path("etc/passwd")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        fixture.path("etc/passwd"),
        rustix::fs::FileType::Fifo,
        0o644.into(),
        0,
    )
    .unwrap();
    assert_eq!(
        fixture.fail(&fixture.plan(&["true"])).what,
        "read the container's /etc/passwd"
    );
    std::fs::remove_file(fixture.path("etc/passwd")).unwrap();
    let large = std::fs::File::create(fixture.path("etc/passwd")).unwrap();
    large.set_len(1 << 30).unwrap();
    assert_eq!(
        fixture.fail(&fixture.plan(&["true"])).errno,
        rustix::io::Errno::FBIG.raw_os_error()
    );
    // A link out of the root is looked up inside of it, where there is nothing.
    std::fs::remove_file(fixture.path("etc/passwd")).unwrap();
    symlink(
        "../../../../../../../../etc/passwd",
        fixture.path("etc/passwd"),
    )
    .unwrap();
    let mut plan = fixture.plan(&["true"]);
    plan.process.user = b"daemon".to_vec();
    assert!(
        fixture.fail(&plan).what.starts_with("read the container's")
            || fixture.fail(&plan).what.starts_with("no entry")
    );
}

#[test]
fn mounts_are_dockers() {
    let fixture = Fixture::new("mounts");
    symlink("busybox", fixture.path("bin/awk")).unwrap();
    let outcome = fixture.run(&fixture.sh("awk '{print $5, $6, $9 == \"-\" ? $10 : $8}' /proc/self/mountinfo; ls /dev; echo; cat /proc/interrupts; ls /sys/firmware; echo x > /proc/sys/kernel/core_pattern"));
    for line in [
        "/proc rw,nosuid,nodev,noexec",
        "/sys ro,nosuid,nodev,noexec",
        "/dev rw,nosuid ",
        "/dev/pts rw,nosuid,noexec",
        "/dev/shm rw,nosuid,nodev,noexec",
        "/dev/mqueue rw,nosuid,nodev,noexec",
        "/proc/sys ro,nosuid,nodev,noexec",
        "/proc/interrupts rw,",
    ] {
        assert!(
            outcome.output.lines().any(|found| found.starts_with(line)),
            "{line}\n{}",
            outcome.output
        );
    }
    assert!(outcome.output.contains("\ncore\nfd\nfull\nmqueue\nnull\nptmx\npts\nrandom\nshm\nstderr\nstdin\nstdout\ntty\nurandom\nzero\n"), "{}", outcome.output);
    assert!(
        outcome
            .output
            .ends_with("can't create /proc/sys/kernel/core_pattern: Read-only file system\n"),
        "{}",
        outcome.output
    );
    assert!(
        !outcome
            .output
            .lines()
            .any(|line| line.starts_with("/tmp") || line.contains("/mnt")),
        "{}",
        outcome.output
    );
}

#[test]
fn a_symlink_as_proc_or_dev_is_refused() {
    let fixture = Fixture::new("linked");
    symlink("/etc", fixture.path("proc")).unwrap();
    assert_eq!(fixture.fail(&fixture.plan(&["true"])).what, "mount /proc");
    std::fs::remove_file(fixture.path("proc")).unwrap();
    symlink("etc", fixture.path("dev")).unwrap();
    assert_eq!(fixture.fail(&fixture.plan(&["true"])).what, "mount /dev");
}

#[test]
fn volumes_are_mounted_where_the_container_sees_them() {
    let mut fixture = Fixture::new("volume");
    let data = tempfile::tempdir().unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "127.0.0.1 here\n").unwrap();
    symlink("/srv", fixture.path("link")).unwrap();
    std::fs::create_dir(fixture.path("srv")).unwrap();
    let mut plan =
        fixture.sh("echo kept > /srv/data/file; cat /etc/hosts; touch /ro/x; cat /ro/file");
    fixture.volume(&mut plan, data.path(), "/link/data", false);
    fixture.volume(&mut plan, file.path(), "/etc/hosts", true);
    fixture.volume(&mut plan, data.path(), "/ro", true);
    let outcome = fixture.run(&plan);
    assert_eq!(
        outcome.output,
        "127.0.0.1 here\ntouch: /ro/x: Read-only file system\nkept\n"
    );
    assert_eq!(
        std::fs::read_to_string(data.path().join("file")).unwrap(),
        "kept\n"
    );
    assert!(fixture.path("srv/data").is_dir());

    let mut fixture = Fixture::new("volume-proc");
    symlink("/proc", fixture.path("link")).unwrap();
    let mut plan = fixture.plan(&["true"]);
    fixture.volume(&mut plan, data.path(), "/link/sys", false);
    assert_eq!(
        fixture.fail(&plan).what,
        "mount the volume at \"/link/sys\""
    );
    plan.sandbox.mounts.last_mut().unwrap().destination = b"/".to_vec();
    assert_eq!(
        fixture.fail(&plan).what,
        "a volume can't be mounted at \"/\""
    );
    plan.sandbox.mounts.last_mut().unwrap().destination = b"/etc/group".to_vec();
    assert_eq!(
        fixture.fail(&plan).to_string(),
        "mount the volume at \"/etc/group\": Not a directory (os error 20)"
    );
    let mut fixture = Fixture::new("volume-file");
    let mut plan = fixture.plan(&["true"]);
    fixture.volume(&mut plan, file.path(), "/etc", false);
    assert_eq!(
        fixture.fail(&plan).to_string(),
        "mount the volume at \"/etc\": Is a directory (os error 21)"
    );
}

#[test]
fn readonly_root_makes_the_root_read_only() {
    let fixture = Fixture::new("roroot");
    let mut plan = fixture.sh("touch /x; touch /dev/shm/x && echo ok");
    plan.sandbox.readonly_root = true;
    assert_eq!(
        fixture.run(&plan).output,
        "touch: /x: Read-only file system\nok\n"
    );
}

/// The host keeps its own: the parameters belong to the network namespace.
#[test]
fn any_user_listens_on_any_port_and_opens_ping_sockets() {
    const PARAMETERS: [&str; 2] = [
        "/proc/sys/net/ipv4/ip_unprivileged_port_start",
        "/proc/sys/net/ipv4/ping_group_range",
    ];
    let host = || PARAMETERS.map(|path| std::fs::read_to_string(path).unwrap());
    let before = host();
    let fixture = Fixture::new("sysctls");
    symlink("busybox", fixture.path("bin/nc")).unwrap();
    let mut plan = fixture.sh(&format!(
        "cat {}; nc -l -p 80 -e true & until nc 127.0.0.1 80 -e true; do kill -0 $! || exit 1; done",
        PARAMETERS.join(" ")
    ));
    plan.process.user = b"app".to_vec();
    let outcome = fixture.run(&plan);
    assert_eq!(outcome.exited.exit_code, 0, "{}", outcome.output);
    assert!(
        outcome.output.starts_with("0\n0\t2147483647\n"),
        "{}",
        outcome.output
    );
    assert_eq!(host(), before);
}

#[test]
fn the_network_has_loopback_only() {
    let fixture = Fixture::new("net");
    let outcome = fixture.run(&fixture.sh("ip -o addr"));
    let addresses: Vec<&str> = outcome.output.lines().collect();
    assert!(
        addresses.iter().all(|line| line.contains(" lo ")),
        "{addresses:?}"
    );
    assert!(outcome.output.contains("127.0.0.1/8"), "{addresses:?}");
}

#[test]
fn the_program_inherits_stdio_only() {
    let fixture = Fixture::new("inherit");
    symlink("busybox", fixture.path("bin/grep")).unwrap();
    let signals = fixture.plan(&["grep", "-E", "^Sig(Blk|Ign|Cgt)", "/proc/self/status"]);
    let none = "0000000000000000";
    assert_eq!(
        fixture.run(&signals).output,
        format!("SigBlk:\t{none}\nSigIgn:\t{none}\nSigCgt:\t{none}\n")
    );
    // The fourth descriptor is the directory that is listed.
    assert_eq!(
        fixture.run(&fixture.plan(&["ls", "/proc/self/fd"])).output,
        "0\n1\n2\n3\n"
    );
}

/// The harness hands over the host's /dev/null as standard input. What the container's root does to
/// it is seen on the host.
#[test]
fn dev_null_as_stdin_is_replaced_by_the_containers() {
    use std::os::unix::fs::MetadataExt as _;
    let host = std::fs::metadata("/dev/null").unwrap();
    let fixture = Fixture::new("null");
    symlink("busybox", fixture.path("bin/stat")).unwrap();
    let outcome =
        fixture.run(&fixture.sh("stat -L -c '%d:%i' /dev/null /proc/self/fd/0; echo x >&0"));
    let lines: Vec<&str> = outcome.output.lines().collect();
    assert_eq!(lines.len(), 2, "{}", outcome.output);
    assert_eq!(lines[0], lines[1]);
    assert_ne!(lines[0], format!("{}:{}", host.dev(), host.ino()));
}

/// As it can in Docker, where programs that log to /dev/stdout rely on it.
#[test]
fn a_user_can_open_its_pipes_by_name() {
    let fixture = Fixture::new("stdout");
    let mut plan = fixture.sh("echo out > /dev/stdout; echo error > /dev/stderr; cat /dev/stdin");
    plan.process.user = b"app".to_vec();
    start_with_input(&fixture, &mut plan, "in\n", "out\nerror\nin\n");
}

/// Runs a program that reads this input, and expects this output.
fn start_with_input(fixture: &Fixture, plan: &mut Start, input: &str, expected: &str) {
    plan.monitor.open_stdin = true;
    plan.monitor.stdin_once = true;
    let (stdin, feed) = std::io::pipe().unwrap();
    let (mut read, write) = std::io::pipe().unwrap();
    let streams = Streams {
        stdin: Some(stdin.as_fd()),
        stdout: Some(write.as_fd()),
        stderr: Some(write.as_fd()),
    };
    let monitor = fixture.spawn_with(plan, streams);
    drop((stdin, write));
    monitor.wait_started().unwrap();
    (&feed).write_all(input.as_bytes()).unwrap();
    drop(feed);
    let mut output = String::new();
    read.read_to_string(&mut output).unwrap();
    assert_eq!(output, expected);
    monitor.next_event().unwrap();
    monitor.reap().unwrap();
}

#[test]
fn tty_is_a_terminal_of_the_container() {
    let fixture = Fixture::new("tty");
    let mut plan = fixture.sh("tty; stty size; echo set; read line; stty size; echo got $line; ls -l /dev/console | cut -c1; exit 4");
    symlink("busybox", fixture.path("bin/cut")).unwrap();
    plan.process.terminal = Some(WindowSize {
        rows: 33,
        columns: 77,
    });
    plan.monitor.open_stdin = true;
    let (stdin, feed) = std::io::pipe().unwrap();
    let (mut shown, write) = std::io::pipe().unwrap();
    let streams = Streams {
        stdin: Some(stdin.as_fd()),
        stdout: Some(write.as_fd()),
        stderr: None,
    };
    let monitor = fixture.spawn_with(&plan, streams);
    drop((stdin, write));
    monitor.wait_started().unwrap();
    let mut text = read_until(&mut shown, "set\r\n");
    // Answered when it is done.
    let size = WindowSize {
        rows: 10,
        columns: 20,
    };
    fixture.control().resize(Target::Program, size).unwrap();
    (&feed).write_all(b"hello\n").unwrap();
    text += &read_until(&mut shown, "c\r\n");
    assert_eq!(
        text,
        "/dev/pts/0\r\n33 77\r\nset\r\nhello\r\n10 20\r\ngot hello\r\nc\r\n"
    );
    match monitor.next_event().unwrap() {
        Event::Exited(exited) => assert_eq!(exited.exit_code, 4),
        other => panic!("{other:?}"),
    }
    monitor.reap().unwrap();
    fixture.assert_no_cgroups();
}

fn read_until(from: &mut impl Read, end: &str) -> String {
    let mut shown = String::new();
    let mut buffer = [0; 256];
    while !shown.ends_with(end) {
        let count = from.read(&mut buffer).unwrap();
        assert!(count > 0, "{shown}");
        shown.push_str(std::str::from_utf8(&buffer[..count]).unwrap());
    }
    shown
}
