//! A recipe restores the exact bytes that were imported, for every writer of tars.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use tempfile::TempDir;

use super::memory::Memory;
use super::oracle::{archives, import_with, message, tars};
use crate::digest::{ObjectId, Sha256Digest};
use crate::layer::{ImportedLayer, RestoreError, restore};
use crate::recipe::{Kind, Recipe, own_object_ids};
use crate::tree::Tree;

const CANONICAL: &[u8] = include_bytes!("../../../../fixtures/golden/recipe/canonical-v1.tar");

pub(super) fn restored(layer: &ImportedLayer, contents: &Memory) -> Vec<u8> {
    let recipe = Recipe::open(&layer.recipe).unwrap();
    recipe.verify().unwrap();
    assert_eq!(recipe.diff_id(), layer.diff_id);
    let tree = Tree::from_bytes(layer.tree_bytes.clone()).unwrap();
    let mut tar = Vec::new();
    restore(&recipe, &tree, contents, &mut tar).unwrap();
    assert_eq!(recipe.tar_bytes(), tar.len() as u64);
    tar
}

/// The layer and what it is made of, its tar given back and compared.
fn checked(name: &str, tar: &[u8]) -> (ImportedLayer, Memory) {
    let contents = Memory::default();
    let layer =
        import_with(tar, &contents).unwrap_or_else(|error| panic!("{name}: {}", message(&error)));
    assert!(restored(&layer, &contents) == tar, "{name}: other bytes");
    (layer, contents)
}

fn kind(layer: &ImportedLayer) -> Kind {
    Recipe::open(&layer.recipe).unwrap().kind()
}

#[test]
fn restore_gives_back_the_tar_of_every_writer() {
    let scratch = tempfile::tempdir().unwrap();
    let at = |name: &str| scratch.path().join(name);
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    tars(&["tree", &text(&at("tree"))]);
    tars(&["archives", &text(&at("tree")), &text(&at("archives"))]);
    tars(&["odd", &text(&at("odd"))]);
    tars(&["layer", &text(&at("layer"))]);
    let mut found = 0;
    for directory in ["archives", "odd", "layer"] {
        for archive in archives(&at(directory)) {
            checked(&text(&archive), &fs::read(&archive).unwrap());
            found += 1;
        }
    }
    assert!(found > 40, "{found}");
}

#[test]
fn recipe_of_our_own_tar_is_canonical() {
    let (layer, contents) = checked("canonical", CANONICAL);
    assert_eq!((kind(&layer), layer.recipe.len()), (Kind::Canonical, 128));
    // ... and not one that is longer by a byte
    let (layer, _) = checked("canonical and a byte", &[CANONICAL, b"x"].concat());
    assert_eq!(kind(&layer), Kind::Split);
    // the writer is frozen: the tree of the golden tar gives the golden tar
    let (layer, _) = checked("canonical", CANONICAL);
    assert_eq!(restored(&layer, &contents), CANONICAL);
}

/// A tar of python's making: name and content of each file.
fn files(files: &[(&str, &[u8])]) -> Vec<u8> {
    let scratch = tempfile::tempdir().unwrap();
    let script = "
import io, sys, tarfile
names, out = sys.argv[2:], sys.argv[1]
with tarfile.open(out + '/tar', 'w') as tar:
    for number, name in enumerate(names):
        info = tarfile.TarInfo(name)
        data = open(f'{out}/{number}', 'rb').read()
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))";
    for (number, (_, content)) in files.iter().enumerate() {
        fs::write(scratch.path().join(number.to_string()), content).unwrap();
    }
    let status = Command::new("python3")
        .args(["-c", script])
        .arg(scratch.path())
        .args(files.iter().map(|(name, _)| name))
        .status()
        .unwrap();
    assert!(status.success());
    fs::read(scratch.path().join("tar")).unwrap()
}

#[test]
fn import_keeps_replaced_contents_inline_in_the_recipe() {
    let tar = files(&[("a", b"first"), ("b", b"other"), ("a", b"last")]);
    let (layer, contents) = checked("replaced", &tar);
    let kept: Vec<Vec<u8>> = contents
        .contents()
        .into_iter()
        .map(|(_, content)| content)
        .collect();
    assert_eq!(kept.len(), 2);
    assert!(!kept.contains(&b"first".to_vec()));
    assert_eq!(own_object_ids(&layer.recipe).unwrap().count(), 0);

    // one that another name has stays
    let tar = files(&[("a", b"first"), ("b", b"first"), ("a", b"last")]);
    assert_eq!(checked("shared", &tar).1.contents().len(), 2);
}

