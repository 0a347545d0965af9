//! The report as text tables.

use std::collections::HashMap;

use crate::layers::LayerRow;
use crate::report::{Report, WasteRow};
use crate::show::{
    Align::Left, Align::Right, Align::Start, Sizes, Table, beginning, image_name, note, percent,
    title,
};
use crate::walk::Cause;

const NO_IMAGES: &str = "There are no images in the store.";

/// Which tables are written, and how.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layout {
    pub(crate) sizes: Sizes,
    /// Columns of the terminal; None without one.
    pub(crate) width: Option<usize>,
    /// Most rows of a list; None for all.
    pub(crate) rows: Option<usize>,
}

/// The tables that every report starts with.
pub(crate) fn summary(report: &Report, layout: Layout) -> String {
    let mut text = String::new();
    images(report, layout, &mut text);
    text.push('\n');
    sharing(report, layout, &mut text);
    waste_summary(report, layout, &mut text);
    text
}

fn images(report: &Report, layout: Layout, text: &mut String) {
    if report.images.is_empty() {
        return note(text, NO_IMAGES);
    }
    let size = |bytes| layout.sizes.show(bytes);
    let mut table = Table::new([
        ("IMAGE", Left),
        ("LAYERS", Right),
        ("LOGICAL", Right),
        ("VISIBLE", Right),
        ("STORED", Right),
        ("EXCLUSIVE", Right),
        ("SHARED", Right),
        ("FAIR", Right),
        ("WASTE", Right),
    ]);
    for image in &report.images {
        table.row([
            image_name(&image.name),
            image.layers.to_string(),
            size(image.logical_bytes),
            size(image.visible_bytes),
            size(image.stored.bytes),
            size(image.exclusive.bytes),
            size(image.shared.bytes),
            size(image.fair_share_bytes),
            percent(image.waste_bytes, image.logical_bytes),
        ]);
    }
    table.write(text, layout.width);
}

fn sharing(report: &Report, layout: Layout, text: &mut String) {
    let size = |bytes| layout.sizes.show(bytes);
    let mut table = Table::new([("", Left), ("CONTENTS", Right), ("SIZE", Right)]);
    let mut line = |what: &str, contents: String, bytes: u64| {
        table.row([what.to_owned(), contents, size(bytes)]);
    };
    let shared = [
        ("shared", report.shared),
        ("  in shared layers", report.in_shared_layers),
        ("  in other layers", report.in_other_layers),
        ("kept once for all", report.kept),
    ];
    for (what, amount) in shared {
        line(what, amount.contents.to_string(), amount.bytes);
    }
    line("saved", String::new(), report.saved_bytes);
    if report.unattributed_bytes > 0 {
        line("in no image", String::new(), report.unattributed_bytes);
    }
    line(
        "store",
        report.store.objects.to_string(),
        report.store.bytes,
    );
    line("  on disk", String::new(), report.store.blocks * 512);
    table.write(text, layout.width);
}

fn waste_summary(report: &Report, layout: Layout, text: &mut String) {
    if report.waste.is_empty() {
        return;
    }
    title(text, "Waste in a store of layers");
    let mut table = Table::new([
        ("IMAGE", Left),
        ("OVERWRITTEN", Right),
        ("DELETED", Right),
        ("METADATA", Right),
        ("DUPLICATE", Right),
        ("TOTAL", Right),
    ]);
    for image in &report.images {
        let of = |cause| layout.sizes.show(image.waste(cause));
        table.row([
            image_name(&image.name),
            of(Cause::Overwritten),
            of(Cause::Deleted),
            of(Cause::Metadata),
            of(Cause::Duplicate),
            layout.sizes.show(image.waste_bytes),
        ]);
    }
    table.write(text, layout.width);
}

/// The name of a cause in tables.
pub(crate) const fn cause(cause: Cause) -> &'static str {
    match cause {
        Cause::Overwritten => "overwritten",
        Cause::Deleted => "deleted",
        Cause::Metadata => "metadata",
        Cause::Duplicate => "duplicate",
    }
}

/// The rows that a list shows, and a note about the rest.
pub(crate) fn cut<T>(rows: &[T], layout: Layout) -> (&[T], Option<String>) {
    match layout.rows.and_then(|limit| rows.split_at_checked(limit)) {
        Some((shown, [_, ..])) => {
            let left = rows.len() - shown.len();
            (
                shown,
                Some(format!("and {left} more; --all-rows shows them")),
            )
        }
        _ => (rows, None),
    }
}

