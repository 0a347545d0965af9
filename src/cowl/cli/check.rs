//! `cowl check`: reports damage in the store, and with `--repair` repairs it.

use super::image::{counted, warn};
use super::table::printable;
use super::{Access, FAILURE, Stdout};
use crate::engine::Engine;
use crate::engine::error::{Context as _, Error, Result};
use clap::Args;
use cowl_core::image;
use cowl_core::store::CheckReport;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub(super) struct Check {
    /// Hash every object and blob
    #[arg(long)]
    deep: bool,
    /// Repair damage from the compressed layers that the store keeps, and from each FROM: an
    /// archive as for `cowl load`, a layer's tar, a blob, or another store
    #[arg(long, value_name = "FROM", num_args = 0..)]
    repair: Option<Vec<PathBuf>>,
}

impl Check {
    pub(super) fn access(&self) -> Access {
        match self.repair {
            None => Access::Read,
            Some(_) => Access::Change,
        }
    }
}

pub(super) fn check(engine: &Engine, args: &Check, out: &mut Stdout) -> Result<u8> {
    let store = engine.store();
    let Some(from) = &args.repair else {
        let report = store.check(args.deep).context(|| "checking the store")?;
        let code = show(&report, args.deep, out)?;
        if !report.touched.is_empty() {
            out.line(
                "`cowl check --repair FROM` heals from an archive, a layer's tar, a blob or another store",
            )?;
        }
        return Ok(code);
    };
    let repaired = image::repair(store, args.deep, from).map_err(Error::from);
    let repaired = repaired.context(|| "repairing the store")?;
    let code = show(&repaired.before, args.deep, out)?;
    if code == 0 {
        return Ok(code);
    }
    let failed = repaired.failed.into_iter().map(Error::from);
    warn(&failed.collect::<Vec<_>>());
    out.line("After the repair:")?;
    show(&repaired.after, args.deep, out)
}

fn show(report: &CheckReport, deep: bool, out: &mut Stdout) -> Result<u8> {
    for problem in &report.problems {
        out.line(&printable(&problem.to_string()))?;
    }
    let depth = if deep {
        "contents hashed"
    } else {
        "contents not hashed (see --deep)"
    };
    let looked_at = [
        counted(report.tags, "name"),
        counted(report.layers, "layer"),
        counted(report.objects.number, "object"),
    ]
    .join(", ");
    if report.problems.is_empty() {
        out.line(&format!("No problems: {looked_at}; {depth}"))?;
        return Ok(0);
    }
    let problems = counted(report.problems.len() as u64, "problem");
    out.line(&format!("{problems}: {looked_at}; {depth}"))?;
    if !report.touched.is_empty() {
        let touched = report.touched.join(", ");
        out.line(&printable(&format!("Damaged: {touched}")))?;
    }
    Ok(FAILURE)
}
