//! A new image on top of another: its configuration, as `docker commit` and `docker import` make
//! them.

use std::str::FromStr;

use serde_json::{Map, Value, json};

use super::ImageError;
use crate::digest::DiffId;

/// A Dockerfile instruction that changes a configuration, for `commit -c` and `import -c`.
#[derive(Debug, Clone, PartialEq)]
pub struct ConfigChange(Instruction);

#[derive(Debug, Clone, PartialEq)]
enum Instruction {
    /// A field and its value.
    Set(&'static str, Value),
    /// A set or a map of the configuration, and what is added to it.
    Add(&'static str, Vec<(String, Value)>),
    /// `NAME=VALUE`, each.
    Env(Vec<(String, String)>),
    /// Appended to a list.
    Append(&'static str, String),
}

/// A text that is no such instruction.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the change \"{}\": {reason}", .text.escape_debug())]
pub struct ChangeError {
    text: String,
    reason: &'static str,
}

impl FromStr for ConfigChange {
    type Err = ChangeError;

    fn from_str(text: &str) -> Result<Self, ChangeError> {
        let refuse = |reason| ChangeError {
            text: text.to_owned(),
            reason,
        };
        let trimmed = text.trim();
        let (name, rest) = trimmed
            .split_once(char::is_whitespace)
            .unwrap_or((trimmed, ""));
        let rest = rest.trim();
        if rest.is_empty() {
            return Err(refuse("an instruction needs arguments"));
        }
        let words = || words(rest).ok_or_else(|| refuse("a quote is not closed"));
        let pairs = || {
            let words = words()?;
            let pairs: Option<Vec<(String, String)>> = words
                .iter()
                .map(|word| {
                    let (name, value) = word.split_once('=')?;
                    (!name.is_empty()).then(|| (name.to_owned(), value.to_owned()))
                })
                .collect();
            match (pairs, rest.split_once(char::is_whitespace)) {
                (Some(pairs), _) => Ok(pairs),
                // The old form: NAME VALUE
                (None, Some((name, value))) if !name.contains('=') => {
                    Ok(vec![(name.to_owned(), value.trim().to_owned())])
                }
                (None, _) => Err(refuse("NAME=VALUE is needed")),
            }
        };
        let empty = || json!({});
        Ok(Self(match name.to_ascii_uppercase().as_str() {
            "CMD" => Instruction::Set("Cmd", json!(command(rest))),
            "ENTRYPOINT" => Instruction::Set("Entrypoint", json!(command(rest))),
            "USER" => Instruction::Set("User", json!(rest)),
            "WORKDIR" if rest.starts_with('/') => Instruction::Set("WorkingDir", json!(rest)),
            "WORKDIR" => return Err(refuse("an absolute path is needed")),
            "STOPSIGNAL" => Instruction::Set("StopSignal", json!(rest)),
            "ENV" => Instruction::Env(pairs()?),
            "LABEL" => {
                let labels = pairs()?.into_iter();
                Instruction::Add(
                    "Labels",
                    labels.map(|(name, value)| (name, json!(value))).collect(),
                )
            }
            "EXPOSE" => {
                let mut ports = Vec::new();
                for word in words()? {
                    ports.push((
                        port(&word).ok_or_else(|| refuse("it names no port"))?,
                        empty(),
                    ));
                }
                Instruction::Add("ExposedPorts", ports)
            }
            "VOLUME" => {
                let paths = match serde_json::from_str::<Vec<String>>(rest) {
                    Ok(paths) => paths,
                    Err(_not_json) => words()?,
                };
                Instruction::Add(
                    "Volumes",
                    paths.into_iter().map(|path| (path, empty())).collect(),
                )
            }
            "ONBUILD" => Instruction::Append("OnBuild", rest.to_owned()),
            _ => {
                return Err(refuse(
                    "CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, ONBUILD, STOPSIGNAL, USER, VOLUME and WORKDIR are known",
                ));
            }
        }))
    }
}

/// A command: a JSON list, or a line for the shell.
fn command(text: &str) -> Vec<String> {
    serde_json::from_str(text)
        .unwrap_or_else(|_not_json| vec!["/bin/sh".to_owned(), "-c".to_owned(), text.to_owned()])
}

/// `80` or `80/tcp`, with its protocol.
fn port(text: &str) -> Option<String> {
    let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = protocol.to_ascii_lowercase();
    let number: u16 = number.parse().ok()?;
    matches!(protocol.as_str(), "tcp" | "udp" | "sctp").then(|| format!("{number}/{protocol}"))
}

/// The words of a line, with quotes and backslashes as in a Dockerfile; None if a quote is open.
fn words(text: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (None, '"' | '\'') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (Some(open), c) if c == open => quote = None,
            (None | Some('"'), '\\') => word.get_or_insert_default().push(chars.next()?),
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    quote.is_none().then_some(words)
}

impl ConfigChange {
    fn apply(&self, config: &mut Map<String, Value>) {
        match &self.0 {
            Instruction::Set(field, value) => {
                config.insert((*field).to_owned(), value.clone());
            }
            Instruction::Add(field, added) => {
                let mut map = match config.remove(*field) {
                    Some(Value::Object(map)) => map,
                    _ => Map::new(),
                };
                map.extend(added.iter().cloned());
                config.insert((*field).to_owned(), Value::Object(map));
            }
            Instruction::Env(pairs) => edit_list(config, "Env", |list| {
                for (name, value) in pairs {
                    let entry = json!(format!("{name}={value}"));
                    let same = |old: &&mut Value| {
                        let old = old.as_str().unwrap_or_default();
                        old.split('=').next() == Some(name)
                    };
                    match list.iter_mut().find(same) {
                        Some(old) => *old = entry,
                        None => list.push(entry),
                    }
                }
            }),
            Instruction::Append(field, text) => {
                edit_list(config, field, |list| list.push(json!(text)));
            }
        }
    }
}

fn edit_list(config: &mut Map<String, Value>, field: &str, edit: impl FnOnce(&mut Vec<Value>)) {
    let mut list = match config.remove(field) {
        Some(Value::Array(list)) => list,
        _ => Vec::new(),
    };
    edit(&mut list);
    config.insert(field.to_owned(), Value::Array(list));
}

/// What a new image has beyond the one below it.
#[derive(Debug, Clone, Default)]
pub struct NewImage<'n> {
    /// When it is made, as RFC 3339.
    pub created: String,
    /// By what, for its history.
    pub created_by: String,
    /// Its author.
    pub author: String,
    /// For its history.
    pub comment: String,
    /// Its layer; None if it adds none.
    pub layer: Option<DiffId>,
    /// Fields that replace those of `config`.
    pub config: Map<String, Value>,
    /// Applied to `config` after that.
    pub changes: &'n [ConfigChange],
}

/// The configuration of a new image on top of the one with the configuration `below`.
pub fn new_config(below: &[u8], new: &NewImage<'_>) -> Result<Vec<u8>, ImageError> {
    let json = |source| ImageError::Json {
        name: "the configuration of the image below".to_owned(),
        source,
    };
    let below: Map<String, Value> = serde_json::from_slice(below).map_err(json)?;
    let mut image = Map::new();
    for field in ["architecture", "variant", "os", "os.version", "os.features"] {
        if let Some(value) = below.get(field) {
            image.insert(field.to_owned(), value.clone());
        }
    }
    let mut config = match below.get("config") {
        Some(Value::Object(config)) => config.clone(),
        _ => Map::new(),
    };
    config.extend(new.config.clone());
    for change in new.changes {
        change.apply(&mut config);
    }
    image.insert("config".to_owned(), Value::Object(config));
    image.insert("created".to_owned(), json!(new.created));
    if !new.author.is_empty() {
        image.insert("author".to_owned(), json!(new.author));
    }
    let list = |value: Option<&Value>| match value {
        Some(Value::Array(list)) => list.clone(),
        _ => Vec::new(),
    };
    let mut history = list(below.get("history"));
    let mut step = json!({ "created": new.created, "created_by": new.created_by });
    if let Some(step) = step.as_object_mut() {
        for (field, text) in [("author", &new.author), ("comment", &new.comment)] {
            if !text.is_empty() {
                step.insert(field.to_owned(), json!(text));
            }
        }
        if new.layer.is_none() {
            step.insert("empty_layer".to_owned(), json!(true));
        }
    }
    history.push(step);
    image.insert("history".to_owned(), Value::Array(history));
    let mut layers = list(
        below
            .get("rootfs")
            .and_then(|rootfs| rootfs.get("diff_ids")),
    );
    layers.extend(new.layer.map(|layer| json!(layer)));
    image.insert(
        "rootfs".to_owned(),
        json!({ "type": "layers", "diff_ids": layers }),
    );
    Ok(Value::Object(image).to_string().into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(config: &Value, changes: &[&str]) -> Value {
        let changes: Vec<ConfigChange> = changes.iter().map(|text| text.parse().unwrap()).collect();
        let below = json!({ "os": "linux", "config": config }).to_string();
        let new = NewImage {
            changes: &changes,
            ..NewImage::default()
        };
        let bytes = new_config(below.as_bytes(), &new).unwrap();
        serde_json::from_slice::<Value>(&bytes).unwrap()["config"].clone()
    }

    /// As moby's builder/dockerfile and its tests have them.
    #[test]
    fn changes_are_read_as_dockerfile_instructions() {
        assert_eq!(
            changed(
                &json!({ "Env": ["A=1", "B=2"], "Labels": null, "Cmd": ["x"] }),
                &[
                    "ENV B=3 C=\"with space\"",
                    "env D two words",
                    "LABEL a=b",
                    "LABEL c='d e'",
                    "CMD [\"sh\", \"-c\", \"exit 3\"]",
                    "EXPOSE 80 53/UDP",
                    "VOLUME /data",
                    "VOLUME [\"/a b\"]",
                    "WORKDIR /srv",
                    "USER 1:2",
                    "STOPSIGNAL SIGINT",
                    "ONBUILD RUN true",
                ],
            ),
            json!({
                "Env": ["A=1", "B=3", "C=with space", "D=two words"],
                "Labels": { "a": "b", "c": "d e" },
                "Cmd": ["sh", "-c", "exit 3"],
                "ExposedPorts": { "80/tcp": {}, "53/udp": {} },
                "Volumes": { "/data": {}, "/a b": {} },
                "WorkingDir": "/srv", "User": "1:2", "StopSignal": "SIGINT",
                "OnBuild": ["RUN true"],
            })
        );
        assert_eq!(
            changed(&json!(null), &["ENTRYPOINT exec top -b"]),
            json!({ "Entrypoint": ["/bin/sh", "-c", "exec top -b"] })
        );
        for bad in [
            "",
            "CMD",
            "RUN true",
            "COPY a b",
            "ENV A",
            "ENV =x",
            "LABEL a='b",
            "EXPOSE no",
            "EXPOSE 70000",
            "WORKDIR srv",
        ] {
            assert!(bad.parse::<ConfigChange>().is_err(), "{bad}");
        }
    }

    #[test]
    fn new_config_adds_a_layer_and_a_step() {
        let layer = DiffId(crate::digest::Sha256Digest::of(b"x"));
        let below = json!({
            "architecture": "arm64", "os": "linux", "variant": "v8", "docker_version": "1",
            "container_config": {}, "config": { "Cmd": ["sh"] },
            "rootfs": { "type": "layers", "diff_ids": ["sha256:a"] }, "history": [{ "created_by": "first" }],
        });
        let new = NewImage {
            created: "2026-01-01T00:00:00Z".to_owned(),
            created_by: "sh".to_owned(),
            author: "me".to_owned(),
            layer: Some(layer),
            ..NewImage::default()
        };
        let made = new_config(below.to_string().as_bytes(), &new).unwrap();
        assert_eq!(
            serde_json::from_slice::<Value>(&made).unwrap(),
            json!({
                "architecture": "arm64", "os": "linux", "variant": "v8", "author": "me",
                "created": "2026-01-01T00:00:00Z", "config": { "Cmd": ["sh"] },
                "rootfs": { "type": "layers", "diff_ids": ["sha256:a", layer] },
                "history": [
                    { "created_by": "first" },
                    { "created": "2026-01-01T00:00:00Z", "created_by": "sh", "author": "me" },
                ],
            })
        );
        let nothing = NewImage::default();
        let made = new_config(b"{}", &nothing).unwrap();
        let made: Value = serde_json::from_slice(&made).unwrap();
        assert_eq!(made["rootfs"]["diff_ids"], json!([]));
        assert_eq!(made["history"][0]["empty_layer"], json!(true));
        assert!(new_config(b"[]", &nothing).is_err());
    }
}
