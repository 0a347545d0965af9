//! `--tui`: layers on the left, the files after the chosen layer on the right, as dive has them.
//!
//! Every name goes through [`printable`] before it is drawn, so no image can write to the terminal.

use std::io::IsTerminal;

use anyhow::{Context, Result, bail};
use ratatui::Frame;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, List, ListState, Paragraph};

use crate::browse::{Browser, Mark, View, by_cause};
use crate::cleanup;
use crate::model::{Collection, Image};
use crate::show::{Sizes, percent, printable};
use crate::walk::{Walked, walk};

const HELP: &str =
    "Tab pane  ↑↓ move  ←→ close/open  / search  s sort  u unchanged  [ ] image  q quit";
/// What a page key moves by.
const PAGE: usize = 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pane {
    Layers,
    Files,
}

struct App<'c> {
    collection: &'c Collection,
    images: Vec<&'c Image>,
    image: usize,
    walked: Walked,
    layer: usize,
    browser: Browser,
    view: View,
    searching: bool,
    pane: Pane,
    /// Of the rows that are shown.
    row: usize,
    rows: Vec<usize>,
}

/// Shows the chosen images until a key ends it.
pub(crate) fn run(collection: &Collection) -> Result<()> {
    let images: Vec<&Image> = collection
        .chosen()
        .filter(|image| !image.layers.is_empty())
        .collect();
    if images.is_empty() {
        bail!("there is no image to show");
    }
    if !std::io::stdout().is_terminal() || !std::io::stdin().is_terminal() {
        bail!("--tui needs a terminal");
    }
    let mut app = App::new(collection, images)?;
    cleanup::hold_terminal(|| ratatui::try_init().context("the terminal")).and_then(
        |mut terminal| {
            loop {
                terminal
                    .draw(|frame| app.draw(frame))
                    .context("the terminal")?;
                if let Event::Key(key) = event::read().context("the terminal")?
                    && key.kind != KeyEventKind::Release
                    && app.key(key)?
                {
                    return Ok(());
                }
            }
        },
    )
}

impl<'c> App<'c> {
    fn new(collection: &'c Collection, images: Vec<&'c Image>) -> Result<Self> {
        let first = images.first().copied().context("an image")?;
        let walked = walk(collection, first)?;
        let browser = Browser::new(collection, first, 0, &walked.waste)?;
        let mut app = Self {
            collection,
            images,
            image: 0,
            walked,
            layer: 0,
            browser,
            view: View::default(),
            searching: false,
            pane: Pane::Layers,
            row: 0,
            rows: Vec::new(),
        };
        app.show();
        Ok(app)
    }

