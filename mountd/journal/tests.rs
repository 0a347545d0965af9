use std::os::fd::AsFd;
use std::sync::Arc;

use super::slot::Slot;
use super::*;

fn mapped(memory: &OwnedFd) -> Arc<Journal> {
    Arc::new(Journal::map(memory.as_fd()).unwrap())
}

/// A thread of a worker reads this request.
fn read_request(worker: &Arc<Journal>, request: &[u8]) -> Slot {
    let mut slot = worker.free_slot().unwrap();
    slot.bytes_mut()[..request.len()].copy_from_slice(request);
    slot.enter();
    slot
}

/// The worker dies while it answers a request.
fn die_with(slot: Slot) {
    let _never_dropped = std::mem::ManuallyDrop::new(slot);
    CURRENT.set(None);
}

/// The one request that dead workers left.
fn left(memory: &OwnedFd) -> Slot {
    let mut slots = mapped(memory).left_slots().unwrap();
    assert_eq!(slots.len(), 1);
    slots.remove(0)
}

#[test]
fn unanswered_request_is_left_with_its_intent() {
    let memory = create().unwrap();
    let intent = Intent::Exchange { from: 7, to: 8 };
    let dead = mapped(&memory);
    let mut answered = read_request(&dead, b"answered");
    dead.intend(intent);
    answered.clear();
    die_with(answered);
    let under_way = read_request(&dead, b"under way");
    dead.intend(intent);
    die_with(under_way);
    // The next one dies before it comes to that again: the intent holds.
    for _ in 0..2 {
        let slot = left(&memory);
        assert!(slot.bytes().starts_with(b"under way"));
        assert_eq!(slot.intent(), Some(intent));
        assert_eq!(mapped(&memory).intents(), [intent]);
        die_with(slot);
    }
    // That is its answer.
    drop(left(&memory));
    let last = mapped(&memory);
    assert!(last.left_slots().unwrap().is_empty());
    assert_eq!(last.intents(), []);
    assert_eq!(last.free_slot().unwrap().intent(), None);
}

#[test]
fn request_that_two_workers_crash_of_is_fatal() {
    let memory = create().unwrap();
    die_with(read_request(&mapped(&memory), b"harmful?"));
    for crashes in [false, false, true, true] {
        if crashes {
            note_crash(&memory).unwrap();
        }
        let slot = left(&memory);
        let deaths = slot.journal.get(entry_of_slot(slot.number) + DEATHS);
        assert_eq!(slot.is_fatal(), deaths == 2);
        die_with(slot);
    }
    assert!(left(&memory).is_fatal());
}

#[test]
fn slot_of_a_left_request_is_given_out_again_once_it_is_answered() {
    let memory = create().unwrap();
    die_with(read_request(&mapped(&memory), b"left here"));
    let journal = mapped(&memory);
    let left = journal.left_slots().unwrap();
    let others: Vec<_> = (1..SLOTS).map(|_| journal.free_slot().unwrap()).collect();
    assert!(journal.free_slot().is_err());
    drop(left);
    journal.free_slot().unwrap();
    drop(others);
}

#[test]
fn memory_of_a_slot_is_given_back() {
    let blocks = |memory: &OwnedFd| rustix::fs::fstat(memory).unwrap().st_blocks;
    let memory = create().unwrap();
    drop(mapped(&memory).free_slot().unwrap());
    let before = blocks(&memory);
    let mapped_blocks = i64::try_from(MAPPED / 512).unwrap();
    let mut slot = mapped(&memory).free_slot().unwrap();
    // Written to, and so mapped: a thread that is killed as it reads can map nothing.
    assert_eq!(blocks(&memory), before + mapped_blocks);
    for start in [0, MAPPED] {
        slot.bytes_mut().fill(1);
        assert!(blocks(&memory) >= before + 2048);
        slot.free_memory(start).unwrap();
        assert_eq!(slot.bytes()[start - start.min(1)], u8::from(start > 0));
    }
    assert_eq!(blocks(&memory), before + mapped_blocks);
    drop(slot);
    assert_eq!(blocks(&memory), before);
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
    let entries = [1, 2, 3].map(|id| dead.write(Table::Nodes, None, &words(id)).unwrap());
    dead.clear(Table::Nodes, entries[1]);
    dead.set_entry_word(Table::Nodes, entries[2], 2, 9);
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
    assert_eq!(next.inherited(Table::Nodes), inherited);
    // The freed one is given out again.
    assert_eq!(next.write(Table::Nodes, None, &words(4)), Some(entries[1]));
    let counts = [0, 4, 5, 6].map(|node| next.lookups(node));
    assert_eq!(counts, [Some(1), Some(0), Some(u16::MAX), Some(1)]);
    assert_eq!(next.lookups(u32::MAX), None);
}

#[test]
fn listings_outlive_a_worker_in_their_order() {
    let memory = create().unwrap();
    let listing = |dir, added| Listing {
        dir,
        added,
        digest: u64::from(dir) << 40 | 7,
    };
    let all = [
        listing(0, 3),
        listing(u32::MAX, 0),
        listing(2, u32::MAX),
        listing(2, 1),
    ];
    // One is being noted when the worker is killed: it does not count.
    let dead = mapped(&memory);
    all.iter().take(3).for_each(|next| dead.note_listing(*next));
    dead.set(FIRST_LISTING + 3 * LISTING, 9);
    assert!(mapped(&memory).listings().eq(all.into_iter().take(3)));
    mapped(&memory).note_listing(all[3]);
    assert!(mapped(&memory).listings().eq(all));
}

#[test]
fn memory_of_cleared_nodes_is_given_back() {
    let blocks = |memory: &OwnedFd| rustix::fs::fstat(memory).unwrap().st_blocks;
    let memory = create().unwrap();
    let journal = mapped(&memory);
    let kept = journal.write(Table::Nodes, None, &[7; ENTRY]).unwrap();
    let before = blocks(&memory);
    let entries: Vec<_> = (0..20_000)
        .map(|_| journal.write(Table::Nodes, None, &[9; ENTRY]).unwrap())
        .collect();
    assert!(blocks(&memory) > before + 2000);
    for entry in entries {
        journal.clear(Table::Nodes, entry);
    }
    assert!(
        blocks(&memory) < before + 1000,
        "{} blocks",
        blocks(&memory)
    );
    assert_eq!(
        mapped(&memory).inherited(Table::Nodes),
        [(kept, [7; ENTRY])]
    );
    // What is written again is there again.
    let entry = journal.write(Table::Nodes, None, &[5; ENTRY]).unwrap();
    let inherited = mapped(&memory).inherited(Table::Nodes);
    assert_eq!(inherited, [(kept, [7; ENTRY]), (entry, [5; ENTRY])]);
}
