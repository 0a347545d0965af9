//! `cowl-bench start`: times starting `true` in a container and waiting for its end.

use std::fs::File;
use std::fs::create_dir;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use cowl_launch::client::Launch;
use cowl_launch::message::{Event, Start};
use cowl_launch::process::Process;
use cowl_launch::sandbox::Sandbox;
use rustix::event::{Timespec, poll};
use rustix::fs::{CWD, Mode, chmod};
use rustix::io::retry_on_intr;
use rustix::mount::{OpenTreeFlags, open_tree};

use crate::bare;
use crate::base;
use crate::command::{find, program, run as run_command, text};
use crate::options::{Common, Starts};
use crate::output::{Table, median_time, ratio, say};
use crate::statistics::ratios;
use crate::systems::{Ground, IMAGE};

/// Some kernels wait for an RCU grace period only after a pause.
const PAUSE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 50_000_000,
};
const NO_PAUSE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 0,
};
const ROWS: [(&str, Timespec); 2] = [
    ("true, back to back", NO_PAUSE),
    ("true, 50 ms apart", PAUSE),
];
const TRUE: &str = "/bin/true";

/// A way to start a container.
struct Starter<'g> {
    name: &'static str,
    start: Box<dyn Fn(u32) -> Result<Duration> + 'g>,
}

/// Times all starts and prints the table.
pub(crate) fn run(common: &Common, wants: &Starts, place: &Path) -> Result<()> {
    let ground = Ground::new(place, common.bin.as_deref())?;
    if !ground.is_root() {
        bail!("start needs root");
    }
    let rows: Vec<_> = ROWS
        .into_iter()
        .filter(|(title, _)| common.wants_row(title))
        .collect();
    if rows.is_empty() {
        bail!("no row has {:?} in its title", common.row);
    }
    make_root(&ground.base())?;
    ground.import()?;
    let starters = wanted(all(&ground)?, &common.system)?;
    let names: Vec<&str> = starters.iter().map(|starter| starter.name).collect();
    let mut table = Table::new(&names);
    for (title, pause) in rows {
        say(&format!("{title}: {} times", wants.times))?;
        let times = measure(&starters, wants.times, pause)?;
        let first = times.first().map_or(&[][..], Vec::as_slice);
        let others = times.iter().skip(1);
        let others = others.map(|own| ratio(ratios(own, first), false));
        let cells: Vec<String> = std::iter::once(median_time(first)).chain(others).collect();
        table.row(title, &cells);
    }
    crate::print(&table.into_text())
}

/// Creates a root with one program and the mount points.
fn make_root(root: &Path) -> Result<()> {
    for directory in [root.to_owned(), root.join("bin")] {
        create_dir(directory).context("the root")?;
    }
    for point in bare::MOUNT_POINTS {
        create_dir(root.join(point)).context("the root")?;
    }
    let busybox = std::fs::read("/bin/busybox").context("busybox-static")?;
    let file = root.join("bin/true");
    base::write(&file, &busybox)?;
    chmod(&file, Mode::from_raw_mode(0o755)).context("the root")
}

