//! `cowl-bench`: rounds of all rows on all systems, and their table.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::base::{Python, Scale, make};
use crate::command::{program, run as run_command};
use crate::options::Arguments;
use crate::output::{Table, median_time, ratio, say};
use crate::rows::{self, Row};
use crate::statistics::ratios;
use crate::systems::{Ground, Mounted, System, wanted};

/// Times by row and system, one per round.
type Times = BTreeMap<(usize, usize), Vec<Duration>>;

/// Runs all rounds and prints the table.
pub(crate) fn run(arguments: &Arguments, place: &Path) -> Result<()> {
    let ground = Ground::new(place, arguments.common.bin.as_deref())?;
    let scale = Scale::new(arguments.scale);
    let archive = ground.scratch("tree.tar");
    let python = Python::of_the_host();
    let mut rows = rows::all(scale, python.as_ref(), &archive)?;
    rows.retain(|row| arguments.common.wants_row(&row.title));
    if rows.is_empty() {
        bail!("no row has {:?} in its title", arguments.common.row);
    }
    make(&ground.base(), scale, python.as_ref())?;
    let tree = ground.base().join("tree");
    run_command(
        program("tar", ["-cf"])
            .arg(&archive)
            .arg("-C")
            .arg(tree)
            .arg("3"),
    )?;
    ground.import()?;

    let systems = wanted(&arguments.common, &ground, |_| true)?;
    let mut times = Times::new();
    for round in 0..arguments.rounds {
        say(&format!("round {} of {}", round + 1, arguments.rounds))?;
        measure(
            &systems,
            &rows,
            &ground,
            usize::try_from(round)?,
            &mut times,
        )?;
    }
    let text = table(&systems, &rows, &times, arguments.medians);
    crate::print(&format!(
        "{text}\n{}\n",
        setting(arguments, &ground, &systems)?
    ))
}

/// One round: every system mounted anew, every row on all of them.
fn measure(
    systems: &[System],
    rows: &[Row],
    ground: &Ground,
    round: usize,
    times: &mut Times,
) -> Result<()> {
    let mounted: Vec<Mounted> = systems
        .iter()
        .map(|system| system.mount(ground))
        .collect::<Result<_>>()?;
    for (row_number, row) in rows.iter().enumerate() {
        for number in turn(systems.len(), round + row_number) {
            let (Some(system), Some(mount)) = (systems.get(number), mounted.get(number)) else {
                continue;
            };
            let time = row
                .measure(mount.path())
                .with_context(|| format!("{}: {}", system.name, row.title))?;
            times.entry((row_number, number)).or_default().push(time);
        }
    }
    for (system, mount) in systems.iter().zip(&mounted) {
        system.unmount(ground, mount)?;
    }
    Ok(())
}

/// The numbers below `count`, rotated to begin with `first`.
fn turn(count: usize, first: usize) -> impl Iterator<Item = usize> {
    (first..first + count).map(move |number| number % count)
}

fn table(systems: &[System], rows: &[Row], times: &Times, medians: bool) -> String {
    let names: Vec<&str> = systems.iter().map(|system| system.name.as_str()).collect();
    let mut table = Table::new(&names);
    let of = |row, system| times.get(&(row, system)).map_or(&[][..], Vec::as_slice);
    for (number, row) in rows.iter().enumerate() {
        let base = of(number, 0);
        let mut cells = vec![median_time(base)];
        for system in 1..systems.len() {
            cells.push(ratio(ratios(of(number, system), base), medians));
        }
        table.row(&row.title, &cells);
    }
    table.into_text()
}

/// The conditions of the measurement, as one line.
fn setting(arguments: &Arguments, ground: &Ground, systems: &[System]) -> Result<String> {
    let cores = std::thread::available_parallelism().context("the number of cores")?;
    let release = rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned();
    let disk = run_command(program("df", ["--output=fstype"]).arg(ground.place()))?;
    let disk = disk
        .split_whitespace()
        .last()
        .unwrap_or("an unknown file system")
        .to_owned();
    let user = if ground.is_root() {
        "root"
    } else {
        "a user namespace"
    };
    let base = systems.first().map_or("", |system| system.name.as_str());
    Ok(format!(
        "{cores} cores, Linux {release}, {disk}, {user}, {} rounds, scale {}: time of {base}, and \
         ratios to it",
        arguments.rounds, arguments.scale
    ))
}

#[cfg(test)]
mod tests {
    use super::turn;

    #[test]
    fn each_system_begins_in_turn() {
        let of = |first| turn(3, first).collect::<Vec<_>>();
        assert_eq!(of(0), [0, 1, 2]);
        assert_eq!(of(1), [1, 2, 0]);
        assert_eq!(of(5), [2, 0, 1]);
    }
}
