//! Filters of `images`, and images as `inspect` shows them.

use super::Engine;
use super::error::{Error, Result};
use super::image::{CONFIG_LIMIT, Listed};
use super::list::Filters;
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

/// A parsed filter.
enum Filter {
    Dangling(bool),
    /// A label's name, and its value if one is required.
    Label(String, Option<String>),
    Before(Option<Timestamp>),
    Since(Option<Timestamp>),
    /// Patterns for names, one of which must match.
    References(Vec<String>),
}

impl Engine {
    /// Keeps the images that match Docker's filters.
    pub fn filter_images(&self, images: &mut Vec<Listed>, filters: &Filters) -> Result<()> {
        for (key, values) in filters {
            let mut ready = Vec::new();
            match key.as_str() {
                "reference" => ready.push(Filter::References(values.clone())),
                "dangling" => {
                    for value in values {
                        ready.push(Filter::Dangling(parse_bool(value)?));
                    }
                }
                "label" => {
                    for value in values {
                        ready.push(match value.split_once('=') {
                            Some((name, value)) => {
                                Filter::Label(name.to_owned(), Some(value.to_owned()))
                            }
                            None => Filter::Label(value.clone(), None),
                        });
                    }
                }
                "before" | "since" => {
                    for value in values {
                        let id = self.image(value)?.id;
                        let found = images.iter().find(|image| image.id == id);
                        let created = found.and_then(|image| image.created);
                        ready.push(if key == "before" {
                            Filter::Before(created)
                        } else {
                            Filter::Since(created)
                        });
                    }
                }
                _ => return Err(Error::invalid(format!("invalid filter '{key}'"))),
            }
            for filter in ready {
                images.retain(|image| filter.admits(image));
            }
        }
        Ok(())
    }

    /// An image in Docker's JSON.
    pub fn inspect_image(&self, needle: &str) -> Result<Value> {
        let found = self.find_image(needle)?;
        let id = found.image.config;
        let bytes = self.store.read_blob(id.0, CONFIG_LIMIT)?;
        let image: Map<String, Value> = serde_json::from_slice(&bytes)?;
        let field = |name: &str| image.get(name).filter(|value| !value.is_null()).cloned();
        let text = |name: &str| field(name).unwrap_or_else(|| json!(""));
        let names_of = self.tags_of(id)?;
        let named = || {
            names_of
                .iter()
                .filter_map(|tag| Some((tag.reference.as_ref()?, tag)))
        };
        let tags: Vec<String> = named()
            .filter(|(name, _)| name.digest().is_none())
            .map(|(name, _)| name.to_string())
            .collect();
        let digests: BTreeSet<String> = named()
            .filter_map(|(name, tag)| {
                let of_source = tag.target.as_ref().map(|target| target.digest);
                Some(name.at(name.digest().or(of_source)?).to_string())
            })
            .collect();
        let comment = field("history")
            .and_then(|history| history.as_array()?.last()?.get("comment").cloned());
        let layers = found.image.diff_ids();
        let mut shown = json!({
            "Id": id,
            "RepoTags": tags,
            "RepoDigests": digests,
            "Parent": "",
            "Comment": comment.unwrap_or_else(|| json!("")),
            "Created": field("created").unwrap_or_else(|| json!("0001-01-01T00:00:00Z")),
            "DockerVersion": text("docker_version"),
            "Author": text("author"),
            "Config": field("config").unwrap_or_else(|| json!({})),
            "Architecture": text("architecture"),
            "Os": text("os"),
            "Size": self.size(&layers)?,
            "GraphDriver": { "Data": null, "Name": "cowl" },
            "RootFS": { "Type": "layers", "Layers": layers },
            "Metadata": { "LastTagTime": "0001-01-01T00:00:00Z" },
        });
        if let (Some(variant), Some(shown)) = (field("variant"), shown.as_object_mut()) {
            shown.insert("Variant".to_owned(), variant);
        }
        Ok(shown)
    }
}

