//! `cowl-mountd` with fuse-overlayfs's command line: what callers rely on, and the same changes to
//! the same layers as with fuse-overlayfs and the kernel's overlayfs.

mod deaths;
mod ends;
mod ids;

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};

use cowl_tests::command::{Outcome, binary, program, run, shell, system};
use cowl_tests::host::has_overlayfs;
use cowl_tests::profile::{await_processes, directory, root, user};
use cowl_tests::skip::skip;
use cowl_tests::tree::{Tree, assert_same, read};

/// Three layers, top first, with every kind of whiteout, opaque mark and redirect.
const LAYERS: &str = r"
mkdir top middle bottom
cd bottom
mkdir -p dir/sub gone opaque both/deep; echo bottom > dir/file; echo x > dir/sub/x; echo y > gone/y
echo hidden > opaque/hidden; echo deep > both/deep/file; ln dir/file dir/link; ln -s dir/file link
seq 1 30000 > large; echo removed > removed; echo kept > kept; mkfifo fifo; chmod 4755 kept
touch -d 2001-01-01 dir/file large kept dir/sub/x
setfattr -n user.test -v value kept
cd ../middle
mkdir -p opaque both dir; echo shown > opaque/shown; echo middle > both/file; touch dir/.wh.absent
touch opaque/.wh..wh..opq .wh.removed .wh.gone; echo new > dir/new
cd ../top
mkdir both; echo top > both/top; touch -d 2002-02-02 both
";

/// Changes of every kind.
const CHANGES: &str = r"
echo more >> dir/new; chmod 600 kept; echo created > created; mkdir newdir newdir/a; echo b > newdir/a/b
mv large moved; mv newdir/a newdir/c; rm link; ln -s elsewhere link; rm -r both/deep; rm dir/sub/x; rmdir dir/sub
mkdir dir/sub; echo again > dir/sub/again; rm -r opaque; mkdir opaque; echo only > opaque/only
ln created created2; truncate -s 5 created; setfattr -n user.mine -v 1 created; chown 1:1 dir/new || true
cp -p kept copied; touch -d 2003-03-03 created moved dir/new; printf %s overwritten > both/file; rm fifo; mkfifo fifo
";

struct Place {
    path: PathBuf,
}

impl Place {
    fn new(name: &str) -> Self {
        let path = directory().join(name);
        fs::create_dir(&path).unwrap();
        for part in ["upper", "work", "mnt"] {
            fs::create_dir(path.join(part)).unwrap();
        }
        Self { path }
    }

    fn with_layers(name: &str) -> Self {
        let place = Self::new(name);
        shell::<&str>(&place.path, LAYERS, []);
        place
    }

