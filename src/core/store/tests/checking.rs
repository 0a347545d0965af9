use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::tree::Tree;

fn replace(path: &Path, content: &[u8]) {
    std::fs::remove_file(path).unwrap();
    std::fs::write(path, content).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o444)).unwrap();
}

/// A slice of a gc would wait for a check that holds the lock, and a check for a slice.
#[test]
fn check_waits_for_gc_only_if_gc_may_explain_a_problem() {
    let mut fixture = fixture();
    fixture.image("app", &[&[b"lost", b"kept"]]);
    let slice = File::open(fixture.path("lock")).unwrap();
    rustix::fs::flock(&slice, FlockOperation::LockExclusive).unwrap();
    // A wait for the lock ends with an error.
    let (interrupt, _) = std::io::pipe().unwrap();
    fixture.store.set_interrupt(interrupt.into());

    let running = fixture.path("trash/running");
    std::fs::create_dir(&running).unwrap();
    assert_eq!(fixture.store.check(true).unwrap().problems, []);

    let lost = fixture.object_path(b"lost");
    std::fs::remove_file(&lost).unwrap();
    let error = fixture.store.check(true).unwrap_err();
    assert_eq!(error.errno(), Some(Errno::INTR), "{error}");

    std::fs::remove_dir(&running).unwrap();
    let problems = fixture.store.check(true).unwrap().problems;
    assert!(
        matches!(problems.as_slice(), [Problem::Missing { path, .. }] if *path == lost),
        "{problems:?}"
    );
}

#[test]
fn check_names_each_damaged_file() {
    let fixture = fixture();
    let app = fixture.image("app", &[&[b"lost", b"short", b"rotten", b"fine"]]);
    let lost = fixture.object_path(b"lost");
    std::fs::remove_file(&lost).unwrap();
    let short = fixture.object_path(b"short");
    replace(&short, b"sho");
    let rotten = fixture.object_path(b"rotten");
    replace(&rotten, b"r0tten");
    let loose = fixture.object_path(b"fine");
    std::fs::set_permissions(&loose, std::fs::Permissions::from_mode(0o644)).unwrap();
    let blob = fixture
        .path("blobs/sha256")
        .join(app.images[0].config.0.hex());
    replace(&blob, b"xxx");
    let stray = fixture.path("merged/notes.txt");
    std::fs::write(&stray, "").unwrap();
    let before = fixture.files("");

    let shallow: Vec<String> = fixture
        .store
        .check(false)
        .unwrap()
        .problems
        .iter()
        .map(ToString::to_string)
        .collect();
    let names = |path: &Path, texts: &[String]| {
        texts
            .iter()
            .any(|text| text.starts_with(&format!("{}:", path.display())))
    };
    for path in [&lost, &short, &loose, &stray] {
        assert!(names(path, &shallow), "{} in {shallow:#?}", path.display());
    }
    assert_eq!(shallow.len(), 4, "{shallow:#?}");

    let deep: Vec<String> = fixture
        .store
        .check(true)
        .unwrap()
        .problems
        .iter()
        .map(ToString::to_string)
        .collect();
    for path in [&lost, &short, &loose, &stray, &rotten, &blob] {
        assert!(names(path, &deep), "{} in {deep:#?}", path.display());
    }
    assert_eq!(fixture.files(""), before);
}

#[test]
fn check_names_the_tag_of_a_missing_layer() {
    let fixture = fixture();
    let app = fixture.image("app", &[&[b"content"]]);
    let layer = fixture.path("layers").join(layers(&app)[0].0.hex());
    std::fs::remove_dir_all(&layer).unwrap();
    let file = |name: &str| {
        let hash = Sha256Digest::of(format!("docker.io/library/{name}").as_bytes()).hex();
        fixture.path(&format!("refs/docker.io%2Flibrary%2F{name}-{hash}.json"))
    };
    let tag = file("app:latest");
    let problems = fixture.store.check(false).unwrap().problems;
    assert_eq!(
        problems,
        [Problem::Missing {
            path: layer,
            needed_by: tag.clone()
        }]
    );
    std::fs::rename(&tag, file("other:latest")).unwrap();
    let problems = fixture.store.check(false).unwrap().problems;
    assert!(
        matches!(&problems[..], [Problem::Damaged { reason, .. }] if reason.contains("app:latest")),
        "{problems:?}"
    );
}

