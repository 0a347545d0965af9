//! Archives that were never imported.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use cowl_tests::busybox::{add_blog, layers, shop};
use cowl_tests::command::{Outcome, binary, program, python, run};
use cowl_tests::profile::{directory, root};
use cowl_tests::store::{Store, make_image};

use crate::figure;

/// A docker-archive of two images: one has a file twice, the other once. Arguments after its path
/// name them; without, they have no names.
const TWO_IMAGES: &str = r"
import hashlib, io, json, sys, tarfile
files, manifest = {}, []
for paths, names in zip(('ab', 'a'), ([[n] for n in sys.argv[2:]] + [[], []])):
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode='w') as archive:
        for path in paths:
            info = tarfile.TarInfo(path)
            info.size = 3
            archive.addfile(info, io.BytesIO(b'abc'))
    digest = hashlib.sha256(layer.getvalue()).hexdigest()
    config = json.dumps({'architecture': 'amd64', 'os': 'linux', 'config': {},
                         'rootfs': {'type': 'layers', 'diff_ids': ['sha256:' + digest]}}).encode()
    name = hashlib.sha256(config).hexdigest() + '.json'
    files.update({name: config, digest + '/layer.tar': layer.getvalue()})
    manifest.append({'Config': name, 'RepoTags': names, 'Layers': [digest + '/layer.tar']})
files['manifest.json'] = json.dumps(manifest).encode()
with tarfile.open(sys.argv[1], 'w') as archive:
    for name, data in files.items():
        info = tarfile.TarInfo(name)
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
";

/// An OCI layout whose one name is an index of an image for this machine and one for another.
pub(crate) const TWO_PLATFORMS: &str = r"
import hashlib, io, json, platform, sys, tarfile
files, manifests = {'oci-layout': b'{\x22imageLayoutVersion\x22:\x221.0.0\x22}'}, []
def blob(data, kind):
    digest = hashlib.sha256(data).hexdigest()
    files['blobs/sha256/' + digest] = data
    return {'mediaType': 'application/vnd.oci.image.' + kind, 'digest': 'sha256:' + digest, 'size': len(data)}
own = {'x86_64': 'amd64', 'aarch64': 'arm64'}[platform.machine()]
for machine, content in ((own, b'12345'), ('riscv64', b'1234567')):
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode='w') as archive:
        info = tarfile.TarInfo('a')
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    layer = blob(layer.getvalue(), 'layer.v1.tar')
    config = {'architecture': machine, 'os': 'linux', 'config': {}, 'rootfs': {'type': 'layers', 'diff_ids': [layer['digest']]}}
    config = blob(json.dumps(config).encode(), 'config.v1+json')
    manifest = {'schemaVersion': 2, 'mediaType': 'application/vnd.oci.image.manifest.v1+json', 'config': config, 'layers': [layer]}
    manifests.append(blob(json.dumps(manifest).encode(), 'manifest.v1+json') | {'platform': {'os': 'linux', 'architecture': machine}})
index = {'schemaVersion': 2, 'mediaType': 'application/vnd.oci.image.index.v1+json', 'manifests': manifests}
index = blob(json.dumps(index).encode(), 'index.v1+json') | {'annotations': {'org.opencontainers.image.ref.name': 'multi:1'}}
files['index.json'] = json.dumps({'schemaVersion': 2, 'manifests': [index]}).encode()
with tarfile.open(sys.argv[1], 'w') as archive:
    for name, data in files.items():
        info = tarfile.TarInfo(name)
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
";

/// Images without names in one archive: reports append the id to the path.
#[test]
fn unnamed_images_of_one_archive_are_named_by_id() {
    root(|| {
        let unnamed = directory().join("unnamed.tar");
        python(&directory(), TWO_IMAGES, [&unnamed]);
        let report = run(Command::new(binary("cowl-dedup"))
            .arg("--json")
            .arg(&unnamed)
            .stdin(Stdio::null()))
        .ok();
        let script = "
import json, sys
r = json.loads(sys.argv[1])
ids = [i['id'].split(':')[1][:12] for i in r['images']]
print([i['name'] for i in r['images']] == [sys.argv[2] + ' ' + i for i in ids], sorted(i['waste_bytes'] for i in r['images']))
";
        let seen = python(&directory(), script, [Path::new(&report), &unnamed]);
        assert_eq!(seen, "True [0, 3]\n");
        // Alone, its two images are compared; beside another argument it is ambiguous.
        let compared = run(Command::new(binary("cowl-dedup"))
            .arg("--diff")
            .arg(&unnamed)
            .stdin(Stdio::null()));
        assert_eq!(compared.ok(), "D /b\n");
        let line = run(Command::new(binary("cowl-dedup"))
            .arg("--diff")
            .args([&unnamed, &unnamed])
            .stdin(Stdio::null()))
        .refused(1);
        assert!(line.contains("unnamed.tar has 2, not 1"), "{line}");
        let failed = run(Command::new(binary("cowl-dedup"))
            .args(["--fail-if", "duplicate>2B"])
            .arg(&unnamed)
            .stdin(Stdio::null()));
        assert_eq!(failed.stderr.lines().count(), 1, "{failed}");
    });
}

