//! The functions of templates.

use super::types::{Item, Type, kind};
use serde_json::{Value, json};

/// How many arguments a function takes, and whether more are allowed.
const COUNTS: [(&str, usize, bool); 22] = [
    ("json", 1, false),
    ("lower", 1, false),
    ("upper", 1, false),
    ("title", 1, false),
    ("join", 2, false),
    ("split", 2, false),
    ("pad", 3, false),
    ("truncate", 2, false),
    ("println", 0, true),
    ("print", 0, true),
    ("printf", 1, true),
    ("len", 1, false),
    ("index", 1, true),
    ("eq", 1, true),
    ("ne", 2, false),
    ("lt", 2, false),
    ("le", 2, false),
    ("gt", 2, false),
    ("ge", 2, false),
    ("not", 1, false),
    ("and", 1, true),
    ("or", 1, true),
];

/// Whether a function is supported.
pub(super) fn is_known(name: &str) -> bool {
    COUNTS.iter().any(|(known, ..)| *known == name)
}

/// Refuses a number of arguments that a function does not take.
pub(super) fn check(name: &str, got: usize) -> Result<(), String> {
    let found = COUNTS.iter().find(|(known, ..)| *known == name);
    match found {
        Some((_, count, more)) if got < *count || (got > *count && !more) => {
            let least = if *more { "at least " } else { "" };
            Err(format!(
                "wrong number of args for {name}: want {least}{count} got {got}"
            ))
        }
        _ => Ok(()),
    }
}

/// Calls a function.
pub(super) fn call(name: &str, arguments: &[Item]) -> Result<Item, String> {
    let text = Item::shown;
    let compared = |a: &Item, b: &Item| match (a.value.as_f64(), b.value.as_f64()) {
        (Some(a), Some(b)) => a.partial_cmp(&b),
        _ => Some(text(a).cmp(&text(b))),
    };
    let value: Value = match (name, arguments) {
        ("json", [item]) => item.json()?.into(),
        ("lower", [item]) => text(item).to_lowercase().into(),
        ("upper", [item]) => text(item).to_uppercase().into(),
        ("title", [item]) => title(&text(item)).into(),
        ("join", [list, separator]) => {
            let list = list.clone().items()?;
            let words: Vec<String> = list.iter().map(|(_, word)| text(word)).collect();
            words.join(&text(separator)).into()
        }
        ("split", [item, separator]) => {
            let whole = text(item);
            let words: Vec<&str> = whole.split(&text(separator)).collect();
            json!(words)
        }
        ("pad", [item, before, after]) => {
            let spaces = |count: &Item| " ".repeat(small(&count.value));
            format!("{}{}{}", spaces(before), text(item), spaces(after)).into()
        }
        ("truncate", [item, length]) => {
            let kept: String = text(item).chars().take(small(&length.value)).collect();
            kept.into()
        }
        ("println", words) => format!("{}\n", spaced(words)).into(),
        ("print", words) => spaced(words).into(),
        ("printf", [format, words @ ..]) => printf(&text(format), words)?.into(),
        ("len", [item]) => match (item.of, &item.value) {
            (Type::Struct(_), _) => return Err("len of type struct".to_owned()),
            (_, Value::String(text)) => json!(text.len()),
            (_, Value::Null | Value::Array(_) | Value::Object(_)) => {
                json!(item.clone().items()?.len())
            }
            (_, other) => return Err(format!("len of type {}", kind(other))),
        },
        ("index", [item, keys @ ..]) => {
            let mut keys = keys.iter();
            return keys.try_fold(item.clone(), |item, key| item.index(&key.value));
        }
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
        ("not", [item]) => json!(!item.is_true()),
        ("and", [.., last]) => {
            let mut items = arguments.iter();
            return Ok(items.find(|item| !item.is_true()).unwrap_or(last).clone());
        }
        ("or", [.., last]) => {
            let mut items = arguments.iter();
            return Ok(items.find(|item| item.is_true()).unwrap_or(last).clone());
        }
        _ => return Err("missing argument for comparison".to_owned()),
    };
    Ok(value.into())
}

/// A count, bounded to a sensible size.
fn small(value: &Value) -> usize {
    value
        .as_u64()
        .and_then(|count| usize::try_from(count).ok())
        .map_or(0, |count| count.min(4096))
}

fn spaced(words: &[Item]) -> String {
    let words: Vec<String> = words.iter().map(Item::shown).collect();
    words.join(" ")
}

fn title(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| {
        first.to_uppercase().chain(chars).collect()
    })
}

/// `%s %d %v %q %t %x %%`, with a width and `-` for left alignment.
fn printf(format: &str, words: &[Item]) -> Result<String, String> {
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
            's' | 'd' | 'v' | 't' => word.shown(),
            'q' => json!(word.shown()).to_string(),
            'x' => format!("{:x}", word.value.as_u64().unwrap_or_default()),
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
