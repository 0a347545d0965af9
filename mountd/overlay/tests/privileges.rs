//! Owners, permissions, ACLs, capabilities and marks: set at creation, dropped by writes.

use cowl_core::upper::marks::Namespace;
use cowl_tests::skip::skip;

use super::rules::small;
use super::*;

/// Version 2; `user::rwx,user:0:rwx,group::r-x,mask::rwx,other::---`: tag and permissions u16, id
/// u32, little-endian.
const DEFAULT_ACL: &[u8] =
    b"\x02\0\0\0\x01\0\x07\0\xff\xff\xff\xff\x02\0\x07\0\0\0\0\0\x04\0\x05\0\xff\xff\xff\xff\
    \x10\0\x07\0\xff\xff\xff\xff\x20\0\0\0\xff\xff\xff\xff";

#[test]
fn setxattr_escapes_marks_and_mknod_0_0_is_no_whiteout() {
    let fixture = small();
    let overlay = fixture.overlay();
    let space = namespace(&overlay).prefix();
    let id = walk(&overlay, "dir").unwrap();
    let name = format!("{space}overlay.opaque").into_bytes();
    overlay
        .setxattr(id, &name, b"y", XattrFlags::default())
        .unwrap();
    assert_eq!(overlay.getxattr(id, &name).unwrap(), b"y");
    assert_eq!(overlay.listxattr(id).unwrap(), [&*name, b"\0"].concat());
    let device = FileType::CharDevice;
    let made = overlay
        .mknod(
            NodeId::ROOT,
            b"zero",
            device,
            0o644,
            Rdev::default(),
            0,
            &ROOT_CALLER,
        )
        .unwrap();
    assert_eq!(made.attr.file_type, device);
    overlay
        .setattr(walk(&overlay, "null").unwrap(), &mode(0o600))
        .unwrap();
    let zero_ino = made.attr.ino;
    drop(overlay);
    let overlay = fixture.overlay();
    for (path, mode) in [("zero", 0o644), ("null", 0o600)] {
        let attr = stat(&overlay, path);
        assert_eq!(
            (attr.file_type, attr.mode, attr.rdev.major, attr.size),
            (device, mode, 0, 0),
            "{path}"
        );
    }
    assert_eq!(stat(&overlay, "zero").ino, zero_ino);
    assert_eq!(
        names(&overlay, "dir").len(),
        3,
        "a forged mark hid the tree"
    );
}

#[test]
fn write_without_fsetid_drops_set_id_bits_and_capabilities() {
    let fixture = small();
    let overlay = fixture.overlay();
    let id = walk(&overlay, "file").unwrap();
    overlay.setattr(id, &mode(0o6777)).unwrap();
    let writer = overlay.open(id, WRITE).unwrap();
    assert_eq!(
        overlay.getattr(id).unwrap().mode,
        0o6777,
        "opening is no write"
    );
    assert!(
        matches!(writer.mode, OpenMode::Cached),
        "a set-user-id file is not written behind our back"
    );
    overlay
        .write(id, Some(writer.handle), 0, b"x", false)
        .unwrap();
    // Outside of the initial user namespace the host drops them at every write.
    let initial = namespace(&overlay) == Namespace::Trusted;
    let kept = if initial { 0o6777 } else { 0o777 };
    assert_eq!(overlay.getattr(id).unwrap().mode, kept);
    overlay
        .write(id, Some(writer.handle), 0, b"x", true)
        .unwrap();
    assert_eq!(overlay.getattr(id).unwrap().mode, 0o777);
    // Without execution by the group, set-group-id is mandatory locking and stays.
    overlay.setattr(id, &mode(0o6767)).unwrap();
    let attr = overlay
        .setattr(
            id,
            &SetAttr {
                kill_priv: true,
                ..SetAttr::default()
            },
        )
        .unwrap();
    assert_eq!(attr.mode, 0o2767);
    let fifo = walk(&overlay, "fifo").unwrap();
    overlay.setattr(fifo, &mode(0o6755)).unwrap();
    let kill = SetAttr {
        kill_priv: true,
        ..SetAttr::default()
    };
    // As chown(-1, -1) asks for, of anything but a directory.
    assert_eq!(overlay.setattr(fifo, &kill).unwrap().mode, 0o755);
    overlay.setattr(id, &mode(0o6755)).unwrap();
    let attr = overlay
        .setattr(
            id,
            &SetAttr {
                uid: Some(0),
                ..SetAttr::default()
            },
        )
        .unwrap();
    assert_eq!(attr.mode, 0o755, "chown drops them for everyone");
}

#[test]
fn new_upper_drops_an_inherited_default_acl() {
    let fixture = small();
    for name in ["upper", "work"] {
        let none = rustix::fs::XattrFlags::empty();
        let dir = fixture.path(name);
        rustix::fs::lsetxattr(dir, "system.posix_acl_default", DEFAULT_ACL, none).unwrap();
    }
    let overlay = fixture.overlay();
    let id = walk(&overlay, "dir/one").unwrap();
    overlay.setattr(id, &mode(0o600)).unwrap();
    for path in ["", "dir", "dir/one"] {
        let names = overlay.listxattr(walk(&overlay, path).unwrap()).unwrap();
        assert_eq!(names, b"", "{path}");
    }
}

