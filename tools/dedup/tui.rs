//! `--tui`: layers on the left, the files after the chosen layer on the right, as in dive; one
//! above the other in a narrow terminal. This module handles keys; [`screen`] draws.

mod screen;

use std::fs::File;
use std::io::IsTerminal;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::layout::Rect;

use crate::browse::{Browser, View};
use crate::cleanup;
use crate::model::{Collection, Image};
use crate::walk::{Walked, walk};

/// Rows that a page key moves by.
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
    /// Index into the shown rows.
    row: usize,
    rows: Vec<usize>,
}

/// Shows the chosen images until the user quits.
pub(crate) fn run(collection: &Collection) -> Result<()> {
    let images: Vec<&Image> = collection.chosen().collect();
    if images.is_empty() {
        bail!("there is no image to show");
    }
    // Keys come from /dev/tty if standard input is not a terminal, such as an archive.
    let has_keys = std::io::stdin().is_terminal() || File::open("/dev/tty").is_ok();
    if !std::io::stdout().is_terminal() || !has_keys {
        bail!("--tui needs a terminal");
    }
    let mut app = App::new(collection, images)?;
    // The first call installs the handler of SIGWINCH: changes of the size are noticed from here
    // on.
    event::poll(Duration::ZERO).context("the terminal")?;
    cleanup::hold_terminal(|| ratatui::try_init().context("the terminal")).and_then(
        |mut terminal| {
            loop {
                terminal
                    .draw(|frame| app.draw(frame))
                    .context("the terminal")?;
                match event::read().context("the terminal")? {
                    Event::Key(key) if key.kind != KeyEventKind::Release && app.key(key)? => {
                        return Ok(());
                    }
                    // Redraw everything even if the size is already known: what was drawn in
                    // between may have been for the old size.
                    Event::Resize(width, height) => {
                        let area = Rect::new(0, 0, width, height);
                        terminal.resize(area).context("the terminal")?;
                    }
                    _ => {}
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

    /// Recomputes the rows after a change of what they depend on.
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
        if let Some(image) = self
            .current()
            .filter(|image| layer < image.layers.len().max(1))
        {
            self.layer = layer;
            self.browser = Browser::new(self.collection, image, layer, &self.walked.waste)?;
            self.row = 0;
            self.show();
        }
        Ok(())
    }

    /// Handles a key; true if it quits.
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

    /// Expands or collapses the directory at the cursor; None toggles.
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
}
