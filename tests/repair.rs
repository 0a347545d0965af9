//! `cowl check --repair`: each kind of file in the store is damaged and repaired from each source,
//! and what a source lacks is named by path and image, with exit code 1.

use std::fs;
use std::path::PathBuf;

use cowl_tests::command::shell;
use cowl_tests::profile::{directory, root, user};
use cowl_tests::store::{Store, extract, make_image};
use cowl_tests::tree::Tree;

/// Two layers with small and large contents, a hard link and a whiteout; the tar is from another
/// program, so that its recipe is not canonical.
const CONTENT: &str = r"
mkdir -p one/dir two/dir
for i in 1 2 3; do head -c $((i * 90000)) /bin/bash > one/dir/$i; done
ln one/dir/1 one/linked; echo small > one/small; : > two/dir/.wh.2; echo new > two/dir/new
for layer in one two; do tar -c -f $layer.tar --format=gnu --sort=name -C $layer .; done
";

/// Flips a bit in the middle of `$1`, which keeps its size and mode.
const FLIP: &str = r#"
mode=$(stat -c %a "$1"); chmod u+w "$1"; half=$(($(stat -c %s "$1") / 2))
byte=$(od -An -tu1 -j $half -N 1 "$1"); octal=$(printf %03o $((byte ^ 16)))
printf "\\$octal" | dd of="$1" bs=1 seek=$half conv=notrunc status=none; chmod "$mode" "$1"
"#;

/// What to damage: a shell script that prints its path, how, and which sources repair it. A
/// compressed layer repairs what was made from it, the store alone what can be derived from its
/// other files.
const DAMAGES: [(&str, &str, &[From]); 14] = [
    // The object that both a tree and its recipe need, small or large, or none.
    ("find objects -type f -size +200", FLIP, &ALL),
    ("grep -rlx small objects", FLIP, &ALL),
    ("find objects -type f -size +200", "rm -f \"$1\"", &ALL),
    ("ls -d layers/*/tree-v2", FLIP, &ALL),
    ("ls -d layers/*/recipe-v2", FLIP, &ALL),
    ("ls -d layers/*/recipe-v2", "rm -f \"$1\"", &ALL),
    ("ls -d layers/*/layer.json", FLIP, &ALL),
    ("ls -d layers/*", "rm -r \"$1\"", &ALL),
    ("ls -d merged/*", FLIP, &ALL),
    ("ls -d objects/4*", "chmod u+w \"$1\"; rm -r \"$1\"", &ALL),
    ("find objects -type f -size +200", "chmod 600 \"$1\"", &ALL),
    // Compressed layers are larger than documents.
    ("find blobs -type f -size +10", FLIP, &OTHERS),
    ("grep -rl rootfs blobs", FLIP, &OTHERS),
    ("ls -d refs/*app*", FLIP, &OTHERS),
];

const ALL: [From; 3] = [From::Itself, From::Archive, From::Store];
const OTHERS: [From; 2] = [From::Archive, From::Store];

#[derive(Debug, Clone, Copy, PartialEq)]
enum From {
    /// Only the store, with the compressed layers that it keeps.
    Itself,
    Archive,
    Store,
}

impl From {
    fn arguments(self) -> Vec<PathBuf> {
        let mut arguments: Vec<PathBuf> = ["check", "--deep", "--repair"].map(Into::into).into();
        match self {
            Self::Itself => {}
            Self::Archive => arguments.push(directory().join("image.tar")),
            Self::Store => arguments.push(directory().join("full")),
        }
        arguments
    }
}

/// A store with an image of compressed layers, its archive beside it, and its files.
fn loaded() -> (Store, Tree) {
    let place = directory();
    shell(&place, CONTENT, [""; 0]);
    let (one, two) = (place.join("one.tar"), place.join("two.tar"));
    let archive = place.join("image.tar");
    make_image(
        "oci",
        &archive,
        "app:1",
        &["--compress", "gzip"],
        &[&one, &two],
    );
    let full = Store::new("full");
    full.load(&archive);
    (full, extract(&place.join("plain"), [one, two]))
}

/// Damages the first file that the script finds in a copy of the store; returns its path.
fn damaged(store: &Store, find: &str, how: &str) -> String {
    let found = shell(store.root(), find, [""; 0]);
    let path = found.lines().next().expect("a file to damage").to_owned();
    shell(store.root(), how, [&path]);
    path
}

