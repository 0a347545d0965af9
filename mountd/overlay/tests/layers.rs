//! What plain lower directories say of each other, and what an upper over them looks like to the
//! kernel's overlayfs.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::os::unix::fs::MetadataExt;

use cowl_core::upper::marks::Namespace;
use cowl_tests::tree::Content;
use rustix::fs::{CWD, Mode, XattrFlags as Host};

use super::*;

/// A mount of some layers, the top one first.
pub(super) struct Stack {
    base: TempDir,
    layers: Vec<&'static str>,
    space: Namespace,
}

impl Stack {
    pub(super) fn new(layers: &[&'static str]) -> Stack {
        let base = tempfile::tempdir().unwrap();
        for name in layers.iter().chain(&["upper", "work"]) {
            fs::create_dir(base.path().join(name)).unwrap();
        }
        Stack {
            base,
            layers: layers.to_vec(),
            space: Namespace::User,
        }
    }

    pub(super) fn path(&self, path: &str) -> PathBuf {
        self.base.path().join(path)
    }

    pub(super) fn write(&self, path: &str, content: &str) {
        fs::create_dir_all(self.path(path).parent().unwrap()).unwrap();
        fs::write(self.path(path), content).unwrap();
    }

    pub(super) fn mark(&self, path: &str, name: &str, value: &[u8]) {
        fs::create_dir_all(self.path(path)).unwrap();
        rustix::fs::lsetxattr(self.path(path), name, value, Host::empty()).unwrap();
    }

    pub(super) fn open(&self, io_mode: IoMode) -> Overlay {
        self.open_with(io_mode, None)
    }

    /// As a worker with this journal does.
    pub(super) fn open_with(&self, io_mode: IoMode, journal: Option<Arc<Journal>>) -> Overlay {
        let _none_starts = STARTING.read();
        let dir = |name: &str| OwnedFd::from(File::open(self.path(name)).unwrap());
        Overlay::new(Config {
            lower: LowerParts::Layers(Layers {
                roots: self.layers.iter().map(|name| dir(name)).collect(),
                space: self.space,
                static_nlink: false,
            }),
            upper: Some(UpperDirs {
                upper: dir("upper"),
                work: dir("work"),
                locks: None,
            }),
            io_mode,
            rules: Rules::default(),
            journal,
        })
        .unwrap()
    }

    /// All paths and contents, in order.
    fn shown(&self) -> Vec<String> {
        let overlay = self.open(IoMode::Cached);
        let text = |path: &str, content: &Content| match content {
            Content::None => String::new(),
            Content::Hash(_) => {
                let file = walk(&overlay, path).unwrap();
                String::from_utf8(read_all(&overlay, file, None)).unwrap()
            }
            Content::Target(target) => String::from_utf8(target.clone()).unwrap(),
        };
        view::of_overlay(&overlay)
            .iter()
            .map(|(path, file)| format!("{path} {}", text(path, &file.content)))
            .collect()
    }
}

#[test]
fn lookup_merges_layers_and_honours_every_whiteout() {
    let stack = Stack::new(&["top", "middle", "bottom"]);
    for name in [
        "a",
        "b",
        "c",
        "d",
        "merged/x",
        "opaque/x",
        "opaque2/x",
        "file/x",
    ] {
        stack.write(&format!("bottom/{name}"), "bottom");
    }
    stack.write("middle/a", "middle");
    stack.write("middle/.wh.b", "");
    let device = rustix::fs::mknodat(
        CWD,
        stack.path("middle/c"),
        rustix::fs::FileType::CharacterDevice,
        Mode::empty(),
        0,
    );
    device.unwrap();
    stack.write("middle/merged/y", "middle");
    stack.write("middle/opaque/.wh..wh..opq", "");
    stack.write("middle/opaque/z", "middle");
    stack.mark("middle/opaque2", "user.overlay.opaque", b"y");
    stack.write("middle/file", "a file over a directory");
    stack.write("top/merged/z", "top");
    stack.write("top/file/new", "not merged with the lowest");
    // A whiteout beside a file of its name hides what is below only.
    stack.write("top/.wh.d", "");
    stack.write("top/d", "top");
    assert_eq!(
        stack.shown(),
        [
            "a middle",
            "d top",
            "file ",
            "file/new not merged with the lowest",
            "merged ",
            "merged/x bottom",
            "merged/y middle",
            "merged/z top",
            "opaque ",
            "opaque/z middle",
            "opaque2 ",
        ]
    );
}

#[test]
fn lookup_follows_redirects_and_metacopy_of_a_layer_within_the_layers() {
    let stack = Stack::new(&["top", "bottom"]);
    stack.write("bottom/old/deep/file", "in the renamed directory");
    stack.write("bottom/sibling/file", "of the sibling");
    stack.write("bottom/content", "the content");
    stack.write("secret", "outside of every layer");
    stack.mark("top/new", "user.overlay.redirect", b"/old/deep");
    stack.mark("top/other", "user.overlay.redirect", b"sibling");
    stack.write("top/meta", "\0\0\0\0\0\0\0\0\0\0\0");
    let meta = stack.path("top/meta");
    rustix::fs::lsetxattr(&meta, "user.overlay.metacopy", b"", Host::empty()).unwrap();
    rustix::fs::lsetxattr(&meta, "user.overlay.redirect", b"/content", Host::empty()).unwrap();
    let shown = stack.shown();
    for line in [
        "meta the content",
        "new/file in the renamed directory",
        "other/file of the sibling",
    ] {
        assert!(shown.iter().any(|shown| shown == line), "{line}: {shown:?}");
    }
    stack.mark("top/evil", "user.overlay.redirect", b"/../secret");
    let overlay = stack.open(IoMode::Cached);
    let evil = walk(&overlay, "evil").unwrap();
    assert_eq!(overlay.lookup(evil, b"x"), Err(Errno::IO));
}

#[test]
fn st_ino_is_that_of_the_host_and_survives_copy_up_rename_and_remount() {
    let stack = Stack::new(&["top", "bottom"]);
    stack.write("bottom/dir/file", "content");
    let host = fs::metadata(stack.path("bottom/dir/file")).unwrap().ino();
    let overlay = stack.open(IoMode::Cached);
    let dir = walk(&overlay, "dir").unwrap();
    let file = overlay.lookup(dir, b"file").unwrap().unwrap();
    assert_eq!(file.attr.ino, host);
    let mode = SetAttr {
        mode: Some(0o600),
        ..SetAttr::default()
    };
    assert_eq!(overlay.setattr(file.id, &mode).unwrap().ino, host);
    overlay
        .rename(dir, b"file", NodeId::ROOT, b"moved", RenameMode::Replace)
        .unwrap();
    drop(overlay);
    let overlay = stack.open(IoMode::Cached);
    let moved = overlay.lookup(NodeId::ROOT, b"moved").unwrap().unwrap();
    assert_eq!((moved.attr.ino, moved.attr.mode), (host, 0o600));
    assert_eq!(read_all(&overlay, moved.id, None), b"content");
}

#[test]
fn five_hundred_layers_are_one() {
    // More files than a login's soft limit of 1024 allows; the worker has raised its own.
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    setrlimit(Resource::Nofile, raised).unwrap();
    let names: Vec<&'static str> = (0..500)
        .map(|number| &*Box::leak(format!("layer{number}").into_boxed_str()))
        .collect();
    let stack = Stack::new(&names);
    for (number, name) in names.iter().enumerate() {
        stack.write(&format!("{name}/dir/file{number}"), "one");
        stack.write(&format!("{name}/same"), name);
    }
    let overlay = stack.open(IoMode::Cached);
    let dir = walk(&overlay, "dir").unwrap();
    assert!(overlay.lookup(dir, b"absent").unwrap().is_none());
    assert!(overlay.lookup(dir, b"file499").unwrap().is_some());
    let same = walk(&overlay, "same").unwrap();
    assert_eq!(read_all(&overlay, same, None), b"layer0");
    assert_eq!(view::of_overlay(&overlay).len(), 502);
}

/// The upper itself stays empty then: only `work/` has the copy.
#[test]
fn chmod_of_a_hard_link_alone_survives_a_remount() {
    let stack = Stack::new(&["layer"]);
    stack.write("layer/a", "linked");
    fs::hard_link(stack.path("layer/a"), stack.path("layer/b")).unwrap();
    let overlay = stack.open(IoMode::Cached);
    let a = overlay.lookup(NodeId::ROOT, b"a").unwrap().unwrap();
    overlay.setattr(a.id, &mode(0o600)).unwrap();
    drop(overlay);
    let overlay = stack.open(IoMode::Cached);
    for name in [b"a", b"b"] {
        let found = overlay.lookup(NodeId::ROOT, name).unwrap().unwrap();
        assert_eq!(found.attr.mode & 0o777, 0o600);
    }
}