/// `cap_net_raw=p` as the kernel stores it: version 2 and permitted, inheritable sets, u32
/// little-endian.
const CAPABILITY: &[u8] = b"\0\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

#[test]
fn copy_up_keeps_capabilities_and_write_drops_them() {
    let name = "security.capability";
    let fixture = Fixture::new(&[(
        "ping",
        0o755,
        ItemKind::File(b"ping"),
        &[(name, CAPABILITY)],
    )]);
    let overlay = fixture.overlay();
    let id = walk(&overlay, "ping").unwrap();
    assert_eq!(overlay.getxattr(id, name.as_bytes()).unwrap(), CAPABILITY);
    overlay.setattr(id, &mode(0o711)).unwrap();
    assert_eq!(overlay.getxattr(id, name.as_bytes()).unwrap(), CAPABILITY);
    let writer = overlay.open(id, WRITE).unwrap();
    assert_eq!(overlay.getxattr(id, name.as_bytes()).unwrap(), CAPABILITY);
    overlay
        .write(id, Some(writer.handle), 0, b"x", false)
        .unwrap();
    assert_eq!(
        overlay.getxattr(id, name.as_bytes()),
        Err(Errno::NODATA),
        "as on any file system, for root too"
    );
}

#[test]
fn create_applies_umask_and_default_acl_as_the_host_does() {
    let fixture = small();
    let overlay = fixture.overlay();
    let root = NodeId::ROOT;
    let (made, opened) = overlay
        .create(root, b"masked", 0o666, 0o027, WRITE, &ROOT_CALLER)
        .unwrap();
    overlay.release(made.id, opened.handle).unwrap();
    assert_eq!(made.attr.mode, 0o640);
    let dir = walk(&overlay, "dir").unwrap();
    overlay
        .setxattr(
            dir,
            b"system.posix_acl_default",
            DEFAULT_ACL,
            XattrFlags::default(),
        )
        .unwrap();
    overlay.unlink(dir, b"one").unwrap();
    let plain = fixture.path("plain/acl");
    fs::create_dir(&plain).unwrap();
    rustix::fs::lsetxattr(
        &plain,
        "system.posix_acl_default",
        DEFAULT_ACL,
        rustix::fs::XattrFlags::empty(),
    )
    .unwrap();
    // At a free name, and at one that has a whiteout.
    for name in [&b"fresh"[..], b"one"] {
        let (ours, opened) = overlay
            .create(dir, name, 0o666, 0o077, WRITE, &ROOT_CALLER)
            .unwrap();
        overlay.release(ours.id, opened.handle).unwrap();
        let host = plain.join(std::str::from_utf8(name).unwrap());
        File::create(&host).unwrap();
        let want = std::os::unix::fs::MetadataExt::mode(&fs::metadata(&host).unwrap()) & 0o7777;
        assert_eq!(ours.attr.mode, want);
        let mut value = [0; 128];
        let length =
            rustix::fs::lgetxattr(&host, "system.posix_acl_access", &mut value[..]).unwrap();
        assert_eq!(
            overlay
                .getxattr(ours.id, b"system.posix_acl_access")
                .unwrap(),
            value[..length]
        );
    }
    // What is copied up into that directory inherits nothing.
    let hard = walk(&overlay, "dir/sub/deep").unwrap();
    overlay.setattr(hard, &mode(0o644)).unwrap();
    assert_eq!(
        overlay
            .listxattr(walk(&overlay, "dir/sub").unwrap())
            .unwrap(),
        b""
    );
}

#[test]
fn create_sets_the_owner_and_group_of_the_caller() {
    if !model::owners() {
        return skip("files cannot be given to other users here");
    }
    let fixture = small();
    let overlay = fixture.overlay();
    let caller = Caller {
        uid: 1234,
        gid: 4321,
    };
    overlay.unlink(NodeId::ROOT, b"file").unwrap();
    let (made, _) = overlay
        .create(NodeId::ROOT, b"file", 0o600, 0, WRITE, &caller)
        .unwrap();
    assert_eq!((made.attr.uid, made.attr.gid), (1234, 4321));
    let dir = overlay
        .mkdir(NodeId::ROOT, b"d", 0o2770, 0, &ROOT_CALLER)
        .unwrap();
    overlay
        .setattr(
            dir.id,
            &SetAttr {
                gid: Some(99),
                mode: Some(0o2770),
                ..SetAttr::default()
            },
        )
        .unwrap();
    let inside = overlay.mkdir(dir.id, b"e", 0o755, 0, &caller).unwrap();
    assert_eq!(
        (inside.attr.uid, inside.attr.gid, inside.attr.mode),
        (1234, 99, 0o2755)
    );
    let link = overlay
        .symlink(NodeId::ROOT, b"l", b"x", &ROOT_CALLER)
        .unwrap();
    assert_eq!((link.attr.uid, link.attr.gid), (0, 0));
    // Copy-up is not a write.
    let caller_again = overlay
        .mkdir(NodeId::ROOT, b"f", 0o755, 0, &caller)
        .unwrap();
    assert_eq!(caller_again.attr.uid, 1234);
    let one = walk(&overlay, "dir/one").unwrap();
    let attr = overlay.setattr(one, &mode(0o600)).unwrap();
    assert_eq!((attr.uid, attr.gid), (0, 0));
}
