//! Formatting of sizes, names and tables as text.
//!
//! Invariant: the result of [`printable`] has no character that moves the cursor, changes colours
//! or reorders text, whatever names an image has.

use std::fmt::{self, Write as _};

use cowl_core::store::Platform;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

pub(crate) use crate::lossy::lossy;

/// A path of an image with a leading slash. Bytes that are not UTF-8 are shown as `\xNN`.
pub(crate) fn shown_path(path: &[u8]) -> String {
    format!("/{}", lossy(path))
}

/// Writing to a string cannot fail.
fn push(to: &mut String, what: fmt::Arguments<'_>) {
    if to.write_fmt(what).is_err() {
        to.push('?');
    }
}

/// Text for a terminal or a plain table: escapes control characters, bidirectional marks and
/// zero-width characters.
pub(crate) fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if is_unprintable(c) {
            push(&mut shown, format_args!("{}", c.escape_unicode()));
        } else {
            shown.push(c);
        }
    }
    shown
}

/// A message without the error numbers that Rust appends to system errors.
pub(crate) fn without_errno(message: &str) -> String {
    let (mut shown, mut rest) = (String::new(), message);
    while let Some((before, after)) = rest.split_once(" (os error ") {
        shown.push_str(before);
        rest = after.split_once(')').map_or("", |(_number, rest)| rest);
    }
    shown.push_str(rest);
    shown
}

/// Equivalent JSON without the characters that [`printable`] escapes; newlines between values stay.
pub(crate) fn printable_json(json: &str) -> String {
    let mut shown = String::with_capacity(json.len());
    for c in json.chars() {
        if c != '\n' && is_unprintable(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                push(&mut shown, format_args!("\\u{unit:04x}"));
            }
        } else {
            shown.push(c);
        }
    }
    shown
}

