//! `cowl gc`: frees what nothing uses, or shows what that would free.

use super::image::counted;
use super::units::human_size;
use super::{Access, FAILURE, Stdout, print_error};
use crate::engine::Engine;
use crate::engine::error::{Error, Result};
use clap::Args;
use cowl_core::store::GcReport;

#[derive(Debug, Args)]
pub(super) struct Gc {
    /// Only show what would be freed
    #[arg(short = 'n', long)]
    dry_run: bool,
}

impl Gc {
    pub(super) fn access(&self) -> Access {
        if self.dry_run {
            Access::Read
        } else {
            Access::Change
        }
    }
}

pub(super) fn gc(engine: &Engine, args: &Gc, out: &mut Stdout) -> Result<u8> {
    let (report, title) = if args.dry_run {
        (engine.gc_plan()?, "Reclaimable space")
    } else {
        (engine.gc()?, "Total reclaimed space")
    };
    for (count, what) in [
        (report.layers, "layer"),
        (report.merged, "merged tree"),
        (report.objects, "object"),
        (report.blobs, "blob"),
    ] {
        if count.number > 0 {
            let (number, size) = (counted(count.number, what), human_size(count.bytes));
            out.line(&format!("{number}: {size}"))?;
        }
    }
    for (number, what) in [
        (report.pins, "pin of an ended mount or load"),
        (report.leftovers, "leftover of a killed command"),
    ] {
        if number > 0 {
            out.line(&counted_first(number, what))?;
        }
    }
    let disk = report.disk;
    out.line(&format!(
        "{title}: {} ({disk} bytes of disk)",
        human_size(disk)
    ))?;
    Ok(unread(report))
}

/// `1 pin of a mount`, `2 pins of a mount`.
fn counted_first(number: u64, what: &str) -> String {
    let (noun, rest) = what.split_once(' ').unwrap_or((what, ""));
    format!("{} {rest}", counted(number, noun))
}

/// Prints what prevented things from being freed, and returns the exit code.
fn unread(report: GcReport) -> u8 {
    let mut code = 0;
    for error in report.damaged {
        let error = Error::from(error).context("freeing less, since it is unknown what this uses");
        print_error(&error);
        code = FAILURE;
    }
    code
}