/// Times by starter; they take turns in rotating order.
fn measure(starters: &[Starter<'_>], times: u32, pause: Timespec) -> Result<Vec<Vec<Duration>>> {
    let mut all = vec![Vec::new(); starters.len()];
    for round in 0..times {
        let first = usize::try_from(round)?;
        for number in (first..first + starters.len()).map(|number| number % starters.len()) {
            let (Some(starter), Some(own)) = (starters.get(number), all.get_mut(number)) else {
                continue;
            };
            // No descriptors: it only sleeps.
            retry_on_intr(|| poll(&mut [], Some(&pause))).context("a pause")?;
            own.push((starter.start)(round).with_context(|| starter.name)?);
        }
    }
    Ok(all)
}

/// The starters that work here; the errors of others go to standard error.
fn all(ground: &Ground) -> Result<Vec<Starter<'_>>> {
    let root = ground.base();
    let mut starters = vec![
        Starter {
            name: "bare calls",
            start: Box::new(move |_| {
                let begin = Instant::now();
                bare::start(&root)?;
                Ok(begin.elapsed())
            }),
        },
        Starter {
            name: "cowl-runtime",
            start: Box::new(|round| runtime(ground, round)),
        },
        Starter {
            name: "cowl run",
            start: Box::new(|_| timed(&mut ground.cowl(["run", "--rm", IMAGE, TRUE]))),
        },
    ];
    for name in ["crun", "runc"] {
        if let Ok(found) = find(Path::new(name)) {
            let bundle = bundle(ground, name, &found)?;
            let state = ground.scratch(&format!("{name}.state"));
            starters.push(Starter {
                name,
                start: Box::new(move |round| {
                    let mut command = program(&found, ["--root"]);
                    command.arg(&state).args(["run", "--bundle"]).arg(&bundle);
                    timed(command.arg(format!("cowl-bench-{round}")))
                }),
            });
        }
    }
    if let Ok(found) = find(Path::new("bwrap")) {
        let root = ground.base();
        starters.push(Starter {
            name: "bwrap",
            start: Box::new(move |_| {
                let mut command = program(&found, ["--unshare-all", "--bind"]);
                command
                    .arg(&root)
                    .args(["/", "--proc", "/proc", "--dev", "/dev", TRUE]);
                timed(&mut command)
            }),
        });
    }
    starters.retain(|starter| match (starter.start)(u32::MAX) {
        Ok(_) => true,
        Err(error) => say(&format!("left out: {}: {error:#}", starter.name)).is_err(),
    });
    Ok(starters)
}

fn wanted<'g>(mut all: Vec<Starter<'g>>, names: &[String]) -> Result<Vec<Starter<'g>>> {
    if names.is_empty() {
        return Ok(all);
    }
    let take = |name: &String| {
        let found = all
            .iter()
            .position(|starter| starter.name.starts_with(name));
        let found = found.with_context(|| format!("no system {name:?} is left or known"))?;
        Ok(all.remove(found))
    };
    names.iter().map(take).collect()
}

fn timed(command: &mut Command) -> Result<Duration> {
    let mut errors = tempfile::tempfile().context("a file for errors")?;
    let command = command.stdin(Stdio::null()).stdout(Stdio::null());
    let command = command.stderr(errors.try_clone()?);
    let begin = Instant::now();
    let status = command.status()?;
    let time = begin.elapsed();
    if !status.success() {
        let said = text(&mut errors)?;
        bail!("{status}: {}", said.trim());
    }
    Ok(time)
}

/// `cowl-runtime` as the engine starts it, up to the end of its monitor.
fn runtime(ground: &Ground, round: u32) -> Result<Duration> {
    let id = format!("cowl-bench-runtime-{round}");
    let status = ground.scratch("status");
    std::fs::create_dir_all(&status).context("the status directory")?;
    let status: OwnedFd = File::open(&status)?.into();
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let root = open_tree(CWD, ground.base(), flags).context("open_tree")?;
    let process = Process::new(vec![TRUE.into()]);
    let start = Start::new(Sandbox::new(id), process);
    let runtime = ground.bin().join("cowl-runtime");
    let launch = Launch {
        runtime: &runtime,
        start: &start,
        rootfs: root.as_fd(),
        status: status.as_fd(),
        streams: &[],
        descriptors: &[],
    };
    let begin = Instant::now();
    let monitor = launch.spawn()?;
    monitor.wait_started()?;
    let Event::Exited(exited) = monitor.next_event()? else {
        bail!("cowl-runtime did not say how the program ended");
    };
    monitor.reap()?;
    let time = begin.elapsed();
    if exited.exit_code != 0 {
        bail!("exit code {}", exited.exit_code);
    }
    Ok(time)
}

/// A runtime's own default bundle, with our root and program.
fn bundle(ground: &Ground, name: &str, found: &Path) -> Result<PathBuf> {
    let bundle = ground.scratch(&format!("{name}.bundle"));
    create_dir(&bundle).context("a bundle")?;
    run_command(program(found, ["spec"]).current_dir(&bundle))?;
    let file = bundle.join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&file)?)?;
    for (pointer, value) in [
        ("/process/terminal", serde_json::json!(false)),
        ("/process/args", serde_json::json!([TRUE])),
        ("/root/path", serde_json::json!(ground.base())),
    ] {
        let field = config.pointer_mut(pointer);
        *field.with_context(|| format!("{name} spec: no {pointer}"))? = value;
    }
    std::fs::remove_file(&file).context("config.json")?;
    base::write(&file, config.to_string().as_bytes())?;
    Ok(bundle)
}