    fn current(&self) -> Option<&'c Image> {
        self.images.get(self.image).copied()
    }

    /// Computes the rows anew, after whatever decides on them changed.
    fn show(&mut self) {
        self.rows = self.browser.rows(&self.view);
        self.row = self.row.min(self.rows.len().saturating_sub(1));
    }

    fn open_image(&mut self, image: usize) -> Result<()> {
        if let Some(chosen) = self.images.get(image) {
            self.image = image;
            self.walked = walk(self.collection, chosen)?;
            self.open_layer(0)?;
        }
        Ok(())
    }

    fn open_layer(&mut self, layer: usize) -> Result<()> {
        if let Some(image) = self.current().filter(|image| layer < image.layers.len()) {
            self.layer = layer;
            self.browser = Browser::new(self.collection, image, layer, &self.walked.waste)?;
            self.row = 0;
            self.show();
        }
        Ok(())
    }

    /// Acts on a key; true if it ends.
    fn key(&mut self, key: KeyEvent) -> Result<bool> {
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        if control && key.code == KeyCode::Char('c') {
            return Ok(true);
        }
        if self.searching {
            self.search_key(key.code);
            return Ok(false);
        }
        match key.code {
            KeyCode::Char('q') => return Ok(true),
            KeyCode::Tab | KeyCode::BackTab => {
                self.pane = match self.pane {
                    Pane::Layers => Pane::Files,
                    Pane::Files => Pane::Layers,
                }
            }
            KeyCode::Char('/') => self.searching = true,
            KeyCode::Char('f') if control => self.searching = true,
            KeyCode::Esc => {
                self.view.search.clear();
                self.show();
            }
            KeyCode::Char('s') => {
                self.view.by_size = !self.view.by_size;
                self.show();
            }
            KeyCode::Char('u') => {
                self.view.hide_same = !self.view.hide_same;
                self.show();
            }
            KeyCode::Char(']') => self.open_image(self.image + 1)?,
            KeyCode::Char('[') if self.image > 0 => self.open_image(self.image - 1)?,
            code => self.move_key(code)?,
        }
        Ok(false)
    }

    fn search_key(&mut self, code: KeyCode) {
        match code {
            KeyCode::Enter => {
                self.searching = false;
                self.pane = Pane::Files;
            }
            KeyCode::Esc => {
                self.searching = false;
                self.view.search.clear();
            }
            KeyCode::Backspace => {
                self.view.search.pop();
            }
            KeyCode::Char(c) => self.view.search.push(c),
            _ => {}
        }
        self.show();
    }

    fn move_key(&mut self, code: KeyCode) -> Result<()> {
        let (at, count) = match self.pane {
            Pane::Layers => (
                self.layer,
                self.current().map_or(0, |image| image.layers.len()),
            ),
            Pane::Files => (self.row, self.rows.len()),
        };
        let last = count.saturating_sub(1);
        let to = match code {
            KeyCode::Up | KeyCode::Char('k') => at.saturating_sub(1),
            KeyCode::Down | KeyCode::Char('j') => (at + 1).min(last),
            KeyCode::PageUp => at.saturating_sub(PAGE),
            KeyCode::PageDown => (at + PAGE).min(last),
            KeyCode::Home => 0,
            KeyCode::End => last,
            code => {
                match code {
                    KeyCode::Left | KeyCode::Char('h') => self.fold(Some(false)),
                    KeyCode::Right | KeyCode::Char('l') => self.fold(Some(true)),
                    KeyCode::Char(' ') | KeyCode::Enter => self.fold(None),
                    _ => {}
                }
                return Ok(());
            }
        };
        match self.pane {
            Pane::Layers if to != at => self.open_layer(to),
            Pane::Layers => Ok(()),
            Pane::Files => {
                self.row = to;
                Ok(())
            }
        }
    }

    /// Opens or closes the directory of the cursor; None: the other of the two.
    fn fold(&mut self, open: Option<bool>) {
        let item = self
            .rows
            .get(self.row)
            .and_then(|number| self.browser.items.get_mut(*number));
        if let Some(item) = item.filter(|item| item.is_directory())
            && self.pane == Pane::Files
        {
            item.open = open.unwrap_or(!item.open);
            self.show();
        }
    }

    fn draw(&self, frame: &mut Frame<'_>) {
        let rows = Layout::vertical([Constraint::Min(3), Constraint::Length(2)]);
        let [main, bottom] = rows.areas(frame.area());
        let columns = Layout::horizontal([Constraint::Percentage(38), Constraint::Min(20)]);
        let [left, right] = columns.areas(main);
        self.draw_layers(frame, left);
        self.draw_files(frame, right);
        self.draw_bottom(frame, bottom);
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
            image.name,
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
            let waste = if item.waste > 0 {
                Sizes::Human.show(item.waste)
            } else {
                String::new()
            };
            let size = Sizes::Human.show(item.bytes);
            Line::from(vec![
                Span::raw(format!("{} {size:>8} ", item.mark.letter())).fg(colour),
                Span::raw(format!("{waste:>8} ")).fg(Color::Magenta),
                Span::raw(format!("{indent}{sign}{}", printable(&item.name))).fg(colour),
            ])
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

    fn draw_bottom(&self, frame: &mut Frame<'_>, area: Rect) {
        let Some(image) = self.current() else { return };
        let logical: u64 = self
            .collection
            .stack(&image.layers)
            .map(|layer| layer.logical)
            .sum();
        let causes = by_cause(&self.walked.waste);
        let total: u64 = causes.values().sum();
        let parts = causes
            .iter()
            .map(|(cause, bytes)| format!("{cause} {}", Sizes::Human.show(*bytes)));
        let parts: Vec<String> = parts.collect();
        let waste = format!(
            "waste {} of the layers: {}",
            percent(total, logical),
            parts.join(", ")
        );
        let search = match (self.searching, self.view.search.is_empty()) {
            (true, _) => format!("search: {}_", printable(&self.view.search)),
            (false, false) => format!("search: {} (Esc ends it)", printable(&self.view.search)),
            (false, true) => HELP.to_owned(),
        };
        frame.render_widget(
            Paragraph::new(vec![Line::from(waste), Line::from(search).dim()]),
            area,
        );
    }
}
