//! Images equal their archives: tars by several programs and in several formats, loaded and
//! mounted, agree entry by entry with a plain extraction (mode, ids, times to the nanosecond,
//! extended attributes, hard links, contents), alone and stacked with whiteouts, opaque directories
//! and links into the layers below.

use std::path::{Path, PathBuf};

use cowl_tests::command::{program, python, run, shell};
use cowl_tests::profile::{Privilege, current, directory, root, user};
use cowl_tests::store::{Store, extract, make_image};
use cowl_tests::tree;

/// Entries that every format supports. `$1`: root adds devices and other owners.
const PLAIN: &str = r#"
mkdir -p src/dir/sub src/empty src/sticky; chmod 1777 src/sticky; chmod 0700 src/empty
printf hello > src/file; chmod 4755 src/file; : > src/dir/nothing
head -c 300000 /bin/bash > src/dir/large; chmod 0444 src/dir/large
ln src/file src/dir/hard; ln src/file src/zz-hard; ln -s ../file src/dir/soft; ln -s nowhere src/dangling
ln src/dangling src/dir/hard-to-link
mkfifo src/fifo; printf a > 'src/with space'; printf b > 'src/dir/-dash'; printf c > "src/$(printf 'line\nbreak')"
if [ "$1" = root ]; then
  mknod src/null c 1 3; mknod src/zero-zero c 0 0; mknod src/loop7 b 7 7; chmod 0666 src/null
  chown -h 1000:2000 src/dangling src/dir/sub src/dir/nothing
fi
find src -depth -exec touch -h -d '1999-12-31T23:59:58Z' {} +
"#;

/// Entries that only GNU and PAX headers support.
const RICH: &str = r#"
long=$(printf 'n%.0s' $(seq 200)); mkdir -p "src/$long/$long"; printf deep > "src/$long/$long/$long"
ln -s "$long/$long/$long/$long" src/long-target
truncate -s 3M src/sparse; printf end >> src/sparse; printf middle | dd of=src/sparse bs=1 seek=1000000 conv=notrunc status=none
if [ "$1" = root ]; then chown 3000000:4000000 "src/$long"; fi
find src -depth -exec touch -h -d '1999-12-31T23:59:58Z' {} +
"#;

/// Entries that only PAX headers support.
const PAX: &str = r#"
find src -depth -exec touch -h -d '1999-12-31T23:59:58.123456789Z' {} +
touch -h -d '1965-05-05T05:05:05.5Z' src/file
setfattr -n user.one -v 1 src/file; setfattr -n user.binary -v 0x00ff0a3d src/dir
if [ "$1" = root ]; then
  setfattr -n trusted.t -v t src/dir; setfattr -n security.capability -v 0x0100000200200000000000000000000000000000 src/dir/large
  setfattr -h -n trusted.link -v l src/dangling
fi
"#;

const ALL: [&str; 3] = [PLAIN, RICH, PAX];