/// A megabyte with 1000 bytes of data, each between holes: reading it from its beginning for each
/// of them is half a gigabyte.
#[test]
fn import_reads_a_replaced_sparse_file_once() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("tar");
    let script = "
import io, sys, tarfile
with tarfile.open(sys.argv[1], 'w', format=tarfile.PAX_FORMAT) as tar:
    info = tarfile.TarInfo('a')
    info.size = 1000
    extents = ','.join(f'{number * 1024 + 512},1' for number in range(1000))
    info.pax_headers = {'GNU.sparse.size': str(1 << 20), 'GNU.sparse.numblocks': '1000', 'GNU.sparse.map': extents}
    tar.addfile(info, io.BytesIO(b'x' * 1000))
    tar.addfile(tarfile.TarInfo('a'))";
    let mut python = Command::new("python3");
    let status = python.args(["-c", script]).arg(&path).status().unwrap();
    assert!(status.success());
    let (layer, contents) = checked("replaced", &fs::read(&path).unwrap());
    assert_eq!(own_object_ids(&layer.recipe).unwrap().count(), 0);
    let counts = contents.read_back_counts();
    assert_eq!((counts.opens.get(), counts.bytes.get()), (1, 1000));
}

/// 40 MiB are more than may be inline.
#[test]
fn import_keeps_large_replaced_contents_as_objects() {
    let large = vec![1; 40 << 20];
    let tar = files(&[("a", &large), ("a", b"small"), ("a", b"last")]);
    let (layer, contents) = checked("replaced", &tar);
    let ids: Vec<ObjectId> = own_object_ids(&layer.recipe).unwrap().collect();
    assert_eq!(ids, [ObjectId::of(&large)]);
    assert_eq!(contents.contents().len(), 2);
}

#[test]
fn restore_refuses_another_tree_or_content() {
    let tar = files(&[("a", b"first"), ("b", b"other")]);
    let (layer, contents) = checked("split", &tar);
    let tree = Tree::from_bytes(layer.tree_bytes).unwrap();
    let recipe = Recipe::open(&layer.recipe).unwrap();
    let other = Memory::default();
    let error = restore(&recipe, &tree, &other, Vec::new()).unwrap_err();
    assert!(matches!(error, RestoreError::Content { .. }), "{error:?}");

    // a tree of as many objects whose table has others, and one of another size
    let swapped = files(&[("a", b"other"), ("b", b"first")]);
    let swapped = checked("swapped", &swapped).0.tree_bytes;
    let swapped = Tree::from_bytes(swapped).unwrap();
    let error = restore(&recipe, &swapped, &contents, Vec::new()).unwrap_err();
    assert!(matches!(error, RestoreError::DiffId { .. }), "{error:?}");
    let smaller = checked("smaller", &files(&[("a", b"first")])).0.tree_bytes;
    let smaller = Tree::from_bytes(smaller).unwrap();
    let error = restore(&recipe, &smaller, &contents, Vec::new()).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "the recipe of layer {} numbers the objects of a tree with 2; this tree has 1",
            layer.diff_id
        )
    );

    let (golden, golden_contents) = checked("canonical", CANONICAL);
    let error = restore(
        &Recipe::open(&golden.recipe).unwrap(),
        &tree,
        &contents,
        Vec::new(),
    )
    .unwrap_err();
    assert!(matches!(error, RestoreError::DiffId { .. }), "{error:?}");
    drop(golden_contents);
}

/// Files of each layer, 100 to a directory.
const FILES: u32 = 2_000;

/// A directory whose files `make` makes, given a number and a path; an hour's build wrote them.
fn tree_of(directories: &str, make: impl Fn(u32, &Path)) -> TempDir {
    let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    untimed_tree_of(directories, |number, path| {
        make(number, path);
        if path.is_file() {
            let time = start + Duration::from_secs(u64::from(number) * 7919 % 3600);
            File::open(path).unwrap().set_modified(time).unwrap();
        }
    })
}

