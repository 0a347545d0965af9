//! A mount created and used by root or an ordinary user, with a Python process that runs in it.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use cowl_tests::command::{binary, program};
use cowl_tests::profile::{USER, directory};
use cowl_tests::store::Store;

/// The user that uses a mount.
pub(crate) enum Who {
    Root,
    /// An ordinary user as the only id of a user namespace, with programs from a directory that it
    /// can access.
    User {
        programs: PathBuf,
    },
}

impl Who {
    pub(crate) fn id(&self) -> u32 {
        match self {
            Self::Root => 0,
            Self::User { .. } => USER,
        }
    }

    /// The xattr namespace of the upper's marks.
    pub(crate) fn namespace(&self) -> &'static str {
        match self {
            Self::Root => "trusted",
            Self::User { .. } => "user",
        }
    }

    /// A new directory of its own.
    pub(crate) fn directory(&self, name: &str) -> PathBuf {
        let made = directory().join(name);
        fs::create_dir(&made).unwrap();
        chown(&made, Some(self.id()), Some(self.id())).unwrap();
        made
    }

    pub(crate) fn cowl(&self) -> PathBuf {
        match self {
            Self::Root => binary("cowl"),
            Self::User { programs } => programs.join("cowl"),
        }
    }

    pub(crate) fn command(&self, name: impl AsRef<OsStr>) -> Command {
        if matches!(self, Self::Root) {
            return program("env", [name]);
        }
        let id = self.id();
        let mut command = program(
            "setpriv",
            [format!("--reuid={id}"), format!("--regid={id}")],
        );
        command.args([
            "--clear-groups",
            "--",
            "unshare",
            "--user",
            "--map-root-user",
            "--mount",
        ]);
        command.arg("--").arg(name);
        command
    }
}

/// A mount, with a Python below it.
pub(crate) struct Session {
    child: Child,
    answers: BufReader<ChildStdout>,
}

impl Session {
    /// `$1`: cowl, `$2`: the store, `$3`: the image, `$4`: where to mount it, `$5`: where its upper
    /// is, `$6`: the program of Python.
    const SCRIPT: &str = r#"
"$1" --root "$2" mount "$3" "$4" --upper "$5/upper" --work "$5/work"
cd "$4"
python3 -B -c "$6"
cd /
"$1" --root "$2" umount "$4"
"#;
    const EVALUATE: &str = "import os, sys
for line in sys.stdin: print(eval(line, {'os': os}), flush=True)";

    pub(crate) fn start(who: &Who, store: &Store, image: &str, point: &Path, seen: &Path) -> Self {
        let mut child = who
            .command("sh")
            .args(["-euc", Self::SCRIPT, "sh"])
            .args([
                who.cowl().as_path(),
                store.root(),
                image.as_ref(),
                seen,
                point,
            ])
            .arg(Self::EVALUATE)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        Self { child, answers }
    }

    /// The value of an expression.
    pub(crate) fn evaluate(&mut self, expression: &str) -> String {
        let question = format!("{expression}\n");
        let stdin = self.child.stdin.as_mut().unwrap();
        stdin.write_all(question.as_bytes()).unwrap();
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        answer.trim_end().to_owned()
    }

    /// Takes the mount down.
    pub(crate) fn end(mut self) {
        drop(self.child.stdin.take());
        assert!(self.child.wait().unwrap().success());
    }
}
