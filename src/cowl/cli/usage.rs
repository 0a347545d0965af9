//! Formats usage errors as one line: what is wrong and what to do.

use clap::error::{ContextKind, ContextValue, ErrorKind};
use std::ffi::OsString;

/// A clap error as one line. `command` is the subcommand to get help on, such as `cowl run`.
pub(super) fn one_line(error: &clap::Error, arguments: &[OsString], command: &str) -> String {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        Some(ContextValue::Strings(texts)) => Some(texts.join(", ")),
        _ => None,
    };
    let argument = text(ContextKind::InvalidArg).unwrap_or_default();
    // Without its placeholder: "--memory <BYTES>", "--rm[=<BOOL>]".
    let option = argument.split([' ', '[']).next().unwrap_or_default();
    let value = text(ContextKind::InvalidValue).unwrap_or_default();
    let what = match error.kind() {
        ErrorKind::UnknownArgument if argument.starts_with('-') => {
            let hint = text(ContextKind::SuggestedArg)
                .map(|similar| format!(" (did you mean {similar}?)"))
                .unwrap_or_default();
            format!("unknown option: {argument}{hint}")
        }
        ErrorKind::UnknownArgument => format!("unexpected argument: {argument}"),
        ErrorKind::InvalidValue if value.is_empty() => format!("{option} needs a value"),
        ErrorKind::InvalidValue => match text(ContextKind::ValidValue) {
            Some(valid) => format!("invalid argument \"{value}\" for {option}: use {valid}"),
            None => format!("invalid argument \"{value}\" for {option}"),
        },
        ErrorKind::ValueValidation => {
            let why = std::error::Error::source(error)
                .map(|source| format!(": {source}"))
                .unwrap_or_default();
            format!("invalid argument \"{value}\" for {option}{why}")
        }
        ErrorKind::MissingRequiredArgument => format!("missing {argument}"),
        ErrorKind::MissingSubcommand => "missing command".to_owned(),
        ErrorKind::InvalidSubcommand => {
            let word = text(ContextKind::InvalidSubcommand).unwrap_or_default();
            let hint = text(ContextKind::SuggestedSubcommand)
                .map(|similar| format!(" (did you mean {similar}?)"))
                .unwrap_or_default();
            format!("unknown command: {word}{hint}")
        }
        ErrorKind::ArgumentConflict => {
            let prior = error.get(ContextKind::PriorArg);
            conflict(&argument, prior)
        }
        ErrorKind::InvalidUtf8 => {
            let odd = arguments.iter().find(|word| word.to_str().is_none());
            format!(
                "an argument is not valid UTF-8: {}",
                odd.cloned().unwrap_or_default().display()
            )
        }
        // Any other: the first line of clap's text.
        _ => {
            let all = error.to_string();
            all.lines()
                .next()
                .unwrap_or_default()
                .trim_start_matches("error: ")
                .to_owned()
        }
    };
    format!("{what}; see '{command} --help'")
}

/// An argument that conflicts with others, or is repeated.
fn conflict(argument: &str, prior: Option<&ContextValue>) -> String {
    // Without its placeholder, and a positional one without its brackets: "--upper <DIR>", "[B]".
    let bare = |argument: &str| {
        let option = argument.split(' ').next().unwrap_or_default();
        let option = match option.strip_prefix('-') {
            Some(_) => option.split('[').next().unwrap_or_default(),
            None => option.trim_matches(['[', ']', '<', '>', '.']),
        };
        option.to_owned()
    };
    let others: Vec<String> = match prior {
        Some(ContextValue::String(other)) => vec![bare(other)],
        Some(ContextValue::Strings(others)) => others.iter().map(|other| bare(other)).collect(),
        _ => Vec::new(),
    };
    let argument = bare(argument);
    if others.iter().all(|other| *other == argument) {
        return format!("{argument} can be given only once");
    }
    format!("{argument} cannot be used with {}", others.join(", "))
}

/// The closest command to `word`, if at most a third of its letters differ.
pub(super) fn similar<'a>(
    word: &str,
    commands: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let near = |command: &str| {
        let distance = distance(word, command);
        (distance * 3 <= word.chars().count().max(command.chars().count())).then_some(distance)
    };
    commands
        .into_iter()
        .filter_map(|command| Some((near(command)?, command)))
        .min()
        .map(|(_, command)| command)
}

/// Edit distance with transpositions (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, to) in b.iter().enumerate() {
            let get = |row: &[usize], at: usize| row.get(at).copied().unwrap_or(usize::MAX / 2);
            let replaced = get(&last, j) + usize::from(from != to);
            let mut best = replaced.min(get(&last, j + 1) + 1).min(get(&row, j) + 1);
            if i > 0 && j > 0 && a.get(i - 1) == Some(to) && b.get(j - 1) == Some(from) {
                best = best.min(get(&before, j - 1) + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut last, row);
    }
    last.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_command_finds_its_suggestion() {
        let commands = [
            "load", "images", "import", "info", "rm", "rmi", "run", "ps", "volume",
        ];
        let table = [
            ("imges", Some("images")),
            ("iamges", Some("images")),
            ("laod", Some("load")),
            ("volumes", Some("volume")),
            ("dockerfile", None),
            ("x", None),
        ];
        for (word, command) in table {
            assert_eq!(similar(word, commands), command, "{word}");
        }
    }
}
