//! What Go makes of the values of a template: Docker's structs, maps, lists and pointers.
//!
//! JSON does not tell a struct from a map or an empty list from none, and templates do: a missing
//! field is an error and a missing key is not, `[]` is a list without elements or no list.

use serde_json::{Value, json};

/// The Go type of a value.
#[derive(Debug)]
pub(in crate::cli) enum Type {
    /// What the JSON is by itself.
    Json,
    Text,
    Number,
    Flag,
    /// Nanoseconds, shown as Go's durations.
    Duration,
    /// Shows `<nil>` if there is no value.
    Pointer(&'static Self),
    List(&'static Self),
    Map(&'static Self),
    /// Go's name of each field, its name in the JSON, and its type.
    Struct(&'static [(&'static str, &'static str, Self)]),
    /// A row of a list with the name of its Go type; its labels are not a field, but what
    /// `.Label NAME` reads.
    Row(&'static str),
    /// The titles of a table's columns.
    Header,
}

/// The key of a row's labels, as an object.
pub(in crate::cli) const LABELS: &str = "Label";

/// A value and its type.
#[derive(Debug, Clone)]
pub(super) struct Item {
    pub(super) value: Value,
    pub(super) of: &'static Type,
}

impl From<Value> for Item {
    fn from(value: Value) -> Self {
        Self {
            value,
            of: &Type::Json,
        }
    }
}

impl Item {
    pub(super) fn new(value: Value, of: &'static Type) -> Self {
        Self { value, of }
    }

    /// What a pointer leads to.
    fn target(self) -> Self {
        match self.of {
            Type::Pointer(of) if !self.value.is_null() => Self::new(self.value, of).target(),
            _ => self,
        }
    }

    /// A field of a struct or of JSON, or the value at a key of a map.
    pub(super) fn field(self, name: &str) -> Result<Self, String> {
        let Self { mut value, of } = self.target();
        let missing = |of: &str| Err(format!("can't evaluate field {name} in type {of}"));
        match of {
            Type::Json => json_field(&value, name).map(Self::from),
            Type::Struct(fields) => {
                let found = fields.iter().find(|(field, ..)| *field == name);
                let Some((_, key, of)) = found else {
                    return missing("struct");
                };
                let value = value.get_mut(key).map(Value::take).unwrap_or_default();
                Ok(Self::new(value, of))
            }
            // A key without a value prints as `<no value>`, whatever the map's values are.
            Type::Map(of) => Ok(match value.get_mut(name).map(Value::take) {
                Some(value) => Self::new(value, of),
                None => Value::Null.into(),
            }),
            Type::Row(of) => match value.get_mut(name).map(Value::take) {
                Some(Value::Null) => Ok(Self::new(Value::Null, &Type::Pointer(&Type::Json))),
                Some(value @ Value::String(_)) => Ok(Self::new(value, &Type::Text)),
                Some(value) if name != LABELS => Ok(value.into()),
                _ => missing(of),
            },
            Type::Header => Ok(value
                .get_mut(name)
                .map(Value::take)
                .unwrap_or_default()
                .into()),
            Type::Pointer(_) => Err(format!("nil pointer evaluating *struct.{name}")),
            Type::Text => missing("string"),
            Type::Number | Type::Duration => missing("int64"),
            Type::Flag => missing("bool"),
            Type::List(_) => missing("[]string"),
        }
    }

    /// The method that rows with labels have: the value of one.
    pub(super) fn label(&self, name: &str) -> Result<Value, String> {
        let labels = self.value.get(LABELS).and_then(Value::as_object);
        match (self.of, labels) {
            (Type::Row(_), Some(labels)) => {
                Ok(labels.get(name).cloned().unwrap_or_else(|| json!("")))
            }
            // As Docker titles such a column.
            (Type::Header, _) => {
                let last = name.rsplit('.').next().unwrap_or_default();
                Ok(last.replace(['-', '_'], " ").into())
            }
            _ => Err("can't evaluate field Label in this type".to_owned()),
        }
    }

    /// Keys or indices with their values, a map's sorted by key.
    pub(super) fn items(self) -> Result<Vec<(Value, Self)>, String> {
        let refused = format!("range can't iterate over {}", self.shown());
        let Self { value, of } = self.target();
        let of = match of {
            Type::List(of) | Type::Map(of) => of,
            Type::Json => &Type::Json,
            _ => return Err(refused),
        };
        match value {
            Value::Null => Ok(Vec::new()),
            Value::Array(list) => {
                let items = list.into_iter().map(|value| Self::new(value, of));
                Ok((0..).map(|at: u64| json!(at)).zip(items).collect())
            }
            Value::Object(fields) => {
                let mut items: Vec<_> = fields.into_iter().collect();
                items.sort_by(|a, b| a.0.cmp(&b.0));
                let item = |(key, value): (String, _)| (key.into(), Self::new(value, of));
                Ok(items.into_iter().map(item).collect())
            }
            _ => Err(refused),
        }
    }

    /// The element at an index or key; an empty value if a map lacks the key.
    pub(super) fn index(self, key: &Value) -> Result<Self, String> {
        let Self { mut value, of } = self.target();
        let of = match of {
            Type::List(of) | Type::Map(of) => of,
            _ => &Type::Json,
        };
        match &mut value {
            Value::Array(list) => {
                let at = key.as_u64().and_then(|at| usize::try_from(at).ok());
                let found = at.and_then(|at| list.get_mut(at)).map(Value::take);
                let found = found.ok_or_else(|| format!("index out of range: {key}"))?;
                Ok(Self::new(found, of))
            }
            Value::Object(fields) => {
                let key = key.as_str().unwrap_or_default();
                let found = fields.get_mut(key).map(Value::take).unwrap_or_default();
                Ok(Self::new(found, of))
            }
            Value::String(text) => {
                let at = key.as_u64().and_then(|at| usize::try_from(at).ok());
                let found = at.and_then(|at| text.as_bytes().get(at).copied());
                let found = found.ok_or_else(|| format!("index out of range: {key}"))?;
                Ok(json!(found).into())
            }
            Value::Null => match of {
                Type::Json => Err("index of untyped nil".to_owned()),
                _ if key.is_number() => Err(format!("index out of range: {key}")),
                of => Ok(Self::new(Value::Null, of)),
            },
            other => Err(format!("can't index item of type {}", kind(other))),
        }
    }

    pub(super) fn is_true(&self) -> bool {
        match (self.of, &self.value) {
            (Type::Struct(_), _) => true,
            (Type::Pointer(_), value) => !value.is_null(),
            (_, Value::Null) => false,
            (_, Value::Bool(set)) => *set,
            (_, Value::Number(number)) => number.as_f64() != Some(0.0),
            (_, Value::String(text)) => !text.is_empty(),
            (_, Value::Array(list)) => !list.is_empty(),
            (_, Value::Object(fields)) => !fields.is_empty(),
        }
    }

    /// As Go's `%v`.
    pub(super) fn shown(&self) -> String {
        shown(&self.value, self.of)
    }

    /// The JSON of the value. A row's labels are not part of it.
    pub(super) fn json(&self) -> Result<String, String> {
        let text = match (self.of, &self.value) {
            (Type::Row(_), Value::Object(fields)) => {
                let mut fields = fields.clone();
                fields.remove(LABELS);
                serde_json::to_string(&fields)
            }
            _ => serde_json::to_string(&self.value),
        };
        text.map_err(|error| error.to_string())
    }
}

fn shown(value: &Value, of: &Type) -> String {
    let spaced = |words: Vec<String>| words.join(" ");
    match (of, value) {
        (Type::Pointer(_), Value::Null) => "<nil>".to_owned(),
        (Type::Pointer(of), value) => shown(value, of),
        (Type::Struct(fields), value) => {
            let field =
                |(_, key, of): &(_, &str, Type)| shown(value.get(key).unwrap_or(&Value::Null), of);
            format!("{{{}}}", spaced(fields.iter().map(field).collect()))
        }
        (Type::Text, Value::Null) => String::new(),
        (Type::Number, Value::Null) => "0".to_owned(),
        (Type::Flag, Value::Null) => "false".to_owned(),
        (Type::List(_), Value::Null) => "[]".to_owned(),
        (Type::Map(_), Value::Null) => "map[]".to_owned(),
        (Type::Duration, value) => duration(value.as_i64().unwrap_or_default()),
        (_, Value::Null) => "<no value>".to_owned(),
        (_, Value::Bool(set)) => set.to_string(),
        (_, Value::Number(number)) => number.to_string(),
        (_, Value::String(text)) => text.clone(),
        (of, Value::Array(list)) => {
            let of = element(of);
            format!(
                "[{}]",
                spaced(list.iter().map(|value| shown(value, of)).collect())
            )
        }
        (of, Value::Object(fields)) => {
            let of = element(of);
            let pair = |(key, value)| format!("{key}:{}", shown(value, of));
            let mut pairs: Vec<String> = fields.iter().map(pair).collect();
            pairs.sort();
            format!("map[{}]", spaced(pairs))
        }
    }
}

fn element(of: &Type) -> &Type {
    match of {
        Type::List(of) | Type::Map(of) => of,
        _ => &Type::Json,
    }
}

fn json_field(value: &Value, name: &str) -> Result<Value, String> {
    let Value::Object(fields) = value else {
        if value.is_null() {
            return Err(format!("nil pointer evaluating interface {{}}.{name}"));
        }
        return Err(format!(
            "can't evaluate field {name} in type interface {{}}"
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

pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "nil",
        Value::Bool(_) => "bool",
        Value::Number(number) if number.is_f64() => "float64",
        Value::Number(_) => "int",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}

/// A duration as Go prints it: `1m30s`, `1.5s`, `250ms`.
fn duration(nanoseconds: i64) -> String {
    let total = nanoseconds.unsigned_abs();
    let sign = if nanoseconds < 0 { "-" } else { "" };
    let decimal = |unit: u64, name: &str, value: u64| {
        let (whole, rest) = (value / unit, value % unit);
        let width = unit.ilog10() as usize;
        let digits = format!("{rest:0width$}");
        let digits = digits.trim_end_matches('0');
        let point = if rest == 0 { "" } else { "." };
        let digits = if rest == 0 { "" } else { digits };
        format!("{whole}{point}{digits}{name}")
    };
    let text = match total {
        0 => "0s".to_owned(),
        1..1_000 => format!("{total}ns"),
        1_000..1_000_000 => decimal(1_000, "µs", total),
        1_000_000..1_000_000_000 => decimal(1_000_000, "ms", total),
        _ => {
            let minutes = total / 60_000_000_000;
            let seconds = decimal(1_000_000_000, "s", total % 60_000_000_000);
            match (minutes / 60, minutes % 60) {
                (0, 0) => seconds,
                (0, minutes) => format!("{minutes}m{seconds}"),
                (hours, minutes) => format!("{hours}h{minutes}m{seconds}"),
            }
        }
    };
    format!("{sign}{text}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_gos() {
        let table = [
            (0, "0s"),
            (1, "1ns"),
            (1_500, "1.5µs"),
            (250_000_000, "250ms"),
            (1_500_000_000, "1.5s"),
            (30_000_000_000, "30s"),
            (90_000_000_000, "1m30s"),
            (3_600_000_000_000, "1h0m0s"),
            (-60_000_000_000, "-1m0s"),
        ];
        for (nanoseconds, expected) in table {
            assert_eq!(duration(nanoseconds), expected);
        }
    }
}
