//! Draws the browser.
//!
//! All text of images goes through [`printable`] before it is drawn, so it cannot control the
//! terminal.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, List, ListState, Paragraph};
use unicode_width::UnicodeWidthStr;

use super::{App, Pane};
use crate::browse::{Item, Mark, View, by_cause};
use crate::model::Step;
use crate::show::{Sizes, beginning, fitting, image_name, percent, printable};

/// The keys and their actions.
const HELP: [(&str, &str); 8] = [
    ("Tab", "pane"),
    ("↑↓", "move"),
    ("←→", "close/open"),
    ("/", "search"),
    ("s", "sort"),
    ("u", "unchanged"),
    ("[ ]", "image"),
    ("q", "quit"),
];
/// The meaning of the files' last column.
const WASTED: &str = "wasted: in all layers";
/// Below this width the panes are stacked.
const BESIDE: u16 = 72;
/// In panes narrower than this, a file's waste is shown after its name.
const ALIGNED: u16 = 40;
/// Columns that a name gets at least, including its indent.
const SHORTEST: usize = 10;

impl App<'_> {
    pub(super) fn draw(&self, frame: &mut Frame<'_>) {
        let bottom = self.bottom(frame.area());
        let rows = Layout::vertical([Constraint::Min(6), Constraint::Length(height(bottom.len()))]);
        let [main, below] = rows.areas(frame.area());
        if main.width >= BESIDE {
            let columns = Layout::horizontal([Constraint::Percentage(38), Constraint::Min(20)]);
            let [left, files] = columns.areas(main);
            self.draw_beside(frame, left);
            self.draw_files(frame, files);
        } else {
            self.draw_stacked(frame, main);
        }
        frame.render_widget(Paragraph::new(bottom), below);
    }

    /// Draws the layers, and below them the chosen layer's command.
    fn draw_beside(&self, frame: &mut Frame<'_>, area: Rect) {
        let inside = Block::bordered().inner(area).width;
        // The command gets the rows that the layers leave, but at least half.
        let left = area.height.saturating_sub(self.layers_height());
        let most = left.max(area.height / 2);
        let height = match self.command_height(unlabelled, inside) {
            0 => 0,
            lines => lines.saturating_add(2).min(most).max(3),
        };
        let rows = Layout::vertical([Constraint::Min(3), Constraint::Length(height)]);
        let [layers, command] = rows.areas(area);
        self.draw_layers(frame, layers);
        let title = format!(" command of layer {} ", self.layer + 1);
        let block = Block::bordered().title(title);
        let text = self.command_lines(unlabelled, block.inner(command));
        frame.render_widget(Paragraph::new(text).block(block), command);
    }

    /// Draws the layers, the chosen layer's command and the files, stacked.
    fn draw_stacked(&self, frame: &mut Frame<'_>, area: Rect) {
        let most = (area.height / 5).max(1);
        let rows = Layout::vertical([
            Constraint::Length(self.layers_height().min(area.height / 3).max(3)),
            Constraint::Length(self.command_height(labelled, area.width).min(most)),
            Constraint::Min(3),
        ]);
        let [layers, command, files] = rows.areas(area);
        self.draw_layers(frame, layers);
        let text = self.command_lines(labelled, command);
        frame.render_widget(Paragraph::new(text), command);
        self.draw_files(frame, files);
    }

    /// The height of the list of all layers, with its border.
    fn layers_height(&self) -> u16 {
        let layers = self.current().map_or(0, |image| image.layers.len());
        height(layers.max(1) + 2)
    }

    /// The height of the image's longest command: with that of the chosen layer's, the panes would
    /// move whenever another layer is chosen.
    fn command_height(&self, show: fn(usize, &str) -> String, width: u16) -> u16 {
        let steps = self.current().into_iter().flat_map(|image| &image.steps);
        let commands = steps.enumerate();
        let heights = commands
            .filter(|(_, step)| !step.created_by.is_empty())
            .map(|(layer, step)| wrapped(&show(layer, &step.created_by), width).len());
        height(heights.max().unwrap_or(0))
    }

    /// The chosen layer's command, cut where the area ends.
    fn command_lines(&self, show: fn(usize, &str) -> String, area: Rect) -> Vec<Line<'static>> {
        let step = self.current().and_then(|image| image.steps.get(self.layer));
        let command = match step.map(|step| step.created_by.as_str()) {
            None | Some("") => "not in the image's history",
            Some(command) => command,
        };
        let lines = cut(wrapped(&show(self.layer, command), area.width), area);
        lines.into_iter().map(Line::from).collect()
    }

    fn draw_layers(&self, frame: &mut Frame<'_>, area: Rect) {
        let Some(image) = self.current() else { return };
        let sizes = image.layers.iter().map(|layer| {
            let layer = self.collection.layer(*layer);
            Sizes::Human.show(layer.map_or(0, |layer| layer.logical))
        });
        let counts = self.walked.changes.iter().map(|changes| {
            format!(
                "+{} ~{} -{}",
                changes.added, changes.changed, changes.deleted
            )
        });
        let (sizes, counts): (Vec<_>, Vec<_>) = (sizes.collect(), counts.collect());
        // Columns are as narrow as possible: the command gets the rest.
        let number_width = image.layers.len().to_string().len();
        let (size_width, count_width) = (widest(&sizes), widest(&counts));
        let inside = usize::from(Block::bordered().inner(area).width);
        let lines = sizes.iter().zip(&counts).zip(&image.steps);
        let lines = lines.zip(1..).map(|(((size, counts), step), number)| {
            let step = one_line(step);
            let row = format!(
                "{number:>number_width$} {size:>size_width$} {counts:<count_width$} {step}"
            );
            Line::from(beginning(row.trim_end(), inside))
        });
        let title = printable(&format!(
            " {} ({}/{}) ",
            image_name(&image.name),
            self.image + 1,
            self.images.len()
        ));
        let mut lines: Vec<Line<'_>> = lines.collect();
        let at = (!lines.is_empty()).then_some(self.layer);
        if lines.is_empty() {
            lines.push(Line::from("no layers").dim());
        }
        self.list(frame, area, lines, at, title, Pane::Layers);
    }

    fn draw_files(&self, frame: &mut Frame<'_>, area: Rect) {
        let items = self
            .rows
            .iter()
            .filter_map(|number| self.browser.items.get(*number));
        let mut lines: Vec<Line<'_>> = items.map(|item| file_line(item, area.width)).collect();
        let at = (!lines.is_empty()).then_some(self.row);
        if lines.is_empty() {
            let inside = Block::bordered().inner(area);
            let why = wrapped(&self.why_empty(), inside.width).into_iter();
            lines = why.map(|line| Line::from(line).dim()).collect();
        }
        let what = if self.view.hide_same {
            "changes of"
        } else {
            "files after"
        };
        let sort = if self.view.by_size { "size" } else { "name" };
        let title = format!(
            " {what} layer {} by {sort}: mark, size, wasted ",
            self.layer + 1
        );
        self.list(frame, area, lines, at, title, Pane::Files);
    }

    /// Explains why no name is shown, and which key changes that.
    fn why_empty(&self) -> String {
        let search = &self.view.search;
        let all = View {
            hide_same: false,
            ..self.view.clone()
        };
        let hidden = self.view.hide_same && !self.browser.rows(&all).is_empty();
        // While a search is being typed, u is part of it.
        let key = if self.searching {
            "Enter, then u,"
        } else {
            "u"
        };
        match (search.is_empty(), hidden) {
            (true, false) => "no files".to_owned(),
            (true, true) => format!("no match: the layer changed nothing ({key} shows the rest)"),
            (false, false) => format!("no match for \"{search}\" (Esc ends the search)"),
            (false, true) => format!(
                "no match for \"{search}\" in what the layer changed ({key} shows the rest)"
            ),
        }
    }

    fn list(
        &self,
        frame: &mut Frame<'_>,
        area: Rect,
        lines: Vec<Line<'_>>,
        at: Option<usize>,
        title: String,
        pane: Pane,
    ) {
        let style = if self.pane == pane {
            Style::new().fg(Color::Cyan)
        } else {
            Style::new()
        };
        let list = List::new(lines)
            .block(Block::bordered().title(title).border_style(style))
            .highlight_style(Style::new().add_modifier(Modifier::REVERSED));
        frame.render_stateful_widget(list, area, &mut ListState::default().with_selected(at));
    }

    /// The image's waste and the keys, on as many lines as they need; on one line each if that
    /// would be more than a quarter of the screen.
    fn bottom(&self, area: Rect) -> Vec<Line<'static>> {
        let Some(image) = self.current() else {
            return Vec::new();
        };
        let layers = self.collection.stack(&image.layers);
        let logical: u64 = layers.map(|layer| layer.logical).sum();
        let causes = by_cause(&self.walked.waste);
        let total: u64 = causes.values().sum();
        let mut parts = vec![format!("waste {} of the layers:", percent(total, logical))];
        let of_cause = |(cause, bytes): (_, &u64)| format!("{cause} {}", Sizes::Human.show(*bytes));
        parts.extend(causes.iter().map(of_cause));
        let mut waste = packed(&parts, "  ", area.width);
        let mut keys = packed(&self.keys(), "  ", area.width);
        if waste.len() + keys.len() > usize::from(area.height / 4) {
            waste = cut(waste, Rect { height: 1, ..area });
            if !self.has_search() {
                let names = HELP.map(|(key, _)| key).join(" ");
                keys = packed(&[names, WASTED.to_owned()], "  ", area.width);
                keys.truncate(1);
            }
        }
        let keys = keys.into_iter().map(|line| Line::from(line).dim());
        waste.into_iter().map(Line::from).chain(keys).collect()
    }

    /// Whether there is a search, which is shown in place of the keys.
    fn has_search(&self) -> bool {
        self.searching || !self.view.search.is_empty()
    }

    fn keys(&self) -> Vec<String> {
        let search = printable(&self.view.search);
        if self.searching {
            return vec![format!("search: {search}_")];
        }
        if self.has_search() {
            return vec![format!("search: {search}"), "(Esc ends it)".to_owned()];
        }
        let keys = HELP.iter().map(|(key, what)| format!("{key} {what}"));
        keys.chain([WASTED.to_owned()]).collect()
    }
}

