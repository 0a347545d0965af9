//! Screens of the browser in terminals of several sizes.

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::Cell;
use ratatui::crossterm::event::{KeyCode, KeyEvent};

use super::*;
use crate::model::Collection;
use crate::tests::TestStore;

fn app(collection: &Collection) -> App<'_> {
    App::new(collection, collection.chosen().collect()).unwrap()
}

/// The screen of a terminal of this size, line by line.
fn screen(app: &App<'_>, width: u16, height: u16) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| app.draw(frame)).unwrap();
    let buffer = terminal.backend().buffer();
    let symbols: Vec<&str> = buffer.content().iter().map(Cell::symbol).collect();
    symbols.chunks(width.into()).map(<[&str]>::concat).collect()
}

fn press(app: &mut App<'_>, keys: impl IntoIterator<Item = KeyCode>) {
    for key in keys {
        app.key(KeyEvent::from(key)).unwrap();
    }
}

/// From 72 columns on the two panes are side by side, else stacked; together they are as wide as
/// the terminal, and every key is explained in lines that fit.
#[test]
fn the_panes_and_the_keys_fit_the_terminal() {
    let store = TestStore::new();
    store.put(&["one"], &["f name a3000", "w name\nf other b20"]);
    let collection = store.collect(&[]).unwrap();
    let app = app(&collection);
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
        // The file of 3,000 bytes, all wasted: shown after the name if there is little space.
        let waste = if width < 40 {
            "3kB   name (3kB)"
        } else {
            "3kB      3kB   name"
        };
        assert!(seen.contains(waste), "{width}:\n{seen}");
        let keys = HELP.iter().map(|(key, what)| format!("{key} {what}"));
        for help in keys.chain([WASTED.to_owned()]) {
            assert!(seen.contains(&help), "{width}: {help}:\n{seen}");
        }
    }
}

/// If waste and keys would take more than a quarter of the lines, they get two.
#[test]
fn a_low_terminal_has_the_waste_and_the_keys_in_a_line_each() {
    let store = TestStore::new();
    store.put(
        &["one"],
        &["f copy c500\nf name a3000", "w name\nf other c500"],
    );
    let collection = store.collect(&[]).unwrap();
    let lines = screen(&app(&collection), 40, 12);
    // Of 4,000 bytes, 3,500 are waste of two causes.
    assert_eq!(
        lines[10].trim_end(),
        "waste 87.5% of the layers:  deleted 3kB…"
    );
    assert_eq!(lines[11].trim_end(), "Tab ↑↓ ←→ / s u [ ] q");
    assert!(
        lines.join("\n").contains("3kB      3kB   name"),
        "{lines:#?}"
    );
}

/// In 20 columns names are visible, with sizes if both fit; deep ones too.
#[test]
fn a_narrow_terminal_shows_names() {
    let store = TestStore::new();
    let deep = "f a/b/c/d/e/f/deepest a30";
    store.put(&["one"], &[&format!("f name a3000\n{deep}"), "w name"]);
    let collection = store.collect(&[]).unwrap();
    let mut app = app(&collection);
    press(&mut app, [KeyCode::Tab]);
    for _ in 0..6 {
        press(&mut app, [KeyCode::Right, KeyCode::Down]);
    }
    let lines = screen(&app, 20, 40);
    for line in ["│A        deepest  │", "│A   name (3kB)    │"] {
        assert!(lines.iter().any(|seen| seen == line), "{line}: {lines:#?}");
    }
    let lines = screen(&app, 24, 40);
    assert!(
        lines.iter().any(|line| line == "│A     3kB   name (3kB)│"),
        "{lines:#?}"
    );
}

