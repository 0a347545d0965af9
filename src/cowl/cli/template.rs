//! Go templates, as far as `--format` of Docker's commands uses them.
//!
//! ```text
//! actions    {{pipeline}} {{if p}}..{{else if p}}..{{else}}..{{end}} {{range p}}..{{else}}..{{end}} {{with p}}..{{end}} {{/* */}}
//! pipelines  word word ... | function word ...       a trailing or leading - trims white space
//! words      . .Field.Field $ "text" `text` 12 true false nil (pipeline)
//! functions  json join lower upper title split println print printf len index eq ne lt le gt ge not and or pad truncate
//! ```
//!
//! Values are JSON, and have the types of Docker's Go programs where [`shapes`] says so. As in
//! Docker, an object is rendered by its type first, and if that fails by its JSON. There a field is looked
//! up by its name, then without regard to case; a missing one is an error.
//! Parsing and running are bounded by the length of the text and of the data.

mod eval;
mod functions;
mod parse;
pub(super) mod shapes;
mod types;

pub(super) use types::{LABELS, Type};

use super::print_error;
use crate::engine::error::{Error, Result};
use serde_json::Value;
use std::fmt;
use types::Item;

/// Docker's exit code for a malformed template in commands that show single objects.
const MALFORMED: u8 = 64;

/// A parsed template.
#[derive(Debug)]
pub(super) struct Template {
    name: &'static str,
    /// What was parsed, for the lines of errors.
    text: String,
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
        let text = unescape(text);
        let nodes = parse::parse(&text).map_err(malformed)?;
        Ok(Self { name, text, nodes })
    }

    /// The text for an object: by its type, and if that fails by its JSON.
    pub(super) fn render(&self, data: &Value, of: &'static Type) -> Result<String, Failed> {
        self.render_only(data, of)
            .or_else(|_failed| self.render_only(data, &Type::Json))
    }

    /// The text for a value of a type.
    pub(super) fn render_only(&self, data: &Value, of: &'static Type) -> Result<String, Failed> {
        let mut out = String::new();
        let root = Item::new(data.clone(), of);
        eval::run(&self.nodes, &root, &mut out).map_err(|failure| self.failed(failure))?;
        Ok(out)
    }

    fn failed(&self, failure: eval::Failure) -> Failed {
        let eval::Failure { place, why } = failure;
        let before = self.text.get(..place.at).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().len();
        let (name, at) = (self.name, place.text);
        Failed(format!(
            "template: {name}:{line}:{column}: executing \"{name}\" at <{at}>: {why}"
        ))
    }
}

/// Why a template that is well formed cannot be executed, with the texts of Go's text/template.
#[derive(Debug)]
pub(super) struct Failed(String);

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Failed {
    /// The error with no words before it.
    pub(super) fn bare(self) -> Error {
        Error::invalid(self.0)
    }
}

