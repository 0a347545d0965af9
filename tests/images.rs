//! Loaded images can be listed, described, checked and removed; blobs stay unchanged.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Stdio;

use cowl_tests::busybox::{add_blog, layers, shop};
use cowl_tests::command::{binary, program, python, run, shell};
use cowl_tests::profile::{directory, root, user};
use cowl_tests::store::{Store, make_image};
use cowl_tests::tree;

fn images_are_listed_and_explained() {
    let store = shop("store");
    add_blog(&store);
    let base = layers().join("base.tar");
    store.ok(["import", base.to_str().unwrap(), "plain:2"]);
    let listed = store.ok(["images"]);
    let rows: Vec<Vec<&str>> = listed
        .lines()
        .skip(1)
        .map(|line| line.split_whitespace().collect())
        .collect();
    let mut names: Vec<String> = rows
        .iter()
        .map(|row| format!("{}:{}", row[0], row[1]))
        .collect();
    names.sort_unstable();
    assert_eq!(names, ["blog:latest", "plain:2", "shop:latest"]);
    // An id is the digest of the archive's configuration.
    let ids = store.ok(["images", "-q", "--no-trunc"]);
    assert!(
        ids.lines().all(|id| id
            .strip_prefix("sha256:")
            .is_some_and(|hex| hex.len() == 64)),
        "{ids}"
    );
    let history = store.ok(["history", "shop"]);
    assert!(
        history.contains("base.tar") && history.contains("shop.tar"),
        "{history}"
    );
    assert!(
        history.find("shop.tar") < history.find("base.tar"),
        "last step first: {history}"
    );
    let info = store.ok(["info"]);
    assert!(info.contains(store.root().to_str().unwrap()), "{info}");
    let checked = store.ok(["check", "--deep"]);
    assert!(checked.contains("No problems"), "{checked}");
}

#[test]
fn images_are_listed_and_explained_as_root() {
    root(|| images_are_listed_and_explained());
}

#[test]
fn images_are_listed_and_explained_as_user() {
    user(|| images_are_listed_and_explained());
}

/// Manifest, configuration and compressed layers have the digests in the archive's own index.
#[test]
fn blobs_stay_as_they_came() {
    root(|| {
        let parts = layers();
        let layout = directory().join("layout");
        let (base, blog) = (parts.join("base.tar"), parts.join("blog.tar"));
        make_image(
            "oci",
            &layout,
            "blog:1",
            &["--compress", "gzip"],
            &[&base, &blog],
        );
        let store = Store::new("store");
        store.load(&layout);
        for entry in fs::read_dir(layout.join("blobs/sha256")).unwrap() {
            let name = entry.unwrap().file_name();
            let kept = fs::read(store.root().join("blobs/sha256").join(&name))
                .unwrap_or_else(|error| panic!("{name:?}: {error}"));
            assert!(
                kept == fs::read(layout.join("blobs/sha256").join(&name)).unwrap(),
                "{name:?} was changed"
            );
        }
        assert_eq!(
            shell(
                &store.root().join("blobs/sha256"),
                "sha256sum * | awk '$1 != $2'",
                [""; 0]
            ),
            ""
        );
    });
}

/// Each distinct content is one file, however often, under whatever names, in whatever layers and
/// images it came.
#[test]
fn a_content_is_kept_once() {
    root(|| {
        let store = shop("store");
        add_blog(&store);
        let contents = "
import hashlib, sys, tarfile
seen = {}
for path in sys.argv[1:]:
    with tarfile.open(path) as archive:
        for member in archive:
            if member.isreg() and member.size:
                data = archive.extractfile(member).read()
                seen[hashlib.sha256(data).hexdigest()] = len(data)
for digest in sorted(seen): print(digest, seen[digest])
";
        let parts = layers();
        let expected = python(
            &directory(),
            contents,
            ["base.tar", "shop.tar", "blog.tar"].map(|name| parts.join(name)),
        );
        let script = "find objects -type f | while read -r f; do echo \"$(sha256sum < $f | cut -d ' ' -f 1) $(stat -c %s $f)\"; done | sort";
        assert_eq!(shell(store.root(), script, [""; 0]), expected);
    });
}