/// A command, cut to what fits a wide terminal; whole with --all-rows.
pub(crate) fn step(command: &str, layout: Layout) -> String {
    match layout.rows {
        None => command.to_owned(),
        Some(_) => beginning(command, layout.width.unwrap_or(0).max(60)),
    }
}

/// All waste, the largest first, with a path and the step that caused it.
pub(crate) fn waste(report: &Report, layout: Layout) -> String {
    let mut text = String::new();
    title(&mut text, "Waste by cause, layer and step");
    if report.waste.is_empty() {
        note(&mut text, "none");
        return text;
    }
    let mut table = Table::new([
        ("IMAGE", Left),
        ("CAUSE", Left),
        ("SIZE", Right),
        ("FILES", Right),
        ("LAYER", Right),
        ("LARGEST", Left),
        ("STEP", Start),
    ]);
    let mut rows: Vec<&WasteRow> = report.waste.iter().collect();
    rows.sort_by_key(|row| std::cmp::Reverse(row.bytes));
    let (rows, more) = cut(&rows, layout);
    for row in rows {
        table.row([
            image_name(&row.image),
            cause(row.cause).to_owned(),
            layout.sizes.show(row.bytes),
            row.paths.len().to_string(),
            row.number.to_string(),
            row.files
                .first()
                .map(|(_, path)| path.clone())
                .unwrap_or_default(),
            step(&row.step, layout),
        ]);
    }
    table.write(&mut text, layout.width);
    if let Some(more) = more {
        note(&mut text, &more);
    }
    text
}

/// Every layer of every image, with the step that made it.
pub(crate) fn layers(report: &Report, layout: Layout) -> String {
    let size = |bytes| layout.sizes.show(bytes);
    let mut text = String::new();
    title(&mut text, "Layers");
    if report.layers.is_empty() {
        note(&mut text, "none");
        return text;
    }
    let mut table = Table::new([
        ("IMAGE", Left),
        ("#", Right),
        ("ADDED", Right),
        ("CHANGED", Right),
        ("DELETED", Right),
        ("SIZE", Right),
        ("BELOW", Right),
        ("ELSEWHERE", Right),
        ("STEP", Start),
    ]);
    for row in &report.layers {
        table.row([
            image_name(&row.image),
            row.number.to_string(),
            row.changes.added.to_string(),
            row.changes.changed.to_string(),
            row.changes.deleted.to_string(),
            size(row.bytes),
            size(row.below.bytes),
            size(row.elsewhere.bytes),
            step(&row.created_by, layout),
        ]);
    }
    table.write(&mut text, layout.width);
    text
}

/// What each pair of images has in common, the most first.
pub(crate) fn matrix(report: &Report, layout: Layout) -> String {
    let mut text = String::new();
    title(&mut text, "In common");
    if report.matrix.is_empty() {
        note(&mut text, "none");
        return text;
    }
    let mut table = Table::new([
        ("IMAGE", Left),
        ("AND", Left),
        ("SIZE", Right),
        ("JACCARD", Right),
    ]);
    let mut rows: Vec<_> = report.matrix.iter().collect();
    rows.sort_by_key(|row| std::cmp::Reverse(row.bytes));
    let (rows, more) = cut(&rows, layout);
    for row in rows {
        let jaccard = format!("{:.3}", row.jaccard);
        table.row([
            image_name(&row.a),
            image_name(&row.b),
            layout.sizes.show(row.bytes),
            jaccard,
        ]);
    }
    table.write(&mut text, layout.width);
    if let Some(more) = more {
        note(&mut text, &more);
    }
    text
}

/// The largest files that several layers have.
pub(crate) fn duplicates(report: &Report, layout: Layout) -> String {
    let mut text = String::new();
    title(&mut text, "Files that sharing by layer misses");
    if report.duplicates.is_empty() {
        note(&mut text, "none");
        return text;
    }
    let mut table = Table::new([
        ("PATH", Left),
        ("SIZE", Right),
        ("LAYERS", Right),
        ("IMAGES", Right),
        ("MISSED", Right),
    ]);
    let (rows, more) = cut(&report.duplicates, layout);
    for row in rows {
        table.row([
            row.path.clone(),
            layout.sizes.show(row.size),
            row.layers.to_string(),
            row.images.to_string(),
            layout.sizes.show(row.bytes),
        ]);
    }
    table.write(&mut text, layout.width);
    if let Some(more) = more {
        note(&mut text, &more);
    }
    text
}