/// An archive of shop:1, which has a file twice, and shop:2 of a registry with a port, in a file
/// with a colon in its name.
fn two_named_images() -> PathBuf {
    let two = directory().join("two:images.tar");
    let names = ["shop:1", "registry.example:5000/shop:2"].map(Path::new);
    let arguments = std::iter::once(two.as_path()).chain(names);
    python(&directory(), TWO_IMAGES, arguments);
    two
}

/// Runs `cowl-dedup` in the test's directory.
fn dedup(arguments: &[&str]) -> Outcome {
    let mut dedup = Command::new(binary("cowl-dedup"));
    dedup.args(arguments).current_dir(directory());
    run(dedup.stdin(Stdio::null()))
}

/// One image of an archive with several, by name, tag and id, in skopeo's syntax.
#[test]
fn an_image_of_an_archive_is_chosen_by_name_tag_or_id() {
    root(|| {
        two_named_images();
        let listed = |argument: &str| dedup(&["--json", "--no-ladder", argument]).ok();
        let script = "
import json, sys
r = json.loads(sys.argv[1])
print([i['name'] for i in r['images']], [i['id'][7:15] for i in r['images']], r['store']['objects'], r['unattributed_bytes'])
";
        let seen = |argument: &str| {
            let report = listed(argument);
            python(&directory(), script, [Path::new(&report)])
        };
        let all = seen("./two:images.tar");
        let second = seen("two:images.tar:registry.example:5000/shop:2");
        assert!(
            second.starts_with("['registry.example:5000/shop:2']"),
            "{second}"
        );
        assert!(second.ends_with("] 1 0\n"), "only that is read: {second}");
        let id = second.split('\'').nth(3).unwrap();
        assert!(all.contains(id) && all.contains("'shop:1'"), "{all}");
        for part in ["2", id, &format!("sha256:{id}")] {
            assert_eq!(seen(&format!("./two:images.tar:{part}")), second, "{part}");
        }
        let layers = dedup(&["--only-layers", "./two:images.tar:shop:1"]).ok();
        assert_eq!(layers.lines().count(), 2, "{layers}");
        let sides = ["two:images.tar:2", "two:images.tar:shop:1"];
        assert_eq!(dedup(&["--diff", sides[0], sides[1]]).ok(), "A /b\n");
    });
}

/// A missing image is refused with a list of the existing ones, and so is a comparison of other
/// than two images.
#[test]
fn an_image_missing_from_an_archive_is_refused_with_those_it_has() {
    root(|| {
        two_named_images();
        let one = "two:images.tar:2";
        let names = "shop:1, registry.example:5000/shop:2";
        for (arguments, code, expected) in [
            (
                &["two:images.tar:none"][..],
                1,
                format!("two:images.tar: the archive has no image \"none\", only these: {names}"),
            ),
            (
                &["--diff", "./two:images.tar", one],
                1,
                format!(
                    "./two:images.tar has 2, not 1: {names}; name one as ./two:images.tar:shop:1"
                ),
            ),
            (
                &["--diff", one],
                1,
                "give two images to compare, not 1".to_owned(),
            ),
            (
                &["-", "-"],
                1,
                "standard input can be read only once".to_owned(),
            ),
            (
                &["-:shop:1"],
                125,
                "give -, or for one of them /dev/stdin:IMAGE".to_owned(),
            ),
            (
                &["--", "-:shop:1"],
                1,
                "give -, or for one of them /dev/stdin:IMAGE".to_owned(),
            ),
            (
                &["-"],
                1,
                "standard input is not an image archive".to_owned(),
            ),
        ] {
            let line = dedup(arguments).refused(code);
            assert!(line.contains(&expected), "{arguments:?}: {line}");
        }
    });
}

