//! The messages of the control socket, as bytes.

use super::*;
use crate::message::Started;
use crate::process::Process;

fn requests() -> Vec<(&'static str, Request)> {
    let size = WindowSize {
        rows: 50,
        columns: 300,
    };
    let streams = StreamSet {
        stdin: true,
        stdout: true,
        stderr: false,
    };
    let exec = || Target::Exec("e1".to_owned());
    let limits = Limits {
        memory: Some(64 << 20),
        pids: Some(40),
        cpuset_cpus: Some("0".to_owned()),
        ..Limits::default()
    };
    vec![
        (
            "signal-v1",
            Request::Signal(SignalRequest {
                target: Target::Program,
                number: 15,
            }),
        ),
        (
            "resize-v1",
            Request::Resize(ResizeRequest {
                target: exec(),
                size,
            }),
        ),
        (
            "attach-v1",
            Request::Attach(AttachRequest {
                target: exec(),
                streams,
            }),
        ),
        ("wait-v1", Request::Wait(exec())),
        (
            "exec-v1",
            Request::Exec(ExecRequest {
                id: "e1".to_owned(),
                process_bytes: 700,
                open_stdin: true,
                streams,
            }),
        ),
        ("inspect-v1", Request::Inspect(())),
        ("pause-v1", Request::Pause(true)),
        ("update-v1", Request::Update(limits)),
        ("stats-v1", Request::Stats(())),
        ("pids-v1", Request::Pids(())),
        ("root-v1", Request::Root(())),
        ("namespaces-v1", Request::Namespaces(())),
        (
            "reserve-v1",
            Request::Reserve(ReserveRequest {
                id: "e2".to_owned(),
                description_bytes: 300,
            }),
        ),
        ("find-exec-v1", Request::FindExec("e2".to_owned())),
    ]
}

fn replies() -> Vec<(&'static str, Reply)> {
    let exited = Exited {
        exit_code: 137,
        signal: Some(9),
        oom_killed: true,
    };
    let failed = Failed {
        what: "exec \"x\"".to_owned(),
        errno: 2,
        exit_code: 127,
    };
    let state = State {
        pid: 70_000,
        paused: true,
        execs: vec![ExecState {
            id: "e1".to_owned(),
            pid: 70_001,
            exited: Some(exited),
        }],
    };
    let stats = Stats {
        cpu: CpuStats {
            total: 3,
            user: 2,
            system: 1,
            periods: 4,
            throttled_periods: 5,
            throttled: 6,
        },
        memory: Some(MemoryStats {
            usage: 7,
            peak: Some(8),
            limit: None,
            details: vec![("inactive_file".to_owned(), 9)],
        }),
        pids: Some(10),
        pids_limit: None,
        blkio: vec![BlkioStats {
            major: 8,
            minor: 1,
            read_bytes: 11,
            write_bytes: 12,
            reads: 13,
            writes: 14,
        }],
    };
    let set = NamespaceSet {
        pid: true,
        ipc: false,
        uts: true,
        net: true,
    };
    vec![
        ("reply-done-v1", Reply::Done(())),
        ("reply-failed-v1", Reply::Failed(failed)),
        ("reply-exited-v1", Reply::Exited(exited)),
        ("reply-started-v1", Reply::Started(Started { pid: 70_000 })),
        ("reply-state-v1", Reply::State(state)),
        (
            "reply-warnings-v1",
            Reply::Warnings(vec!["discarded".to_owned()]),
        ),
        ("reply-stats-v1", Reply::Stats(stats)),
        ("reply-pids-v1", Reply::Pids(vec![1, 70_000])),
        ("reply-namespaces-v1", Reply::Namespaces(set)),
        (
            "reply-exec-v1",
            Reply::Exec(ExecDetails {
                state: ExecState {
                    id: "e2".to_owned(),
                    pid: 70_002,
                    exited: None,
                },
                phase: ExecPhase::Running,
                description_bytes: Some(300),
            }),
        ),
    ]
}

fn process() -> Process {
    let mut process = Process::new(vec![b"sh".to_vec(), b"-c".to_vec()]);
    process.env = vec![b"A=\xff".to_vec()];
    process.user = b"app:1000".to_vec();
    process.terminal = Some(WindowSize {
        rows: 24,
        columns: 80,
    });
    process
}

/// The bytes of each record version. A new version gets a new file.
fn golden(name: &str, bytes: &[u8]) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../fixtures/golden/control")
        .join(name);
    if std::env::var_os("COWL_WRITE_GOLDEN").is_some() {
        std::fs::write(&path, bytes).unwrap();
    }
    let text = path.display();
    assert_eq!(std::fs::read(&path).unwrap(), bytes, "{text} differs");
}

#[test]
fn records_have_their_golden_bytes() {
    for (name, request) in requests() {
        let bytes = request.encode().unwrap();
        golden(name, &bytes);
        assert_eq!(Request::decode(&bytes).unwrap(), request);
    }
    for (name, reply) in replies() {
        let bytes = reply.encode().unwrap();
        golden(name, &bytes);
        assert_eq!(Reply::decode(&bytes).unwrap(), reply);
    }
    let bytes = encode_process(&process()).unwrap();
    golden("process-v1", &bytes);
    assert_eq!(decode_process(&bytes).unwrap(), process());
}

#[test]
fn unknown_optional_records_are_skipped_and_others_refused() {
    let (_, request) = requests().remove(0);
    let bytes = request.encode().unwrap();
    let (header, record) = bytes.split_at(16);
    let optional = [0x77, 0x80, 9, 0, 3, 0, 0, 0, 1, 2, 3];
    let with = [header, &optional, record].concat();
    assert_eq!(Request::decode(&with).unwrap(), request);

    let mut newer = bytes.clone();
    newer[18] = 2;
    assert!(matches!(
        Request::decode(&newer),
        Err(WireError::Unknown { version: 2, .. })
    ));
    assert!(Request::decode(&[header, record, record].concat()).is_err());
    assert!(Request::decode(header).is_err());
    // A reply is no request.
    assert!(Request::decode(&Reply::Done(()).encode().unwrap()).is_err());
}

#[test]
fn truncated_and_flipped_messages_are_errors() {
    let message = encode_process(&process()).unwrap();
    for end in 0..message.len() {
        assert!(decode_process(&message[..end]).is_err());
    }
    for position in 0..message.len() {
        let mut broken = message.clone();
        broken[position] ^= 0xff;
        drop(decode_process(&broken));
    }
}