/// Python's own maker, format by name; extended attributes go in as the PAX records that others
/// write.
const PYTHON: &str = r#"
import os, sys, tarfile
form = getattr(tarfile, sys.argv[1] + "_FORMAT")
with tarfile.open("layer.tar", "w", format=form) as archive:
    def add(path):
        info = archive.gettarinfo(path, arcname=os.path.relpath(path, "src"))
        if form == tarfile.PAX_FORMAT:
            ns = os.lstat(path).st_mtime_ns
            info.pax_headers = {"mtime": "%s%d.%09d" % ("-" if ns < 0 else "", abs(ns) // 10**9, abs(ns) % 10**9)}
            for name in os.listxattr(path, follow_symlinks=False):
                value = os.getxattr(path, name, follow_symlinks=False)
                info.pax_headers["SCHILY.xattr." + name] = value.decode("utf-8", "surrogateescape")
        archive.addfile(info, open(path, "rb") if info.isreg() else None)
    add("src")
    for path, below, files in os.walk("src"):
        for name in sorted(below) + sorted(files):
            add(os.path.join(path, name))
"#;

enum Maker {
    Gnu(&'static [&'static str]),
    Python(&'static str),
    Busybox,
}

/// Each program that writes archives, how much of [`ALL`] it supports, and how it is run.
const MAKERS: [(&str, usize, Maker); 9] = [
    ("GNU tar, ustar", 1, Maker::Gnu(&["--format=ustar"])),
    ("GNU tar, gnu", 2, Maker::Gnu(&["--format=gnu"])),
    (
        "GNU tar, gnu, sparse",
        2,
        Maker::Gnu(&["--format=gnu", "--sparse"]),
    ),
    (
        "GNU tar, pax",
        3,
        Maker::Gnu(&["--format=posix", "--xattrs", "--xattrs-include=*"]),
    ),
    (
        "GNU tar, pax, sparse",
        3,
        Maker::Gnu(&[
            "--format=posix",
            "--sparse",
            "--xattrs",
            "--xattrs-include=*",
        ]),
    ),
    ("Python, ustar", 1, Maker::Python("USTAR")),
    ("Python, gnu", 2, Maker::Python("GNU")),
    ("Python, pax", 3, Maker::Python("PAX")),
    ("busybox tar", 1, Maker::Busybox),
];

impl Maker {
    fn make(&self) {
        let place = directory();
        match self {
            Self::Gnu(options) => {
                let arguments = [
                    "--create",
                    "--file=layer.tar",
                    "--numeric-owner",
                    "--directory=src",
                ];
                run(program("tar", arguments)
                    .args(*options)
                    .arg(".")
                    .current_dir(&place))
                .ok();
            }
            Self::Python(format) => {
                python(&place, PYTHON, [format]);
            }
            Self::Busybox => {
                shell(&place, "busybox tar -c -f layer.tar -C src .", [""; 0]);
            }
        }
    }
}

fn every_maker_agrees() {
    let place = directory();
    let who = if current() == Privilege::Root {
        "root"
    } else {
        "user"
    };
    for (number, (name, richness, maker)) in MAKERS.iter().enumerate() {
        shell(&place, "rm -rf src layer.tar", [""; 0]);
        for script in &ALL[..*richness] {
            shell(&place, script, [who]);
        }
        maker.make();
        let layer = place.join("layer.tar");
        if *richness == ALL.len() && matches!(maker, Maker::Gnu(_)) {
            // Checks the extraction itself: nothing is lost (Python splits links to links).
            let judge = extract(&place.join(format!("judge-{number}")), [&layer]);
            tree::assert_same(&tree::read(&place.join("src")), &judge, name);
        }
        compare(name, &format!("{number}"), "docker", &[], &[&layer]);
    }
}

/// Loads an image of the layers and compares its mount with their extraction.
fn compare(what: &str, name: &str, kind: &str, options: &[&str], layers: &[&Path]) {
    let place = directory();
    let store = Store::new(&format!("store-{name}"));
    let archive = place.join(if kind == "directory" {
        "image"
    } else {
        "image.tar"
    });
    let maker = if kind == "docker" { "docker" } else { "oci" };
    make_image(maker, &archive, "image:1", options, layers);
    store.load(&archive);
    let plain = extract(&place.join(format!("plain-{name}")), layers);
    let mount = store.mount("image:1", &format!("mount-{name}"));
    tree::assert_same(&plain, &tree::read(mount.path()), what);
    mount.unmount();
    store.ok(["check"]);
}

#[test]
fn tars_of_every_maker_agree_with_their_extraction_as_root() {
    root(|| every_maker_agrees());
}

#[test]
fn tars_of_every_maker_agree_with_their_extraction_as_user() {
    user(|| every_maker_agrees());
}

/// Layers by Python: each line of a layer is `kind path [argument]`.
const LAYERS: &str = r#"
import io, sys, tarfile
def layer(name, entries):
    with tarfile.open(name, "w", format=tarfile.PAX_FORMAT) as archive:
        for kind, path, *rest in entries:
            info = tarfile.TarInfo(path)
            info.mode, info.mtime = 0o644, 900000000
            info.pax_headers = {"mtime": "900000000.%09d" % len(path)}
            data = b""
            if kind == "dir": info.type, info.mode = tarfile.DIRTYPE, 0o750
            elif kind == "link": info.type, info.linkname = tarfile.LNKTYPE, rest[0]
            elif kind == "soft": info.type, info.linkname = tarfile.SYMTYPE, rest[0]
            else: data = (rest[0] if rest else path).encode(); info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
layer("1.tar", [("dir", "."), ("dir", "a"), ("file", "a/one"), ("file", "a/two"), ("dir", "a/sub"), ("file", "a/sub/x"),
    ("dir", "b"), ("file", "b/gone"), ("file", "b/kept"), ("dir", "c"), ("file", "c/old"), ("dir", "c/deep"), ("file", "c/deep/old"),
    ("file", "becomes-dir"), ("dir", "becomes-file"), ("file", "becomes-file/x"), ("file", "target"), ("link", "linked", "target"),
    ("soft", "soft", "a/one"), ("dir", "d"), ("file", "d/one"), ("file", "implied/by/path")])
layer("2.tar", [("file", "a/.wh.one", ""), ("file", "a/.wh.sub", ""), ("file", "b/.wh.gone", ""), ("file", "b/new"),
    ("dir", "c"), ("file", "c/.wh..wh..opq", ""), ("file", "c/new"), ("dir", "becomes-dir"), ("file", "becomes-dir/x"),
    ("file", "becomes-file"), ("link", "b/linked", "target"), ("link", "again", "b/linked"), ("file", ".wh.soft", ""),
    ("dir", "d"), ("file", "d/.wh.missing", ""), ("file", "implied/by/other")])
layer("3.tar", [("file", "a/one", "one again"), ("dir", "a/sub"), ("file", "a/sub/y"), ("file", "c/deep", "now a file"),
    ("file", ".wh.d", ""), ("file", "target", "changed: the links keep the old"), ("link", "third", "linked"),
    ("file", "implied/.wh.by", "")])
"#;

fn stack() -> [PathBuf; 3] {
    python(&directory(), LAYERS, [""; 0]);
    ["1.tar", "2.tar", "3.tar"].map(|name| directory().join(name))
}

fn stacks_agree() {
    let layers = stack();
    for count in 1..=3 {
        let layers: Vec<&Path> = layers[..count].iter().map(PathBuf::as_path).collect();
        compare(
            &format!("{count} layers"),
            &format!("stack-{count}"),
            "docker",
            &[],
            &layers,
        );
    }
}

#[test]
fn stacked_layers_agree_with_their_extraction_as_root() {
    root(|| stacks_agree());
}

#[test]
fn stacked_layers_agree_with_their_extraction_as_user() {
    user(|| stacks_agree());
}

#[test]
fn every_archive_format_holds_the_same_image() {
    root(|| {
        let layers = stack();
        let layers: Vec<&Path> = layers.iter().map(PathBuf::as_path).collect();
        for kind in ["docker", "oci", "directory"] {
            for compress in ["none", "gzip"] {
                compare(
                    kind,
                    &format!("{kind}-{compress}"),
                    kind,
                    &["--compress", compress],
                    &layers,
                );
                shell(&directory(), "rm -rf image image.tar", [""; 0]);
            }
        }
    });
}

#[test]
fn an_archive_that_is_gzipped_as_a_whole_is_read() {
    root(|| {
        let layers = stack();
        let archive = directory().join("image.tar");
        make_image("docker", &archive, "image:1", &[], &[&layers[0]]);
        shell(&directory(), "gzip -k image.tar", [""; 0]);
        let (plain, zipped) = (Store::new("plain"), Store::new("zipped"));
        plain.load(&archive);
        zipped.load(&directory().join("image.tar.gz"));
        assert_eq!(plain.objects_by_name(), zipped.objects_by_name());
    });
}
