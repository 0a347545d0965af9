//! Golden bytes of every message, hostile bytes, and descriptors that must not be lost or leaked.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;

use proptest::prelude::*;

use super::*;

fn mapping() -> IdMap {
    let mut ids = IdMap::default();
    ids.map(IdKind::User, "0:1000:1:1:110000:65536").unwrap();
    ids.squash(IdKind::Group, 4);
    ids.squash_to_root();
    ids
}

fn every_message() -> Vec<(&'static str, Message)> {
    let chain = std::array::from_fn(|at| u8::try_from(at).unwrap());
    vec![
        (
            "mount-request-2",
            Message::MountRequest(MountRequest {
                name: "debian:12".into(),
                chain,
                io_mode: IoModeChoice::Auto,
                ids: IdMap::default(),
                roles: vec![
                    Role::Tree,
                    Role::Objects,
                    Role::Lease,
                    Role::Upper,
                    Role::Work,
                ],
            }),
        ),
        (
            "mount-ready-1",
            Message::MountReady(MountReady {
                io_mode: IoMode::Passthrough,
                worker: 4711,
                roles: vec![Role::Mount],
            }),
        ),
        (
            "mount-failed-1",
            Message::MountFailed(MountFailed {
                what: "cannot open /dev/fuse".into(),
                errno: 2,
            }),
        ),
        (
            "worker-request-2",
            Message::WorkerRequest(WorkerRequest {
                name: "debian:12".into(),
                chain,
                io_mode: IoModeChoice::Cached,
                ids: mapping(),
                objects_read_only: true,
                roles: vec![Role::Fuse, Role::Counters, Role::Tree, Role::Objects],
            }),
        ),
        (
            "worker-ready-1",
            Message::WorkerReady(WorkerReady {
                io_mode: IoMode::Cached,
            }),
        ),
        (
            "worker-ready-1-writeback",
            Message::WorkerReady(WorkerReady {
                io_mode: IoMode::Writeback,
            }),
        ),
    ]
}

/// Those by which changes are held back.
fn messages_of_a_hold() -> Vec<(&'static str, Message)> {
    vec![
        (
            "mount-request-2-control",
            Message::MountRequest(MountRequest {
                name: "debian:12".into(),
                chain: std::array::from_fn(|at| u8::try_from(at).unwrap()),
                io_mode: IoModeChoice::Auto,
                ids: IdMap::default(),
                roles: vec![
                    Role::Tree,
                    Role::Objects,
                    Role::Lease,
                    Role::Upper,
                    Role::VolatileWork,
                    Role::Control,
                ],
            }),
        ),
        ("hold-changes-1", Message::HoldChanges(HoldChanges)),
        (
            "changes-held-1",
            Message::ChangesHeld(ChangesHeld {
                io_mode: IoMode::Cached,
            }),
        ),
    ]
}

fn golden(name: &str) -> PathBuf {
    PathBuf::from(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../fixtures/golden/handover"
    ))
    .join(name)
}

