//! Evaluates a template's nodes on data.

use super::parse::{Base, Call, Node, Pipeline, Word};
use serde_json::{Value, json};

/// Appends what the nodes print; `dot` is the current value, `root` the whole.
pub(super) fn run(
    nodes: &[Node],
    dot: &Value,
    root: &Value,
    out: &mut String,
) -> Result<(), String> {
    Scope {
        root,
        variables: Vec::new(),
    }
    .run(nodes, dot, out)
}

/// The supported functions.
pub(super) const FUNCTIONS: [&str; 22] = [
    "json", "lower", "upper", "title", "join", "split", "pad", "truncate", "println", "print",
    "printf", "len", "index", "eq", "ne", "lt", "le", "gt", "ge", "not", "and", "or",
];

struct Scope<'d> {
    root: &'d Value,
    variables: Vec<(String, Value)>,
}

impl Scope<'_> {
    fn run(&mut self, nodes: &[Node], dot: &Value, out: &mut String) -> Result<(), String> {
        let depth = self.variables.len();
        for node in nodes {
            match node {
                Node::Text(text) => out.push_str(text),
                Node::Print(pipeline) => out.push_str(&shown(&self.value(pipeline, dot)?)),
                Node::Set(name, pipeline) => {
                    let value = self.value(pipeline, dot)?;
                    self.variables.push((name.clone(), value));
                }
                Node::If(condition, body, otherwise) => {
                    let chosen = if is_true(&self.value(condition, dot)?) {
                        body
                    } else {
                        otherwise
                    };
                    self.run(chosen, dot, out)?;
                }
                Node::With(condition, body, otherwise) => {
                    let value = self.value(condition, dot)?;
                    if is_true(&value) {
                        self.run(body, &value, out)?;
                    } else {
                        self.run(otherwise, dot, out)?;
                    }
                }
                Node::Range {
                    variables,
                    over,
                    body,
                    otherwise,
                } => {
                    let items = items(self.value(over, dot)?)?;
                    if items.is_empty() {
                        self.run(otherwise, dot, out)?;
                    }
                    for (key, value) in items {
                        let outer = self.variables.len();
                        if let (Some(name), _) = variables {
                            self.variables.push((name.clone(), key));
                        }
                        if let (_, Some(name)) = variables {
                            self.variables.push((name.clone(), value.clone()));
                        }
                        self.run(body, &value, out)?;
                        self.variables.truncate(outer);
                    }
                }
            }
        }
        self.variables.truncate(depth);
        Ok(())
    }

    fn value(&self, pipeline: &Pipeline, dot: &Value) -> Result<Value, String> {
        let mut last = None;
        for call in pipeline {
            last = Some(self.call(call, last, dot)?);
        }
        last.ok_or_else(|| "missing value for command".to_owned())
    }

    fn call(&self, call: &Call, last: Option<Value>, dot: &Value) -> Result<Value, String> {
        let mut arguments = Vec::new();
        for word in &call.arguments {
            arguments.push(self.word(word, dot)?);
        }
        arguments.extend(last);
        match &call.function {
            Some(name) => function(name, &arguments),
            None => match <[Value; 1]>::try_from(arguments) {
                Ok([value]) => Ok(value),
                Err(_several) => Err("can't give argument to non-function".to_owned()),
            },
        }
    }

    fn word(&self, word: &Word, dot: &Value) -> Result<Value, String> {
        let (base, fields) = match word {
            Word::Value(value) => return Ok(value.clone()),
            Word::Field(base, fields) => (base, fields),
        };
        let start = match base {
            Base::Dot => dot.clone(),
            Base::Variable(name) if name == "$" => self.root.clone(),
            Base::Variable(name) => {
                let mut known = self.variables.iter().rev();
                let found = known.find(|(variable, _)| variable == name);
                let undefined = || format!("undefined variable \"{name}\"");
                found.ok_or_else(undefined)?.1.clone()
            }
            Base::Group(pipeline) => self.value(pipeline, dot)?,
        };
        fields
            .iter()
            .try_fold(start, |value, name| field(&value, name))
    }
}

fn field(value: &Value, name: &str) -> Result<Value, String> {
    let Value::Object(fields) = value else {
        if value.is_null() {
            return Err(format!("nil pointer evaluating interface {{}}.{name}"));
        }
        return Err(format!(
            "can't evaluate field {name} in type {}",
            kind(value)
        ));
    };
    let found = fields.get(name).or_else(|| {
        let mut fields = fields.iter();
        fields
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
    });
    found
        .cloned()
        .ok_or_else(|| format!("map has no entry for key \"{name}\""))
}

/// Keys or indices with their values, a map's sorted by key.
fn items(value: Value) -> Result<Vec<(Value, Value)>, String> {
    match value {
        Value::Null => Ok(Vec::new()),
        Value::Array(list) => Ok((0..).map(|at: u64| json!(at)).zip(list).collect()),
        Value::Object(fields) => {
            let mut items: Vec<_> = fields.into_iter().collect();
            items.sort_by(|a, b| a.0.cmp(&b.0));
            Ok(items
                .into_iter()
                .map(|(key, value)| (key.into(), value))
                .collect())
        }
        other => Err(format!("range can't iterate over {}", shown(&other))),
    }
}

