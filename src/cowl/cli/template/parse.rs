//! Parses a template's text into nodes.

use super::functions;
use serde_json::{Value, json};

/// How deep parentheses and blocks may be nested.
const DEPTH: usize = 64;

/// A part of a template.
#[derive(Debug, Clone)]
pub(super) enum Node {
    Text(String),
    Print(Pipeline),
    /// `{{$x := pipeline}}`.
    Set(String, Pipeline),
    If(Pipeline, Vec<Node>, Vec<Node>),
    With(Pipeline, Vec<Node>, Vec<Node>),
    Range {
        /// For the index or key, and the value.
        variables: (Option<String>, Option<String>),
        over: Pipeline,
        body: Vec<Node>,
        otherwise: Vec<Node>,
    },
}

/// Calls, each of which gets the previous result as its last argument.
pub(super) type Pipeline = Vec<Call>;

/// A value, or a function with its arguments.
#[derive(Debug, Clone)]
pub(super) struct Call {
    pub(super) function: Option<String>,
    pub(super) arguments: Vec<Word>,
    pub(super) place: Place,
}

/// Where errors say that a part of a template is.
#[derive(Debug, Clone)]
pub(super) struct Place {
    /// Offset in the template's text.
    pub(super) at: usize,
    /// The part as Go prints it.
    pub(super) text: String,
}

#[derive(Debug, Clone)]
pub(super) struct Word {
    pub(super) meaning: Meaning,
    pub(super) place: Place,
}

#[derive(Debug, Clone)]
pub(super) enum Meaning {
    Value(Value),
    /// The base value, and the names of the fields.
    Field(Base, Vec<String>),
}

#[derive(Debug, Clone)]
pub(super) enum Base {
    Dot,
    /// Empty for `$`.
    Variable(String),
    Group(Pipeline),
}

enum Piece {
    Text(String),
    /// With the line that it begins on.
    Action(Source, usize),
    /// An unterminated action, and why.
    Broken(String, usize),
}

/// The text of an action or of its end, and the offset in the template where it ends.
#[derive(Clone)]
struct Source {
    text: String,
    end: usize,
}

/// Why a template is malformed, and the line.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed {
    pub(super) line: usize,
    pub(super) why: String,
}

pub(super) fn parse(text: &str) -> Result<Vec<Node>, Malformed> {
    let mut parser = Parser {
        pieces: split(text).into_iter(),
        line: 1,
        variables: Vec::new(),
    };
    let parsed = parser.block(0).and_then(|(nodes, end)| match end {
        None => Ok(nodes),
        Some(Source { text, .. }) => Err(format!("unexpected {{{{{text}}}}}")),
    });
    parsed.map_err(|why| Malformed {
        line: parser.line,
        why,
    })
}

/// Splits a template into texts and actions; `-` trims white space.
fn split(text: &str) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut rest = text;
    let mut trim = false;
    while let Some((before, after)) = rest.split_once("{{") {
        let begun = text.get(..text.len() - after.len()).unwrap_or_default();
        let line = begun.matches('\n').count() + 1;
        let before = if trim { before.trim_start() } else { before };
        let (action, next) = match action(after) {
            Ok(found) => found,
            Err(why) => {
                pieces.push(Piece::Broken(why, line));
                return pieces;
            }
        };
        let (left, inner) = match action.strip_prefix("- ") {
            Some(inner) => (true, inner),
            None => (false, action),
        };
        let (right, inner) = match inner.strip_suffix(" -") {
            Some(inner) => (true, inner),
            None => (false, inner),
        };
        let before = if left { before.trim_end() } else { before };
        pieces.push(Piece::Text(before.to_owned()));
        let end = text.len() - next.len() - "}}".len() - if right { " -".len() } else { 0 };
        let spaces = inner.len() - inner.trim_end().len();
        let source = Source {
            text: inner.trim().to_owned(),
            end: end - spaces,
        };
        pieces.push(Piece::Action(source, line));
        (rest, trim) = (next, right);
    }
    let rest = if trim { rest.trim_start() } else { rest };
    pieces.push(Piece::Text(rest.to_owned()));
    pieces
}

/// The text up to the first unquoted `}}`, and the rest.
fn action(text: &str) -> Result<(&str, &str), String> {
    let comment = text.trim_start_matches("- ").starts_with("/*");
    let mut quote = None;
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match quote {
            _ if comment => {}
            Some(_) if escaped => {
                escaped = false;
                continue;
            }
            Some('"') if c == '\\' => {
                escaped = true;
                continue;
            }
            Some(open) => {
                if c == open {
                    quote = None;
                }
                continue;
            }
            None if c == '"' || c == '`' => {
                quote = Some(c);
                continue;
            }
            None => {}
        }
        let rest = text.get(at..).unwrap_or_default();
        if let Some(next) = rest.strip_prefix("}}") {
            return Ok((text.get(..at).unwrap_or_default(), next));
        }
    }
    Err(match quote {
        Some(_) => "unterminated quoted string".to_owned(),
        None => "unclosed action".to_owned(),
    })
}