/// [`printable`] for every string of a JSON value.
pub(crate) fn make_printable(value: &mut serde_json::Value) {
    use serde_json::Value;
    match value {
        Value::String(text) => *text = printable(text),
        Value::Array(values) => values.iter_mut().for_each(make_printable),
        Value::Object(fields) => fields.values_mut().for_each(make_printable),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// Control characters, and Unicode's direction marks, separators and characters without width.
fn is_unprintable(c: char) -> bool {
    c.is_control()
        || matches!(c,
        '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// The format of sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sizes {
    /// Three significant digits in powers of 1000, as Docker writes them: `1.98MB`.
    Human,
    /// Whole bytes.
    Exact,
}

impl Sizes {
    pub(crate) fn show(self, bytes: u64) -> String {
        match self {
            Self::Human => human(bytes),
            Self::Exact => bytes.to_string(),
        }
    }

    /// Formats two sizes; in whole bytes if they would look equal but differ.
    pub(crate) fn show_both(self, one: u64, other: u64) -> [String; 2] {
        let shown = [one, other].map(|bytes| self.show(bytes));
        if shown[0] == shown[1] && one != other {
            return [one, other].map(|bytes| format!("{bytes}B"));
        }
        shown
    }
}

/// Digits of an id, as in `cowl images`.
const ID_DIGITS: usize = 12;

/// An image's name in a table; an id is shortened as in `cowl images`.
pub(crate) fn image_name(name: &str) -> String {
    let id = name
        .strip_prefix("sha256:")
        .and_then(|rest| rest.split_at_checked(64));
    match id {
        Some((digits, rest)) if digits.bytes().all(|b| b.is_ascii_hexdigit()) => {
            format!("{}{rest}", digits.get(..ID_DIGITS).unwrap_or(digits))
        }
        _ => name.to_owned(),
    }
}

/// A name and the platform of one of its images, `multi:1 (linux/arm64)`; the name alone if the
/// image has no platform.
pub(crate) fn with_platform(name: &impl fmt::Display, platform: &Platform) -> String {
    let words = [&platform.os, &platform.architecture, &platform.variant];
    let words = words.map(String::as_str).into_iter();
    let words: Vec<&str> = words.filter(|word| !word.is_empty()).collect();
    if words.is_empty() {
        return name.to_string();
    }
    format!("{name} ({})", words.join("/"))
}

/// Docker's sizes.
fn human(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    let value = u128::from(bytes);
    let mut divisor = 1_u128;
    for unit in UNITS {
        let decimals: u32 = match value / divisor {
            ..10 => 2,
            10..100 => 1,
            _ => 0,
        };
        let scale = 10_u128.pow(decimals);
        let rounded = (value * scale + divisor / 2) / divisor;
        if rounded < 1000 * scale {
            let (whole, fraction) = (rounded / scale, rounded % scale);
            if fraction == 0 {
                return format!("{whole}{unit}");
            }
            let digits = (scale + fraction).to_string();
            let digits = digits.get(1..).unwrap_or_default().trim_end_matches('0');
            return format!("{whole}.{digits}{unit}");
        }
        divisor *= 1000;
    }
    format!("{bytes}B")
}

/// `part` in percent of `whole` with one decimal: `12.5%`; `-` if `whole` is 0.
pub(crate) fn percent(part: u64, whole: u64) -> String {
    if whole == 0 {
        return "-".to_owned();
    }
    let mille = (u128::from(part) * 1000 + u128::from(whole) / 2) / u128::from(whole);
    format!("{}.{}%", mille / 10, mille % 10)
}

/// Alignment of a cell, and where it is cut if it is too wide.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Align {
    /// Left, cut in the middle: paths and names differ at both ends.
    Left,
    /// Left, cut at the end.
    Start,
    Right,
}

/// Rows of cells in columns as wide as their widest cell.
#[derive(Debug)]
pub(crate) struct Table {
    columns: Vec<(&'static str, Align)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(columns: impl IntoIterator<Item = (&'static str, Align)>) -> Self {
        Self {
            columns: columns.into_iter().collect(),
            rows: Vec::new(),
        }
    }

    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows
            .push(cells.into_iter().map(|cell| printable(&cell)).collect());
    }

    /// Writes the table at most `width` columns wide: left-aligned columns are cut; if that is not
    /// enough, each row is written as a list of its cells.
    pub(crate) fn write(&self, to: &mut String, width: Option<usize>) {
        let mut widths: Vec<usize> = self.columns.iter().map(|(head, _)| head.len()).collect();
        for row in &self.rows {
            for (cell, width) in row.iter().zip(&mut widths) {
                *width = (*width).max(cell.width());
            }
        }
        if let Some(limit) = width {
            let too_wide = self.narrow(&mut widths, limit);
            if too_wide {
                return self.write_lists(to, limit);
            }
        }
        let heads: Vec<String> = self
            .columns
            .iter()
            .map(|(head, _)| (*head).to_owned())
            .collect();
        self.line(to, &heads, &widths, true);
        for row in &self.rows {
            self.line(to, row, &widths, false);
        }
    }

    /// Writes each cell after its column's heading, on as many lines as it needs, with an empty
    /// line between rows.
    fn write_lists(&self, to: &mut String, limit: usize) {
        let heads = self.columns.iter().map(|(head, _)| head.len());
        let head_width = heads.max().unwrap_or(0);
        // A narrower terminal wraps the lines itself.
        let cell_width = limit.saturating_sub(head_width + 2).max(8);
        for (number, row) in self.rows.iter().enumerate() {
            if number > 0 {
                to.push('\n');
            }
            for (cell, (head, _)) in row.iter().zip(&self.columns) {
                if head.is_empty() {
                    push(to, format_args!("\x1b[1m{}\x1b[0m\n", cell.trim()));
                    continue;
                }
                let (mut head, mut rest) = (*head, cell.as_str());
                while !rest.is_empty() {
                    let piece: String = fitting(rest.chars(), cell_width).collect();
                    push(
                        to,
                        format_args!("\x1b[1m{head:head_width$}\x1b[0m  {piece}\n"),
                    );
                    head = "";
                    rest = rest.get(piece.len().max(1)..).unwrap_or_default();
                }
            }
        }
    }

    /// Narrows the widest left-aligned columns to fit; true if that is not possible.
    fn narrow(&self, widths: &mut [usize], limit: usize) -> bool {
        const SMALLEST: usize = 12;
        let gaps = 2 * widths.len().saturating_sub(1);
        let mut excess = (widths.iter().sum::<usize>() + gaps).saturating_sub(limit);
        while excess > 0 {
            let left = self.columns.iter().zip(widths.iter_mut());
            let widest = left
                .filter(|((_, align), width)| *align != Align::Right && **width > SMALLEST)
                .max_by_key(|(_, width)| **width);
            let Some((_, width)) = widest else {
                return true;
            };
            *width -= 1;
            excess -= 1;
        }
        false
    }

    fn line(&self, to: &mut String, cells: &[String], widths: &[usize], head: bool) {
        let mut line = String::new();
        for ((cell, (_, align)), width) in cells.iter().zip(&self.columns).zip(widths) {
            if !line.is_empty() {
                line.push_str("  ");
            }
            let cell = if *align == Align::Start {
                beginning(cell, *width)
            } else {
                shortened(cell, *width)
            };
            let gap = " ".repeat(width.saturating_sub(cell.width()));
            match align {
                Align::Left | Align::Start => line.extend([cell, gap]),
                Align::Right => line.extend([gap, cell]),
            }
        }
        let line = line.trim_end();
        if head {
            push(to, format_args!("\x1b[1m{line}\x1b[0m\n"));
        } else {
            to.push_str(line);
            to.push('\n');
        }
    }
}