impl From<Failed> for Error {
    fn from(failed: Failed) -> Self {
        Self::invalid(format!("template parsing error: {failed}"))
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
        Ok(Template::parse(text)?.render(&data, &Type::Json)?)
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
            (
                "{{.Id.More}}",
                "can't evaluate field More in type interface {}",
            ),
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

    fn container() -> Value {
        json!({
            "Id": "abc", "Name": "/c", "Args": null, "ExecIDs": null,
            "State": {"Status": "exited", "Running": false, "Paused": false, "Restarting": false,
                "OOMKilled": false, "Dead": false, "Pid": 0, "ExitCode": 3, "Error": "",
                "StartedAt": "s", "FinishedAt": "f"},
            "HostConfig": {"RestartPolicy": {"Name": "no", "MaximumRetryCount": 0},
                "LogConfig": {"Type": "json-file", "Config": {}}, "CapAdd": null, "PidsLimit": null,
                "OomKillDisable": false, "PortBindings": {}, "NanoCpus": 5},
            "GraphDriver": {"Data": {}, "Name": "vfs"},
            "Mounts": [{"Type": "volume", "Name": "v", "Source": "/s", "Destination": "/d",
                "Driver": "local", "Mode": "z", "RW": true, "Propagation": ""}],
            "Config": {"Labels": {"a": "b"}, "Volumes": {"/v": {}}, "Entrypoint": null,
                "Healthcheck": {"Test": ["CMD", "x"], "Interval": 30_000_000_000_u64}},
        })
    }

    /// The expected texts are docker 28.2's, of such a container.
    #[test]
    fn inspected_objects_print_as_gos_structs() {
        let table = [
            ("{{.ID}}", "abc"),
            ("{{.Id}}", "abc"),
            (
                "{{.State}}",
                "{exited false false false false false 0 3  s f <nil>}",
            ),
            ("{{.State.Health}} {{.SizeRw}}", "<nil> <nil>"),
            (
                "{{if .State.Health}}{{.State.Health.Status}}{{else}}none{{end}}",
                "none",
            ),
            ("{{if .State}}yes{{end}}", "yes"),
            ("{{.HostConfig.RestartPolicy}}", "{no 0}"),
            ("{{.HostConfig.LogConfig}}", "{json-file map[]}"),
            ("{{.HostConfig.CapAdd}} {{len .HostConfig.CapAdd}}", "[] 0"),
            (
                "{{.HostConfig.PidsLimit}} {{.HostConfig.OomKillDisable}}",
                "<nil> false",
            ),
            ("{{.HostConfig.Sysctls}} {{.HostConfig.Memory}}", "map[] 0"),
            ("{{.HostConfig.NanoCPUs}}", "5"),
            ("{{.HostConfig.NanoCpus}}", "5"),
            ("{{.GraphDriver}}", "{map[] vfs}"),
            ("{{.Mounts}}", "[{volume v /s /d local z true }]"),
            ("{{range .Mounts}}{{.RW}}{{end}}", "true"),
            (
                "{{.Config.Volumes}} {{.Config.Entrypoint}}",
                "map[/v:{}] []",
            ),
            ("{{.Config.Labels.a}} {{.Config.Labels.b}}", "b <no value>"),
            ("{{index .Config.Labels \"b\"}}|{{.Config.User}}|", "||"),
            ("{{.Config.Healthcheck}}", "{[CMD x] 30s 0s 0s 0s 0}"),
            ("{{json .Config.Entrypoint}}", "null"),
            (
                "{{join .Config.Cmd \" \"}}|{{.Config.StopTimeout}}",
                "|<nil>",
            ),
        ];
        for (text, expected) in table {
            let template = Template::parse(text).unwrap();
            let shown = template.render(&container(), &shapes::CONTAINER).unwrap();
            assert_eq!(shown, expected, "{text}");
        }
    }

    /// The expected texts are docker 28.2's.
    #[test]
    fn errors_say_where_they_are() {
        let table = [
            (
                "{{.Foo}}",
                ":1:2: executing \"\" at <.Foo>: map has no entry for key \"Foo\"",
            ),
            (
                "{{if .Name}} {{.State.Health.Status}}{{end}}",
                ":1:21: executing \"\" at <.State.Health.Status>: map has no entry for key \"Health\"",
            ),
            (
                "{{.Name.Foo}}",
                ":1:7: executing \"\" at <.Name.Foo>: can't evaluate field Foo in type interface {}",
            ),
            (
                "x\n {{- \"a\" }} {{ index  .Mounts   9 }}",
                ":2:15: executing \"\" at <index .Mounts 9>: error calling index: index out of range: 9",
            ),
            (
                "{{range .Name}}{{end}}",
                ":1:8: executing \"\" at <.Name>: range can't iterate over /c",
            ),
            (
                "{{json}}",
                ":1:2: executing \"\" at <json>: wrong number of args for json: want 1 got 0",
            ),
            (
                "{{.Id | index 3}}",
                ":1:8: executing \"\" at <index 3>: error calling index: can't index item of type int",
            ),
            (
                "{{eq 1}}",
                ":1:2: executing \"\" at <eq 1>: error calling eq: missing argument for comparison",
            ),
            (
                "{{$x := .State}}{{$x.Foo.Bar}}",
                ":1:20: executing \"\" at <$x.Foo.Bar>: map has no entry for key \"Foo\"",
            ),
        ];
        for (text, expected) in table {
            let template = Template::parse(text).unwrap();
            let failed = template
                .render(&container(), &shapes::CONTAINER)
                .unwrap_err();
            assert_eq!(
                failed.to_string(),
                format!("template: {expected}"),
                "{text}"
            );
        }
    }

    /// The expected texts are docker 28.2's.
    #[test]
    fn rows_have_labels_and_name_their_type() {
        let row = &Type::Row("*formatter.ContainerContext");
        let data = json!({"ID": "abc", LABELS: {"a": "1,b=2"}, "Platform": null});
        let render = |text: &str, of: &'static Type| {
            let template = Template::parse(text).unwrap();
            template
                .render_only(&data, of)
                .map_err(|failed| failed.to_string())
        };
        assert_eq!(
            render("{{.Label \"a\"}}|{{.Label \"b\"}}", row).unwrap(),
            "1,b=2|"
        );
        assert_eq!(
            render("{{json .}} {{.Platform}}", row).unwrap(),
            "{\"ID\":\"abc\",\"Platform\":null} <nil>"
        );
        assert_eq!(
            render("{{.Foo}}", row).unwrap_err(),
            "template: :1:2: executing \"\" at <.Foo>: can't evaluate field Foo in type *formatter.ContainerContext"
        );
        assert_eq!(
            render("{{.Label \"com.a-b_c\"}} {{.Foo}}", &Type::Header).unwrap(),
            "a b c <no value>"
        );
    }
}