struct Parser {
    pieces: std::vec::IntoIter<Piece>,
    /// Line of the last action that was parsed.
    line: usize,
    /// Variables in scope, the innermost last.
    variables: Vec<String>,
}

impl Parser {
    /// Parses nodes up to the action that ends the block; returns that too.
    fn block(&mut self, depth: usize) -> Result<(Vec<Node>, Option<Source>), String> {
        if depth > DEPTH {
            return Err("nested too deeply".to_owned());
        }
        let outer = self.variables.len();
        let mut nodes = Vec::new();
        while let Some(piece) = self.pieces.next() {
            let source = match piece {
                Piece::Text(text) => {
                    if !text.is_empty() {
                        nodes.push(Node::Text(text));
                    }
                    continue;
                }
                Piece::Action(source, line) => {
                    self.line = line;
                    source
                }
                Piece::Broken(why, line) => {
                    self.line = line;
                    return Err(why);
                }
            };
            let Source { text: action, end } = &source;
            let (word, rest) = action
                .split_once(char::is_whitespace)
                .unwrap_or((action, ""));
            match word {
                "end" | "else" => {
                    self.variables.truncate(outer);
                    return Ok((nodes, Some(source)));
                }
                "if" | "with" | "range" => nodes.push(self.branch(word, rest, *end, depth)?),
                _ if action.starts_with("/*") => {}
                _ => nodes.push(self.statement(action, *end)?),
            }
        }
        Ok((nodes, None))
    }

    /// `if`, `with` or `range` with its blocks; the condition ends at an offset.
    fn branch(
        &mut self,
        word: &str,
        condition: &str,
        end: usize,
        depth: usize,
    ) -> Result<Node, String> {
        let outer = self.variables.len();
        let (names, over) = match condition.split_once(":=") {
            Some((names, over)) if word == "range" && names.trim_start().starts_with('$') => {
                (Some(names), over)
            }
            _ => (None, condition),
        };
        if over.is_empty() {
            return Err(format!("missing value for {word}"));
        }
        let over = self.pipeline(over, end)?;
        let mut names = names
            .into_iter()
            .flat_map(|names| names.split(','))
            .map(|name| name.trim().to_owned());
        let variables = match (names.next(), names.next()) {
            (key, Some(value)) => (key, Some(value)),
            (value, None) => (None, value),
        };
        self.variables
            .extend([&variables.0, &variables.1].into_iter().flatten().cloned());
        let (body, otherwise) = self.blocks(depth)?;
        self.variables.truncate(outer);
        Ok(match word {
            "if" => Node::If(over, body, otherwise),
            "with" => Node::With(over, body, otherwise),
            _ => Node::Range {
                variables,
                over,
                body,
                otherwise,
            },
        })
    }

    /// The nodes after a condition: if it holds, and if not.
    fn blocks(&mut self, depth: usize) -> Result<(Vec<Node>, Vec<Node>), String> {
        let eof = || "unexpected EOF".to_owned();
        let (body, end) = self.block(depth + 1)?;
        let Source { text, end } = end.ok_or_else(eof)?;
        if text == "end" {
            return Ok((body, Vec::new()));
        }
        if let Some(more) = text.strip_prefix("else if ") {
            return Ok((body, vec![self.branch("if", more, end, depth + 1)?]));
        }
        let (nodes, end) = self.block(depth + 1)?;
        if end.ok_or_else(eof)?.text != "end" {
            return Err("unexpected {{else}}".to_owned());
        }
        Ok((body, nodes))
    }

    fn statement(&mut self, action: &str, end: usize) -> Result<Node, String> {
        if action.starts_with('$')
            && let Some((name, value)) = action.split_once(":=")
        {
            let value = self.pipeline(value, end)?;
            let name = name.trim().to_owned();
            self.variables.push(name.clone());
            return Ok(Node::Set(name, value));
        }
        Ok(Node::Print(self.pipeline(action, end)?))
    }

    fn pipeline(&self, text: &str, end: usize) -> Result<Pipeline, String> {
        let mut reader = Reader {
            rest: text,
            end,
            variables: &self.variables,
        };
        let calls = reader.pipeline(0)?;
        match reader.rest.trim_start() {
            "" => Ok(calls),
            rest => Err(format!("unexpected \"{rest}\" in operand")),
        }
    }
}

struct Reader<'t> {
    rest: &'t str,
    /// The offset where `rest` ends.
    end: usize,
    variables: &'t [String],
}

