//! The schema in docs/dedup.md is that of the JSON.

use std::collections::BTreeMap;

use serde_json::Value;

use super::TestStore;
use crate::compare::Comparison;
use crate::ladder::{Limits, climb};
use crate::progress::Progress;

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

/// Adds the path and the type of all that a value has; a list has the fields of all its elements.
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
    let line = |(path, kind): (String, &str)| format!("{path} {kind}");
    fields.into_iter().map(line).collect()
}

#[test]
fn the_schema_of_the_report_is_documented() {
    let store = TestStore::new();
    let own = ["f a x9\nf b x9\nf c z5\nf gone w4", "f c y7\nw gone"];
    store.put(&["one"], &own);
    store.put(&["two"], &["f other x9", "f d v3"]);
    let mut report = store.report(&[]);
    let collection = store.collect(&[]).unwrap();
    let progress = Progress::default();
    let ladder = climb(&collection, &store.stores, Limits::default(), &progress);
    let mut ladder = ladder.unwrap();
    ladder[0].error = 0.5;
    report.set_ladder(ladder);
    assert_eq!(schema(&report), documented("report"));
    let of_layers = |field: &String| field.starts_with("layers[]") || field.starts_with("version ");
    let expected: Vec<String> = documented("report").into_iter().filter(of_layers).collect();
    assert_eq!(schema(&report.only_layers()), expected);
}

#[test]
fn the_schema_of_a_comparison_is_documented() {
    let store = TestStore::new();
    store.put(&["one"], &["f a x9\nf var/lib/rpm/Packages y9"]);
    store.put(&["two"], &["f a y9\nf var/lib/rpm/Packages z9"]);
    let collection = store.collect(&["one", "two"]).unwrap();
    let comparison = Comparison::new(&collection, &store.stores, &[]).unwrap();
    let mut found = serde_json::to_value(&comparison).unwrap();
    // A package that one image has only; its kinds are tested elsewhere.
    found["packages"] = serde_json::json!([
        {"kind": "rpm", "name": "a", "a": null, "b": "1"},
        {"kind": "rpm", "name": "b", "a": "1", "b": null},
    ]);
    assert_eq!(schema(&found), documented("diff"));
}
