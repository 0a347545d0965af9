//! Owners with `uidmapping`, `gidmapping`, `squash_to_*` and `noacl`, shown and written; and with
//! `cowl mount` over an image.

use std::path::Path;

use cowl_tests::command::{program, run, shell};
use cowl_tests::profile::{root, user};
use cowl_tests::store::Store;

use super::{Place, STACK};

/// Lower files of root, of mapped owners, and of an unmapped owner.
const OWNED: &str = "
mkdir top middle bottom; cd bottom; mkdir dir; for id in 0 1 5 500 70000; do echo $id > $id; chown $id:$id $id; done
chown 1:2 dir; chmod 777 . dir ../upper; ln -s 5 link; chown -h 5:6 link
";

/// Creations as a mapped and as an unmapped user, copy-ups, and changes of owners.
const CHANGES: &str = "
as() { id=$1; shift; setpriv --reuid $id --regid $id --clear-groups \"$@\"; }
as 110004 sh -c 'umask 27; echo new > dir/new; mkdir dir/sub; ln -s x dir/symlink; mkfifo dir/fifo'
as 7 sh -c ': > dir/unmapped'
echo more >> 5; chmod 640 500; chown 110006:110007 1; chown 1000:1000 dir/new; mv 70000 moved; chown -h 110008:110005 link
rm 0; as 1000 mkdir 0
";

const OWNERS: &str = "find . ! -type c ! -name '.wh.*' -printf '%p %y %U:%G %m\\n' | sort";

/// Mounts the lowest layer as an image, in place of the stack.
fn mount_image(place: &Place, store: &str, options: &str) {
    let store = Store::new(store);
    store.import_directory(&place.at("bottom"), "bottom");
    let mut command = store.command(["mount", "bottom", "--upper"]);
    command.args(["upper", "--work", "work", "mnt"]);
    for option in options.split(',') {
        let (name, value) = option.split_once('=').unwrap_or((option, ""));
        command.arg(format!("--{}", name.replace('_', "-")));
        command.args(Some(value).filter(|value| !value.is_empty()));
    }
    run(command.current_dir(&place.path)).ok();
}

#[test]
fn mapped_and_squashed_owners_are_fuse_overlayfs_s_as_root() {
    root(|| {
        const MAPPED: &str =
            "uidmapping=0:1000:1:1:110000:65536,gidmapping=0:1000:1:1:110000:65536";
        let squashed = format!("squash_to_root,squash_to_gid=8,{MAPPED}");
        let cases = [
            MAPPED,
            "squash_to_root",
            "squash_to_uid=7,squash_to_gid=8",
            &squashed,
        ];
        for (number, options) in cases.into_iter().enumerate() {
            let [ours, image, peers] = ["cowl", "image", "peer"].map(|who| {
                let place = Place::new(&format!("{who}{number}"));
                shell::<&str>(&place.path, OWNED, []);
                let all = format!("{STACK},{options}");
                match who {
                    "cowl" => place.ours(&all),
                    "image" => mount_image(&place, &format!("store{number}"), options),
                    _ => {
                        place.mount(Path::new("/usr/bin/fuse-overlayfs"), &all).ok();
                    }
                }
                let before = shell::<&str>(&place.at("mnt"), OWNERS, []);
                shell::<&str>(&place.at("mnt"), CHANGES, []);
                let after = shell::<&str>(&place.at("mnt"), OWNERS, []);
                place.unmount();
                // The owners in the upper, and those in the lower, which stay.
                let kept =
                    ["upper", "bottom"].map(|side| shell::<&str>(&place.at(side), OWNERS, []));
                (before, after, kept)
            });
            assert_eq!(ours, peers, "{options}");
            assert_eq!(image, peers, "an image, {options}");
        }
    });
}

/// The test's namespace lacks the owner's id. In fuse-overlayfs too, such a copy keeps its creator
/// as owner.
#[test]
fn squashed_owners_that_the_namespace_lacks_are_left_as_user() {
    user(|| {
        let place = Place::new("place");
        let make = "mkdir top; echo content > top/file; mkdir top/dir
            tar -C top --owner=:3000000000 --group=:3000000000 -cf image.tar .";
        shell::<&str>(&place.path, make, []);
        let store = Store::new("store");
        store.ok(["import", place.at("image.tar").to_str().unwrap(), "image"]);
        let mount = |options: &[&str]| {
            let mut command = store.command(["mount", "image", "mnt", "--upper", "upper"]);
            run(command.args(options).current_dir(&place.path))
        };
        let refused = mount(&[]).refused(1);
        assert!(
            refused.contains("3000000000:3000000000") && refused.contains("--map-auto"),
            "{refused}"
        );
        mount(&["--squash-to-root"]).ok();
        let changes =
            "echo more >> file; chmod 600 file; mv file moved; touch dir/new; ln moved linked
            cat moved; stat -c '%n %u:%g %a' . moved dir dir/new";
        assert_eq!(
            shell::<&str>(&place.at("mnt"), changes, []),
            "content\nmore\n. 0:0 755\nmoved 0:0 600\ndir 0:0 755\ndir/new 0:0 644\n"
        );
        place.unmount();
    });
}

/// `u::rw-,u:USER:r--,g::---,m::r--,o::---` as system.posix_acl_access has it
/// (linux/posix_acl_xattr.h).
fn acl(user: u32) -> String {
    let mut value = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in [
        (0x01_u16, 6_u16, u32::MAX),
        (0x02, 4, user),
        (0x04, 0, u32::MAX),
        (0x10, 4, u32::MAX),
        (0x20, 0, u32::MAX),
    ] {
        value.extend(tag.to_le_bytes());
        value.extend(permissions.to_le_bytes());
        value.extend(id.to_le_bytes());
    }
    let digits: Vec<String> = value.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("0x{}", digits.concat())
}

/// The value of an ACL, in hexadecimal, or why there is none.
fn acl_of(place: &Place, path: &str, name: &str) -> String {
    let attribute = format!("system.posix_acl_{name}");
    let arguments = ["-e", "hex", "-n", &attribute, path];
    let read = run(program("getfattr", arguments).current_dir(&place.path));
    let value = read.stdout.lines().find_map(|line| line.split_once('='));
    value.map_or(read.stderr, |(_, value)| value.to_owned())
}

#[test]
fn ids_in_acls_are_mapped_both_ways_as_root() {
    root(|| {
        let place = Place::new("place");
        shell::<&str>(&place.path, OWNED, []);
        place.ours(&format!(
            "{STACK},uidmapping=0:1000:1:1:110000:65536,gidmapping=0:1000:1:1:110000:65536"
        ));
        let set = "setfattr -n system.posix_acl_access -v $1 500; setfattr -n system.posix_acl_default -v $1 dir; touch dir/heir";
        shell(&place.at("mnt"), set, [acl(110_004)]);
        for (path, name) in [("500", "access"), ("dir", "default")] {
            let at = |side: &str| acl_of(&place, &format!("{side}/{path}"), name);
            assert_eq!(at("mnt"), acl(110_004), "{path}");
            assert_eq!(at("upper"), acl(5), "{path}");
        }
        // An inherited ACL is the directory's, masked by the creation's mode.
        let at = |side: &str| acl_of(&place, &format!("{side}/dir/heir"), "access");
        assert_eq!(at("mnt"), acl(110_004));
        assert_eq!(at("upper"), acl(5));
        // The kernel checks permissions by the shown ACL.
        let read = "setpriv --reuid $1 --regid $1 --clear-groups cat 500";
        assert_eq!(shell(&place.at("mnt"), read, ["110004"]), "500\n");
        let mut stranger = program("sh", ["-euc", read, "sh", "5"]);
        let outcome = run(stranger.current_dir(place.at("mnt")));
        assert!(outcome.stderr.contains("Permission denied"), "{outcome}");
        place.unmount();
    });
}

#[test]
fn noacl_shows_and_hands_down_no_acl_as_root() {
    root(|| {
        let place = Place::new("place");
        shell::<&str>(&place.path, OWNED, []);
        let set = "setfattr -n system.posix_acl_default -v $1 dir; setfattr -n system.posix_acl_access -v $1 500";
        shell(&place.at("bottom"), set, [acl(5)]);
        place.ours(&format!("{STACK},noacl"));
        let made = "umask 22; touch dir/file; mkdir dir/made; stat -c %a dir/file dir/made; getfattr -m- -R . || true";
        assert_eq!(shell::<&str>(&place.at("mnt"), made, []), "644\n755\n");
        let refused = run(program(
            "setfattr",
            ["-n", "system.posix_acl_access", "-v", &acl(5), "mnt/5"],
        )
        .current_dir(&place.path));
        assert!(refused.stderr.contains("not supported"), "{refused}");
        place.unmount();
        for path in ["upper/dir/file", "upper/dir/made"] {
            let outcome = acl_of(&place, path, "access");
            assert!(outcome.contains("No such attribute"), "{path}: {outcome}");
        }
    });
}
