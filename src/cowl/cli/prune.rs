//! The prune commands, with Docker's prompts and reports.

use super::args::filter;
use super::units::human_size;
use super::{Stdout, format, print_error};
use crate::engine::Engine;
use crate::engine::error::{Context as _, Error, Result};
use crate::engine::image::Removed;
use crate::engine::list::Filters;
use crate::engine::prune::Pruned;
use clap::Args;

/// The options that all prune commands have.
#[derive(Debug, Args)]
#[group(skip)]
pub(super) struct Prune {
    /// Do not prompt for confirmation
    #[arg(short, long)]
    pub(super) force: bool,
    /// Only what matches: until (not for volumes) or label
    #[arg(long, value_name = "KEY=VALUE", value_parser = filter)]
    pub(super) filter: Vec<String>,
}

const QUESTION: &str = "Are you sure you want to continue? [y/N] ";

/// Asks the user unless `--force` is given. As in Docker, only `y` means yes, and a no is not an
/// error.
fn confirmed(prune: &Prune, warning: &str, out: &mut Stdout) -> Result<bool> {
    if prune.force {
        return Ok(true);
    }
    out.text(&format!("WARNING! {warning}\n{QUESTION}"))?;
    out.flush()?;
    let mut answer = String::new();
    std::io::stdin()
        .read_line(&mut answer)
        .context(|| "reading standard input")?;
    Ok(answer.trim().eq_ignore_ascii_case("y"))
}

/// Prints what was removed under a title; nothing if the list is empty.
fn report(title: &str, lines: &[String], out: &mut Stdout) -> Result<()> {
    if lines.is_empty() {
        return Ok(());
    }
    out.line(title)?;
    for line in lines {
        out.line(line)?;
    }
    Ok(out.line("")?)
}

fn total(bytes: u64, out: &mut Stdout) -> Result<()> {
    Ok(out.line(&format!("Total reclaimed space: {}", human_size(bytes)))?)
}

pub(super) fn containers(engine: &Engine, prune: &Prune, out: &mut Stdout) -> Result<u8> {
    let filters = format::filters(&prune.filter)?;
    if !confirmed(prune, "This will remove all stopped containers.", out)? {
        return Ok(0);
    }
    let pruned = engine.prune_containers(&filters)?;
    report("Deleted Containers:", &pruned.removed, out)?;
    total(pruned.bytes, out)?;
    Ok(0)
}

pub(super) fn volumes(engine: &Engine, prune: &Prune, all: bool, out: &mut Stdout) -> Result<u8> {
    let mut filters = format::filters(&prune.filter)?;
    let warning = if all {
        if filters.contains_key("all") {
            return Err(Error::invalid(
                "conflicting options: cannot specify both --all and --filter all=1",
            ));
        }
        filters.insert("all".to_owned(), vec!["true".to_owned()]);
        "This will remove all local volumes not used by at least one container."
    } else {
        "This will remove anonymous local volumes not used by at least one container."
    };
    if !confirmed(prune, warning, out)? {
        return Ok(0);
    }
    let pruned = engine.prune_volumes(&filters)?;
    report("Deleted Volumes:", &pruned.removed, out)?;
    total(pruned.bytes, out)?;
    Ok(0)
}

fn dangling(filters: &mut Filters, all: bool) {
    filters.insert("dangling".to_owned(), vec![(!all).to_string()]);
}

pub(super) fn images(engine: &Engine, prune: &Prune, all: bool, out: &mut Stdout) -> Result<u8> {
    let mut filters = format::filters(&prune.filter)?;
    dangling(&mut filters, all);
    let warning = if all {
        "This will remove all images without at least one container associated to them."
    } else {
        "This will remove all dangling images."
    };
    if !confirmed(prune, warning, out)? {
        return Ok(0);
    }
    let pruned = engine.prune_images(&filters)?;
    let bytes = report_images(pruned, out)?;
    total(bytes, out)?;
    Ok(0)
}

fn report_images(pruned: Pruned<Removed>, out: &mut Stdout) -> Result<u64> {
    let mut lines = Vec::new();
    for removed in pruned.removed {
        match removed {
            Removed::Untagged(name) => lines.push(format!("untagged: {name}")),
            Removed::Deleted(id) => lines.push(format!("deleted: {id}")),
            Removed::DeletedLayers(chain) => lines.push(format!("deleted: {chain}")),
            Removed::NotFreed(error) => print_error(&format!("warning: {error}")),
        }
    }
    report("Deleted Images:", &lines, out)?;
    Ok(pruned.bytes)
}

/// `cowl system prune`.
#[derive(Debug, Args)]
pub(super) struct SystemPrune {
    #[command(flatten)]
    prune: Prune,
    /// Remove all unused images, not just dangling ones
    #[arg(short, long)]
    all: bool,
    /// Remove unused anonymous volumes too
    #[arg(long)]
    volumes: bool,
}

pub(super) fn system(engine: &Engine, args: &SystemPrune, out: &mut Stdout) -> Result<u8> {
    let filters = format::filters(&args.prune.filter)?;
    if args.volumes && filters.contains_key("until") {
        return Err(Error::invalid(
            "The \"until\" filter is not supported with \"--volumes\"",
        ));
    }
    if !confirmed(&args.prune, &system_warning(args), out)? {
        return Ok(0);
    }
    let containers = engine.prune_containers(&filters)?;
    report("Deleted Containers:", &containers.removed, out)?;
    let mut bytes = containers.bytes;
    if args.volumes {
        let volumes = engine.prune_volumes(&filters)?;
        report("Deleted Volumes:", &volumes.removed, out)?;
        bytes += volumes.bytes;
    }
    let mut filters = filters;
    dangling(&mut filters, args.all);
    bytes += report_images(engine.prune_images(&filters)?, out)?;
    total(bytes, out)?;
    Ok(0)
}

fn system_warning(args: &SystemPrune) -> String {
    let mut warning = "This will remove:\n  - all stopped containers\n".to_owned();
    if args.volumes {
        warning.push_str("  - all anonymous volumes not used by at least one container\n");
    }
    warning.push_str(if args.all {
        "  - all images without at least one container associated to them\n"
    } else {
        "  - all dangling images\n"
    });
    if !args.prune.filter.is_empty() {
        warning.push_str("\n  Items to be pruned will be filtered with:\n");
        for filter in &args.prune.filter {
            warning.extend(["  - ", filter, "\n"]);
        }
    }
    warning
}
