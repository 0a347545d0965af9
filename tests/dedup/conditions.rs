//! `--fail-if`: the exit code; the report is still printed.

use std::process::{Command, Stdio};

use cowl_tests::command::{binary, python, run, shell};
use cowl_tests::profile::{directory, root};
use cowl_tests::store::{Store, make_image};

use crate::load_images;

/// 3 of one's logical bytes are overwritten: far below 1 %, but more than 2 bytes.
#[test]
fn a_condition_that_holds_is_exit_code_1() {
    root(|| {
        let store = Store::new("store");
        load_images(&store);
        let passed = store.run([
            "dedup",
            "one",
            "--fail-if",
            "overwritten>1%",
            "--fail-if",
            "waste>99%",
        ]);
        assert_eq!((passed.code(), passed.stderr.as_str()), (0, ""));
        let failed = store.run(["dedup", "one", "--fail-if", "overwritten>2B"]);
        assert_eq!(failed.code(), 1, "{failed}");
        assert!(
            failed.stdout.contains("one:latest"),
            "the report comes all the same: {failed}"
        );
        assert!(
            failed.stderr.contains("one:latest: overwritten is"),
            "{failed}"
        );
        let line = store.run(["dedup", "--fail-if", "wast>5%"]).refused(125);
        assert!(line.contains("wast"), "{line}");
    });
}

/// A percentage of nothing is not a number, and no table consists of only a header.
#[test]
fn an_image_without_layers_is_reported_in_words() {
    root(|| {
        let archive = directory().join("none.tar");
        make_image("docker", &archive, "none:1", &[], &[]);
        let mut dedup = Command::new(binary("cowl-dedup"));
        dedup
            .args(["--all", "--fail-if", "waste>=0%"])
            .arg(&archive);
        let run = run(dedup.stdin(Stdio::null()));
        assert_eq!(run.code(), 1, "{run}");
        let line = "cowl-dedup: none:1: waste is 0B, of layers without contents: waste>=0%\n";
        assert_eq!(run.stderr, line);
        let layers = run.stdout.split("\nLayers\n").nth(1).unwrap();
        assert!(layers.starts_with("none\n"), "{run}");
    });
}

#[test]
fn a_condition_on_a_store_with_a_damaged_image_is_exit_code_1() {
    root(|| {
        let store = Store::new("store");
        load_images(&store);
        shell(
            store.root(),
            "for tree in layers/*/tree-*; do echo damaged > \"$tree\"; done",
            [""; 0],
        );
        for arguments in [&["dedup", "--fail-if", "waste>99%"][..], &["dedup"]] {
            let run = store.run(arguments);
            assert_eq!(run.code(), 1, "{run}");
            assert!(run.stderr.contains("cowl-dedup: image one"), "{run}");
            assert!(run.stdout.starts_with("There are no images"), "{run}");
        }
    });
}

/// For `cowl diff` and `cowl layers`: 1 if the condition holds, and the report is still printed,
/// also as JSON.
#[test]
fn conditions_of_layers_and_of_two_images() {
    root(|| {
        let store = Store::new("store");
        load_images(&store);
        // Above their base, three adds gone and srv/again, changes etc/conf, srv/also and sym, and
        // deletes srv/big and opt/b; two adds byte, data and holes.
        for (condition, code) in [
            ("files>9", 1),
            ("files>10", 0),
            ("added>=2", 1),
            ("changed>3", 0),
            ("changed>2", 1),
            ("removed<5", 0),
            ("packages>0", 0),
        ] {
            let run = store.run(["diff", "two", "three", "--fail-if", condition]);
            assert_eq!(run.code(), code, "{condition}: {run}");
            assert!(run.stdout.contains("A /srv/again"), "{condition}: {run}");
            let words = format!(
                "two:latest, three:latest: {}",
                condition.split(['<', '>']).next().unwrap()
            );
            assert_eq!(run.stderr.contains(&words), code == 1, "{condition}: {run}");
        }
        let script = "
import json, sys
r = json.loads(sys.argv[1])
if 'layers' in r: print(r['version'], [(l['number'], l['added'], l['waste_bytes']) for l in r['layers']])
else: print(r['version'], r['a'], r['b'], len(r['files']))
";
        let json = |arguments: &[&str], code| {
            let run = store.run(arguments);
            assert_eq!(run.code(), code, "{run}");
            python(&directory(), script, [&run.stdout])
        };
        let diff = [
            "diff",
            "two",
            "two:latest",
            "--json",
            "--fail-if",
            "files>0",
        ];
        assert_eq!(json(&diff, 0), "1 two two:latest 0\n");
        // three: etc/conf of 3 bytes is replaced, srv/also of 3001 repeated; srv/big stays as
        // srv/link, opt/a of 100 is repeated and opt/b of 200 deleted.
        let layers = ["layers", "three", "--json", "--fail-if", "waste>1B"];
        assert_eq!(json(&layers, 1), "1 [(1, 8, 203), (2, 1, 3101)]\n");
    });
}