/// An archive on standard input, and one of two images that `cowl diff` compares alone.
#[test]
fn archives_are_read_from_a_pipe_and_compared_alone() {
    root(|| {
        let two = two_named_images();
        // From a pipe.
        let script = "cat \"$1\" | \"$2\" --only-layers --json \"$3\"";
        for (input, file) in [("-", ""), ("/dev/stdin:shop:1", ":shop:1")] {
            let piped = program("sh", ["-c", script, "sh"])
                .args([&two, &binary("cowl-dedup"), Path::new(input)])
                .output()
                .unwrap();
            let file = format!("./two:images.tar{file}");
            let of_file = dedup(&["--only-layers", "--json", &file]).ok();
            assert_eq!(String::from_utf8(piped.stdout).unwrap(), of_file);
        }
        // `cowl diff` of an archive alone compares its two images; it is not taken for a container.
        let store = shop("store");
        let compared = store.run(["diff", two.to_str().unwrap()]);
        assert_eq!(compared.ok(), "D /b\n");
        let mut diff = Command::new(binary("cowl"));
        diff.arg("--root")
            .arg(store.root())
            .args(["diff", "two:images.tar"]);
        let compared = run(diff.current_dir(directory()).stdin(Stdio::null()));
        assert_eq!(compared.ok(), "D /b\n");
    });
}

/// Paths are bytes: one that is not UTF-8 is read as any other.
#[test]
fn an_archive_is_read_by_a_path_that_is_not_utf8() {
    root(|| {
        let two = directory().join(OsStr::from_bytes(b"\xff.tar"));
        python(
            &directory(),
            TWO_IMAGES,
            [two.as_path(), Path::new("a:1"), Path::new("b:1")],
        );
        let path = |text: &[u8]| OsStr::from_bytes(text).to_owned();
        let store = Store::new("store");
        let cowl = |arguments: &[&OsStr]| {
            let mut cowl = Command::new(binary("cowl"));
            cowl.arg("--root").arg(store.root()).args(arguments);
            run(cowl.current_dir(directory()).stdin(Stdio::null()))
        };
        let [dedup, layers, diff] = ["dedup", "layers", "diff"].map(OsStr::new);
        let whole = path(b"./\xff.tar");
        assert!(cowl(&[dedup, &whole]).ok().contains("b:1"));
        let one = path(b"\xff.tar:a:1");
        assert!(cowl(&[layers, &one]).ok().contains("SIZE"));
        let other = path(b"./\xff.tar:b:1");
        assert_eq!(cowl(&[diff, &one, &other]).ok(), "D /b\n");
        assert_eq!(cowl(&[diff, &path(b"\xff.tar")]).ok(), "D /b\n");
        let line = cowl(&[dedup, &path(b"./\xfe.tar")]).refused(1);
        assert!(
            line.contains("./\\xfe.tar: ") || line.contains("\u{fffd}.tar"),
            "{line}"
        );
        // No image has this name.
        store.load(&two);
        let line = cowl(&[layers, &path(b"\xff")]).refused(1);
        assert!(line.contains("\\xff"), "{line}");
    });
}

/// A tag of an archive's index with two platforms selects both images; in a comparison, the first.
#[test]
fn an_index_of_an_archive_lists_every_platform() {
    root(|| {
        let archive = directory().join("multi.tar");
        python(&directory(), TWO_PLATFORMS, [&archive]);
        let report = run(Command::new(binary("cowl-dedup"))
            .args(["--json", "--no-ladder"])
            .arg(&archive)
            .stdin(Stdio::null()));
        let script = "
import json, sys
print([(i['name'], i['stored']['bytes']) for i in json.loads(sys.argv[1])['images']])
";
        let seen = python(&directory(), script, [Path::new(&report.ok())]);
        assert_eq!(seen, "[('multi:1', 5), ('multi:1 (linux/riscv64)', 7)]\n");
        let compared = run(Command::new(binary("cowl-dedup"))
            .arg("--diff")
            .args([&archive, &archive])
            .stdin(Stdio::null()));
        assert_eq!(compared.ok(), "");
    });
}

