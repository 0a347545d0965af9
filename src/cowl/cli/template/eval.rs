//! Evaluates a template's nodes on data.

use super::functions;
use super::parse::{Base, Call, Meaning, Node, Pipeline, Place, Word};
use super::types::{Item, LABELS};
use serde_json::Value;

/// Why a template cannot be executed, and where.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) place: Place,
    pub(super) why: String,
}

impl Place {
    fn failed(&self, why: String) -> Failure {
        let place = self.clone();
        Failure { place, why }
    }
}

/// Appends what the nodes print for the data.
pub(super) fn run(nodes: &[Node], root: &Item, out: &mut String) -> Result<(), Failure> {
    Scope {
        root,
        variables: Vec::new(),
    }
    .run(nodes, root, out)
}

struct Scope<'d> {
    root: &'d Item,
    variables: Vec<(String, Item)>,
}

impl Scope<'_> {
    fn run(&mut self, nodes: &[Node], dot: &Item, out: &mut String) -> Result<(), Failure> {
        let depth = self.variables.len();
        for node in nodes {
            match node {
                Node::Text(text) => out.push_str(text),
                Node::Print(pipeline) => out.push_str(&self.value(pipeline, dot)?.shown()),
                Node::Set(name, pipeline) => {
                    let value = self.value(pipeline, dot)?;
                    self.variables.push((name.clone(), value));
                }
                Node::If(condition, body, otherwise) => {
                    let chosen = if self.value(condition, dot)?.is_true() {
                        body
                    } else {
                        otherwise
                    };
                    self.run(chosen, dot, out)?;
                }
                Node::With(condition, body, otherwise) => {
                    let value = self.value(condition, dot)?;
                    if value.is_true() {
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
                    let value = self.value(over, dot)?;
                    let items = value.items().map_err(|why| whole(over).failed(why))?;
                    if items.is_empty() {
                        self.run(otherwise, dot, out)?;
                    }
                    for (key, value) in items {
                        let outer = self.variables.len();
                        if let (Some(name), _) = variables {
                            self.variables.push((name.clone(), key.into()));
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

    fn value(&self, pipeline: &Pipeline, dot: &Item) -> Result<Item, Failure> {
        let mut last = None;
        for call in pipeline {
            last = Some(self.call(call, last, dot)?);
        }
        // The parser refuses an empty pipeline.
        Ok(last.unwrap_or_else(|| Value::Null.into()))
    }

    fn call(&self, call: &Call, last: Option<Item>, dot: &Item) -> Result<Item, Failure> {
        let Call {
            function,
            arguments: words,
            place,
        } = call;
        if let (None, [method, name]) = (function, words.as_slice())
            && let Meaning::Field(base, fields) = &method.meaning
            && let Some((LABELS, fields)) =
                fields.split_last().map(|(last, all)| (last.as_str(), all))
        {
            let owner = self.field(base, fields, &method.place, dot)?;
            let name = self.word(name, dot)?.shown();
            let label = owner.label(&name).map_err(|why| method.place.failed(why))?;
            return Ok(label.into());
        }
        if let Some(name) = function {
            let count = words.len() + usize::from(last.is_some());
            let place = || Place {
                at: place.at,
                text: name.clone(),
            };
            functions::check(name, count).map_err(|why| place().failed(why))?;
        }
        let mut arguments = Vec::new();
        for word in words {
            arguments.push(self.word(word, dot)?);
        }
        arguments.extend(last);
        let Some(name) = function else {
            return match <[Item; 1]>::try_from(arguments) {
                Ok([item]) => Ok(item),
                Err(_several) => {
                    let place = words.first().map_or(place, |word| &word.place);
                    let why = format!("can't give argument to non-function {}", place.text);
                    Err(place.failed(why))
                }
            };
        };
        functions::call(name, &arguments)
            .map_err(|why| place.failed(format!("error calling {name}: {why}")))
    }

    fn word(&self, word: &Word, dot: &Item) -> Result<Item, Failure> {
        match &word.meaning {
            Meaning::Value(value) => Ok(value.clone().into()),
            Meaning::Field(base, fields) => self.field(base, fields, &word.place, dot),
        }
    }

    fn field(
        &self,
        base: &Base,
        fields: &[String],
        place: &Place,
        dot: &Item,
    ) -> Result<Item, Failure> {
        let start = match base {
            Base::Dot => dot.clone(),
            Base::Variable(name) if name == "$" => self.root.clone(),
            Base::Variable(name) => {
                let mut known = self.variables.iter().rev();
                let found = known.find(|(variable, _)| variable == name);
                let undefined = || place.failed(format!("undefined variable \"{name}\""));
                found.ok_or_else(undefined)?.1.clone()
            }
            Base::Group(pipeline) => self.value(pipeline, dot)?,
        };
        let mut fields = fields.iter();
        let end = fields.try_fold(start, |item, name| item.field(name));
        end.map_err(|why| place.failed(why))
    }
}

/// The place of a whole pipeline.
fn whole(pipeline: &Pipeline) -> Place {
    let calls = pipeline.iter().map(|call| call.place.text.as_str());
    Place {
        at: pipeline.first().map_or(0, |call| call.place.at),
        text: calls.collect::<Vec<_>>().join(" | "),
    }
}