/// An image without layers can be shown.
#[test]
fn an_image_without_layers_is_shown() {
    let store = TestStore::new();
    store.put(&["none"], &[]);
    store.put(&["one"], &["f name a3000"]);
    let collection = store.collect(&[]).unwrap();
    let mut app = app(&collection);
    let seen = screen(&app, 100, 20).join("\n");
    for text in ["none:latest (1/2)", "no layers", "no files"] {
        assert!(seen.contains(text), "{text}: {seen}");
    }
    press(
        &mut app,
        [
            KeyCode::Down,
            KeyCode::Tab,
            KeyCode::Down,
            KeyCode::Char(']'),
        ],
    );
    let seen = screen(&app, 100, 20).join("\n");
    assert!(
        seen.contains("one:latest (2/2)") && seen.contains("name"),
        "{seen}"
    );
    press(&mut app, [KeyCode::Char('[')]);
    assert!(screen(&app, 100, 20)[0].starts_with("┌ none:latest (1/2) "));
}

/// Nothing fits, but nothing fails.
#[test]
fn tiny_terminals_do_not_fail() {
    let store = TestStore::new();
    store.put(&["one"], &["f name a3"]);
    let collection = store.collect(&[]).unwrap();
    let app = app(&collection);
    for (width, height) in [(1, 1), (1, 40), (200, 1), (2, 2), (10, 4), (80, 5), (40, 6)] {
        let lines = screen(&app, width, height);
        assert_eq!(lines.len(), usize::from(height));
    }
}

/// A command of thirty numbered words, a tab, a line break and an escape sequence: shown whole if
/// there is space, its start in every terminal, and a cut is marked.
#[test]
fn the_command_of_the_chosen_layer_is_shown() {
    let store = TestStore::new();
    store.put(&["one"], &["f name a3000", "f other b20"]);
    let mut collection = store.collect(&[]).unwrap();
    let words: Vec<String> = (10..40).map(|number| format!("word{number}")).collect();
    let command = format!("RUN\t{} \x1b[2J\nEOF", words.join(" "));
    collection.images[0].steps[1].created_by = command;
    let mut app = app(&collection);
    for (width, height) in [(80, 24), (100, 30), (71, 40), (150, 50)] {
        let seen = screen(&app, width, height).join("\n");
        assert!(
            seen.contains("step 1") && !seen.contains("word39"),
            "{seen}"
        );
    }
    press(&mut app, [KeyCode::Down]);
    for (width, height) in [(80, 24), (100, 30), (71, 40), (150, 50)] {
        let seen = screen(&app, width, height).join("\n");
        for word in words
            .iter()
            .map(String::as_str)
            .chain(["\\u{1b}[2J", "EOF"])
        {
            assert!(seen.contains(word), "{width}x{height}: {word}:\n{seen}");
        }
    }
    for (width, height) in [(40, 12), (80, 8), (24, 14), (60, 10)] {
        let seen = screen(&app, width, height).join("\n");
        assert!(seen.contains("RUN word10"), "{width}x{height}:\n{seen}");
        assert!(seen.contains('…'), "{width}x{height}:\n{seen}");
    }
}

/// The columns of a row are as narrow as possible: in 28 columns 14 are left for the command.
#[test]
fn a_row_has_the_command_of_its_layer() {
    let store = TestStore::new();
    store.put(&["one"], &["f name a3000", "f other b20"]);
    let mut collection = store.collect(&[]).unwrap();
    collection.images[0].steps[1].created_by = "RUN  apt-get\tupdate".to_owned();
    let lines = screen(&app(&collection), 80, 24);
    let row = |number: usize| lines[number].chars().take(30).collect::<String>();
    assert_eq!(row(1), "│1 3kB +1 ~0 -0 step 1       │");
    assert_eq!(row(2), "│2 20B +1 ~0 -0 RUN apt-get …│");
}

/// Without a history no command is shown.
#[test]
fn a_layer_without_a_command_says_so() {
    let store = TestStore::new();
    store.put(&["one"], &["f name a3000", "f other b20"]);
    let mut collection = store.collect(&[]).unwrap();
    collection.images[0].steps[0].created_by.clear();
    let seen = screen(&app(&collection), 100, 24).join("\n");
    assert!(seen.contains("not in the image's history"), "{seen}");
    collection.images[0].steps[1].created_by.clear();
    for width in [100, 50] {
        let seen = screen(&app(&collection), width, 24).join("\n");
        assert!(
            !seen.contains("history") && !seen.contains("command of"),
            "{seen}"
        );
    }
}