/// `COWL_GOLDEN_WRITE=1` writes the files of messages that have none yet; an existing one is never
/// changed.
#[test]
fn messages_have_their_golden_bytes() {
    for (name, message) in every_message().into_iter().chain(messages_of_a_hold()) {
        let bytes = encode(&message).unwrap();
        if std::env::var_os("COWL_GOLDEN_WRITE").is_some()
            && let Ok(mut file) = File::create_new(golden(name))
        {
            file.write_all(&bytes).unwrap();
        }
        let kept = std::fs::read(golden(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(bytes, kept, "{name}");
        assert_eq!(decode(&kept).unwrap(), message, "{name}");
    }
}

#[test]
fn decode_skips_unknown_optional_records_only() {
    let (_, message) = every_message().remove(4);
    let plain = encode(&message).unwrap();
    let with = |kind: u16| {
        let mut bytes = plain[..16].to_vec();
        bytes.extend(kind.to_le_bytes());
        bytes.extend([9, 0, 3, 0, 0, 0, 1, 2, 3]);
        bytes.extend(&plain[16..]);
        bytes
    };
    assert_eq!(decode(&with(0x8063)).unwrap(), message);
    assert!(matches!(
        decode(&with(0x0063)),
        Err(HandoverError::Record {
            kind: 0x63,
            version: 9
        })
    ));
}

#[test]
fn decode_requires_one_whole_record_and_a_known_header() {
    let (_, message) = every_message().remove(2);
    let plain = encode(&message).unwrap();
    let changed = |at: usize, to: u8| {
        let mut bytes = plain.clone();
        bytes[at] = to;
        decode(&bytes)
    };
    assert!(matches!(changed(0, b'X'), Err(HandoverError::NotAMessage)));
    assert!(matches!(changed(8, 2), Err(HandoverError::Version(2))));
    assert!(matches!(
        changed(10, 1),
        Err(HandoverError::Version(0x1_0001))
    ));
    assert!(matches!(changed(12, 4), Err(HandoverError::Features(4))));
    assert!(matches!(decode(&plain[..16]), Err(HandoverError::Damaged)));
    let twice = [&plain[..], &plain[16..]].concat();
    assert!(matches!(decode(&twice), Err(HandoverError::Damaged)));
    for length in 0..plain.len() {
        assert!(decode(&plain[..length]).is_err(), "cut at {length}");
    }
    // A length that claims more memory than a message may have.
    let mut greedy = plain[..24].to_vec();
    greedy.extend([0xfd, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]);
    greedy[20..24].copy_from_slice(&9_u32.to_le_bytes());
    assert!(matches!(decode(&greedy), Err(HandoverError::Payload(_))));
}

#[test]
fn mount_failed_displays_as_one_line() {
    let failed = |errno| {
        MountFailed {
            what: "cannot open /dev/fuse".into(),
            errno,
        }
        .to_string()
    };
    assert_eq!(
        failed(2),
        "cannot open /dev/fuse: No such file or directory"
    );
    assert_eq!(failed(0), "cannot open /dev/fuse");
}

#[test]
fn receive_returns_close_on_exec_descriptors_by_role() {
    let (ours, theirs) = pair().unwrap();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"the mount").unwrap();
    let (_, ready) = every_message().remove(1);
    send(ours.as_fd(), &ready, &[file.as_fd()]).unwrap();
    let (message, mut descriptors) = receive(theirs.as_fd()).unwrap();
    assert_eq!(message, ready);
    assert!(descriptors.take_if_any(Role::Lease).is_none());
    let mount = descriptors.take(Role::Mount).unwrap();
    assert!(
        rustix::io::fcntl_getfd(&mount)
            .unwrap()
            .contains(rustix::io::FdFlags::CLOEXEC)
    );
    let mut mount = File::from(mount);
    mount.rewind().unwrap();
    let mut read = [0; 9];
    mount.read_exact(&mut read).unwrap();
    assert_eq!(&read, b"the mount");
    assert!(matches!(
        descriptors.take(Role::Mount),
        Err(HandoverError::Missing(Role::Mount))
    ));
}

#[test]
fn send_and_receive_refuse_missing_descriptors() {
    let (ours, theirs) = pair().unwrap();
    let (_, ready) = every_message().remove(1);
    assert!(matches!(
        send(ours.as_fd(), &ready, &[]),
        Err(HandoverError::Descriptors { named: 1, came: 0 })
    ));
    let bytes = encode(&ready).unwrap();
    rustix::net::send(&ours, &bytes, rustix::net::SendFlags::empty()).unwrap();
    assert!(matches!(
        receive(theirs.as_fd()),
        Err(HandoverError::Descriptors { named: 1, came: 0 })
    ));
    drop(ours);
    assert!(matches!(
        receive(theirs.as_fd()),
        Err(HandoverError::Closed)
    ));
    let (_, failed) = every_message().remove(2);
    assert!(matches!(
        send(theirs.as_fd(), &failed, &[]),
        Err(HandoverError::Closed)
    ));
}

#[test]
fn mount_names_a_program_that_cannot_be_started() {
    let file = tempfile::tempfile().unwrap();
    let sources = MountSources {
        name: "x",
        chain: [0; 32],
        io_mode: IoModeChoice::Auto,
        ids: &IdMap::default(),
        tree: file.as_fd(),
        objects: file.as_fd(),
        lease: file.as_fd(),
        upper: None,
        control: None,
        log: None,
    };
    let error = mount(std::path::Path::new("/nonexistent/cowl-mountd"), &sources).unwrap_err();
    assert_eq!(error.to_string(), "cannot start /nonexistent/cowl-mountd");
    // A program that says nothing and ends.
    let error = mount(std::path::Path::new("/bin/true"), &sources).unwrap_err();
    assert!(
        matches!(
            error,
            MountError::Talk {
                source: HandoverError::Closed,
                ..
            }
        ),
        "{error:?}"
    );
}

proptest! {
    #[test]
    fn decode_of_random_bytes_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        assert!(decode(&bytes).is_err());
    }

    #[test]
    fn decode_of_a_changed_message_never_panics(which in 0..5_usize, at in any::<prop::sample::Index>(), to in any::<u8>()) {
        let mut bytes = encode(&every_message()[which].1).unwrap();
        let at = at.index(bytes.len());
        bytes[at] = to;
        if let Ok(message) = decode(&bytes) {
            assert_eq!(decode(&encode(&message).unwrap()).unwrap(), message);
        }
    }
}

#[test]
fn an_io_mode_is_read_by_its_name() {
    for choice in IoModeChoice::ALL {
        assert_eq!(choice.to_string().parse(), Ok(choice));
    }
    let error = "fast".parse::<IoModeChoice>().unwrap_err();
    assert_eq!(
        error.to_string(),
        "`fast` is no I/O mode: use auto, cached, passthrough or writeback"
    );
}
