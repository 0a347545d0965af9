//! `cowl dedup`: its figures agree with the archives and `du`, in every output format.

mod archives;
mod command_line;
mod conditions;
mod figures;
mod partial;
mod runs;
mod views;

use std::fs;
use std::path::{Path, PathBuf};

use cowl_tests::command::python;
use cowl_tests::profile::directory;
use cowl_tests::store::{Store, make_image};

/// Writes layers with what is easily miscounted: files replaced, deleted, repeated with another
/// owner, hard-linked across layers, sparse, twice in one layer, and whiteouts of names that never
/// existed.
const LAYERS: &str = r"
import io, sys, tarfile
def layer(name, *entries):
    with tarfile.open(name, 'w', format=tarfile.PAX_FORMAT) as archive:
        for path, kind, value in entries:
            info = tarfile.TarInfo(path)
            info.mtime, info.mode, data = 1, 0o755 if kind == 'dir' else 0o644, None
            if kind == 'dir': info.type = tarfile.DIRTYPE
            elif kind == 'hard': info.type, info.linkname = tarfile.LNKTYPE, value
            elif kind == 'link': info.type, info.linkname = tarfile.SYMTYPE, value
            else:
                data = value.encode() if isinstance(value, str) else value
                info.size = len(data)
                info.uid = 7 if kind == 'owned' else 0
            archive.addfile(info, io.BytesIO(data) if data is not None else None)
big, other = 'B' * 50001, 'O' * 3001
layer('base.tar', ('etc', 'dir', ''), ('etc/conf', 'file', 'old'), ('srv/big', 'file', big), ('srv/link', 'hard', 'srv/big'),
      ('srv/also', 'file', other), ('opt/a', 'file', 'a' * 100), ('opt/b', 'file', 'b' * 200), ('empty', 'file', ''),
      ('sym', 'link', 'etc/conf'))
layer('changes.tar', ('etc/conf', 'file', 'newer'), ('srv/also', 'owned', other), ('srv/.wh.big', 'file', ''),
      ('srv/again', 'hard', 'srv/also'), ('.wh.never', 'file', ''), ('gone/.wh.at-all', 'file', ''),
      ('opt', 'dir', ''), ('opt/.wh..wh..opq', 'file', ''), ('opt/a', 'file', 'a' * 100), ('sym', 'file', 'no link'))
layer('more.tar', ('srv/.wh.link', 'file', ''), ('srv/copy', 'file', other), ('usr/x', 'file', 'a' * 100), ('etc/conf/d', 'file', 'z'))
layer('other.tar', ('data', 'file', other), ('byte', 'file', 'z'), ('holes', 'file', b'\0' * 300000 + b'end'))
layer('alone.tar', ('mine', 'file', 'nothing in common'))
";

/// Loads images of these layers; returns the archives.
fn load_images(store: &Store) -> Vec<PathBuf> {
    let parts = directory().join("parts");
    fs::create_dir(&parts).unwrap();
    python(&parts, LAYERS, [""; 0]);
    let images: [(&str, &str, &[&str]); 5] = [
        ("docker", "one", &["base", "changes", "more"]),
        ("oci", "two", &["base", "other"]),
        ("docker", "three", &["base", "changes"]),
        ("docker", "four", &["alone"]),
        ("oci", "five", &["base", "other", "more"]),
    ];
    let archives = images.map(|(kind, name, layers)| {
        let archive = directory().join(format!("{name}.tar"));
        let layers: Vec<PathBuf> = layers
            .iter()
            .map(|layer| parts.join(format!("{layer}.tar")))
            .collect();
        let layers: Vec<&Path> = layers.iter().map(PathBuf::as_path).collect();
        make_image(kind, &archive, &format!("{name}:latest"), &[], &layers);
        store.load(&archive);
        archive
    });
    archives.into()
}

/// A figure from the JSON, by a Python expression.
fn figure(store: &Store, arguments: &[&str], expression: &str) -> String {
    let report = directory().join("figure.json");
    fs::write(
        &report,
        store.ok([&["dedup", "--json"], arguments].concat()),
    )
    .unwrap();
    let script = format!("import json, sys; r = json.load(open(sys.argv[1])); print({expression})");
    python(&directory(), &script, [report]).trim().to_owned()
}