/// A digest after a name: an index's selects both its images, a manifest's or configuration's one,
/// whatever the tag. Python computes the digests.
#[test]
fn a_digest_behind_a_name_means_its_image() {
    root(|| {
        let archive = directory().join("multi.tar");
        python(&directory(), TWO_PLATFORMS, [&archive]);
        let script = "
import json, sys, tarfile
archive = tarfile.open(sys.argv[1])
def document(digest): return json.load(archive.extractfile('blobs/sha256/' + digest.split(':')[1]))
index = json.load(archive.extractfile('index.json'))['manifests'][0]['digest']
own, other = (manifest['digest'] for manifest in document(index)['manifests'])
print(index, other, *(document(manifest)['config']['digest'] for manifest in (own, other)))
";
        let digests = python(&directory(), script, [&archive]);
        let digests: Vec<&str> = digests.split_whitespace().collect();
        let [index, manifest, own, config] = digests[..] else {
            panic!("{digests:?}");
        };
        let store = Store::new("store");
        store.load(&archive);
        let named = |text: String| figure(&store, &[&text], "[i['name'] for i in r['images']]");
        let other = "multi:1 (linux/riscv64)";
        assert_eq!(
            named(format!("multi@{index}")),
            format!("['multi:1', '{other}']")
        );
        for name in ["multi@", "multi:1@", "docker.io/library/multi:none@"] {
            for digest in [manifest, config] {
                assert_eq!(named(format!("{name}{digest}")), format!("['{other}']"));
                let name = format!("{name}{digest}");
                let id = store.ok(["inspect", "--format", "{{.Id}}", &name]);
                assert_eq!(id.trim(), config, "{name}");
            }
        }
        let digests = store.ok(["inspect", "--format", "{{json .RepoDigests}}", "multi:1"]);
        assert_eq!(digests, format!("[\"multi@{index}\"]\n"));
        let (first, second) = (&format!("multi@{index}"), &format!("multi@{manifest}"));
        assert_eq!(
            store.ok(["inspect", "--format", "{{.Id}}", first]).trim(),
            own
        );
        assert_eq!(store.ok(["layers", second]).lines().count(), 2);
        let differs = store.ok(["diff", first, second]);
        assert_eq!(differs, "C /a  (content 5B -> 7B)\n");
        let of_archive = dedup(&[
            "--diff",
            "./multi.tar:multi:1",
            &format!("./multi.tar:{second}"),
        ]);
        assert_eq!(of_archive.ok(), differs);
        for (name, what) in [
            (format!("other@{index}"), "o such image: "),
            (format!("multi@sha256:{}", "0".repeat(64)), "o such image: "),
            (
                "multi@sha256:12".to_owned(),
                "behind the @ stands no sha256 digest",
            ),
        ] {
            let line = store.run(["history", &name]).refused(1);
            assert!(line.contains(what) && line.contains(&name), "{line}");
            let line = store.run(["layers", &name]).refused(1);
            assert!(
                line.contains(&what.replace("o such image:", "no image")) && line.contains(&name),
                "{line}"
            );
        }
    });
}

/// The figures of archives equal those of the imported images, in whatever format, and no store is
/// needed. Nothing is left in TMPDIR.
#[test]
fn archives_are_read_without_a_store() {
    root(|| {
        let store = shop("store");
        add_blog(&store);
        let temporary = directory().join("tmp");
        fs::create_dir(&temporary).unwrap();
        let report = |images: &[PathBuf], at: &Path| {
            let dedup = Command::new(binary("cowl-dedup"))
                .args(["--json", "--root"])
                .arg(at)
                .args(images)
                .env("TMPDIR", &temporary)
                .stdin(Stdio::null())
                .output()
                .unwrap();
            assert!(
                dedup.status.success(),
                "{}",
                String::from_utf8_lossy(&dedup.stderr)
            );
            String::from_utf8(dedup.stdout).unwrap()
        };
        let archives = ["blog", "shop"].map(|name| layers().join(format!("{name}.image.tar")));
        let imported = report(&[], store.root());
        assert_eq!(report(&archives, Path::new("/nowhere")), imported);
        let layout = directory().join("layout");
        let base = layers().join("base.tar");
        make_image(
            "oci",
            &layout,
            "one:1",
            &[],
            &[&base, &layers().join("shop.tar")],
        );
        let of_layout = report(std::slice::from_ref(&layout), Path::new("/nowhere"));
        assert!(of_layout.contains("one:1"), "{of_layout}");
        let here = run(Command::new(binary("cowl-dedup"))
            .args(["--json", "."])
            .env("TMPDIR", &temporary)
            .current_dir(&layout)
            .stdin(Stdio::null()));
        assert_eq!(here.ok(), of_layout);
        // Two archives with the same image name are two images, distinguished by path.
        let again = directory().join("again.tar");
        make_image("docker", &again, "one:1", &[], &[&base]);
        let mut diff = Command::new(binary("cowl-dedup"));
        diff.args(["--json", "--diff"]).args([&again, &layout]);
        diff.env("TMPDIR", &temporary).stdin(Stdio::null());
        let script = "
import json, sys
r = json.loads(sys.argv[1])
print(r['a'] == 'one:1 (%s)' % sys.argv[2], r['b'] == 'one:1 (%s)' % sys.argv[3], {f['change'] for f in r['files']})
";
        let compared = run(&mut diff).ok();
        let arguments = [Path::new(&compared), &again, &layout];
        let seen = python(&directory(), script, arguments);
        assert_eq!(seen, "True True {'added'}\n", "{compared}");
        // Together with images of the store: the store's blog is the same image.
        let both = report(&["shop".into(), archives[0].clone()], store.root());
        let script = "
import json, sys
r = json.loads(sys.argv[1])
print([i['name'].split('/')[0] for i in r['images']], r['matrix'][0]['jaccard'] > 0.9, r['unattributed_bytes'],
      r['in_shared_layers'] == json.loads(sys.argv[2])['in_shared_layers'])
";
        let seen = python(&directory(), script, [both, imported]);
        assert_eq!(
            seen,
            "['shop:latest', 'blog:latest (store, '] True 0 True\n"
        );
        assert_eq!(fs::read_dir(&temporary).unwrap().count(), 0);
    });
}

