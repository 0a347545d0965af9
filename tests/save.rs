//! Saved archives load again, here and in other programs, with the same ids and the same bytes.

use std::fs;
use std::path::Path;

use cowl_tests::busybox::{add_blog, layers, shop};
use cowl_tests::command::{run, shell, system};
use cowl_tests::profile::{directory, root, user};
use cowl_tests::store::{Store, extract};
use cowl_tests::tree;

fn ids(store: &Store) -> String {
    let lines = store.ok(["images", "--format", "json", "--no-trunc"]);
    let mut rows: Vec<String> = lines
        .lines()
        .map(|line| {
            let field = |name: &str| {
                let rest = line.split(&format!("\"{name}\":\"")).nth(1).unwrap();
                rest.split('"').next().unwrap().to_owned()
            };
            format!("{}:{} {}", field("Repository"), field("Tag"), field("ID"))
        })
        .collect();
    rows.sort();
    rows.join("\n")
}

fn id_of(store: &Store, image: &str) -> String {
    let id = store.ok(["images", "-q", "--no-trunc", image]);
    id.trim().to_owned()
}

fn saved_images_load_again_with_their_ids() {
    let store = shop("store");
    add_blog(&store);
    let archive = directory().join("saved.tar");
    let saved = archive.to_str().unwrap();
    store.ok(["save", "-o", saved, "shop", "blog:latest"]);
    let other = Store::new("other");
    other.load(&archive);
    assert_eq!(ids(&other), ids(&store));

    // Through pipes, and without the layers' blobs.
    let blobs = store.root().join("blobs/sha256");
    let layers_gone = shell(&blobs, "find . -size +64k -print -delete", [""; 0]);
    assert_eq!(layers_gone.lines().count(), 2);
    let third = directory().join("third");
    let script = "\"$1\" --root \"$2\" save shop blog | \"$1\" --root \"$3\" load -q";
    let cowl = cowl_tests::command::binary("cowl");
    shell(&directory(), script, [cowl.as_path(), store.root(), &third]);
    let third = Store::at(&third);
    assert_eq!(ids(&third), ids(&store));
    assert_eq!(third.objects_by_name(), store.objects_by_name());
    store.ok(["save", "-o", saved, "blog"]);
    let parts = layers();
    for layer in ["base.tar", "blog.tar"] {
        let sum = shell(&parts, "sha256sum < \"$1\" | cut -d' ' -f1", [layer]);
        let path = format!("blobs/sha256/{}", sum.trim());
        let member = shell(
            &directory(),
            "tar -xOf \"$1\" \"$2\" | sha256sum | cut -d' ' -f1",
            [saved, &path],
        );
        assert_eq!(member, sum, "{layer}");
    }
}

#[test]
fn saved_images_load_again_with_their_ids_as_root() {
    root(|| saved_images_load_again_with_their_ids());
}

#[test]
fn saved_images_load_again_with_their_ids_as_user() {
    user(|| saved_images_load_again_with_their_ids());
}

#[test]
fn skopeo_reads_a_saved_archive_in_both_forms() {
    root(|| {
        let store = shop("store");
        add_blog(&store);
        store.ok(["save", "-o", "saved.tar", "shop", "blog"].map(in_directory));
        let archive = directory().join("saved.tar");
        for image in ["shop", "blog"] {
            let source = format!("docker-archive:{}:{image}:latest", archive.display());
            let config = shell(
                &directory(),
                "skopeo inspect --raw \"$1\" | python3 -c 'import json, sys; print(json.load(sys.stdin)[\"config\"][\"digest\"])'",
                [&source],
            );
            assert_eq!(config.trim(), id_of(&store, image));
            // For an OCI layout, skopeo would rewrite the configuration.
            let copy = directory().join(format!("{image}.copy.tar"));
            let to = format!("docker-archive:{}:{image}:latest", copy.display());
            system("skopeo", ["--insecure-policy", "copy", "-q", &source, &to]);
            let other = Store::new(&format!("{image}.store"));
            other.load(&copy);
            assert_eq!(
                other.ok(["images", "-q", "--no-trunc"]).trim(),
                id_of(&store, image)
            );
        }
        store.ok(["save", "-o", "blog.tar", "blog"].map(in_directory));
        let archive = directory().join("blog.tar");
        let source = format!("oci-archive:{}:latest", archive.display());
        let manifest = shell(
            &directory(),
            "skopeo inspect --raw \"$1\" | sha256sum | cut -d' ' -f1",
            [&source],
        );
        let came = shell(
            &directory(),
            "tar -xOf \"$1\" index.json | python3 -c 'import json, sys; print(json.load(sys.stdin)[\"manifests\"][0][\"digest\"])'",
            [layers().join("blog.image.tar")],
        );
        assert_eq!(format!("sha256:{manifest}"), came);
    });
}

/// The argument, as a path in the running test's directory if it is an archive's.
fn in_directory(argument: &str) -> String {
    if Path::new(argument).extension().is_some() {
        directory().join(argument).to_str().unwrap().to_owned()
    } else {
        argument.to_owned()
    }
}