/// Damage of a requested image, or of any image if none was requested, is exit code 1; of another
/// image it is a warning. A damaged configuration loses the history; a damaged record of a name,
/// all its images.
#[test]
fn damage_of_requested_images_is_exit_code_1() {
    root(|| {
        let store = Store::new("store");
        load_images(&store);
        let id = store.ok(["inspect", "--format", "{{.Id}}", "one"]);
        let config = store
            .root()
            .join("blobs/sha256")
            .join(&id.trim()["sha256:".len()..]);
        let record = "ls refs/*two* | head -1";
        let record = store
            .root()
            .join(shell(store.root(), record, [""; 0]).trim());
        // `damaged`: the message about the first image. The second is intact.
        let told = |damaged: &str, arguments: &[&str], code| {
            let run = store.run(arguments);
            let warning = if code == 0 { "warning: " } else { "" };
            let lines: Vec<&str> = run.stderr.lines().collect();
            let [line] = lines[..] else {
                panic!("{arguments:?}: {run}")
            };
            assert!(
                line.starts_with(&format!("cowl-dedup: {warning}")),
                "{arguments:?}: {run}"
            );
            assert!(line.contains(damaged), "{arguments:?}: {run}");
            assert_eq!(run.code(), code, "{arguments:?}: {run}");
            run.stdout
        };
        let whole = std::fs::read(&config).unwrap();
        std::fs::write(&config, "{").unwrap();
        let damaged = "the history of image one:latest";
        for (arguments, code, image) in [
            (&["dedup", "--no-ladder", "one"][..], 1, "one:latest"),
            (&["dedup", "one", "three"], 1, "one:latest"),
            (&["dedup"], 1, "one:latest"),
            (&["layers", "one"], 1, "SIZE"),
            (&["diff", "three", "one"], 1, "A /srv/copy"),
            (&["dedup", "three"], 0, "three:latest"),
            (&["layers", "three"], 0, "SIZE"),
            (&["diff", "three", "five"], 0, "A /srv/copy"),
        ] {
            let shown = told(damaged, arguments, code);
            assert!(shown.contains(image), "{arguments:?}: {shown}");
        }
        std::fs::write(&config, whole).unwrap();
        std::fs::write(&record, "{").unwrap();
        for (arguments, code, image) in [
            (&["dedup", "two"][..], 1, ""),
            (&["dedup", "two", "three"], 1, "three:latest"),
            (&["dedup", "two:latest (linux/amd64)"], 1, ""),
            (&["layers", "two"], 1, ""),
            (&["diff", "two", "three"], 1, ""),
        ] {
            let shown = told("image two:latest: ", arguments, code);
            assert!(
                shown.contains(image) && shown.is_empty() == image.is_empty(),
                "{arguments:?}: {shown}"
            );
        }
        // If no image is readable, each is named.
        let other = "ls refs/*four* | head -1";
        let other = store
            .root()
            .join(shell(store.root(), other, [""; 0]).trim());
        let whole = std::fs::read(&other).unwrap();
        std::fs::write(&other, "{").unwrap();
        let line = store.run(["dedup", "two", "four"]).refused(1);
        assert!(
            line.contains("image two:latest: ") && line.contains("; image four:latest: "),
            "{line}"
        );
        std::fs::write(&other, whole).unwrap();
        let record = record.to_str().unwrap();
        for (arguments, code) in [(&["dedup"][..], 1), (&["dedup", "three"], 0)] {
            let shown = told(record, arguments, code);
            assert!(shown.contains("three:latest"), "{arguments:?}: {shown}");
        }
    });
}