    fn at(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Mounts with a program that takes fuse-overlayfs's command line, and waits, as its callers
    /// do, until its pipes are closed.
    fn mount(&self, program_path: &Path, options: &str) -> Outcome {
        let script =
            "said=$(\"$1\" -o \"$2\" mnt 2>&1) || { code=$?; echo \"$said\" >&2; exit $code; }";
        let mut command = program("sh", ["-uc", script, "sh"]);
        run(command
            .arg(program_path)
            .arg(options)
            .current_dir(&self.path))
    }

    fn ours(&self, options: &str) {
        self.mount(&binary("cowl-mountd"), options).ok();
    }

    fn unmount(&self) {
        system("umount", [self.at("mnt")]);
    }

    /// Whether something is mounted.
    fn is_mounted(&self) -> bool {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let point = format!(" {} ", self.at("mnt").display());
        table.contains(&point)
    }

    fn shown(&self) -> Tree {
        read(&self.at("mnt"))
    }
}

const STACK: &str = "lowerdir=top:middle:bottom,upperdir=upper,workdir=work";

fn overlayfs(place: &Place, options: &str) {
    let all = format!("{STACK},{options}");
    shell(
        &place.path,
        "mount -t overlay overlay -o \"$1\" mnt",
        [all.as_str()],
    );
}

/// What programs see of a tree, without legitimate differences: times set by the clock, and link
/// counts of directories, which are 1 in overlayfs.
fn comparable(mut tree: Tree) -> Tree {
    for entry in tree.values_mut() {
        if entry.kind == rustix::fs::FileType::Directory {
            entry.nlink = 1;
        }
    }
    tree
}

#[test]
fn mounts_answer_when_the_command_returns_as_root() {
    root(|| mount_answers());
}

#[test]
fn mounts_answer_when_the_command_returns_as_user() {
    user(|| mount_answers());
}

fn mount_answers() {
    let place = Place::with_layers("place");
    place.ours(STACK);
    assert_eq!(
        fs::read_to_string(place.at("mnt/both/top")).unwrap(),
        "top\n"
    );
    fs::write(place.at("mnt/new"), "new").unwrap();
    place.unmount();
    assert_eq!(fs::read_to_string(place.at("upper/new")).unwrap(), "new");
    // Without an upper, or with ro, nothing can be changed.
    for options in ["lowerdir=top:middle:bottom", &format!("ro,{STACK}")] {
        place.ours(options);
        let error = fs::write(place.at("mnt/new"), "").unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
        assert_eq!(place.at("mnt/new").exists(), options.starts_with("ro"));
        place.unmount();
    }
    // mount.fuse and mount(8) put a source first; the name of the program does not matter.
    let mut command = program(
        binary("cowl-mountd").to_str().unwrap(),
        ["source", "mnt", "-o", "rw,dev,suid,lowerdir=top"],
    );
    run(command.arg0("fuse-overlayfs").current_dir(&place.path)).ok();
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(table.contains(" fuse.cowl source "), "{table}");
    place.unmount();
}

#[test]
fn names_with_colons_and_commas_are_escaped_as_root() {
    root(|| {
        let place = Place::new("place");
        shell::<&str>(
            &place.path,
            "mkdir a:b c,d 'e\\'; echo 1 > a:b/one; echo 2 > c,d/two; echo 3 > 'e\\/three'; mkdir u,p:per",
            [],
        );
        place.ours(r"lowerdir=a\:b:c\,d:e\\,upperdir=u\,p\:per,workdir=work");
        let names = shell::<&str>(&place.at("mnt"), "cat one two three", []);
        assert_eq!(names, "1\n2\n3\n");
        place.unmount();
    });
}

#[test]
fn a_refusal_is_one_line_and_exit_code_1_as_root() {
    root(|| {
        let place = Place::with_layers("place");
        for (options, said) in [
            ("lowerdir=absent", "cannot open lowerdir"),
            ("lowerdir=top,upperdir=upper", "workdir is missing"),
            (
                "lowerdir=top,xattr_permissions=2",
                "xattr_permissions is not supported",
            ),
            (
                "lowerdir=top,uidmapping=0:1",
                "uidmapping cannot be \"0:1\"",
            ),
            ("lowerdir=top,timeout=0", "timeout is not supported"),
            ("lowerdir=top,nonsense", "unknown option: nonsense"),
            ("upperdir=upper,workdir=work", "lowerdir is missing"),
        ] {
            let error = place.mount(&binary("cowl-mountd"), options).refused(1);
            assert!(error.contains(said), "{options}: {error}");
            assert_eq!(error.lines().count(), 1, "{error}");
        }
        let mountd = binary("cowl-mountd");
        let version =
            run(program(mountd.to_str().unwrap(), ["--version"]).arg0("fuse-overlayfs")).ok();
        assert!(version.starts_with("cowl-mountd "), "{version}");
        let help = run(program(mountd.to_str().unwrap(), ["--help"]).arg0("fuse-overlayfs")).ok();
        assert!(help.contains("-o lowerdir="), "{help}");
        place.ours(STACK);
        let error = place.mount(&mountd, STACK).refused(1);
        assert!(error.contains("in use"), "{error}");
        place.unmount();
    });
}

#[test]
fn the_same_changes_leave_the_same_tree_as_overlayfs_and_fuse_overlayfs_as_root() {
    if !has_overlayfs() {
        return skip("this kernel has no overlayfs");
    }
    root(|| {
        let ours = Place::with_layers("ours");
        ours.ours(STACK);
        let peer = Place::with_layers("peer");
        peer.mount(Path::new("/usr/bin/fuse-overlayfs"), STACK).ok();
        // The kernel reads no .wh. files: these layers have the same whiteouts as devices.
        let kernel = Place::with_layers("kernel");
        shell::<&str>(
            &kernel.path,
            "for f in $(find . -name '.wh.*' ! -name '.wh..wh..opq'); do
               rm $f; mknod $(dirname $f)/$(basename $f | cut -c5-) c 0 0; done
             find . -name .wh..wh..opq -execdir setfattr -n trusted.overlay.opaque -v y . \\; -delete",
            [],
        );
        overlayfs(&kernel, "redirect_dir=on,metacopy=on,index=off");
        let places = [&ours, &peer, &kernel];
        let lowers: Vec<Vec<Tree>> = places.iter().map(|place| lowers(place)).collect();
        for changes in ["true", CHANGES] {
            for place in places {
                shell::<&str>(&place.at("mnt"), changes, []);
            }
            let expected = comparable(kernel.shown());
            assert_same(
                &expected,
                &comparable(ours.shown()),
                "ours beside overlayfs",
            );
            assert_same(
                &expected,
                &comparable(peer.shown()),
                "fuse-overlayfs beside overlayfs",
            );
        }
        for (place, before) in places.iter().zip(lowers) {
            place.unmount();
            for (before, now) in before.iter().zip(self::lowers(place)) {
                assert_same(before, &now, "a lower layer");
            }
        }
    });
}

fn lowers(place: &Place) -> Vec<Tree> {
    ["top", "middle", "bottom"]
        .iter()
        .map(|layer| read(&place.at(layer)))
        .collect()
}

/// An upper on the kernel's overlayfs, with whiteouts as files: a layer for fuse-overlayfs and us.
#[test]
fn fuse_overlayfs_reads_an_upper_with_whiteout_files_as_root() {
    if !has_overlayfs() {
        return skip("this kernel has no overlayfs");
    }
    root(|| {
        let place = Place::with_layers("place");
        let host = "mkdir host host.lower host.upper host.work
            mount -t overlay overlay -o lowerdir=host.lower,upperdir=host.upper,workdir=host.work host
            mkdir host/upper host/work";
        shell::<&str>(&place.path, host, []);
        place.ours("lowerdir=top:middle:bottom,upperdir=host/upper,workdir=host/work,metacopy=off,redirect_dir=off");
        shell::<&str>(&place.at("mnt"), CHANGES, []);
        let expected = comparable(place.shown());
        place.unmount();
        let files = shell::<&str>(
            &place.at("host/upper"),
            "find . -name '.wh.*' | sort | tr '\\n' ' '",
            [],
        );
        assert_eq!(files, "./.wh.large ./both/.wh.deep ");
        for reader in [Path::new("/usr/bin/fuse-overlayfs"), &binary("cowl-mountd")] {
            place
                .mount(reader, "lowerdir=host/upper:top:middle:bottom")
                .ok();
            let mut found = comparable(place.shown());
            for entry in found.values_mut() {
                entry
                    .xattrs
                    .retain(|name, _| !name.starts_with("trusted.overlay."));
            }
            assert_same(&expected, &found, &format!("{}", reader.display()));
            place.unmount();
        }
        await_processes();
        shell::<&str>(&place.path, "umount host", []);
    });
}

/// What containers of Podman are that began with fuse-overlayfs, and go back to it.
fn an_upper_of_fuse_overlayfs_is_mounted_and_given_back() {
    let place = Place::with_layers("place");
    let (peer, ours) = (Path::new("/usr/bin/fuse-overlayfs"), binary("cowl-mountd"));
    let again = "rm -r opaque/only both dir newdir; mkdir both spare; mv -T spare opaque; \
                 echo once > opaque/more; rm kept";
    for (changer, reader, changes) in [(peer, &*ours, CHANGES), (&ours, peer, again)] {
        let mut shown = [changer, reader].map(|program| {
            let options = "lowerdir=top:middle:bottom,upperdir=upper,workdir=work";
            place.mount(program, options).ok();
            if program == changer {
                shell::<&str>(&place.at("mnt"), changes, []);
            }
            let shown = comparable(place.shown());
            place.unmount();
            await_processes();
            shown
        });
        let [expected, found] = &mut shown;
        assert_same(expected, found, &format!("{}", reader.display()));
    }
}

#[test]
fn an_upper_of_fuse_overlayfs_is_mounted_and_given_back_as_root() {
    root(|| an_upper_of_fuse_overlayfs_is_mounted_and_given_back());
}

#[test]
fn an_upper_of_fuse_overlayfs_is_mounted_and_given_back_as_user() {
    user(|| an_upper_of_fuse_overlayfs_is_mounted_and_given_back());
}

/// Layers that both support: whiteouts as devices, opaque marks as xattrs.
const KERNELS: &str = r"
mkdir top middle bottom
cd bottom; mkdir -p dir/sub other gone; echo one > dir/one; echo two > dir/sub/two; echo big > content; echo y > gone/y; echo o > dir/own
ln dir/one dir/linked; setfattr -n user.x -v 1 content; touch -d 2001-01-01 content dir/one dir/sub/two
cd ../middle; mkdir dir; echo m > dir/m; mknod gone c 0 0
cd ../top; mkdir other; echo t > other/t
";

const INTEROP: &str = r"
mv dir renamed; mkdir dir; echo fresh > dir/fresh; chmod 600 content; mv content moved; chown 5:6 renamed/sub/two
mv renamed/sub other/sub; echo more >> renamed/m; rm other/t; touch -d 2004-04-04 moved
";

#[test]
fn overlayfs_mounts_our_upper_and_we_mount_overlayfs_s_as_root() {
    if !has_overlayfs() {
        return skip("this kernel has no overlayfs");
    }
    root(|| {
        for writer_is_ours in [true, false] {
            let place = Place::new(if writer_is_ours { "ours" } else { "kernels" });
            shell::<&str>(&place.path, KERNELS, []);
            let kernel = || overlayfs(&place, "redirect_dir=on,metacopy=on,index=off");
            let mount = |ours: bool| {
                if ours {
                    place.ours(STACK);
                } else {
                    kernel();
                }
            };
            mount(writer_is_ours);
            shell::<&str>(&place.at("mnt"), INTEROP, []);
            let written = place.shown();
            place.unmount();
            mount(!writer_is_ours);
            assert_same(
                &unlinked(written),
                &unlinked(place.shown()),
                "the other one's upper",
            );
            // And on from there with the other one.
            shell::<&str>(
                &place.at("mnt"),
                "echo x >> moved; mv renamed again; rm -r dir; chmod 640 again/m",
                [],
            );
            let written = place.shown();
            place.unmount();
            mount(writer_is_ours);
            assert_same(
                &unlinked(written),
                &unlinked(place.shown()),
                "the first one's again",
            );
            place.unmount();
        }
    });
}

/// Without an index overlayfs breaks hard links at copy-up, so link counts differ.
fn unlinked(tree: Tree) -> Tree {
    let mut tree = comparable(tree);
    for (path, entry) in &mut tree {
        entry.nlink = 1;
        entry.first_name.clone_from(path);
    }
    tree
}

#[test]
fn an_upper_says_in_overlayfs_s_attributes_what_overlayfs_would_say_as_root() {
    if !has_overlayfs() {
        return skip("this kernel has no overlayfs");
    }
    root(|| {
        let marks = |ours: bool| {
            let place = Place::new(if ours { "ours" } else { "kernels" });
            shell::<&str>(&place.path, KERNELS, []);
            if ours {
                place.ours(STACK);
            } else {
                overlayfs(&place, "redirect_dir=on,metacopy=on,index=off");
            }
            shell::<&str>(
                &place.at("mnt"),
                "chmod 600 content; mv other renamed; rm dir/m; chmod 640 dir/own; mv dir/own dir/moved; rm -r dir/sub; mkdir dir/sub",
                [],
            );
            place.unmount();
            // Redirects within a directory are relative in overlayfs, and mean the same.
            shell::<&str>(
                &place.at("upper"),
                "find . -printf '%p %y %l %s\\n' | sort; getfattr -R -h -d -m 'trusted.overlay.(opaque|redirect|metacopy)' . |
                   sed 's,redirect=\"own,redirect=\"/dir/own,; s,redirect=\"other,redirect=\"/other,'",
                [],
            )
        };
        assert_eq!(marks(true), marks(false));
    });
}

#[test]
fn st_ino_and_st_dev_are_stable_over_copy_up_and_remount_as_root() {
    root(|| inodes_are_stable());
}

#[test]
fn st_ino_and_st_dev_are_stable_over_copy_up_and_remount_as_user() {
    user(|| inodes_are_stable());
}

fn inodes_are_stable() {
    let place = Place::with_layers("place");
    place.ours(STACK);
    let number = |name: &str| {
        let found = fs::symlink_metadata(place.at("mnt").join(name)).unwrap();
        (found.ino(), found.dev())
    };
    let names = [
        "dir/file",
        "dir/link",
        "dir",
        "kept",
        "both/deep/file",
        "large",
    ];
    let before: Vec<_> = names.iter().map(|name| number(name).0).collect();
    assert_eq!(
        before[0],
        fs::metadata(place.at("bottom/dir/file")).unwrap().ino()
    );
    shell::<&str>(
        &place.at("mnt"),
        "chmod 640 kept; echo >> dir/file; touch both/deep/file; echo >> large",
        [],
    );
    let after: Vec<_> = names.iter().map(|name| number(name).0).collect();
    assert_eq!(before, after);
    assert_eq!(number("kept").1, number("dir").1);
    place.unmount();
    place.ours(STACK);
    let again: Vec<_> = names.iter().map(|name| number(name).0).collect();
    assert_eq!(before, again);
    assert_eq!(
        fs::read_to_string(place.at("mnt/dir/link")).unwrap(),
        "bottom\n\n"
    );
    place.unmount();
}