/// A damaged object, tree or blob is found, named, and repaired by loading again.
#[test]
fn damage_is_found_and_healed() {
    root(|| {
        let store = shop("store");
        let object = shell(
            store.root(),
            "find objects -type f -size +1000 | sort | head -n 1",
            [""; 0],
        );
        let object = object.trim();
        shell(
            store.root(),
            "chmod u+w \"$1\"; printf X | dd of=\"$1\" bs=1 seek=100 conv=notrunc status=none; chmod u-w \"$1\"",
            [object],
        );
        let found = store.run(["check", "--deep"]);
        assert_eq!(found.code(), 1, "{found}");
        assert!(found.stdout.contains(object), "{found}");
        // The same layers again, with existing files hashed instead of trusted by size.
        let parts = layers();
        let archive = directory().join("again.tar");
        let options = ["--compress", "none", "--cmd", "/srv/hello"];
        make_image(
            "docker",
            &archive,
            "again",
            &options,
            &[&parts.join("base.tar"), &parts.join("shop.tar")],
        );
        store.ok(["load", "--verify", "-i", archive.to_str().unwrap()]);
        let after = store.run(["check", "--deep"]);
        assert_eq!(after.code(), 0, "{after}");
    });
}

/// An import has no archive to load again.
#[test]
fn a_damaged_import_is_named_and_healed_by_importing_again() {
    root(|| {
        let store = shop("store");
        let base = layers().join("base.tar");
        shell(
            &directory(),
            "echo plain > plain; tar -cf plain.tar plain",
            [""; 0],
        );
        let plain = directory().join("plain.tar");
        store.ok(["import", base.to_str().unwrap(), "base:1"]);
        store.ok(["import", plain.to_str().unwrap(), "plain:1"]);
        let script = "object=$(grep -rlx plain objects); chmod u+w $object; echo pla1n > $object; chmod u-w $object";
        shell(store.root(), script, [""; 0]);
        let found = store.run(["check", "--deep"]);
        assert_eq!(found.code(), 1, "{found}");
        assert!(found.stdout.contains("Damaged: plain:1\n"), "{found}");
        assert!(
            found.stdout.contains("`cowl check --repair FROM` heals"),
            "{found}"
        );
        // Its size is unchanged.
        store.ok(["import", plain.to_str().unwrap(), "plain:1"]);
        assert_eq!(store.run(["check", "--deep"]).code(), 1);
        store.ok(["import", "--verify", plain.to_str().unwrap(), "plain:1"]);
        store.ok(["check", "--deep"]);
    });
}

/// With Docker's warning.
#[test]
fn load_warns_of_an_image_for_another_processor() {
    root(|| {
        let store = shop("store");
        let foreign = if cfg!(target_arch = "s390x") {
            "amd64"
        } else {
            "s390x"
        };
        let archive = directory().join("foreign.tar");
        let options = ["--architecture", foreign, "--cmd", "/srv/hello"];
        make_image(
            "docker",
            &archive,
            "foreign:1",
            &options,
            &[&layers().join("base.tar")],
        );
        let loaded = store.run(["load", "-i", archive.to_str().unwrap()]);
        let warning = format!(
            "cowl: WARNING: The requested image's platform (linux/{foreign}) does not match the detected host platform (linux/"
        );
        assert!(loaded.stderr.starts_with(&warning), "{loaded}");
        assert_eq!(loaded.ok(), "Loaded image: foreign:1\n");
        let created = store.run(["create", "foreign:1", "true"]);
        assert!(created.stderr.starts_with(&warning), "{created}");
        // The fixtures' own images are for amd64.
        if cfg!(target_arch = "x86_64") {
            let image = layers().join("shop.image.tar");
            let ours = store.run(["load", "-i", image.to_str().unwrap()]);
            assert_eq!(ours.stderr, "");
            assert_eq!(store.run(["create", "shop", "true"]).stderr, "");
        }
    });
}