#[test]
fn shallow_check_finds_damaged_trees_and_records() {
    let fixture = fixture();
    let app = fixture.image("app", &[&[b"content"]]);
    let layer = fixture.path("layers").join(layers(&app)[0].0.hex());
    let merged = fixture
        .path("merged")
        .join(fixture.files("merged").keys().next().unwrap());
    for path in [layer.join("tree-v2"), merged] {
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x10;
        replace(&path, &bytes);
    }
    replace(&layer.join("layer.json"), b"{}");
    let texts: Vec<String> = fixture
        .store
        .check(false)
        .unwrap()
        .problems
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(texts.len(), 3, "{texts:#?}");
}

#[test]
fn deep_check_finds_a_valid_but_wrong_merged_tree() {
    let fixture = fixture();
    let app = fixture.image("app", &[&[b"content"]]);
    // A layer of the same name with nothing in it merges to a tree of the same stack.
    let empty = LayerBuilder::new().finish(layers(&app)[0]).unwrap();
    let wrong = crate::tree::merge(&[Tree::from_bytes(empty).unwrap()]).unwrap();
    replace(&fixture.merged_path(&app), &wrong);
    assert_eq!(fixture.store.check(false).unwrap().problems, []);
    assert!(matches!(
        &fixture.store.check(true).unwrap().problems[..],
        [Problem::Damaged { .. }]
    ));
}

#[test]
fn check_reports_writable_trees_and_records() {
    let fixture = fixture();
    let app = fixture.image("app", &[&[b"content"]]);
    let layer = fixture.path("layers").join(layers(&app)[0].0.hex());
    let paths = [
        layer.join("layer.json"),
        layer.join("tree-v2"),
        fixture.merged_path(&app),
    ];
    for path in &paths {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666)).unwrap();
    }
    let expected = paths.map(|path| Problem::Mode {
        path,
        found: 0o666,
        expected: 0o444,
    });
    assert_eq!(fixture.store.check(false).unwrap().problems, expected);
}

#[test]
fn check_and_open_refuse_the_tree_of_another_layer() {
    let fixture = fixture();
    let app = fixture.image("app", &[&[b"content"], &[b"two", b"files"]]);
    let layer = |number: usize| fixture.path("layers").join(layers(&app)[number].0.hex());
    replace(
        &layer(0).join("tree-v2"),
        &std::fs::read(layer(1).join("tree-v2")).unwrap(),
    );
    let problems = fixture.store.check(false).unwrap().problems;
    assert!(
        matches!(&problems[..], [Problem::Damaged { path, .. }] if *path == layer(0).join("tree-v2")),
        "{problems:?}"
    );
    let opened = fixture.store.layer_tree(layers(&app)[0]);
    assert!(matches!(opened, Err(StoreError::Malformed { .. })));
    // A wrong merged tree is rebuilt from its layers.
    let other = fixture.image("other", &[&[b"other"]]);
    let own = std::fs::read(fixture.merged_path(&other)).unwrap();
    replace(
        &fixture.merged_path(&other),
        &std::fs::read(fixture.merged_path(&app)).unwrap(),
    );
    fixture.store.merged(&layers(&other)).unwrap();
    assert_eq!(std::fs::read(fixture.merged_path(&other)).unwrap(), own);
}

