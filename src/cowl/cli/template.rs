//! Go templates, as far as `--format` of Docker's commands uses them.
//!
//! ```text
//! actions    {{pipeline}} {{if p}}..{{else if p}}..{{else}}..{{end}} {{range p}}..{{else}}..{{end}} {{with p}}..{{end}} {{/* */}}
//! pipelines  word word ... | function word ...       a trailing or leading - trims white space
//! words      . .Field.Field $ "text" `text` 12 true false nil (pipeline)
//! functions  json join lower upper title split println print printf len index eq ne lt le gt ge not and or pad truncate
//! ```
//!
//! Values are JSON. A field is looked up by its name, then without regard to case, since Go's fields
//! (`ID`) and Docker's JSON (`Id`) differ so; a missing one is an error, as for Docker's `inspect`.
//! Parsing and running are bounded by the length of the text and of the data.

mod eval;
mod parse;

use super::print_error;
use crate::engine::error::{Error, Result};
use serde_json::Value;
use std::fmt;

/// Docker's exit code for a malformed template in commands that show single objects.
const MALFORMED: u8 = 64;

/// A parsed template.
#[derive(Debug)]
pub(super) struct Template {
    nodes: Vec<parse::Node>,
}

impl Template {
    /// Parses the text after `--format`. As in Docker, `\t` and `\n` are escapes.
    pub(super) fn parse(text: &str) -> Result<Self, Malformed> {
        Self::parse_named("", text)
    }

    /// Parses a template that Docker names, which shows in its errors.
    pub(super) fn parse_named(name: &'static str, text: &str) -> Result<Self, Malformed> {
        let malformed = |inner| Malformed { name, inner };
        let nodes = parse::parse(&unescape(text)).map_err(malformed)?;
        Ok(Self { nodes })
    }

    /// The text for one value.
    pub(super) fn render(&self, data: &Value) -> Result<String> {
        let mut out = String::new();
        eval::run(&self.nodes, data, data, &mut out)
            .map_err(|why| Error::invalid(format!("template: {why}")))?;
        Ok(out)
    }
}

/// Why a template is malformed, with the texts of Go's text/template.
#[derive(Debug)]
pub(super) struct Malformed {
    name: &'static str,
    inner: parse::Malformed,
}

impl Malformed {
    /// For commands that show single objects: prints the error and returns the exit code.
    pub(super) fn end(self) -> u8 {
        print_error(&Error::from(self));
        MALFORMED
    }

    /// [`Malformed::end`] with the text of `events`.
    pub(super) fn end_events(&self) -> u8 {
        print_error(&format!("Error parsing format: {self}"));
        MALFORMED
    }
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parse::Malformed { line, why } = &self.inner;
        write!(f, "template: {}:{line}: {why}", self.name)
    }
}

impl From<Malformed> for Error {
    fn from(malformed: Malformed) -> Self {
        Self::invalid(format!("template parsing error: {malformed}"))
    }
}

fn unescape(text: &str) -> String {
    text.replace("\\t", "\t").replace("\\n", "\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn render(text: &str) -> Result<String> {
        let data = json!({
            "Id": "abc", "State": {"Running": true, "ExitCode": 0, "Pid": 12},
            "Names": ["/a", "/b"], "Labels": {"x": "y", "com.z": "1"}, "Empty": [], "Text": "mIxed <&>",
            "Mounts": [{"Destination": "/data", "RW": false}, {"Destination": "/b", "RW": true}]
        });
        Template::parse(text)?.render(&data)
    }

    /// The expected texts are docker 28.2's.
    #[test]
    fn templates_print_what_docker_prints() {
        let table = [
            ("plain", "plain"),
            ("{{.Id}} {{.ID}}", "abc abc"),
            ("{{.State.Running}}/{{ .State.Pid }}", "true/12"),
            ("{{json .Names}}", r#"["/a","/b"]"#),
            ("{{json .Text}}", r#""mIxed <&>""#),
            ("{{.Names}}", "[/a /b]"),
            ("{{.Labels}}", "map[com.z:1 x:y]"),
            ("{{join .Names \",\"}}", "/a,/b"),
            ("{{.Text | upper | json}}", r#""MIXED <&>""#),
            ("{{lower .Text}}", "mixed <&>"),
            (
                "{{range .Mounts}}{{.Destination}}:{{.RW}} {{end}}",
                "/data:false /b:true ",
            ),
            ("{{range $i, $m := .Names}}{{$i}}{{$m}}{{end}}", "0/a1/b"),
            (
                "{{range $k, $v := .Labels}}{{$k}}={{$v}};{{end}}",
                "com.z=1;x=y;",
            ),
            ("{{range .Empty}}x{{else}}none{{end}}", "none"),
            ("{{if .State.Running}}up{{else}}down{{end}}", "up"),
            (
                "{{if .State.ExitCode}}bad{{else if .Empty}}e{{else}}ok{{end}}",
                "ok",
            ),
            ("{{with .State}}{{.Pid}} {{$.Id}}{{end}}", "12 abc"),
            ("{{println .Id}}{{println 1 \"a\"}}", "abc\n1 a\n"),
            ("{{index .Labels \"com.z\"}} {{index .Names 1}}", "1 /b"),
            ("{{len .Names}} {{len .Id}}", "2 3"),
            (
                "{{eq .Id \"abc\"}} {{ne .State.Pid 12}} {{gt .State.Pid 3}}",
                "true false true",
            ),
            (
                "{{not .State.Running}} {{and .Id .Empty}} {{or .Empty .Id}}",
                "false [] abc",
            ),
            (
                "{{printf \"%s-%d-%v-%q-%5d|\" .Id .State.Pid .Names .Id 7}}",
                "abc-12-[/a /b]-\"abc\"-    7|",
            ),
            (
                "{{truncate .Text 3}} {{split \"a,b\" \",\"}} {{title \"ab\"}}",
                "mIx [a b] Ab",
            ),
            ("a {{- .Id -}} b{{/* no */}}", "aabcb"),
            ("{{(index .Mounts 0).Destination}}", "/data"),
            ("{{$x := .Id}}{{$x}}{{.Id}}\\t|", "abcabc\t|"),
        ];
        for (text, expected) in table {
            assert_eq!(render(text).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn malformed_templates_have_gos_errors() {
        let table = [
            ("{{.Id", "unclosed action"),
            ("{{if .Id}}", "unexpected EOF"),
            ("{{end}}", "unexpected {{end}}"),
            ("{{nosuch .Id}}", "function \"nosuch\" not defined"),
            ("{{.Nosuch}}", "map has no entry for key \"Nosuch\""),
            ("{{.Id.More}}", "can't evaluate field More in type string"),
            ("{{json}}", "wrong number of args for json"),
            ("{{index .Names 7}}", "index out of range: 7"),
            ("{{range .Id}}{{end}}", "range can't iterate over abc"),
            ("{{\"a}}", "unterminated quoted string"),
            (
                "{{.Id}}\n{{nosuch}}{{.Id",
                "template parsing error: template: :2: function \"nosuch\" not defined",
            ),
            (
                "{{range $x := .Names}}{{end}}{{$x}}",
                "template: :1: undefined variable \"$x\"",
            ),
            ("{{$y}}", "undefined variable \"$y\""),
            (&format!("{{{{{}}}}}", "(".repeat(200)), "nested too deeply"),
        ];
        for (text, why) in table {
            let refused = render(text).unwrap_err().to_string();
            assert!(refused.contains(why), "{text}: {refused}");
        }
    }
}