/// What `docker import` and `docker load` take; the configuration is read with Python.
#[test]
fn import_and_load_take_dockers_options() {
    root(|| {
        let store = Store::new("store");
        let base = layers().join("base.tar");
        let (base, archive) = (base.to_str().unwrap(), directory().join("saved.tar"));
        let options = ["-c", "CMD [\"/x\"]", "--change", "USER 7", "-m", "by hand"];
        let platform = ["--platform", "linux/arm64"];
        let id = store.ok(["import"]
            .iter()
            .chain(&options)
            .chain(&platform)
            .chain(&[base]));
        let id = id.trim();
        assert_eq!(store.ok(["images", "-q", "--no-trunc"]).trim(), id);
        let script = "
import json, sys
image = json.load(open(sys.argv[1]))
config = image['config']
print(config['Cmd'], config['User'], image['history'][0]['comment'], image['architecture'])";
        let blob = store
            .root()
            .join("blobs/sha256")
            .join(&id["sha256:".len()..]);
        let config = python(&directory(), script, [blob]);
        assert_eq!(config, "['/x'] 7 by hand arm64\n");

        store.ok(["save", "-o", archive.to_str().unwrap(), id]);
        store.ok(["rmi", id]);
        let load = |platform| {
            store.run([
                "load",
                "--platform",
                platform,
                "-i",
                archive.to_str().unwrap(),
            ])
        };
        let refused = load("linux/amd64,s390x");
        assert_eq!(refused.code(), 1);
        let message = "the archive has no image for linux/amd64, linux/s390x, only for linux/arm64";
        assert!(refused.stderr.contains(message), "{refused}");
        assert_eq!(load("arm64").ok(), format!("Loaded image ID: {id}\n"));
        for bad in [
            &["load", "--platform", "a/b/c/d"][..],
            &["import", "-c", "RUN true", base],
        ] {
            assert_eq!(store.run(bad).code(), 1);
        }
    });
}

/// Decoders and the recorder of a layer need hundreds of KiB, more than the caller's stack may
/// have.
#[test]
fn images_come_and_go_on_a_small_stack() {
    root(|| {
        let store = Store::new("store");
        let script = "
ulimit -s 128
for type in gzip bzip2 xz zstd; do
    $type -c < \"$1\" > layer.$type
    \"$0\" import layer.$type base:$type
    \"$0\" save base:$type | $type | \"$0\" load
done
\"$0\" check --deep";
        let place = directory();
        let base = layers().join("base.tar");
        let mut command = program("sh", ["-euc", script]);
        command.args([binary("cowl"), base]).current_dir(&place);
        let done = run(command.env("COWL_ROOT", store.root())).ok();
        assert!(done.contains("No problems: 4 names, 1 layer"), "{done}");
    });
}