/// A layer's command, below a title with the layer's number.
fn unlabelled(_layer: usize, command: &str) -> String {
    command.to_owned()
}

/// A layer's command with the layer's number.
fn labelled(layer: usize, command: &str) -> String {
    format!("layer {}: {command}", layer + 1)
}

/// Mark, size, waste and name; a long name is cut, so that the waste stays visible. If that would
/// leave no name, the size is dropped, then the waste.
fn file_line(item: &Item, width: u16) -> Line<'static> {
    let colour = match item.mark {
        Mark::Same => Color::Reset,
        Mark::Added => Color::Green,
        Mark::Changed => Color::Yellow,
        Mark::Removed => Color::Red,
    };
    let indent = 2 * item.depth.saturating_sub(1);
    let indent = " ".repeat(indent.min(usize::from(width) / 4));
    let sign = match (item.is_directory(), item.open) {
        (true, true) => "▾ ",
        (true, false) => "▸ ",
        (false, _) => "  ",
    };
    let is_aligned = width >= ALIGNED;
    let wasted = Sizes::Human.show(item.waste);
    let mut wasted = match (item.waste > 0, is_aligned) {
        (true, true) => format!("{wasted:>8} "),
        (true, false) => format!(" ({wasted})"),
        (false, true) => " ".repeat(9),
        (false, false) => String::new(),
    };
    let size = Sizes::Human.show(item.bytes);
    let mut mark = format!("{} {size:>7} ", item.mark.letter());
    let name = format!("{indent}{sign}{}", printable(&item.name));
    let borders = 2;
    let inside = usize::from(width).saturating_sub(borders);
    let needed = name.width().min(SHORTEST);
    if mark.width() + wasted.width() + needed > inside {
        mark = format!("{} ", item.mark.letter());
    }
    if mark.width() + wasted.width() + needed > inside {
        wasted.clear();
    }
    let name = beginning(&name, inside.saturating_sub(mark.width() + wasted.width()));
    let mark = Span::raw(mark).fg(colour);
    let name = Span::raw(name).fg(colour);
    let wasted = Span::raw(wasted).fg(Color::Magenta);
    Line::from(if is_aligned {
        vec![mark, wasted, name]
    } else {
        vec![mark, name, wasted]
    })
}