/// The check goes on and reports it.
#[test]
fn deep_check_reports_layers_that_do_not_stack() {
    let fixture = fixture();
    let app = fixture.image("app", &[&[b"content"]]);
    let mut builder = LayerBuilder::new();
    builder.hard_link(&[b"0"], &[b"nowhere"]).unwrap();
    let layer = fixture.path("layers").join(layers(&app)[0].0.hex());
    replace(
        &layer.join("tree-v2"),
        &builder.finish(layers(&app)[0]).unwrap(),
    );
    let merged = fixture.merged_path(&app);
    let problems = fixture.store.check(true).unwrap().problems;
    let about = |path: &Path| {
        problems
            .iter()
            .filter(|problem| matches!(problem, Problem::Damaged { path: its, .. } if its == path))
            .count()
    };
    assert_eq!(
        (about(&merged), about(&layer.join("layer.json"))),
        (1, 1),
        "{problems:?}"
    );
}

#[test]
fn check_ignores_incomplete_unreferenced_layers() {
    let fixture = fixture();
    let app = fixture.image("app", &[&[b"content"]]);
    fixture.store.untag(&app).unwrap();
    std::fs::remove_file(fixture.object_path(b"content")).unwrap();
    let layer = fixture.path("layers").join(layers(&app)[0].0.hex());
    std::fs::remove_file(layer.join("tree-v2")).unwrap();
    assert_eq!(fixture.store.check(true).unwrap().problems, []);
    // And loading it again makes it whole.
    fixture.image("app", &[&[b"content"]]);
    assert_eq!(fixture.store.check(true).unwrap().problems, []);
}

#[test]
fn usage_counts_files_and_bytes() {
    let fixture = fixture();
    let app = fixture.image("app", &[&[b"12345", b"123"], &[b"12345"]]);
    let usage = fixture.store.usage().unwrap();
    assert_eq!(
        usage.objects,
        Count {
            number: 2,
            bytes: 8
        }
    );
    assert_eq!(
        (
            usage.layers.number,
            usage.merged.number,
            usage.blobs.number,
            usage.tags
        ),
        (2, 1, 1, 1)
    );
    let objects = fixture.store.objects_of(&layers(&app)).unwrap();
    assert_eq!(
        objects,
        BTreeMap::from([(ObjectId::of(b"12345"), 5), (ObjectId::of(b"123"), 3)])
    );
}

/// Not the image beside them that shares nothing with what is damaged.
#[test]
fn check_names_the_images_that_damage_touches() {
    let fixture = fixture();
    let app = fixture.image("app", &[&[b"base"], &[b"own"]]);
    fixture.image("other", &[&[b"base"]]);
    let third = fixture.image("third", &[&[b"third"]]);
    let touched = || fixture.store.check(true).unwrap().touched;
    let (app_name, other) = (
        "docker.io/library/app:latest",
        "docker.io/library/other:latest",
    );
    let names = |names: &[&str]| -> Vec<String> {
        names
            .iter()
            .map(|name| name.parse::<Reference>().unwrap().to_string())
            .collect()
    };
    assert_eq!(touched(), [""; 0]);
    let blob = fixture
        .path("blobs/sha256")
        .join(app.images[0].config.0.hex());
    let cases: [(PathBuf, &[&str]); 5] = [
        (fixture.object_path(b"base"), &[app_name, other]),
        (fixture.object_path(b"own"), &[app_name]),
        (fixture.tree_path(&app, 0), &[app_name, other]),
        (fixture.merged_path(&app), &[app_name]),
        (blob, &[app_name]),
    ];
    let _mount = fixture.store.lease("m", None, &layers(&third)).unwrap();
    for (path, expected) in cases {
        let whole = std::fs::read(&path).unwrap();
        replace(&path, &vec![b'x'; whole.len()]);
        assert_eq!(touched(), names(expected), "{}", path.display());
        replace(&path, &whole);
    }
    std::fs::remove_file(fixture.object_path(b"third")).unwrap();
    let third = "docker.io/library/third:latest"
        .parse::<Reference>()
        .unwrap()
        .to_string();
    assert_eq!(touched(), ["mount m".to_owned(), third]);
}

#[test]
fn check_knows_the_engines_files() {
    let fixture = fixture();
    for name in [EVENTS, OLD_EVENTS] {
        std::fs::write(fixture.path(name), "{}\n").unwrap();
    }
    assert_eq!(fixture.store.check(true).unwrap().problems, []);
}
