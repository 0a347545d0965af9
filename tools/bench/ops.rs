//! `cowl-bench ops`: counts what operations cost the processes that serve a mount.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use cowl_sys::opcode;

use crate::command::find;
use crate::operations::{OPERATIONS, Operation, Site, make_base};
use crate::options::{Common, Wanted};
use crate::output::{Table, say, share};
use crate::strace::{Costs, during};
use crate::systems::{Ground, System, wanted};

/// Counts and prints the table.
pub(crate) fn run(common: &Common, wants: &Wanted, place: &Path) -> Result<()> {
    let operations: Vec<Operation> = OPERATIONS
        .into_iter()
        .filter(|operation| common.wants_row(operation.title))
        .collect();
    if operations.is_empty() {
        bail!("no operation has {:?} in its title", common.row);
    }
    find(Path::new("strace"))?;
    let ground = Ground::new(place, common.bin.as_deref())?;
    make_base(&ground.base(), wants.times)?;
    ground.import()?;
    let systems = wanted(common, &ground, System::is_served)?;
    let mut counted = Vec::new();
    for system in &systems {
        say(&format!("counting: {}", system.name))?;
        counted.push(count(system, &operations, &ground, wants.times)?);
    }
    let mut text = table(&systems, &operations, &counted, wants.times);
    if wants.by_name {
        text.push_str(&details(&systems, &operations, &counted));
    }
    crate::print(&text)
}

/// Counts what each operation costs a system.
fn count(
    system: &System,
    operations: &[Operation],
    ground: &Ground,
    times: u32,
) -> Result<Vec<Costs>> {
    let mounted = system.mount(ground)?;
    let site = Site::new(mounted.path(), times)?;
    let log = ground.scratch("strace.log");
    let mut all = Vec::new();
    for operation in operations {
        let what = || format!("{}: {}", system.name, operation.title);
        let work = (operation.prepare)(&site).with_context(what)?;
        all.push(during(&mounted.servers, &log, work).with_context(what)?);
    }
    drop(site);
    system.unmount(ground, &mounted)?;
    Ok(all)
}

fn table(
    systems: &[System],
    operations: &[Operation],
    counted: &[Vec<Costs>],
    times: u32,
) -> String {
    let names: Vec<&str> = systems.iter().map(|system| system.name.as_str()).collect();
    let mut table = Table::new(&names);
    for (number, operation) in operations.iter().enumerate() {
        let times = if operation.is_once { 1 } else { times };
        let cells = counted.iter().map(|of_system| {
            of_system.get(number).map_or_else(String::new, |costs| {
                let requests = share(costs.requests.values().sum(), times);
                let calls = share(costs.calls.values().sum(), times);
                format!("{requests}, {calls}")
            })
        });
        table.row(operation.title, &cells.collect::<Vec<String>>());
    }
    let mut text = table.into_text();
    let note = format!(
        "\nRequests from /dev/fuse and other system calls, for one operation: each was done {times} \
         times, and the listing once.\n"
    );
    text.push_str(&note);
    text
}

/// A line for each operation and system, with all counts.
fn details(systems: &[System], operations: &[Operation], counted: &[Vec<Costs>]) -> String {
    let mut text = String::new();
    for (number, operation) in operations.iter().enumerate() {
        text.extend(["\n", operation.title, ":\n"]);
        for (system, costs) in systems.iter().zip(counted) {
            let Some(costs) = costs.get(number) else {
                continue;
            };
            let requests = costs.requests.iter();
            let requests: BTreeMap<String, u32> = requests
                .map(|(code, count)| {
                    let name = opcode::name(*code).map(str::to_owned);
                    (name.unwrap_or_else(|| code.to_string()), *count)
                })
                .collect();
            let (requests, calls) = (listed(&requests), listed(&costs.calls));
            text.extend(["  ", &system.name, ": ", &requests, "; ", &calls, "\n"]);
        }
    }
    text
}

fn listed<K: Display>(counts: &BTreeMap<K, u32>) -> String {
    if counts.is_empty() {
        return "none".to_owned();
    }
    let all: Vec<String> = counts
        .iter()
        .map(|(name, count)| format!("{name} {count}"))
        .collect();
    all.join(", ")
}
