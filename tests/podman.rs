//! Podman and Buildah with `cowl-mountd` as mount program, as root and rootless. Images are built
//! from busybox, without network access.

use cowl_tests::command::{binary, shell};
use cowl_tests::profile::{directory, root};

/// The start of every script below: an image in $PWD/img.tar, and `podman` and `buildah` with their
/// storage in $HOME and the mount program $MOUNTD. The runtime is runc, which supports every cgroup
/// layout.
const SETUP: &str = r#"
set -eu
cd "$HOME"
mkdir -p img/bin run tmp
export TMPDIR=$PWD/tmp LC_ALL=C
cp "$(command -v busybox)" img/bin/busybox
for applet in sh ls cat echo rm mkdir mv chmod id stat touch find sort; do ln -s busybox img/bin/$applet; done
tar -C img --owner 0 --group 0 -cf img.tar .
storage() { echo "--root $HOME/store --runroot $HOME/run --storage-driver overlay --storage-opt overlay.mount_program=$MOUNTD"; }
podman() { command podman $(storage) --tmpdir "$HOME/tmp/libpod" --cgroup-manager cgroupfs --events-backend none --runtime runc "$@"; }
buildah() { command buildah $(storage) "$@"; }
run() { podman run --network none ${PARENT:+--cgroup-parent "$PARENT"} "$@"; }
"#;

/// The command that runs a script as root.
const AS_ROOT: &str = r#"exec sh -euc "$1""#;

/// How one is run as an ordinary user, with subordinate ids and a /dev/fuse of its own.
const AS_USER: &str = r#"
echo nobody:100000:65536 >subids
mount --bind subids /etc/subuid
mount --bind subids /etc/subgid
mknod -m 666 fuse c 10 229
mount --bind fuse /dev/fuse
cp "$MOUNTD" mountd
mkdir home home/xdg
chown -R 65534:65534 home
chmod 700 home/xdg
chmod 711 . ..
export HOME=$PWD/home XDG_RUNTIME_DIR=$PWD/home/xdg MOUNTD=$PWD/mountd PARENT=
exec setpriv --reuid 65534 --regid 65534 --clear-groups sh -euc "$1"
"#;

/// Runs a script after [`SETUP`], in mount and pid namespaces that end with it: rootless Podman
/// leaves a process running. The cgroups' names are unique to the test.
fn contained(how: &str, script: &str) -> String {
    const AROUND: &str = r#"
export HOME=$PWD MOUNTD=$1 PARENT=$2
# Not with one `find` from the top: groups of other tests go while it looks, which are errors to it.
remove() {
  for group in "/sys/fs/cgroup$PARENT" /sys/fs/cgroup/*"$PARENT"; do
    if [ -d "$group" ]; then find "$group" -depth -type d -exec rmdir {} +; fi
  done
}
trap remove EXIT
unshare --mount --pid --fork --kill-child --mount-proc sh -euc "$3" sh "$4"
"#;
    let base = directory().parent().unwrap().to_owned();
    let parent = format!("/{}", base.file_name().unwrap().display());
    let script = [SETUP, script].concat();
    let mountd = binary("cowl-mountd");
    let mountd = mountd.to_str().unwrap();
    shell(&directory(), AROUND, [mountd, &parent, how, &script])
}

const PODMAN: &str = r"
podman import -q img.tar base >ids
run --name one base /bin/sh -c 'echo hello >/file; rm /bin/ls; mkdir /dir; mv /bin/id /dir/id; cat /file'
podman diff one | sort
podman commit -q one changed >>ids
run --rm changed /bin/sh -c 'exec 2>&1; cat /file; find /dir /bin/ls; stat -c %u:%g:%a /dir/id; echo more >>/file; mv /dir /moved'
run --rm changed /bin/cat /file
";

const PRUNE: &str = r"
podman rm one
podman rmi -f changed base >ids
podman image prune -f
podman images -q
find store/overlay -mindepth 1 -maxdepth 1 -type d ! -name l
";

const PODMANS: &str = "\
hello
A /dir
A /dir/id
A /etc
A /file
C /bin
D /bin/id
D /bin/ls
hello
/dir
/dir/id
find: /bin/ls: No such file or directory
0:0:777
hello
one
";

#[test]
fn podman_runs_commits_and_prunes_as_root() {
    root(|| {
        let said = contained(AS_ROOT, &[PODMAN, PRUNE].concat());
        assert_eq!(said, PODMANS);
    });
}

const KEEP_ID: &str = r"
run --rm --userns=keep-id changed /bin/sh -c 'id -u; stat -c %u:%g /file /bin /dir'
";

#[test]
fn podman_runs_with_its_users_own_id_as_user() {
    root(|| {
        let said = contained(AS_USER, &[PODMAN, KEEP_ID, PRUNE].concat());
        let kept = PODMANS.replace("one\n", "65534\n0:0\n0:0\n0:0\none\n");
        assert_eq!(said, kept);
    });
}

/// Several layers, each changing the one below in another way.
const BUILDAH: &str = r#"
cat >img/Dockerfile <<END
FROM scratch
COPY bin /bin
RUN mkdir /dir && echo one >/dir/file && echo gone >/gone && echo two >/two
RUN rm /gone && mv /dir /moved && chmod 600 /moved/file && echo more >>/two
RUN rm -r /moved && mkdir /moved && echo fresh >/moved/fresh
END
build() { buildah build -q --isolation chroot --layers -t built img >ids; }
build
in_one() { buildah run --isolation chroot "$@"; }
one=$(buildah from built)
in_one $one /bin/sh -c 'exec 2>&1; find /moved /dir /gone; cat /two; stat -c "%a %h" /two; echo changed >/moved/fresh; rm /two'
buildah commit -q $one again >ids
two=$(buildah from again)
in_one $two /bin/sh -c 'exec 2>&1; cat /moved/fresh; find /two || echo none'
buildah rm -a >ids
build
buildah rmi -a -f >ids
buildah images -q
find store/overlay -mindepth 1 -maxdepth 1 -type d ! -name l
"#;

const BUILDAHS: &str = "\
/moved
/moved/fresh
find: /dir: No such file or directory
find: /gone: No such file or directory
two
more
644 1
changed
find: /two: No such file or directory
none
";

#[test]
fn buildah_builds_and_commits_layers_as_root() {
    root(|| assert_eq!(contained(AS_ROOT, BUILDAH), BUILDAHS));
}

#[test]
fn buildah_builds_and_commits_layers_as_user() {
    root(|| assert_eq!(contained(AS_USER, BUILDAH), BUILDAHS));
}