/// Likewise, with the times that `make` gives.
fn untimed_tree_of(directories: &str, make: impl Fn(u32, &Path)) -> TempDir {
    let root = tempfile::tempdir().unwrap();
    for number in 0..FILES {
        let directory = root.path().join(format!("{directories}{}", number / 100));
        fs::create_dir_all(&directory).unwrap();
        make(number, &directory.join(format!("module-{number}.py")));
    }
    root
}

/// GNU tar's archive of a directory, in the order of the directory; as in layers, without the times
/// of access and change.
fn archive(directory: &Path, format: &str) -> Vec<u8> {
    let output = Command::new("tar")
        .args(["--create", "--format", format])
        .args((format == "pax").then_some("--pax-option=delete=atime,delete=ctime"))
        .arg("--directory")
        .args([directory, ".".as_ref()])
        .output()
        .unwrap();
    let messages = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{messages}");
    output.stdout
}

/// 1.5 % of the tar.
fn assert_small(what: &str, tar: &[u8]) {
    assert_within(what, tar, 15);
}

/// The recipe's part of the tar, in thousandths.
fn assert_within(what: &str, tar: &[u8], thousandths: usize) {
    let recipe = checked(what, tar).0.recipe.len();
    println!("{what}: {recipe} of {} bytes", tar.len());
    assert!(
        recipe * 1000 <= tar.len() * thousandths,
        "{what}: {recipe} of {} bytes",
        tar.len()
    );
}

/// What only the headers have and nothing can compress: times of their own, names of random digits.
#[test]
fn recipe_has_at_most_3_percent_of_a_tar_of_noise() {
    let digest = |number: u32| Sha256Digest::of(&number.to_le_bytes());
    let any_time = |number: u32, path: &Path| {
        let seconds = digest(number).hex().bytes().fold(0_u64, |sum, byte| {
            sum.wrapping_mul(31).wrapping_add(u64::from(byte))
        });
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds % (1 << 30));
        File::create(path).unwrap().set_modified(time).unwrap();
    };
    let objects = tempfile::tempdir().unwrap();
    for number in 0..FILES {
        let hex = digest(number).hex();
        let (name, content) = hex.split_at(40);
        let (directory, name) = name.split_at(2);
        let directory = objects.path().join(directory);
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join(name), content).unwrap();
    }
    let times = untimed_tree_of("package-", any_time);
    for (what, root, thousandths) in [("times", times, 20), ("objects of git", objects, 30)] {
        let tar = archive(root.path(), "gnu");
        assert_within(what, &tar, thousandths);
    }
}

/// The layers that have the most headers and the least content.
#[test]
fn recipe_has_at_most_1_5_percent_of_a_tar_of_tiny_files() {
    let write = |content: fn(u32) -> Vec<u8>| {
        move |number: u32, path: &Path| fs::write(path, content(number)).unwrap()
    };
    let of_a_byte: fn(u32) -> Vec<u8> = |number| vec![number.to_le_bytes()[0]];
    let different: fn(u32) -> Vec<u8> = |number| number.to_string().into();
    let hard_link = |number: u32, path: &Path| {
        let first = path.ancestors().nth(2).unwrap().join("first");
        if number == 0 {
            fs::write(&first, "x").unwrap();
        }
        fs::hard_link(first, path).unwrap();
    };
    let symlink = |number: u32, path: &Path| {
        std::os::unix::fs::symlink(format!("../lib/module-{number}.so"), path).unwrap();
    };
    let long = "a-directory-with-a-rather-long-name/".repeat(3);
    for (what, root) in [
        ("files of a byte", tree_of("package-", write(of_a_byte))),
        ("different files", tree_of("package-", write(different))),
        ("empty files", tree_of("package-", write(|_| Vec::new()))),
        ("hard links", tree_of("package-", hard_link)),
        ("symbolic links", tree_of("package-", symlink)),
        ("long names", tree_of(&long, write(different))),
    ] {
        for format in ["gnu", "pax"] {
            let tar = archive(root.path(), format);
            assert_small(&format!("{what}, {format}"), &tar);
        }
    }
}

#[test]
fn recipe_has_at_most_1_5_percent_of_a_tar_of_etc() {
    for format in ["gnu", "pax"] {
        let tar = archive("/etc".as_ref(), format);
        assert_small(&format!("/etc, {format}"), &tar);
    }
}