/// A truncated archive, and a file that is not one: one line of error, and nothing is left. After a
/// signal while reading an archive, or a killed run, the next run leaves nothing.
#[test]
fn archives_that_end_early_leave_nothing() {
    root(|| {
        let temporary = directory().join("tmp");
        fs::create_dir(&temporary).unwrap();
        let dedup = |archive: &Path| {
            let mut command = Command::new(binary("cowl-dedup"));
            command
                .arg(archive)
                .env("TMPDIR", &temporary)
                .stdin(Stdio::null());
            command
        };
        let left = || fs::read_dir(&temporary).unwrap().count();
        let whole = fs::read(layers().join("shop.image.tar")).unwrap();
        let cut = directory().join("cut.tar");
        fs::write(&cut, &whole[..whole.len() / 2]).unwrap();
        let line = run(&mut dedup(&cut)).refused(1);
        assert!(line.contains("cut.tar is cut off"), "{line}");
        let line = run(dedup(&cut).arg("--objects")).refused(1);
        assert!(line.contains("use cowl load first"), "{line}");
        let line = run(&mut dedup(Path::new("/etc/passwd"))).refused(1);
        assert!(
            line.contains("/etc/passwd is not an image archive"),
            "{line}"
        );
        assert_eq!(left(), 0);
        let script = "
import os, signal, subprocess, sys
name, program, fifo, temporary = sys.argv[1:]
if not os.path.exists(fifo): os.mkfifo(fifo)
process = subprocess.Popen([program, fifo], env={**os.environ, 'TMPDIR': temporary})
with open(fifo, 'wb') as writer:
    # It reads the pipe, so its scratch store is there.
    number = getattr(signal, name)
    process.send_signal(number)
    assert process.wait() == -number
";
        let fifo = directory().join("pipe.tar");
        for (signal, files) in [
            ("SIGTERM", 0),
            ("SIGINT", 0),
            ("SIGHUP", 0),
            ("SIGQUIT", 0),
            ("SIGKILL", 1),
        ] {
            let program = binary("cowl-dedup");
            let arguments = [Path::new(signal), &program, &fifo, &temporary];
            python(&directory(), script, arguments);
            assert_eq!(left(), files, "{signal}");
        }
        run(&mut dedup(&layers().join("shop.image.tar"))).ok();
        assert_eq!(left(), 0, "what the killed run left is gone");
        // A directory with such a name that is not ours is kept.
        for name in ["cowl-dedup-notes", "cowl-dedup-0123456789abcdef"] {
            let kept = temporary.join(name);
            fs::create_dir(&kept).unwrap();
            fs::write(kept.join("report.txt"), "kept").unwrap();
            run(&mut dedup(&layers().join("shop.image.tar"))).ok();
            assert_eq!(fs::read_to_string(kept.join("report.txt")).unwrap(), "kept");
            fs::remove_dir_all(kept).unwrap();
        }
        // As with nohup: a signal ignored at the start stays ignored.
        let script = "
import os, signal, subprocess, sys
program, fifo, temporary, archive = sys.argv[1:]
signal.signal(signal.SIGHUP, signal.SIG_IGN)
process = subprocess.Popen([program, fifo], env={**os.environ, 'TMPDIR': temporary}, stdout=subprocess.DEVNULL)
with open(fifo, 'wb') as writer, open(archive, 'rb') as reader:
    process.send_signal(signal.SIGHUP)
    writer.write(reader.read())
assert process.wait() == 0
";
        let (program, archive) = (binary("cowl-dedup"), layers().join("shop.image.tar"));
        let arguments = [&program, &fifo, &temporary, &archive];
        python(&directory(), script, arguments);
        assert_eq!(left(), 0);
    });
}