/// Each gets more than a pipe holds, so it has read some of it and waits for the rest.
fn commands_do_not_wait_for_anothers_input() {
    let store = shop("store");
    let place = directory();
    shell(
        &place,
        "mkdir root; head -c 300000 /dev/urandom > root/shared; tar -cf other.tar -C root .; head -c 300000 /dev/urandom > root/more; tar -cf slow.tar -C root .",
        [""; 0],
    );
    let (tar, archive) = (place.join("slow.tar"), place.join("slow.image.tar"));
    make_image("docker", &archive, "loaded:1", &[], &[&tar]);
    for (arguments, input) in [
        (&["import", "-", "imported:1"][..], &tar),
        (&["load"], &archive),
    ] {
        store.ok(["import", place.join("other.tar").to_str().unwrap(), "other"]);
        let input = fs::read(input).unwrap();
        let mut slow = store
            .command(arguments)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = slow.stdin.take().unwrap();
        stdin.write_all(&input[..400_000]).unwrap();
        // It shares a file with the other image, which must not be lost.
        assert!(store.ok(["rmi", "other"]).contains("Deleted: "));
        store.ok(["import", place.join("other.tar").to_str().unwrap(), "again"]);
        store.ok(["rmi", "again"]);
        stdin.write_all(&input[400_000..]).unwrap();
        drop(stdin);
        assert!(slow.wait().unwrap().success());
    }
    for image in ["imported:1", "loaded:1"] {
        store.assert_shows(image, &tree::read(&place.join("root")), image);
    }
    store.ok(["check", "--deep"]);
}

#[test]
fn commands_do_not_wait_for_anothers_input_as_root() {
    root(|| commands_do_not_wait_for_anothers_input());
}

#[test]
fn commands_do_not_wait_for_anothers_input_as_user() {
    user(|| commands_do_not_wait_for_anothers_input());
}

/// Standard input of several kinds: a pipe, a socket (Node.js), another user's pipe (sudo).
#[test]
fn an_archive_comes_from_any_standard_input() {
    root(|| {
        let base = layers().join("base.tar");
        let archive = directory().join("image.tar");
        make_image("docker", &archive, "piped:1", &[], &[&base]);
        let script = "
import os, socket, subprocess, sys, threading
kind, path, *command = sys.argv[1:]
if kind == 'socket':
    near, far = (end.detach() for end in socket.socketpair())
else:
    far, near = os.pipe()
if kind == 'stranger':
    os.fchown(far, 1000, 1000)
    os.fchmod(far, 0)
def feed():
    with open(path, 'rb') as file, open(near, 'wb') as out: out.write(file.read())
threading.Thread(target=feed, daemon=True).start()
os.set_inheritable(near, False)
drop = ['setpriv', '--bounding-set=-dac_override,-dac_read_search', '--inh-caps=-all'] if kind == 'stranger' else []
done = subprocess.run([*drop, *command], stdin=far, capture_output=True, text=True)
sys.exit(done.stderr) if done.returncode else print(done.stdout, end='')
";
        for kind in ["pipe", "socket", "stranger"] {
            let store = Store::new(&format!("store-{kind}"));
            let (cowl, at) = (binary("cowl"), store.root());
            let run = |arguments: &[&str], input: &Path| {
                let command = [kind.as_ref(), input, cowl.as_ref(), "--root".as_ref(), at];
                let arguments = arguments.iter().map(Path::new);
                python(&directory(), script, command.into_iter().chain(arguments))
            };
            assert_eq!(run(&["load"], &archive), "Loaded image: piped:1\n");
            run(&["import", "-", "plain"], &base);
            assert!(store.ok(["images"]).contains("plain"), "{kind}");
        }
    });
}

/// Three images with different names, labels and ages.
fn several() -> Store {
    let store = Store::new("store");
    let base = layers().join("base.tar");
    let script = "
import hashlib, io, json, sys, tarfile
layer = open(sys.argv[1], 'rb').read()
for name, created, labels in (
    ('app:1', '2001-01-01T00:00:00Z', {'kind': 'old'}),
    ('team/app:2', '2011-01-01T00:00:00Z', {'kind': 'new', 'only': ''}),
    (None, '2021-01-01T00:00:00Z', {}),
):
    config = json.dumps({'architecture': 'amd64', 'os': 'linux', 'created': created, 'author': 'me',
        'config': {'Cmd': ['sh'], 'Labels': labels},
        'history': [{'created': created, 'created_by': 'made', 'comment': 'so'}],
        'rootfs': {'type': 'layers', 'diff_ids': ['sha256:' + hashlib.sha256(layer).hexdigest()]}}).encode()
    manifest = json.dumps([{'Config': 'config.json', 'RepoTags': name and [name], 'Layers': ['layer.tar']}]).encode()
    with tarfile.open(created[:4] + '.tar', 'w') as archive:
        for member, data in ('config.json', config), ('layer.tar', layer), ('manifest.json', manifest):
            info = tarfile.TarInfo(member); info.size = len(data)
            archive.addfile(info, io.BytesIO(data))";
    python(&directory(), script, [&base]);
    for year in ["2001", "2011", "2021"] {
        store.load(&directory().join(format!("{year}.tar")));
    }
    store
}

