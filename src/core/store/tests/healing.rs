//! Publishing again repairs damaged objects and layers.

use std::os::unix::fs::MetadataExt;

use super::*;

#[test]
fn publish_replaces_a_truncated_object() {
    let fixture = fixture();
    fixture.image("app", &[&[b"content"]]);
    let path = fixture.object_path(b"content");
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "cont").unwrap();
    let transaction = fixture.store.begin().unwrap();
    assert_eq!(put(&transaction, b"content").outcome, Outcome::Healed);
    transaction.publish(&[]).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"content");
    assert_eq!(fixture.store.check(true).unwrap().problems, []);
}

#[test]
fn trust_hash_replaces_a_corrupt_object_of_the_right_size() {
    let fixture = fixture();
    fixture.image("app", &[&[b"content"]]);
    let path = fixture.object_path(b"content");
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "CONTENT").unwrap();
    assert_eq!(
        put(&fixture.store.begin().unwrap(), b"content").outcome,
        Outcome::AlreadyPresent
    );
    let transaction = fixture.store.begin_with(Trust::Hash).unwrap();
    assert_eq!(put(&transaction, b"content").outcome, Outcome::Healed);
    transaction.publish(&[]).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"content");
}

#[test]
fn publish_replaces_a_damaged_layer_only() {
    let fixture = fixture();
    let record = fixture.image("app", &[&[b"content"]]);
    let tree = fixture.tree_path(&record, 0);
    let sound = std::fs::read(&tree).unwrap();
    let inode = std::fs::metadata(&tree).unwrap().ino();
    fixture.image("app", &[&[b"content"]]);
    assert_eq!(std::fs::metadata(&tree).unwrap().ino(), inode);
    std::fs::remove_file(&tree).unwrap();
    std::fs::write(&tree, &sound[..sound.len() - 1]).unwrap();
    fixture.image("app", &[&[b"content"]]);
    assert_eq!(std::fs::read(&tree).unwrap(), sound);
}

/// Both stage the repaired object and layer before either publishes: the second finds the first's
/// repair in place of the damage it saw.
#[test]
fn concurrent_healing_transactions_both_publish() {
    let fixture = fixture();
    let record = fixture.image("app", &[&[b"content"]]);
    let (tree, object) = (
        fixture.tree_path(&record, 0),
        fixture.object_path(b"content"),
    );
    let sound = std::fs::read(&tree).unwrap();
    let staged = std::sync::Barrier::new(4);
    for _ in 0..20 {
        for (path, damage) in [(&tree, &sound[1..]), (&object, &b"cont"[..])] {
            std::fs::remove_file(path).unwrap();
            std::fs::write(path, damage).unwrap();
        }
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let transaction = fixture.store.begin().unwrap();
                    put_layer(&transaction, &[b"content"]);
                    staged.wait();
                    transaction.publish(std::slice::from_ref(&record)).unwrap();
                });
            }
        });
        assert_eq!(std::fs::read(&tree).unwrap(), sound);
        assert_eq!(std::fs::read(&object).unwrap(), b"content");
        assert_eq!(fixture.files("tmp"), BTreeMap::new());
    }
    assert_eq!(fixture.store.check(true).unwrap().problems, []);
}
