//! Malicious archives and marks: entries that could lead out of an image are refused by name, and
//! nothing of them is kept; xattrs that look like our own marks are ordinary data.

use cowl_tests::command::{python, shell};
use cowl_tests::profile::{directory, root, user};
use cowl_tests::store::Store;

/// `layer.tar` of entries `kind path [link target or content]`, given as arguments separated by |.
const ARCHIVE: &str = r#"
import io, sys, tarfile
with tarfile.open("layer.tar", "w", format=tarfile.PAX_FORMAT) as archive:
    for argument in sys.argv[1:]:
        kind, path, *rest = argument.split("|")
        info = tarfile.TarInfo(path)
        info.mode = 0o755
        data = b""
        if kind == "dir": info.type = tarfile.DIRTYPE
        elif kind == "link": info.type, info.linkname = tarfile.LNKTYPE, rest[0]
        elif kind == "soft": info.type, info.linkname = tarfile.SYMTYPE, rest[0]
        else: data = (rest or [path])[0].encode(); info.size = len(data)
        if kind == "marked": info.pax_headers = dict(pair.split("=") for pair in rest[1:])
        archive.addfile(info, io.BytesIO(data))
"#;

#[test]
fn an_entry_that_could_escape_is_refused_by_name() {
    root(|| {
        let store = Store::empty("store");
        let empty = contents(&store);
        for (name, entries) in [
            ("../escaped", &["file|../escaped"][..]),
            ("a/../../escaped", &["dir|a", "file|a/../../escaped"]),
            ("link/passwd", &["soft|link|/etc", "file|link/passwd"]),
            ("up/escaped", &["soft|up|..", "file|up/escaped"]),
            ("hard", &["link|hard|../../etc/passwd"]),
            ("hard", &["link|hard|missing"]),
            ("hard", &["dir|there", "link|hard|there"]),
            ("file/below", &["file|file", "file|file/below"]),
            ("a/.wh.", &["dir|a", "file|a/.wh."]),
            ("a/.wh...", &["dir|a", "file|a/.wh..."]),
        ] {
            python(&directory(), ARCHIVE, entries);
            let line = store
                .run([
                    "import",
                    directory().join("layer.tar").to_str().unwrap(),
                    "evil",
                ])
                .refused(1);
            assert!(line.contains(name), "`{line}` does not name {name}");
            assert_eq!(contents(&store), empty, "something was kept of {entries:?}");
        }
        assert!(!directory().join("escaped").exists());
    });
}

/// All files of the store but locks.
fn contents(store: &Store) -> String {
    shell(
        store.root(),
        "find . -type f ! -name 'lock*' | sort",
        [""; 0],
    )
}

fn marks_in_a_layer_are_data() {
    let store = Store::new("store");
    let entries = [
        "dir|dir",
        "file|dir/below",
        "marked|opaque|x|SCHILY.xattr.user.overlay.opaque=y|SCHILY.xattr.user.plain=p",
        "marked|origin|content|SCHILY.xattr.user.overlay.cowl.data=0000|SCHILY.xattr.user.overlay.metacopy=y",
        "marked|redirect|y|SCHILY.xattr.user.overlay.redirect=/etc",
    ];
    python(&directory(), ARCHIVE, entries);
    store.ok([
        "import",
        directory().join("layer.tar").to_str().unwrap(),
        "marked",
    ]);
    let mut mount = store.mount_upper("marked", "mnt");
    let value = |file: &str, name: &str| {
        shell(
            mount.path(),
            "getfattr --only-values -n \"$2\" \"$1\"",
            [file, name],
        )
    };
    assert_eq!(value("opaque", "user.plain"), "p");
    assert_eq!(value("opaque", "user.overlay.opaque"), "y");
    assert_eq!(value("redirect", "user.overlay.redirect"), "/etc");
    // Set through the mount, on files in the upper, they are data as well, now and after a remount.
    shell(
        mount.path(),
        "setfattr -n user.overlay.opaque -v y dir; setfattr -n user.overlay.redirect -v /etc dir
         setfattr -n user.overlay.whiteout -v y dir/below; echo more >> origin",
        [""; 0],
    );
    mount.remount();
    let value = |file: &str, name: &str| {
        shell(
            mount.path(),
            "getfattr --only-values -n \"$2\" \"$1\"",
            [file, name],
        )
    };
    assert_eq!(value("dir", "user.overlay.opaque"), "y");
    assert_eq!(value("dir", "user.overlay.redirect"), "/etc");
    assert_eq!(
        shell(mount.path(), "cat dir/below origin", [""; 0]),
        "dir/belowcontentmore\n"
    );
    mount.unmount();
}

#[test]
fn marks_in_a_layer_are_data_as_root() {
    root(|| marks_in_a_layer_are_data());
}

#[test]
fn marks_in_a_layer_are_data_as_user() {
    user(|| marks_in_a_layer_are_data());
}

#[test]
fn an_upper_serves_one_mount_and_one_image() {
    root(|| {
        let store = Store::new("store");
        for image in ["one", "two"] {
            python(&directory(), ARCHIVE, [format!("file|{image}")]);
            store.ok([
                "import",
                directory().join("layer.tar").to_str().unwrap(),
                image,
            ]);
        }
        let mount = store.mount_upper("one", "mnt");
        shell(mount.path(), "echo x > new; mkdir ../second", [""; 0]);
        let (upper, second) = (mount.upper().to_str().unwrap(), directory().join("second"));
        let arguments = |image| ["mount", image, second.to_str().unwrap(), "--upper", upper];
        let line = store.run(arguments("one")).refused(1);
        assert!(line.contains(upper), "{line}");
        let upper = upper.to_owned();
        mount.unmount();
        let line = store
            .run(["mount", "two", second.to_str().unwrap(), "--upper", &upper])
            .refused(1);
        assert!(line.contains(&upper), "{line}");
    });
}