#[test]
fn images_takes_dockers_filters_and_formats() {
    root(|| {
        let store = several();
        let listed = |arguments: &[&str]| {
            let format = ["images", "--format", "{{.Repository}}:{{.Tag}}"];
            let lines = store.ok([&format[..], arguments].concat());
            lines.lines().map(str::to_owned).collect::<Vec<_>>()
        };
        let none = "<none>:<none>";
        assert_eq!(listed(&[]), [none, "team/app:2", "app:1"]);
        for (filter, expected) in [
            ("dangling=true", &[none][..]),
            ("dangling=false", &["team/app:2", "app:1"]),
            ("label=kind", &["team/app:2", "app:1"]),
            ("label=kind=old", &["app:1"]),
            ("label=only=", &["team/app:2"]),
            ("before=team/app:2", &["app:1"]),
            ("since=app:1", &[none, "team/app:2"]),
            ("reference=app", &["app:1"]),
            ("reference=*/*", &["team/app:2"]),
            ("reference=*:1", &["app:1"]),
            ("label=none", &[]),
        ] {
            assert_eq!(listed(&["--filter", filter]), expected, "{filter}");
        }
        let both = ["-f", "label=kind", "-f", "before=team/app:2"];
        assert_eq!(listed(&both), ["app:1"]);
        assert_eq!(listed(&["-a", "*/app"]), ["team/app:2"]);
        let table = store.ok(["images", "--digests", "app"]);
        let header = table.lines().next().unwrap().split("  ");
        let header: Vec<&str> = header
            .map(str::trim)
            .filter(|cell| !cell.is_empty())
            .collect();
        let columns = ["REPOSITORY", "TAG", "DIGEST", "IMAGE ID", "CREATED", "SIZE"];
        assert_eq!(header, columns);
        for bad in ["dangling=maybe", "size=1", "before=none"] {
            store.run(["images", "--filter", bad]).refused(1);
        }
    });
}

#[test]
fn inspect_and_history_show_an_image_as_docker_does() {
    root(|| {
        let store = several();
        store.ok(["tag", "app:1", "again:7"]);
        let id = store.ok(["images", "-q", "--no-trunc", "app:1"]);
        let format = "{{.Id}} {{.RepoTags}} {{.Author}} {{.Comment}} {{.Created}} {{.Os}}/{{.Architecture}} {{.Config.Cmd}} {{.Config.Labels.kind}} {{len .RootFS.Layers}} {{.RootFS.Type}}";
        let shown = store.ok(["inspect", "--format", format, "app:1"]);
        let rest = "[again:7 app:1] me so 2001-01-01T00:00:00Z linux/amd64 [sh] old 1 layers";
        assert_eq!(shown, format!("{} {rest}\n", id.trim()));
        let history = ["history", "--format"];
        let steps = store.ok([
            &history[..],
            &[
                "{{.ID}} {{.CreatedAt}} {{.CreatedBy}} {{.Comment}}",
                "app:1",
            ],
        ]
        .concat());
        assert_eq!(
            steps,
            format!("{} 2001-01-01T00:00:00Z made so\n", &id[7..19])
        );
        let json = store.ok([&history[..], &["json", "app:1"]].concat());
        assert!(json.contains("\"CreatedBy\":\"made\""), "{json}");
    });
}
