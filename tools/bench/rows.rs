//! The rows: the timed workloads, and their untimed preparation.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::base::{Python, Scale};
use crate::calls::{self, Loop};
use crate::command::{find, program, run, timed};
use crate::output::say;

type Timed = Box<dyn Fn(&Path) -> Result<Duration>>;
type Prepared = Box<dyn Fn(&Path) -> Result<()>>;

/// A row; its functions get the mount point.
pub(crate) struct Row {
    pub(crate) title: String,
    /// Not timed.
    prepare: Option<Prepared>,
    run: Timed,
}

impl std::fmt::Debug for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Row").field(&self.title).finish()
    }
}

impl Row {
    /// Prepares, syncs, and runs.
    pub(crate) fn measure(&self, mount: &Path) -> Result<Duration> {
        if let Some(prepare) = &self.prepare {
            prepare(mount)?;
        }
        rustix::fs::sync();
        (self.run)(mount)
    }

    fn new(title: &str, run: Timed) -> Self {
        Self {
            title: title.to_owned(),
            prepare: None,
            run,
        }
    }

    fn after(mut self, prepare: impl Fn(&Path) -> Result<()> + 'static) -> Self {
        self.prepare = Some(Box::new(prepare));
        self
    }
}

/// A loop of calls below a directory, or on a file.
fn call(title: &str, kind: Loop, path: &'static str, count: u32) -> Row {
    Row::new(title, Box::new(move |mount| kind(&mount.join(path), count)))
}

/// A program; `MOUNT` in its arguments stands for the mount point.
fn command(title: &str, words: &'static [&'static str]) -> Row {
    let run = move |mount: &Path| {
        let mount = mount.to_str().context("the mount point is not UTF-8")?;
        let mut words = words.iter().map(|word| word.replace("MOUNT", mount));
        let name = words.next().context("a command")?;
        timed(&mut program(name, words))
    };
    Row::new(title, Box::new(run))
}

fn directory(path: &'static str) -> impl Fn(&Path) -> Result<()> {
    move |mount| std::fs::create_dir(mount.join(path)).with_context(|| path.to_owned())
}

/// All rows whose programs this host has; `archive` is a tar of a part of the tree.
pub(crate) fn all(scale: Scale, python: Option<&Python>, archive: &Path) -> Result<Vec<Row>> {
    let mut rows = reading(scale);
    rows.extend(changing(scale, archive));
    rows.extend(writing(scale));
    if python.is_some() {
        let start = |mount: &Path| start_python(mount);
        let row = Row::new("start python3, 5 times", Box::new(start));
        rows.push(row.after(|mount| start_python(mount).map(drop)));
    } else {
        say("left out: start python3: it is not installed")?;
    }
    if find(Path::new("busybox")).is_ok() {
        rows.push(call(
            "start true, 200 times",
            start_true,
            "bin/busybox",
            200,
        ));
    } else {
        say("left out: start true: busybox is not installed")?;
    }
    Ok(rows)
}

fn reading(scale: Scale) -> Vec<Row> {
    const FIND: &[&str] = &["find", "MOUNT/tree", "-size", "+1G"];
    const TAR: &[&str] = &["tar", "-cf", "/dev/zero", "-C", "MOUNT", "tree"];
    const GREP: &[&str] = &[
        "sh",
        "-c",
        "! grep -r no-such-text \"$1\"",
        "sh",
        "MOUNT/tree",
    ];
    let warm = |mount: &Path| {
        run(program("tar", ["-cf", "/dev/zero", "-C"])
            .arg(mount)
            .arg("tree"))
        .map(drop)
    };
    vec![
        call("stat, new names", calls::stats, "names", scale.names),
        call("stat, known names", calls::stats, "names", scale.names),
        call("stat, missing names", calls::misses, "opened", scale.calls),
        call("open + close", calls::opens, "opened", scale.calls),
        call("open + read + close", calls::reads, "opened", scale.calls),
        command("find, first time", FIND),
        command("find, again", FIND),
        command("grep -r, warm", GREP).after(warm),
        command("tar -c, warm", TAR),
    ]
}

fn changing(scale: Scale, archive: &Path) -> Vec<Row> {
    let victims = scale.victims;
    let archive: PathBuf = archive.to_owned();
    let untar = move |mount: &Path| {
        let mut tar = program("tar", ["-xf"]);
        timed(tar.arg(&archive).arg("-C").arg(mount.join("extracted")))
    };
    let append = format!("append, image's {} MiB", scale.large);
    let filled = move |mount: &Path| {
        directory("renamed")(mount)?;
        calls::creates(&mount.join("renamed"), victims).map(drop)
    };
    vec![
        call("create", calls::creates, "created", victims).after(directory("created")),
        call("create + write 4 KiB", calls::fills, "filled", victims).after(directory("filled")),
        call("rename", calls::renames, "renamed", victims).after(filled),
        call("chmod, image's file", calls::chmods, "changed", victims),
        call(
            "append, image's small file",
            calls::appends,
            "appended",
            victims / 4,
        ),
        command(
            &append,
            &["sh", "-c", "printf x >> \"$1\"", "sh", "MOUNT/large"],
        ),
        call("unlink, image's file", calls::unlinks, "unlinked", victims),
        call("unlink, upper file", calls::unlinks, "created", victims).after(move |mount| {
            // If the row that creates them was not selected.
            let directory = mount.join("created");
            match std::fs::create_dir(&directory) {
                Ok(()) => calls::creates(&directory, victims).map(drop),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
                Err(error) => Err(error).context("created"),
            }
        }),
        command("cp -a", &["cp", "-a", "MOUNT/tree/1", "MOUNT/copied"]),
        Row::new("untar", Box::new(untar)).after(directory("extracted")),
        command("rm -r, image's tree", &["rm", "-r", "MOUNT/tree/2"]),
    ]
}

fn writing(scale: Scale) -> Vec<Row> {
    let allocated =
        move |mount: &Path| calls::small_writes(&mount.join("random"), scale.writes).map(drop);
    vec![
        call(
            "write, 1 MiB each",
            calls::large_writes,
            "sequential",
            scale.large,
        ),
        call(
            "write, 4 KiB each",
            calls::small_writes,
            "small",
            scale.writes,
        ),
        call(
            "write, random 4 KiB",
            calls::random_writes,
            "random",
            scale.writes,
        )
        .after(allocated),
    ]
}

fn start_python(mount: &Path) -> Result<Duration> {
    let imports = "import argparse, http.client, json, subprocess";
    let begin = Instant::now();
    for _ in 0..5 {
        let mut python = program(mount.join("bin/python"), ["-s", "-S", "-c", imports]);
        run(python.env("PYTHONHOME", mount))?;
    }
    Ok(begin.elapsed())
}

fn start_true(busybox: &Path, count: u32) -> Result<Duration> {
    let begin = Instant::now();
    for _ in 0..count {
        let mut command = Command::new(busybox);
        let status = command
            .arg0("true")
            .env_clear()
            .stdin(Stdio::null())
            .status();
        let status = status.with_context(|| busybox.display().to_string())?;
        ensure!(status.success(), "{}: {status}", busybox.display());
    }
    Ok(begin.elapsed())
}
