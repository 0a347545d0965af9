//! Draws the browser.
//!
//! Every name goes through [`printable`] before it is drawn, so no image can write to the terminal.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, List, ListState, Paragraph};
use unicode_width::UnicodeWidthStr;

use super::{App, Pane};
use crate::browse::{Mark, by_cause};
use crate::show::{Sizes, image_name, percent, printable};

const HELP: [&str; 8] = [
    "Tab pane",
    "↑↓ move",
    "←→ close/open",
    "/ search",
    "s sort",
    "u unchanged",
    "[ ] image",
    "q quit",
];
/// In fewer columns, a pane has all of them.
const BESIDE: u16 = 72;
/// In fewer columns of a pane, a file's waste is behind its name.
const ALIGNED: u16 = 40;

impl App<'_> {
    pub(super) fn draw(&self, frame: &mut Frame<'_>) {
        let bottom = self.bottom(frame.area().width);
        let height = u16::try_from(bottom.len()).unwrap_or(u16::MAX);
        let rows = Layout::vertical([Constraint::Min(6), Constraint::Length(height)]);
        let [main, below] = rows.areas(frame.area());
        let [first, second] = if main.width >= BESIDE {
            Layout::horizontal([Constraint::Percentage(38), Constraint::Min(20)]).areas(main)
        } else {
            let layers = self.current().map_or(0, |image| image.layers.len());
            let most = usize::from(main.height / 3).max(3);
            let height = u16::try_from((layers + 2).min(most)).unwrap_or(3);
            Layout::vertical([Constraint::Length(height), Constraint::Min(3)]).areas(main)
        };
        self.draw_layers(frame, first);
        self.draw_files(frame, second);
        frame.render_widget(Paragraph::new(bottom), below);
    }

    fn draw_layers(&self, frame: &mut Frame<'_>, area: Rect) {
        let Some(image) = self.current() else { return };
        let lines = image
            .layers
            .iter()
            .zip(&image.steps)
            .zip(&self.walked.changes)
            .enumerate();
        let lines = lines.map(|(number, ((layer, step), changes))| {
            let bytes = self
                .collection
                .layer(*layer)
                .map_or(0, |layer| layer.logical);
            let counts = format!(
                "+{} ~{} -{}",
                changes.added, changes.changed, changes.deleted
            );
            let size = Sizes::Human.show(bytes);
            let step = printable(&step.created_by);
            Line::from(format!("{:>3} {size:>8} {counts:<16} {step}", number + 1))
        });
        let title = printable(&format!(
            " {} ({}/{}) ",
            image_name(&image.name),
            self.image + 1,
            self.images.len()
        ));
        self.list(
            frame,
            area,
            lines.collect(),
            self.layer,
            title,
            Pane::Layers,
        );
    }

    fn draw_files(&self, frame: &mut Frame<'_>, area: Rect) {
        let items = self
            .rows
            .iter()
            .filter_map(|number| self.browser.items.get(*number));
        let lines = items.map(|item| {
            let colour = match item.mark {
                Mark::Same => Color::Reset,
                Mark::Added => Color::Green,
                Mark::Changed => Color::Yellow,
                Mark::Removed => Color::Red,
            };
            let indent = "  ".repeat(item.depth.saturating_sub(1));
            let sign = match (item.is_directory(), item.open) {
                (true, true) => "▾ ",
                (true, false) => "▸ ",
                (false, _) => "  ",
            };
            let wasted = if item.waste > 0 {
                Sizes::Human.show(item.waste)
            } else {
                String::new()
            };
            let size = Sizes::Human.show(item.bytes);
            let mark = Span::raw(format!("{} {size:>7} ", item.mark.letter())).fg(colour);
            let name = Span::raw(format!("{indent}{sign}{}", printable(&item.name))).fg(colour);
            let waste = |text: String| Span::raw(text).fg(Color::Magenta);
            if area.width < ALIGNED {
                let behind = if item.waste > 0 {
                    format!(" ({wasted})")
                } else {
                    wasted
                };
                Line::from(vec![mark, name, waste(behind)])
            } else {
                Line::from(vec![mark, waste(format!("{wasted:>8} ")), name])
            }
        });
        let sort = if self.view.by_size { "size" } else { "name" };
        let title = format!(
            " files after layer {}, by {sort}: mark, size, wasted ",
            self.layer + 1
        );
        self.list(frame, area, lines.collect(), self.row, title, Pane::Files);
    }

    fn list(
        &self,
        frame: &mut Frame<'_>,
        area: Rect,
        lines: Vec<Line<'_>>,
        at: usize,
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
        frame.render_stateful_widget(
            list,
            area,
            &mut ListState::default().with_selected(Some(at)),
        );
    }

    /// What all of the image wastes, and the keys; as many lines as they need.
    fn bottom(&self, width: u16) -> Vec<Line<'static>> {
        let Some(image) = self.current() else {
            return Vec::new();
        };
        let logical: u64 = self
            .collection
            .stack(&image.layers)
            .map(|layer| layer.logical)
            .sum();
        let causes = by_cause(&self.walked.waste);
        let total: u64 = causes.values().sum();
        let mut parts = vec![format!("waste {} of the layers:", percent(total, logical))];
        let of_cause = |(cause, bytes): (_, &u64)| format!("{cause} {}", Sizes::Human.show(*bytes));
        parts.extend(causes.iter().map(of_cause));
        let search = match (self.searching, self.view.search.is_empty()) {
            (true, _) => vec![format!("search: {}_", printable(&self.view.search))],
            (false, false) => vec![
                format!("search: {}", printable(&self.view.search)),
                "(Esc ends it)".to_owned(),
            ],
            (false, true) => HELP.map(str::to_owned).to_vec(),
        };
        let waste = packed(&parts, usize::from(width))
            .into_iter()
            .map(Line::from);
        let search = packed(&search, usize::from(width)).into_iter();
        waste
            .chain(search.map(|line| Line::from(line).dim()))
            .collect()
    }
}

