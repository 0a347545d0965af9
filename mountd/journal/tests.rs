use std::os::fd::AsFd;

use super::*;

fn mapped(memory: &OwnedFd) -> Journal {
    Journal::map(memory.as_fd()).unwrap()
}

/// The worker dies while it answers a request.
fn die_with(request: Request<'_>) {
    let _never_dropped = std::mem::ManuallyDrop::new(request);
    CURRENT.set(None);
}

#[test]
fn a_request_that_was_not_answered_has_its_intent_when_it_is_resent() {
    let memory = create().unwrap();
    let intent = Intent::Exchange { from: 7, to: 8 };
    let dead = mapped(&memory);
    drop(dead.begin(2, false));
    let under_way = dead.begin(4, false);
    dead.intend(intent);
    die_with(under_way);
    let second = mapped(&memory);
    assert_eq!(second.begin(2, true).intent(), None);
    let resent = second.begin(4, true);
    assert_eq!(resent.intent(), Some(intent));
    // The next one dies before it comes to that again: the intent holds.
    die_with(resent);
    let third = mapped(&memory);
    assert_eq!(third.begin(4, true).intent(), Some(intent));
    // That was its answer.
    assert_eq!(mapped(&memory).begin(4, true).intent(), None);
}

#[test]
fn a_request_that_two_workers_crash_of_is_fatal_and_one_of_killed_workers_is_not() {
    let memory = create().unwrap();
    for crashes in [false, false, true, true] {
        let worker = mapped(&memory);
        let request = worker.begin(6, true);
        assert!(!request.is_fatal());
        die_with(request);
        if crashes {
            note_crash(&memory).unwrap();
        }
    }
    assert!(mapped(&memory).begin(6, true).is_fatal());
}

#[test]
fn nodes_and_lookups_outlive_a_worker() {
    let memory = create().unwrap();
    assert!(!allows_a_successor(&memory).unwrap());
    let dead = mapped(&memory);
    assert!(!dead.is_inherited());
    dead.set_agreed(1);
    dead.set_created(3);
    let words = |id| [id, 2, 3, 4, 5, 6, 7, 8];
    let entries = [1, 2, 3].map(|id| dead.write_node(None, &words(id)).unwrap());
    dead.clear_node(entries[1]);
    dead.set_node_word(entries[2], 2, 9);
    for node in [0, 5, 6] {
        dead.update_lookups(node, |count| count + 1);
    }
    dead.update_lookups(5, |_| u16::MAX);
    assert!(allows_a_successor(&memory).unwrap());
    let next = mapped(&memory);
    assert!(next.is_inherited());
    assert_eq!((next.agreed(), next.created()), (Some(1), 3));
    let changed = [3, 2, 9, 4, 5, 6, 7, 8];
    let inherited = [(entries[0], words(1)), (entries[2], changed)];
    assert_eq!(next.inherited_nodes(), inherited);
    // The freed one is given out again.
    assert_eq!(next.write_node(None, &words(4)), Some(entries[1]));
    let counts = [0, 4, 5, 6].map(|node| next.lookups(node));
    assert_eq!(counts, [Some(1), Some(0), Some(u16::MAX), Some(1)]);
    assert_eq!(next.lookups(u32::MAX), None);
}
#[test]
fn memory_of_cleared_nodes_is_given_back() {
    let blocks = |memory: &OwnedFd| rustix::fs::fstat(memory).unwrap().st_blocks;
    let memory = create().unwrap();
    let journal = mapped(&memory);
    let kept = journal.write_node(None, &[7; NODE]).unwrap();
    let before = blocks(&memory);
    let entries: Vec<_> = (0..20_000)
        .map(|_| journal.write_node(None, &[9; NODE]).unwrap())
        .collect();
    assert!(blocks(&memory) > before + 2000);
    for entry in entries {
        journal.clear_node(entry);
    }
    assert!(
        blocks(&memory) < before + 1000,
        "{} blocks",
        blocks(&memory)
    );
    assert_eq!(mapped(&memory).inherited_nodes(), [(kept, [7; NODE])]);
    // What is written again is there again.
    let entry = journal.write_node(None, &[5; NODE]).unwrap();
    let inherited = mapped(&memory).inherited_nodes();
    assert_eq!(inherited, [(kept, [7; NODE]), (entry, [5; NODE])]);
}