/// What removing an image, or moving it to another base, would free.
pub(crate) fn what_if(report: &Report, layout: Layout) -> String {
    let mut text = String::new();
    title(&mut text, "If an image is removed");
    if report.removals.is_empty() {
        note(&mut text, "none");
        return text;
    }
    let mut table = Table::new([("IMAGE", Left), ("CONTENTS", Right), ("FREED", Right)]);
    for row in &report.removals {
        let freed = layout.sizes.show(row.freed.bytes);
        table.row([
            image_name(&row.image),
            row.freed.contents.to_string(),
            freed,
        ]);
    }
    table.write(&mut text, layout.width);
    if !report.rebases.is_empty() {
        title(&mut text, "If an image stood on another's base");
        let mut table = Table::new([
            ("IMAGE", Left),
            ("BASE OF", Left),
            ("LAYERS", Right),
            ("FREED", Right),
        ]);
        let (rows, more) = cut(&report.rebases, layout);
        for row in rows {
            let layers = format!("-{} +{}", row.layers_out, row.layers_in);
            let freed = layout.sizes.show(row.freed.bytes);
            table.row([image_name(&row.image), image_name(&row.onto), layers, freed]);
        }
        table.write(&mut text, layout.width);
        if let Some(more) = more {
            note(&mut text, &more);
        }
    }
    text
}

/// What each granularity would store.
pub(crate) fn ladder(report: &Report, layout: Layout) -> String {
    let size = |bytes| layout.sizes.show(bytes);
    let mut text = String::new();
    title(&mut text, "The ladder: what each unit would store");
    let mut columns = vec![
        ("UNIT", Left),
        ("CHUNKS", Right),
        ("SIZE", Right),
        ("INDEX", Right),
        ("SUM", Right),
        ("OF LAYERS", Right),
    ];
    let compressed = report.ladder.iter().any(|rung| rung.zstd_bytes.is_some());
    if compressed {
        columns.extend([("ZSTD", Right), ("ZSTD+INDEX", Right)]);
    }
    let mut table = Table::new(columns);
    let layers = report
        .ladder
        .first()
        .map_or(0, |rung| rung.bytes + rung.index_bytes);
    for rung in &report.ladder {
        let mut cells = vec![
            rung.unit.to_owned(),
            rung.chunks.to_string(),
            size(rung.bytes),
            size(rung.index_bytes),
            size(rung.bytes + rung.index_bytes),
            percent(rung.bytes + rung.index_bytes, layers),
        ];
        if let Some(zstd) = rung.zstd_bytes {
            cells.extend([size(zstd), size(zstd + rung.index_bytes)]);
        }
        table.row(cells);
    }
    table.write(&mut text, layout.width);
    for error in &report.ladder_errors {
        let zstd = if compressed {
            format!(" and zstd {:.2}%", error.zstd_relative * 100.0)
        } else {
            String::new()
        };
        let (unit, bytes) = (error.unit, error.relative * 100.0);
        let line = format!("{unit}: an estimate, bytes {bytes:.2}%{zstd} more or less");
        note(&mut text, &line);
    }
    if !report.unreadable.is_empty() {
        let lost = report.unreadable.iter().map(|row| row.bytes).sum();
        let what = match report.unreadable.len() {
            1 => "1 content".to_owned(),
            count => format!("{count} contents"),
        };
        let line = format!("without {what} of {}, which cannot be read", size(lost));
        note(&mut text, &line);
    }
    text
}

/// The layers of each image, in short form.
pub(crate) fn only_layers(report: &Report, layout: Layout) -> String {
    let mut text = String::new();
    if report.images.is_empty() {
        note(&mut text, NO_IMAGES);
    }
    let mut layers: HashMap<&str, Vec<&LayerRow>> = HashMap::new();
    for row in &report.layers {
        layers.entry(&row.image).or_default().push(row);
    }
    for image in &report.images {
        if report.images.len() > 1 {
            title(&mut text, &image_name(&image.name));
        }
        if image.layers == 0 {
            note(&mut text, "none");
            continue;
        }
        let mut table = Table::new([
            ("#", Right),
            ("SIZE", Right),
            ("ADDED", Right),
            ("CHANGED", Right),
            ("DELETED", Right),
            ("ELSEWHERE", Right),
            ("WASTE", Right),
            ("STEP", Start),
        ]);
        for row in layers.get(image.name.as_str()).into_iter().flatten() {
            table.row([
                row.number.to_string(),
                layout.sizes.show(row.bytes),
                row.changes.added.to_string(),
                row.changes.changed.to_string(),
                row.changes.deleted.to_string(),
                layout.sizes.show(row.elsewhere.bytes),
                layout.sizes.show(row.waste_bytes),
                step(&row.created_by, layout),
            ]);
        }
        table.write(&mut text, layout.width);
    }
    // Titles start with an empty line.
    text.trim_start_matches('\n').to_owned()
}