fn each_damage_is_healed_from_each_source() {
    let (full, files) = loaded();
    let before = shell(full.root(), LISTING, [""; 0]);
    for (find, how, sources) in DAMAGES {
        for from in ALL {
            shell(&directory(), "rm -rf store; cp -a full store", [""; 0]);
            let store = Store::new("store");
            let path = damaged(&store, find, how);
            let what = format!("{path} ({find}, {how}) from {from:?}");
            let found = store.run(["check", "--deep"]);
            assert_eq!(found.code(), 1, "{what}: {found}");
            assert!(found.stdout.contains(&path), "{what}: {found}");

            let repaired = store.run(from.arguments());
            let (_, after) = repaired.stdout.split_once("After the repair:\n").unwrap();
            if sources.contains(&from) {
                assert_eq!(repaired.code(), 0, "{what}: {repaired}");
                assert!(after.starts_with("No problems: "), "{what}: {repaired}");
                store.ok(["check", "--deep"]);
                assert_eq!(shell(store.root(), LISTING, [""; 0]), before, "{what}");
                store.assert_shows("app:1", &files, &what);
            } else {
                assert_eq!(repaired.code(), 1, "{what}: {repaired}");
                assert!(after.contains(&path), "{what}: {repaired}");
                assert_eq!(store.run(["check", "--deep"]).code(), 1, "{what}");
            }
        }
    }
}

/// All files of the store with their modes and bytes, except random ones.
const LISTING: &str = r"
find objects layers merged blobs refs \( -type f -printf '%m %p ' -exec sha256sum {} \; \) -o -printf '%y %p\n' | sort
";

#[test]
fn each_damage_is_healed_from_each_source_as_root() {
    root(|| each_damage_is_healed_from_each_source());
}

#[test]
fn each_damage_is_healed_from_each_source_as_user() {
    user(|| each_damage_is_healed_from_each_source());
}

/// What a registry gives by digest: a manifest, a configuration, a compressed layer, which heals the
/// layer beside it, too.
#[test]
fn a_blob_heals_the_blob_and_its_layer() {
    root(|| {
        let (full, files) = loaded();
        let blobs = shell(full.root(), "ls blobs/sha256", [""; 0]);
        assert_eq!(blobs.lines().count(), 4, "{blobs}");
        for blob in blobs.lines() {
            shell(
                &directory(),
                "rm -rf store; cp -a full store; cp full/blobs/sha256/$1 blob; rm store/blobs/sha256/$1",
                [blob],
            );
            let store = Store::new("store");
            damaged(&store, "grep -rlx small objects", FLIP);
            let repair = |from: &str| {
                let options = ["check", "--deep", "--repair"].map(PathBuf::from);
                let from = directory().join(from);
                store.run(options.iter().chain([&from]))
            };
            let other = repair("two.tar");
            assert!(other.stdout.contains(blob), "{blob}: {other}");
            let repaired = repair("blob");
            assert_eq!(repaired.code(), 0, "{blob}: {repaired}");
            store.assert_shows("app:1", &files, blob);
        }
    });
}

/// An imported image has no compressed layer: its tar repairs it, compressed or not; another tar,
/// or a store with the same damage, does not.
#[test]
fn a_layers_tar_heals_an_import() {
    root(|| {
        let place = directory();
        shell(&place, CONTENT, [""; 0]);
        shell(&place, "gzip -k one.tar", [""; 0]);
        let full = Store::new("full");
        let tar = place.join("one.tar");
        full.ok(["import".as_ref(), tar.as_path(), "one:1".as_ref()]);
        damaged(&full, "grep -rlx small objects", FLIP);
        shell(&place, "cp -a full same", [""; 0]);
        let heal = |from: Option<&str>| {
            shell(&place, "rm -rf store; cp -a full store", [""; 0]);
            let mut arguments = vec!["check".into(), "--deep".into(), "--repair".into()];
            arguments.extend(from.map(|from| place.join(from)));
            Store::new("store").run(arguments)
        };
        for from in ["one.tar", "one.tar.gz"] {
            let repaired = heal(Some(from));
            assert_eq!(repaired.code(), 0, "{repaired}");
        }
        for from in [None, Some("two.tar"), Some("same")] {
            let repaired = heal(from);
            assert_eq!(repaired.code(), 1, "{repaired}");
            assert!(repaired.stdout.ends_with("Damaged: one:1\n"), "{repaired}");
        }
        let repaired = heal(Some("two.tar"));
        assert!(
            repaired.stderr.contains("which is not damaged"),
            "{repaired}"
        );
        shell(&place, "rm -rf store; cp -a full store", [""; 0]);
        let options = ["check", "--deep", "--repair"].map(PathBuf::from);
        let sources = ["same", "two.tar", "one.tar"].map(|from| place.join(from));
        Store::new("store").ok(options.iter().chain(&sources));
        let missing = heal(Some("missing"));
        assert_eq!(missing.code(), 1, "{missing}");
        assert!(
            missing.stderr.contains("No such file or directory"),
            "{missing}"
        );
    });
}

#[test]
fn a_sound_store_is_not_changed_by_a_repair() {
    root(|| {
        let (full, _) = loaded();
        let before = shell(full.root(), LISTING, [""; 0]);
        let said = full.ok(From::Archive.arguments());
        assert!(said.starts_with("No problems: "), "{said}");
        assert_eq!(shell(full.root(), LISTING, [""; 0]), before);
        assert!(
            fs::read_dir(full.root().join("tmp"))
                .unwrap()
                .next()
                .is_none()
        );
    });
}
