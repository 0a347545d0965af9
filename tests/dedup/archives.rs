//! Archives that were never imported.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use cowl_tests::busybox::{add_blog, layers, shop};
use cowl_tests::command::{binary, python, run};
use cowl_tests::profile::{directory, root};
use cowl_tests::store::make_image;

/// A docker-archive of two images without names: the one has a file twice, the other once.
const UNNAMED: &str = r"
import hashlib, io, json, sys, tarfile
files, manifest = {}, []
for paths in ('ab', 'a'):
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
    manifest.append({'Config': name, 'RepoTags': [], 'Layers': [digest + '/layer.tar']})
files['manifest.json'] = json.dumps(manifest).encode()
with tarfile.open(sys.argv[1], 'w') as archive:
    for name, data in files.items():
        info = tarfile.TarInfo(name)
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
";

/// Images without names, of one archive: each has its id behind the path.
#[test]
fn unnamed_images_of_one_archive_are_told_apart_by_their_ids() {
    root(|| {
        let unnamed = directory().join("unnamed.tar");
        python(&directory(), UNNAMED, [&unnamed]);
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
        // Its two images are compared if it is alone; beside another it is no side.
        let compared = run(Command::new(binary("cowl-dedup"))
            .arg("--diff")
            .arg(&unnamed)
            .stdin(Stdio::null()));
        // Which is the first is by their ids.
        let compared = compared.ok();
        assert!(
            ["A /b\n", "D /b\n"].contains(&compared.as_str()),
            "{compared}"
        );
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

/// Figures of archives that were never imported are those of the imported images, in whatever form
/// they come, and no store is needed. Nothing stays in TMPDIR.
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
        // Two archives with the same name are two images, told apart by their paths.
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
        // Beside images of the store: the blog of the store is the same image.
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

/// A truncated archive, and what is none: one line, and nothing stays. A signal while an archive is
/// read, and a run that was killed: nothing stays after the next.
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
        for (signal, files) in [("SIGTERM", 0), ("SIGINT", 0), ("SIGHUP", 0), ("SIGKILL", 1)] {
            let program = binary("cowl-dedup");
            let arguments = [Path::new(signal), &program, &fifo, &temporary];
            python(&directory(), script, arguments);
            assert_eq!(left(), files, "{signal}");
        }
        run(&mut dedup(&layers().join("shop.image.tar"))).ok();
        assert_eq!(left(), 0, "what the killed run left is gone");
        // As after nohup: a signal that it was started to ignore does nothing.
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