fn function(name: &str, arguments: &[Value]) -> Result<Value, String> {
    let text = |value: &Value| value.as_str().map_or_else(|| shown(value), str::to_owned);
    let compared = |a: &Value, b: &Value| match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a.partial_cmp(&b),
        _ => Some(text(a).cmp(&text(b))),
    };
    Ok(match (name, arguments) {
        ("json", [value]) => {
            Value::String(serde_json::to_string(value).map_err(|error| error.to_string())?)
        }
        ("lower", [value]) => text(value).to_lowercase().into(),
        ("upper", [value]) => text(value).to_uppercase().into(),
        ("title", [value]) => title(&text(value)).into(),
        ("join", [list, separator]) => {
            let list = items(list.clone())?;
            let words: Vec<String> = list.iter().map(|(_, word)| text(word)).collect();
            words.join(&text(separator)).into()
        }
        ("split", [value, separator]) => {
            let value = text(value);
            let words: Vec<&str> = value.split(&text(separator)).collect();
            json!(words)
        }
        ("pad", [value, before, after]) => {
            let spaces = |count: &Value| " ".repeat(small(count));
            format!("{}{}{}", spaces(before), text(value), spaces(after)).into()
        }
        ("truncate", [value, length]) => {
            let kept: String = text(value).chars().take(small(length)).collect();
            kept.into()
        }
        ("println", words) => format!("{}\n", spaced(words)).into(),
        ("print", words) => spaced(words).into(),
        ("printf", [format, words @ ..]) => printf(&text(format), words)?.into(),
        ("len", [value]) => match value {
            Value::String(text) => json!(text.len()),
            Value::Null | Value::Array(_) | Value::Object(_) => json!(items(value.clone())?.len()),
            other => return Err(format!("len of type {}", kind(other))),
        },
        ("index", [value, keys @ ..]) => keys.iter().try_fold(value.clone(), index)?,
        ("eq", [first, others @ ..]) if !others.is_empty() => {
            json!(
                others
                    .iter()
                    .any(|other| compared(first, other) == Some(std::cmp::Ordering::Equal))
            )
        }
        ("ne", [a, b]) => json!(compared(a, b) != Some(std::cmp::Ordering::Equal)),
        ("lt", [a, b]) => json!(compared(a, b).is_some_and(std::cmp::Ordering::is_lt)),
        ("le", [a, b]) => json!(compared(a, b).is_some_and(std::cmp::Ordering::is_le)),
        ("gt", [a, b]) => json!(compared(a, b).is_some_and(std::cmp::Ordering::is_gt)),
        ("ge", [a, b]) => json!(compared(a, b).is_some_and(std::cmp::Ordering::is_ge)),
        ("not", [value]) => json!(!is_true(value)),
        ("and", [.., last]) => arguments
            .iter()
            .find(|value| !is_true(value))
            .unwrap_or(last)
            .clone(),
        ("or", [.., last]) => arguments
            .iter()
            .find(|value| is_true(value))
            .unwrap_or(last)
            .clone(),
        _ => {
            return Err(format!(
                "wrong number of args for {name}: got {}",
                arguments.len()
            ));
        }
    })
}

/// The element at an index or key; an empty value if a map lacks the key.
#[expect(clippy::needless_pass_by_value, reason = "the step of a fold")]
fn index(value: Value, key: &Value) -> Result<Value, String> {
    match &value {
        Value::Array(list) => {
            let at = small(key);
            let out = || format!("index out of range: {at}");
            list.get(at).cloned().ok_or_else(out)
        }
        Value::Object(fields) => {
            let key = key.as_str().unwrap_or_default();
            Ok(fields.get(key).cloned().unwrap_or(Value::Null))
        }
        other => Err(format!("can't index item of type {}", kind(other))),
    }
}

/// A count, bounded to a sensible size.
fn small(value: &Value) -> usize {
    value
        .as_u64()
        .and_then(|count| usize::try_from(count).ok())
        .map_or(0, |count| count.min(4096))
}

fn spaced(words: &[Value]) -> String {
    let words: Vec<String> = words.iter().map(shown).collect();
    words.join(" ")
}

fn title(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| {
        first.to_uppercase().chain(chars).collect()
    })
}

/// `%s %d %v %q %t %x %%`, with a width and `-` for left alignment.
fn printf(format: &str, words: &[Value]) -> Result<String, String> {
    let mut out = String::new();
    let mut words = words.iter();
    let mut chars = format.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut spec = String::new();
        while let Some(c) = chars.next_if(|c| c.is_ascii_digit() || *c == '-') {
            spec.push(c);
        }
        let verb = chars.next().ok_or("printf: %!(NOVERB)")?;
        if verb == '%' {
            out.push('%');
            continue;
        }
        let word = words.next().ok_or_else(|| format!("%!{verb}(MISSING)"))?;
        let text = match verb {
            's' | 'd' | 'v' | 't' => shown(word),
            'q' => json!(shown(word)).to_string(),
            'x' => format!("{:x}", word.as_u64().unwrap_or_default()),
            other => return Err(format!("printf: unknown verb %{other}")),
        };
        let left = spec.starts_with('-');
        let width: usize = spec.trim_start_matches('-').parse().unwrap_or(0);
        let padding = " ".repeat(width.min(4096).saturating_sub(text.chars().count()));
        if left {
            out.extend([text, padding]);
        } else {
            out.extend([padding, text]);
        }
    }
    Ok(out)
}

fn is_true(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(set) => *set,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "nil",
        Value::Bool(_) => "bool",
        Value::Number(_) => "float64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}

/// As Go's `%v`.
fn shown(value: &Value) -> String {
    match value {
        Value::Null => "<no value>".to_owned(),
        Value::Bool(set) => set.to_string(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => text.clone(),
        Value::Array(list) => format!("[{}]", spaced(list)),
        Value::Object(fields) => {
            let mut pairs: Vec<String> = fields
                .iter()
                .map(|(key, value)| format!("{key}:{}", shown(value)))
                .collect();
            pairs.sort();
            format!("map[{}]", pairs.join(" "))
        }
    }
}
