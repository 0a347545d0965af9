//! `--format` of lists, and `--filter`.

use super::Stdout;
use super::template::{LABELS, Template, Type};
use crate::engine::error::{Error, Result};
use crate::engine::list::Filters;
use serde_json::Value;
use std::collections::BTreeMap;

/// Reads `KEY=VALUE` options. As in Docker, an empty one counts as absent.
pub(super) fn filters(options: &[String]) -> Result<Filters> {
    let mut filters = Filters::new();
    for option in options.iter().filter(|option| !option.is_empty()) {
        let (key, value) = option.split_once('=').ok_or_else(|| {
            Error::invalid(format!(
                "invalid argument \"{option}\" for \"-f, --filter\" flag: bad format of filter (expected name=value)"
            ))
        })?;
        let values = filters.entry(key.trim().to_ascii_lowercase()).or_default();
        values.push(value.trim().to_owned());
    }
    Ok(filters)
}

/// Reads `NAME=VALUE` or bare `NAME` options, such as labels.
pub(super) fn key_values(options: &[String]) -> BTreeMap<String, String> {
    let pairs = options.iter().map(|option| {
        let (name, value) = option.split_once('=').unwrap_or((option, ""));
        (name.to_owned(), value.to_owned())
    });
    pairs.collect()
}

/// Prints rows in a format; see [`lines`].
pub(super) fn print(
    format: &str,
    table: &str,
    header: &Value,
    rows: &[Value],
    of: &'static Type,
    out: &mut Stdout,
) -> Result<()> {
    for line in lines(format, table, header, rows, of)? {
        out.line(&line)?;
    }
    Ok(())
}

/// Formats rows of a type as lines. `table` is the default template for tables; `header` has the
/// title of each field.
pub(super) fn lines(
    format: &str,
    table: &str,
    header: &Value,
    rows: &[Value],
    of: &'static Type,
) -> Result<Vec<String>> {
    if format == "json" {
        let line = |row: &Value| Ok(serde_json::to_string(&without_labels(row))?);
        return rows.iter().map(line).collect();
    }
    let columns = match format.strip_prefix("table") {
        // As in Docker, an empty format counts as absent.
        _ if format.is_empty() => Some(table),
        Some("") => Some(table),
        Some(rest) if rest.starts_with(char::is_whitespace) => Some(rest.trim_start()),
        _ => None,
    };
    let template = Template::parse(columns.unwrap_or(format))?;
    let mut lines = Vec::new();
    if columns.is_some() {
        lines.push(template.render_only(header, &Type::Header)?);
    }
    for row in rows {
        lines.push(template.render_only(row, of)?);
    }
    if columns.is_some() {
        lines = aligned(&lines);
    }
    Ok(lines)
}

/// A row as `json` shows it: without what only `.Label NAME` reads.
pub(super) fn without_labels(row: &Value) -> Value {
    let mut row = row.clone();
    if let Some(fields) = row.as_object_mut() {
        fields.shift_remove(LABELS);
    }
    row
}

/// Lines whose columns are separated by tabs, as Docker's tabwriter aligns them: each column but
/// the last is three wider than its widest cell, and at least ten wide.
fn aligned(lines: &[String]) -> Vec<String> {
    const MIN_WIDTH: usize = 10;
    const PADDING: usize = 3;
    let mut widths: Vec<usize> = Vec::new();
    for line in lines {
        for (column, cell) in line.split('\t').enumerate() {
            let width = (cell.chars().count() + PADDING).max(MIN_WIDTH);
            match widths.get_mut(column) {
                Some(widest) => *widest = width.max(*widest),
                None => widths.push(width),
            }
        }
    }
    let align = |line: &String| {
        let mut cells = line.split('\t').zip(&widths).peekable();
        let mut aligned = String::new();
        while let Some((cell, width)) = cells.next() {
            aligned.push_str(cell);
            if cells.peek().is_some() {
                let spaces = width.saturating_sub(cell.chars().count());
                aligned.extend(std::iter::repeat_n(' ', spaces));
            }
        }
        aligned
    };
    lines.iter().map(align).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_as_docker_does() {
        let lines = ["ID\tNAMES".to_owned(), "0123456789ab\tweb".to_owned()];
        assert_eq!(
            aligned(&lines),
            ["ID             NAMES", "0123456789ab   web"]
        );
    }

    #[test]
    fn filters_of_one_key_are_collected() {
        let options = ["name=a", "NAME = b", "label=x=y"].map(str::to_owned);
        let read = filters(&options).unwrap();
        assert_eq!(read["name"], ["a", "b"]);
        assert_eq!(read["label"], ["x=y"]);
        filters(&["name".to_owned()]).unwrap_err();
    }
}