/// Parts in lines of at most this many columns, but for a part that is wider.
fn packed(parts: &[String], width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for part in parts {
        match lines.last_mut() {
            Some(line) if line.width() + 2 + part.width() <= width => {
                line.push_str("  ");
                line.push_str(part);
            }
            _ => lines.push(part.clone()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use ratatui::buffer::Cell;

    use super::*;
    use crate::tests::TestStore;

    /// The screen of a terminal of this size, line by line.
    fn screen(app: &App<'_>, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| app.draw(frame)).unwrap();
        let buffer = terminal.backend().buffer();
        let symbols: Vec<&str> = buffer.content().iter().map(Cell::symbol).collect();
        symbols.chunks(width.into()).map(<[&str]>::concat).collect()
    }

    /// The two panes are beside each other from 72 columns on, else one above the other; both are
    /// as wide as the terminal, and every key is explained in lines that fit.
    #[test]
    fn the_panes_and_the_keys_fit_the_terminal() {
        let store = TestStore::new();
        store.put(&["one"], &["f name a3000", "w name\nf other b20"]);
        let collection = store.collect(&[]).unwrap();
        let app = App::new(&collection, collection.chosen().collect()).unwrap();
        for width in [150, 72, 71, 40, 24] {
            let lines = screen(&app, width, 30);
            let seen = lines.join("\n");
            let top = &lines[0];
            assert!(
                top.starts_with("┌ one:latest (1/1) ") && top.ends_with('┐'),
                "{seen}"
            );
            assert_eq!(
                top.contains("┐┌ files after"),
                width >= 72,
                "{width}:\n{seen}"
            );
            let below = lines
                .iter()
                .filter(|line| line.starts_with("┌ files after"));
            assert_eq!(below.count(), usize::from(width < 72), "{width}:\n{seen}");
            // The file of 3,000 bytes, all wasted: behind its name where there is little place.
            let waste = if width < 40 {
                "3kB   name (3kB)"
            } else {
                "3kB      3kB   name"
            };
            assert!(seen.contains(waste), "{width}:\n{seen}");
            for key in HELP {
                assert!(seen.contains(key), "{width}: {key}:\n{seen}");
            }
        }
    }

    /// Nothing fits, and nothing fails.
    #[test]
    fn the_smallest_terminals_are_drawn_to() {
        let store = TestStore::new();
        store.put(&["one"], &["f name a3"]);
        let collection = store.collect(&[]).unwrap();
        let app = App::new(&collection, collection.chosen().collect()).unwrap();
        for (width, height) in [(1, 1), (1, 40), (200, 1), (2, 2), (10, 4)] {
            let lines = screen(&app, width, height);
            assert_eq!(lines.len(), usize::from(height));
        }
    }
}