/// Layer 2 adds nothing but `new`: a search, `u`, and both may leave no name to show.
#[test]
fn an_empty_pane_says_what_hides_the_names() {
    let store = TestStore::new();
    store.put(&["one"], &["f old a30", "f new b20", "w never"]);
    let collection = store.collect(&[]).unwrap();
    let mut app = app(&collection);
    let seen = |app: &App<'_>| screen(app, 150, 24).join("\n");
    let typed = |text: &str| text.chars().map(KeyCode::Char).collect::<Vec<_>>();
    press(&mut app, [KeyCode::Down]);
    assert!(!seen(&app).contains("no match"));
    press(&mut app, typed("/old"));
    press(&mut app, [KeyCode::Enter, KeyCode::Char('u')]);
    let hidden = "no match for \"old\" in what the layer changed (u shows the rest)";
    assert!(seen(&app).contains(hidden), "{}", seen(&app));
    press(&mut app, typed("/x"));
    let none = "no match for \"oldx\" (Esc ends the search)";
    assert!(seen(&app).contains(none), "{}", seen(&app));
    press(&mut app, [KeyCode::Backspace]);
    let typing = "no match for \"old\" in what the layer changed (Enter, then u, shows the rest)";
    assert!(seen(&app).contains(typing), "{}", seen(&app));
    press(&mut app, [KeyCode::Esc]);
    assert!(seen(&app).contains("changes of layer 2 by name") && !seen(&app).contains("no match"));
    // Layer 3 removes a name that never existed.
    press(&mut app, [KeyCode::Tab, KeyCode::End]);
    let same = "no match: the layer changed nothing (u shows the rest)";
    assert!(seen(&app).contains(same), "{}", seen(&app));
    // A narrow pane shows the whole message too.
    let narrow = screen(&app, 40, 24).join("\n");
    assert!(
        narrow.contains("no match:") && narrow.contains("rest)"),
        "{narrow}"
    );
    press(&mut app, [KeyCode::Char('u')]);
    assert!(seen(&app).contains("old") && !seen(&app).contains("no match"));
}

/// Layer 2 hides layer 1's 30 bytes of `conf`, which is shown after each layer.
#[test]
fn the_waste_at_a_name_is_shown_after_every_layer() {
    let store = TestStore::new();
    store.put(&["one"], &["f conf a30", "f conf b20", "f other c10"]);
    let collection = store.collect(&[]).unwrap();
    let mut app = app(&collection);
    for row in [
        "A     30B      30B   conf",
        "C     20B      30B   conf",
        "      20B      30B   conf",
    ] {
        let seen = screen(&app, 80, 24).join("\n");
        assert!(seen.contains(row), "{row}:\n{seen}");
        press(&mut app, [KeyCode::Down]);
    }
}

/// However long and deep a name is.
#[test]
fn a_long_name_does_not_push_out_its_waste() {
    let store = TestStore::new();
    let long = "n".repeat(60);
    store.put(
        &["one"],
        &[&format!("f {long} a3000"), &format!("w {long}")],
    );
    let collection = store.collect(&[]).unwrap();
    let app = app(&collection);
    for (width, row) in [
        (60, format!("A     3kB      3kB   {}…", "n".repeat(36))),
        (30, format!("A     3kB   {}… (3kB)", "n".repeat(9))),
    ] {
        let seen = screen(&app, width, 24).join("\n");
        assert!(seen.contains(&row), "{row}:\n{seen}");
    }
}

/// Words longer than a line are broken, wide characters too.
#[test]
fn text_is_wrapped_at_blanks_and_cut_at_its_end() {
    assert_eq!(
        wrapped("ab cd  ef\n\nabcdefg", 5),
        ["ab cd", "ef", "abcde", "fg"]
    );
    assert_eq!(wrapped("漢字漢字", 5), ["漢字", "漢字"]);
    assert_eq!(wrapped("漢", 1), ["漢"]);
    let cut_to = |height| cut(wrapped("ab cd ef gh", 5), Rect::new(0, 0, 5, height));
    assert_eq!(cut_to(2), ["ab cd", "ef gh"]);
    assert_eq!(cut_to(1), ["ab c…"]);
    assert!(cut_to(0).is_empty());
}