impl Filter {
    fn admits(&self, image: &Listed) -> bool {
        match self {
            Self::Dangling(dangling) => image.reference.is_none() == *dangling,
            Self::Label(name, wanted) => image
                .labels
                .get(name)
                .is_some_and(|value| wanted.as_ref().is_none_or(|wanted| wanted == value)),
            Self::Before(time) => image.created < *time,
            Self::Since(time) => image.created > *time,
            Self::References(patterns) => image.reference.as_ref().is_some_and(|name| {
                let (whole, repository) = (name.to_string(), name.repository());
                patterns.iter().any(|pattern| {
                    matches(pattern.as_bytes(), whole.as_bytes())
                        || matches(pattern.as_bytes(), repository.as_bytes())
                })
            }),
        }
    }
}

fn parse_bool(text: &str) -> Result<bool> {
    match text {
        "1" | "true" => Ok(true),
        "0" | "false" => Ok(false),
        _ => Err(Error::invalid(format!("invalid filter 'dangling={text}'"))),
    }
}

/// Go's `path.Match`: `*` and `?` match no slash; `[a-z]` and `[^a-z]` are sets of characters. A
/// malformed pattern matches nothing.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    // Where to resume if the last star has to take one character more.
    let mut retry: Option<(&[u8], &[u8])> = None;
    let (mut pattern, mut text) = (pattern, text);
    loop {
        if let [b'*', rest @ ..] = pattern {
            retry = Some((rest, text));
            pattern = rest;
            continue;
        }
        if pattern.is_empty() && text.is_empty() {
            return true;
        }
        if let Some((rest_pattern, rest_text)) = match_one(pattern, text) {
            (pattern, text) = (rest_pattern, rest_text);
            continue;
        }
        match retry {
            Some((after, [first, rest @ ..])) if *first != b'/' => {
                retry = Some((after, rest));
                (pattern, text) = (after, rest);
            }
            _ => return false,
        }
    }
}

/// Matches one character; what is left of both.
fn match_one<'p, 't>(pattern: &'p [u8], text: &'t [u8]) -> Option<(&'p [u8], &'t [u8])> {
    let (first, rest) = text.split_first()?;
    match pattern {
        [b'?', after @ ..] => (*first != b'/').then_some((after, rest)),
        [b'[', set @ ..] => {
            let (negated, mut set) = match set {
                [b'^', set @ ..] => (true, set),
                set => (false, set),
            };
            let mut found = false;
            loop {
                match set {
                    [b']', after @ ..] => {
                        return (found != negated && *first != b'/').then_some((after, rest));
                    }
                    [low, b'-', high, after @ ..] if *high != b']' => {
                        found |= (low..=high).contains(&first);
                        set = after;
                    }
                    [literal, after @ ..] => {
                        found |= first == literal;
                        set = after;
                    }
                    [] => return None,
                }
            }
        }
        [b'\\', literal, after @ ..] | [literal, after @ ..] => {
            (first == literal).then_some((after, rest))
        }
        [] => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of Go's path/match_test.go, as far as names of images go.
    #[test]
    fn matches_agrees_with_gos_path_match() {
        let table = [
            ("abc", "abc", true),
            ("*", "abc", true),
            ("*c", "abc", true),
            ("a*", "a", true),
            ("a*", "abc", true),
            ("a*", "ab/c", false),
            ("a*/b", "abc/b", true),
            ("a*/b", "a/c/b", false),
            ("a*b*c*d*e*/f", "axbxcxdxe/f", true),
            ("a*b*c*d*e*/f", "axbxcxdxexxx/f", true),
            ("a*b*c*d*e*/f", "axbxcxdxe/xxx/f", false),
            ("a*b?c*x", "abxbbxdbxebxczzx", true),
            ("a*b?c*x", "abxbbxdbxebxczzy", false),
            ("ab[c]", "abc", true),
            ("ab[b-d]", "abc", true),
            ("ab[e-g]", "abc", false),
            ("ab[^c]", "abc", false),
            ("ab[^b-d]", "abc", false),
            ("ab[^e-g]", "abc", true),
            ("a\\*b", "a*b", true),
            ("a\\*b", "ab", false),
            ("a?b", "a/b", false),
            ("a*b", "a/b", false),
            ("[", "a", false),
            ("*x", "xxx", true),
            ("app:1.*", "app:1.2", true),
        ];
        for (pattern, text, expected) in table {
            assert_eq!(
                matches(pattern.as_bytes(), text.as_bytes()),
                expected,
                "{pattern} {text}"
            );
        }
    }
}