/// Cuts the middle out of a text wider than this many columns.
fn shortened(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let keep = width.saturating_sub(1);
    let front: String = fitting(text.chars(), keep.div_ceil(2)).collect();
    let back: Vec<char> = fitting(text.chars().rev(), keep / 2).collect();
    let back: String = back.into_iter().rev().collect();
    format!("{front}…{back}")
}

/// Cuts the end off a text wider than this many columns.
pub(crate) fn beginning(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let front = fitting(text.chars(), width.saturating_sub(1));
    front.chain(['…']).collect()
}

/// The characters from the start that fit into this many columns.
pub(crate) fn fitting(
    chars: impl Iterator<Item = char>,
    columns: usize,
) -> impl Iterator<Item = char> {
    let mut left = columns;
    chars.take_while(move |c| match left.checked_sub(c.width().unwrap_or(0)) {
        Some(rest) => {
            left = rest;
            true
        }
        None => false,
    })
}

/// A section's title.
pub(crate) fn title(to: &mut String, text: &str) {
    push(to, format_args!("\n\x1b[1;36m{}\x1b[0m\n", printable(text)));
}

/// A line below a table.
pub(crate) fn note(to: &mut String, text: &str) {
    push(to, format_args!("{}\n", printable(text)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_names_are_escaped() {
        assert_eq!(printable("a\x1b[2Jb"), "a\\u{1b}[2Jb");
        assert_eq!(
            printable("x\u{202e}y\u{9b}z\r\n"),
            "x\\u{202e}y\\u{9b}z\\u{d}\\u{a}"
        );
        assert_eq!(printable("größe 漢"), "größe 漢");
        assert_eq!(shown_path(b"a\xff/b"), "/a\\xff/b");
    }

    #[test]
    fn json_keeps_its_meaning_without_control_characters() {
        let hostile = "a\x1b[2J\u{9b}\u{7f}\u{202e}\n\u{e0041}漢\"\\";
        let json = serde_json::to_string_pretty(&[hostile]).unwrap();
        let shown = printable_json(&json);
        assert_eq!(
            shown,
            "[\n  \"a\\u001b[2J\\u009b\\u007f\\u202e\\n\\udb40\\udc41漢\\\"\\\\\"\n]"
        );
        let back: Vec<String> = serde_json::from_str(&shown).unwrap();
        assert_eq!(back, [hostile]);
    }

    #[test]
    fn messages_have_no_error_numbers() {
        let of = |errno| std::io::Error::from_raw_os_error(errno);
        let message = format!("a: {}: b (c): {}", of(2), of(13));
        let expected = "a: No such file or directory: b (c): Permission denied";
        assert_eq!(without_errno(&message), expected);
    }

    #[test]
    fn tables_fit_the_width_of_the_terminal() {
        let mut table = Table::new([("NAME", Align::Left), ("SIZE", Align::Right)]);
        table.row([
            "registry.example/a/long/name:latest".to_owned(),
            "12".to_owned(),
        ]);
        let mut text = String::new();
        table.write(&mut text, Some(24));
        let lines: Vec<usize> = text
            .lines()
            .skip(1)
            .map(|line| line.chars().count())
            .collect();
        assert_eq!(lines, [24]);
        table.row(["漢字漢字漢字漢字漢字漢字".to_owned(), "3".to_owned()]);
        text.clear();
        table.write(&mut text, Some(24));
        // Each character is two columns wide: 17 of the 18 columns are used.
        assert_eq!(text.lines().last(), Some("漢字漢字…漢字漢字      3"));
        let mut whole = String::new();
        table.write(&mut whole, None);
        assert!(
            whole.contains("registry.example/a/long/name:latest    12"),
            "{whole}"
        );
    }

    #[test]
    fn a_row_is_a_list_where_a_table_does_not_fit() {
        let columns = [
            ("IMAGE", Align::Left),
            ("AND", Align::Left),
            ("BYTES", Align::Right),
        ];
        let mut table = Table::new(columns);
        let cells = ["registry.example/shop:latest", "blog", "1.98MB"];
        table.row(cells.map(str::to_owned));
        table.row(["a", "", "1B"].map(str::to_owned));
        let plain = |width| {
            let mut text = String::new();
            table.write(&mut text, Some(width));
            text.replace("\x1b[1m", "").replace("\x1b[0m", "")
        };
        assert_eq!(
            plain(24),
            "IMAGE  registry.example/\n       shop:latest\nAND    blog\nBYTES  1.98MB\n\nIMAGE  a\nBYTES  1B\n"
        );
        // A table again: 12 + 2 + 4 + 2 + 6 columns.
        assert_eq!(plain(26).lines().next(), Some("IMAGE         AND    BYTES"));
    }

    /// Text cut before and by the table has one ellipsis only.
    #[test]
    fn a_command_is_cut_at_its_end_only() {
        let mut table = Table::new([("#", Align::Right), ("STEP", Align::Start)]);
        table.row([
            "1".to_owned(),
            beginning("RUN apt-get install -y python3", 26),
        ]);
        let mut text = String::new();
        table.write(&mut text, Some(20));
        assert_eq!(text.lines().last(), Some("1  RUN apt-get inst…"));
    }

    #[test]
    fn an_image_without_a_name_has_the_id_of_cowl_images() {
        let id = format!("sha256:{}", "0123456789abcdef".repeat(4));
        assert_eq!(image_name(&id), "0123456789ab");
        assert_eq!(
            image_name(&format!("{id} (store, ./x.tar)")),
            "0123456789ab (store, ./x.tar)"
        );
        assert_eq!(image_name("shop:latest"), "shop:latest");
        assert_eq!(image_name("sha256:1"), "sha256:1");
    }

    /// 512,000 and 512,345 are both 512kB.
    #[test]
    fn two_sizes_that_differ_look_different() {
        assert_eq!(
            Sizes::Human.show_both(512_000, 512_345),
            ["512000B", "512345B"]
        );
        assert_eq!(Sizes::Human.show_both(512_000, 513_000), ["512kB", "513kB"]);
        assert_eq!(Sizes::Human.show_both(512_345, 512_345), ["512kB", "512kB"]);
        assert_eq!(
            Sizes::Exact.show_both(512_000, 512_345),
            ["512000", "512345"]
        );
    }

    #[test]
    fn percentages_are_rounded_to_a_decimal() {
        assert_eq!(percent(1, 3), "33.3%");
        assert_eq!(percent(2, 3), "66.7%");
        assert_eq!(percent(0, 0), "-");
    }
}