#[test]
fn podman_loads_a_saved_archive_with_its_ids() {
    root(|| {
        let store = shop("store");
        add_blog(&store);
        store.ok(["save", "-o", "saved.tar", "shop", "blog"].map(in_directory));
        let podman = "
podman() { command podman --root \"$PWD/podman\" --runroot \"$PWD/run\" --storage-driver vfs --cgroup-manager cgroupfs \"$@\"; }
podman load -q -i saved.tar >&2
for image in shop blog; do echo sha256:$(podman image inspect --format '{{.Id}}' $image:latest); done";
        let loaded = shell(&directory(), podman, [""; 0]);
        let ours = ["shop", "blog"].map(|image| id_of(&store, image));
        assert_eq!(loaded.lines().collect::<Vec<_>>(), ours);
    });
}

#[test]
fn umoci_unpacks_a_saved_archive_to_the_same_files() {
    root(|| {
        let store = shop("store");
        store.ok(["save", "-o", "saved.tar", "shop"].map(in_directory));
        shell(
            &directory(),
            "mkdir layout; tar -xf saved.tar -C layout; umoci unpack --image layout:latest bundle",
            [""; 0],
        );
        let unpacked = tree::read(&directory().join("bundle/rootfs"));
        let parts = layers();
        let expected = extract(
            &directory().join("expected"),
            [parts.join("base.tar"), parts.join("shop.tar")],
        );
        tree::assert_same(&expected, &unpacked, "umoci's unpacking");
    });
}

#[test]
fn save_leaves_a_whole_file_or_the_old_one() {
    root(|| {
        let store = shop("store");
        let archive = directory().join("saved.tar");
        let save = |image: &str| store.run(["save", "-o", archive.to_str().unwrap(), image]);
        save("none").refused(1);
        assert!(!archive.exists());
        save("shop").ok();
        let before = fs::read(&archive).unwrap();
        let object = shell(
            store.root(),
            "find objects -type f -size +64k | head -n 1",
            [""; 0],
        );
        shell(store.root(), ": > \"$1\"", [object.trim()]);
        let error = save("shop").refused(1);
        assert!(error.contains("layer sha256:"), "{error}");
        assert!(fs::read(&archive).unwrap() == before);
        let names = shell(&directory(), "ls -A | grep saved", [""; 0]);
        assert_eq!(names, "saved.tar\n");
    });
}

/// Output to a pipe cannot be undone: its reader would get half an archive.
#[test]
fn save_of_a_damaged_recipe_writes_no_byte() {
    root(|| {
        let store = shop("store");
        let recipes = shell(store.root(), "ls -d layers/*/recipe-v2", [""; 0]);
        let recipe = store.root().join(recipes.lines().last().unwrap());
        let mut bytes = fs::read(&recipe).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::remove_file(&recipe).unwrap();
        fs::write(&recipe, bytes).unwrap();
        let layer = recipe.parent().unwrap().file_name().unwrap();
        let message = format!(
            "the recipe of layer sha256:{} cannot be read: load its image again",
            layer.to_str().unwrap()
        );
        let archive = directory().join("saved.tar");
        for arguments in [
            &["save", "shop"][..],
            &["save", "-o", archive.to_str().unwrap(), "shop"],
        ] {
            let error = store.run(arguments).refused(1);
            assert!(error.contains(&message), "{error}");
        }
        assert!(!archive.exists());
        store.load(&layers().join("shop.image.tar"));
        store.ok(["save", "-o", archive.to_str().unwrap(), "shop"]);
    });
}

#[test]
fn save_refuses_a_terminal() {
    root(|| {
        let store = shop("store");
        let mut command = cowl_tests::command::program(
            "script",
            ["-qec", "\"$COWL\" --root \"$STORE\" save shop", "/dev/null"],
        );
        command
            .env("COWL", cowl_tests::command::binary("cowl"))
            .env("STORE", store.root());
        let outcome = run(&mut command);
        assert_eq!(outcome.code(), 1, "{outcome}");
        assert_eq!(
            outcome.stdout.trim(),
            "cowl: cowardly refusing to save to a terminal. Use the -o flag or redirect"
        );
    });
}

/// A name without a tag selects all its tags; an id, the image without its names.
#[test]
fn save_takes_names_ids_and_platforms_as_docker_does() {
    root(|| {
        let store = Store::new("store");
        let base = layers().join("base.tar");
        for name in ["app:1", "app:2", "web:1"] {
            store.ok(["import", base.to_str().unwrap(), name]);
        }
        let names = |arguments: &[&str]| {
            let archive = directory().join("saved.tar");
            let save = ["save", "-o", archive.to_str().unwrap()];
            store.ok([&save, arguments].concat());
            shell(
                &directory(),
                "tar -xOf saved.tar manifest.json | python3 -c 'import json, sys; print(sorted(x for i in json.load(sys.stdin) for x in i[\"RepoTags\"] or [\"-\"]))'",
                [""; 0],
            )
        };
        assert_eq!(names(&["app"]).trim(), "['app:1', 'app:2']");
        assert_eq!(names(&["app:2", "web:1"]).trim(), "['app:2', 'web:1']");
        assert_eq!(names(&["app:2", "app"]).trim(), "['app:1', 'app:2']");
        let id = id_of(&store, "web:1");
        assert_eq!(names(&[&id]).trim(), "['-']");
        let host = store.ok(["info"]);
        let host = host
            .lines()
            .find_map(|line| line.strip_prefix("Architecture: "));
        let here = format!("linux/{}", host.unwrap());
        assert_eq!(names(&["--platform", &here, "app:1"]).trim(), "['app:1']");
        let refused = store
            .run(["save", "--platform", "linux/s390x", "app:1"])
            .refused(1);
        assert!(
            refused.contains("app:1") && refused.contains("linux/s390x"),
            "{refused}"
        );
        store
            .run(["save", "--platform", "a/b/c/d", "app:1"])
            .refused(1);
    });
}