impl Reader<'_> {
    fn pipeline(&mut self, depth: usize) -> Result<Pipeline, String> {
        if depth > DEPTH {
            return Err("nested too deeply".to_owned());
        }
        let mut calls = Vec::new();
        loop {
            calls.push(self.call(depth)?);
            self.rest = self.rest.trim_start();
            match self.rest.strip_prefix('|') {
                Some(rest) => self.rest = rest,
                None => return Ok(calls),
            }
        }
    }

    fn call(&mut self, depth: usize) -> Result<Call, String> {
        let mut function = None;
        let mut arguments = Vec::new();
        self.rest = self.rest.trim_start();
        let at = self.at();
        loop {
            self.rest = self.rest.trim_start();
            let Some(first) = self.rest.chars().next() else {
                break;
            };
            match first {
                '|' | ')' => break,
                c if c.is_alphabetic() => {
                    let at = self.at();
                    let name = self.take(|c| c.is_alphanumeric() || c == '_');
                    let mut constant = |value| {
                        let (meaning, text) = (Meaning::Value(value), name.clone());
                        let place = Place { at, text };
                        arguments.push(Word { meaning, place });
                    };
                    match name.as_str() {
                        "true" => constant(json!(true)),
                        "false" => constant(json!(false)),
                        "nil" => constant(Value::Null),
                        known
                            if functions::is_known(known)
                                && function.is_none()
                                && arguments.is_empty() =>
                        {
                            function = Some(name);
                        }
                        // Not a function, or not the first word of a call.
                        _ => return Err(format!("function \"{name}\" not defined")),
                    }
                }
                _ => arguments.push(self.word(first, depth)?),
            }
        }
        if function.is_none() && arguments.is_empty() {
            return Err("missing value for command".to_owned());
        }
        let words = arguments.iter().map(|word| &word.place.text);
        let words: Vec<_> = function.iter().chain(words).cloned().collect();
        Ok(Call {
            function,
            arguments,
            place: Place {
                at,
                text: words.join(" "),
            },
        })
    }

    /// The offset of `rest`.
    fn at(&self) -> usize {
        self.end - self.rest.len()
    }

    fn word(&mut self, first: char, depth: usize) -> Result<Word, String> {
        let whole = self.rest;
        let mut at = self.at();
        let meaning = self.meaning(first, depth)?;
        let length = whole.len() - self.rest.len();
        let text = whole.get(..length).unwrap_or_default().to_owned();
        // Go counts a chain of fields from its second link.
        if let Meaning::Field(_, fields) = &meaning
            && !fields.is_empty()
        {
            let skipped = usize::from(first == '.');
            let chain: usize = fields.iter().skip(skipped).map(|name| name.len() + 1).sum();
            if chain > 0 {
                at += length - chain;
            }
        }
        Ok(Word {
            meaning,
            place: Place { at, text },
        })
    }

    fn meaning(&mut self, first: char, depth: usize) -> Result<Meaning, String> {
        match first {
            '"' | '`' => self.quoted(first).map(Meaning::Value),
            '-' | '0'..='9' => {
                let text = self.take(|c| c.is_ascii_digit() || matches!(c, '-' | '.'));
                serde_json::from_str(&text)
                    .map(Meaning::Value)
                    .map_err(|_syntax| format!("bad number syntax: \"{text}\""))
            }
            '.' => Ok(Meaning::Field(Base::Dot, self.fields())),
            '$' => {
                let name = self.take(|c| c.is_alphanumeric() || matches!(c, '_' | '$'));
                if name != "$" && !self.variables.contains(&name) {
                    return Err(format!("undefined variable \"{name}\""));
                }
                Ok(Meaning::Field(Base::Variable(name), self.fields()))
            }
            '(' => {
                self.rest = self.rest.get(1..).unwrap_or_default();
                let group = self.pipeline(depth + 1)?;
                self.rest = self
                    .rest
                    .trim_start()
                    .strip_prefix(')')
                    .ok_or("unclosed left paren")?;
                Ok(Meaning::Field(Base::Group(group), self.fields()))
            }
            other => Err(format!("unexpected \"{other}\" in command")),
        }
    }

    /// The names after dots; empty for a lone dot.
    fn fields(&mut self) -> Vec<String> {
        let mut names = Vec::new();
        while let Some(rest) = self.rest.strip_prefix('.') {
            self.rest = rest;
            let name = self.take(|c| c.is_alphanumeric() || c == '_');
            if name.is_empty() {
                break;
            }
            names.push(name);
        }
        names
    }

    fn quoted(&mut self, quote: char) -> Result<Value, String> {
        let mut text = String::new();
        let mut chars = self.rest.char_indices().skip(1);
        while let Some((at, c)) = chars.next() {
            match c {
                c if c == quote => {
                    self.rest = self.rest.get(at + 1..).unwrap_or_default();
                    return Ok(Value::String(text));
                }
                '\\' if quote == '"' => match chars.next() {
                    Some((_, 'n')) => text.push('\n'),
                    Some((_, 't')) => text.push('\t'),
                    Some((_, other)) => text.push(other),
                    None => break,
                },
                c => text.push(c),
            }
        }
        Err("unterminated quoted string".to_owned())
    }

    fn take(&mut self, wanted: impl Fn(char) -> bool) -> String {
        let end = self.rest.find(|c| !wanted(c)).unwrap_or(self.rest.len());
        let (taken, rest) = self.rest.split_at_checked(end).unwrap_or((self.rest, ""));
        self.rest = rest;
        taken.to_owned()
    }
}