/// A number of lines as a height.
fn height(count: usize) -> u16 {
    u16::try_from(count).unwrap_or(u16::MAX)
}

fn widest(texts: &[String]) -> usize {
    texts.iter().map(|text| text.width()).max().unwrap_or(0)
}

/// A command with white space collapsed.
fn one_line(step: &Step) -> String {
    let words: Vec<&str> = step.created_by.split_whitespace().collect();
    printable(&words.join(" "))
}

/// Wraps text at blanks to this many columns; breaks longer words anywhere, and keeps line breaks.
fn wrapped(text: &str, width: u16) -> Vec<String> {
    let mut lines = Vec::new();
    for line in text.lines() {
        let words = line.split_whitespace().map(printable);
        let words: Vec<String> = words.flat_map(|word| pieces(&word, width)).collect();
        lines.extend(packed(&words, " ", width));
    }
    lines
}

/// Splits a word into pieces of at most this many columns, at least one character each.
fn pieces(word: &str, width: u16) -> Vec<String> {
    let mut pieces = Vec::new();
    let mut rest = word;
    while let Some(first) = rest.chars().next() {
        let fits: usize = fitting(rest.chars(), width.into())
            .map(char::len_utf8)
            .sum();
        let Some((piece, after)) = rest.split_at_checked(fits.max(first.len_utf8())) else {
            break;
        };
        pieces.push(piece.to_owned());
        rest = after;
    }
    pieces
}

/// Cuts lines to the height of an area; `…` marks the cut.
fn cut(mut lines: Vec<String>, area: Rect) -> Vec<String> {
    let height = usize::from(area.height);
    if lines.len() > height {
        lines.truncate(height);
        if let Some(last) = lines.last_mut() {
            *last = beginning(&format!("{last} …"), area.width.into());
        }
    }
    lines
}

/// Packs parts into lines of this many columns; a wider part gets a line of its own.
fn packed(parts: &[String], gap: &str, width: u16) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for part in parts {
        match lines.last_mut() {
            Some(line) if line.width() + gap.width() + part.width() <= usize::from(width) => {
                line.push_str(gap);
                line.push_str(part);
            }
            _ => lines.push(part.clone()),
        }
    }
    lines
}

#[cfg(test)]
mod tests;
