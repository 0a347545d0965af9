//! The schema in docs/dedup.md matches the JSON.

use std::collections::BTreeMap;

use serde_json::Value;

use super::TestStore;
use crate::compare::Comparison;
use crate::ladder::{Damage, Limits, climb};
use crate::progress::Progress;
use crate::report::Report;
use crate::sharing::Sharing;
use crate::show::Sizes;

/// The fields of the documented schema with this name, each as `PATH TYPE`.
fn documented(name: &str) -> Vec<String> {
    let docs = include_str!("../../../docs/dedup.md");
    let (_, rest) = docs
        .split_once(&format!("<!-- schema {name} -->\n```\n"))
        .unwrap();
    let (lines, _) = rest.split_once("```").unwrap();
    let fields = lines.lines().flat_map(|line| line.split(", "));
    fields.map(str::to_owned).collect()
}

/// Adds the path and type of every field of a value; a list has the fields of all its elements.
fn flatten(path: &str, value: &Value, to: &mut BTreeMap<String, &'static str>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let dot = if path.is_empty() { "" } else { "." };
                flatten(&format!("{path}{dot}{name}"), value, to);
            }
        }
        Value::Array(values) => {
            assert!(
                !values.is_empty(),
                "{path} is empty: the test sees nothing of it"
            );
            for value in values {
                flatten(&format!("{path}[]"), value, to);
            }
        }
        Value::Null => {
            to.entry(path.to_owned()).or_insert("null");
        }
        Value::String(_) => {
            to.insert(path.to_owned(), "string");
        }
        Value::Number(number) if number.is_u64() => {
            to.entry(path.to_owned()).or_insert("integer");
        }
        Value::Number(_) => {
            to.insert(path.to_owned(), "number");
        }
        Value::Bool(_) => panic!("{path}: there are no booleans"),
    }
}

fn schema(value: &impl serde::Serialize) -> Vec<String> {
    let mut fields = BTreeMap::new();
    flatten("", &serde_json::to_value(value).unwrap(), &mut fields);
    // An object or list that may be null is described by its fields.
    let paths: Vec<String> = fields.keys().cloned().collect();
    fields.retain(|path, kind| {
        let below = |other: &String| {
            let rest = other.strip_prefix(path.as_str());
            rest.is_some_and(|rest| rest.starts_with(['.', '[']))
        };
        *kind != "null" || !paths.iter().any(below)
    });
    let line = |(path, kind): (String, &str)| format!("{path} {kind}");
    fields.into_iter().map(line).collect()
}

#[test]
fn the_schema_of_the_report_is_documented() {
    let store = TestStore::new();
    let own = ["f a x9\nf b x9\nf c z5\nf gone w4", "f c y7\nw gone"];
    store.put(&["one"], &own);
    store.put(&["two"], &["f other x9", "f d v3"]);
    let collection = store.collect(&[]).unwrap();
    let sharing = Sharing::of(&collection);
    let mut report = Report::new(&collection, &sharing).unwrap();
    let progress = Progress::default();
    let ladder = climb(&collection, &store.stores, Limits::default(), &progress);
    let mut ladder = ladder.unwrap();
    ladder.rungs[0].error = 0.5;
    ladder.unreadable.push((0, Damage::Missing));
    report.set_ladder(&collection, &sharing, ladder);
    assert_eq!(schema(&report), documented("report"));
    let of_layers = |field: &String| field.starts_with("layers[]") || field.starts_with("version ");
    let expected: Vec<String> = documented("report").into_iter().filter(of_layers).collect();
    assert_eq!(schema(&report.only_layers()), expected);
}

#[test]
fn the_schema_of_a_comparison_is_documented() {
    let store = TestStore::new();
    store.put(&["one"], &["f a x9\nf var/lib/rpm/Packages y9\nf gone g1"]);
    store.put(&["two"], &["f a y9\nf var/lib/rpm/Packages z9\nf new n1"]);
    let collection = store.collect(&["one", "two"]).unwrap();
    let comparison = Comparison::new(&collection, &store.stores, &[], Sizes::Human).unwrap();
    let mut found = serde_json::to_value(&comparison).unwrap();
    // A name in one image only has no `what`.
    for file in found["files"].as_array_mut().unwrap() {
        if file["a"].is_null() || file["b"].is_null() {
            assert_eq!(file["what"], serde_json::json!([]));
            file["what"] = serde_json::json!([""]);
        }
    }
    // The fields of devices and symbolic links.
    for side in ["a", "b"] {
        let entry = &mut found["files"][0][side];
        entry["device"] = serde_json::json!([1, 3]);
        entry["target"] = "to".into();
    }
    // A package in one image only; the kinds are tested elsewhere.
    found["packages"] = serde_json::json!([
        {"kind": "rpm", "name": "a", "a": null, "b": "1"},
        {"kind": "rpm", "name": "b", "a": "1", "b": null},
    ]);
    assert_eq!(schema(&found), documented("diff"));
}
