//! The process of a container: the image's configuration and the command line, merged by Docker's
//! rules.
//!
//! Merged once, at the container's creation; its `config.json` has the result.

use super::error::{Error, Result};
use cowl_launch::process::DEFAULT_PATH;
use serde::{Deserialize, Serialize};

/// An image's defaults (the `config` object of the OCI image configuration).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageDefaults {
    /// `Entrypoint`.
    pub entrypoint: Vec<String>,
    /// `Cmd`.
    pub cmd: Vec<String>,
    /// `Env`, `NAME=VALUE` each.
    pub env: Vec<String>,
    /// `WorkingDir`, empty if unset.
    pub working_dir: String,
    /// `User`, empty if unset.
    pub user: String,
}

/// The command line's settings.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overrides {
    /// `--entrypoint`; the empty string removes the image's.
    pub entrypoint: Option<String>,
    /// The words after the image's name.
    pub command: Vec<String>,
    /// `-e`, each resolved by [`EnvChange::parse`].
    pub env: Vec<EnvChange>,
    /// `-w`.
    pub working_dir: Option<String>,
    /// `-u`.
    pub user: Option<String>,
    /// `-t`: adds TERM.
    pub tty: bool,
}

/// One `-e` option.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EnvChange {
    /// NAME=VALUE.
    Set(String, String),
    /// A name alone, which the caller's environment lacks.
    Unset(String),
}

/// The process of a container, ready to be started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Program and arguments; never empty.
    pub argv: Vec<String>,
    /// `NAME=VALUE` each, no name twice.
    pub env: Vec<String>,
    /// Absolute.
    pub cwd: String,
    /// `name|uid[:group|gid]`, resolved in the container's root at start; empty means root.
    pub user: String,
}

impl EnvChange {
    /// Reads `NAME=VALUE`, or `NAME` whose value `lookup` finds in the caller's environment.
    pub fn parse(text: &str, lookup: impl FnOnce(&str) -> Option<String>) -> Result<Self, String> {
        if text.contains('\0') {
            return Err("an environment variable can't hold a zero byte".to_owned());
        }
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (text, lookup(text)),
        };
        if name.is_empty() {
            return Err(format!("invalid environment variable: {text}"));
        }
        Ok(match value {
            Some(value) => Self::Set(name.to_owned(), value),
            None => Self::Unset(name.to_owned()),
        })
    }
}

impl Process {
    /// Merges an image's defaults with the command line. `hostname` becomes HOSTNAME.
    pub fn merge(image: &ImageDefaults, given: &Overrides, hostname: &str) -> Result<Self> {
        let (entrypoint, image_cmd) = match given.entrypoint.as_deref() {
            // --entrypoint drops the image's Cmd too.
            Some("") => (Vec::new(), &[][..]),
            Some(program) => (vec![program.to_owned()], &[][..]),
            None => (image.entrypoint.clone(), image.cmd.as_slice()),
        };
        let arguments = if given.command.is_empty() {
            image_cmd
        } else {
            &given.command
        };
        let argv: Vec<String> = entrypoint
            .into_iter()
            .chain(arguments.iter().cloned())
            .collect();
        if argv.is_empty() {
            return Err(Error::invalid(
                "no command specified: the image names none; add one after the image",
            ));
        }
        if argv.iter().any(|word| word.contains('\0')) {
            return Err(Error::invalid("a command can't hold a zero byte"));
        }
        Ok(Self {
            argv,
            env: environment(image, given, hostname),
            cwd: working_directory(image, given)?,
            user: given.user.clone().unwrap_or_else(|| image.user.clone()),
        })
    }

    /// The command as Docker shows it: arguments that contain a space are quoted.
    pub fn shown(&self) -> String {
        let mut words = self.argv.iter();
        let mut shown = words.next().cloned().unwrap_or_default();
        for word in words {
            let quote = if word.contains(' ') { "'" } else { "" };
            shown.extend([" ", quote, word.as_str(), quote]);
        }
        shown
    }
}

fn working_directory(image: &ImageDefaults, given: &Overrides) -> Result<String> {
    let cwd = given.working_dir.as_deref().unwrap_or(&image.working_dir);
    if cwd.is_empty() {
        return Ok("/".to_owned());
    }
    if !cwd.starts_with('/') || cwd.contains('\0') {
        return Err(Error::invalid(format!(
            "the working directory '{cwd}' is invalid, it needs to be an absolute path"
        )));
    }
    Ok(cwd.to_owned())
}

fn environment(image: &ImageDefaults, given: &Overrides, hostname: &str) -> Vec<String> {
    let mut env = vec![DEFAULT_PATH.to_owned(), format!("HOSTNAME={hostname}")];
    if given.tty {
        env.push("TERM=xterm".to_owned());
    }
    for entry in &image.env {
        let name = entry
            .split_once('=')
            .map_or(entry.as_str(), |(name, _)| name);
        set(&mut env, name, entry.clone());
    }
    for change in &given.env {
        match change {
            EnvChange::Set(name, value) => set(&mut env, name, format!("{name}={value}")),
            EnvChange::Unset(name) => env.retain(|entry| !names(entry, name)),
        }
    }
    env
}

fn set(env: &mut Vec<String>, name: &str, entry: String) {
    match env.iter_mut().find(|old| names(old, name)) {
        Some(old) => *old = entry,
        None => env.push(entry),
    }
}

fn names(entry: &str, name: &str) -> bool {
    entry
        .strip_prefix(name)
        .is_some_and(|rest| rest.starts_with('='))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    fn image(entrypoint: &str, cmd: &str) -> ImageDefaults {
        ImageDefaults {
            entrypoint: words(entrypoint),
            cmd: words(cmd),
            ..ImageDefaults::default()
        }
    }

    #[test]
    fn shown_quotes_as_docker_does() {
        let process = Process {
            argv: ["sh", "-c", "echo 'a' b", ""].map(str::to_owned).into(),
            env: Vec::new(),
            cwd: "/".to_owned(),
            user: String::new(),
        };
        // As transform() of moby's container/view.go joins them.
        assert_eq!(process.shown(), "sh -c 'echo 'a' b' ");
    }

    #[test]
    fn merge_combines_entrypoint_and_command_as_docker_does() {
        // image entrypoint, image cmd, --entrypoint, command -> argv ("" = refused)
        let table = [
            ("", "sh", None, "", "sh"),
            ("", "sh", None, "echo hi", "echo hi"),
            ("/e -x", "a b", None, "", "/e -x a b"),
            ("/e -x", "a b", None, "c", "/e -x c"),
            ("/e -x", "a b", Some("/n"), "", "/n"),
            ("/e -x", "a b", Some("/n"), "c d", "/n c d"),
            ("/e -x", "a b", Some(""), "c d", "c d"),
            ("/e -x", "a b", Some(""), "", ""),
            ("", "", None, "", ""),
            ("/e", "", None, "", "/e"),
        ];
        for (entrypoint, cmd, given, command, expected) in table {
            let given = Overrides {
                entrypoint: given.map(str::to_owned),
                command: words(command),
                ..Overrides::default()
            };
            let merged = Process::merge(&image(entrypoint, cmd), &given, "h");
            match merged {
                Ok(process) => assert_eq!(process.argv, words(expected)),
                Err(error) => assert!(expected.is_empty(), "{error}"),
            }
        }
    }

    #[test]
    fn merge_prefers_the_command_line_environment() {
        let image = ImageDefaults {
            cmd: words("sh"),
            env: words("PATH=/bin A=1 B=2"),
            ..ImageDefaults::default()
        };
        let given = Overrides {
            env: vec![
                EnvChange::Set("A".into(), "x=y".into()),
                EnvChange::Unset("B".into()),
                EnvChange::Set("C".into(), String::new()),
            ],
            tty: true,
            ..Overrides::default()
        };
        let process = Process::merge(&image, &given, "abc").unwrap();
        assert_eq!(
            process.env,
            ["PATH=/bin", "HOSTNAME=abc", "TERM=xterm", "A=x=y", "C="]
        );
    }

    #[test]
    fn parse_takes_a_pair_or_looks_a_name_up() {
        let host = |name: &str| (name == "HAVE").then(|| "it".to_owned());
        assert_eq!(
            EnvChange::parse("A=1=2", host),
            Ok(EnvChange::Set("A".into(), "1=2".into()))
        );
        assert_eq!(
            EnvChange::parse("A=", host),
            Ok(EnvChange::Set("A".into(), String::new()))
        );
        assert_eq!(
            EnvChange::parse("HAVE", host),
            Ok(EnvChange::Set("HAVE".into(), "it".into()))
        );
        assert_eq!(
            EnvChange::parse("LACK", host),
            Ok(EnvChange::Unset("LACK".into()))
        );
        assert!(EnvChange::parse("=1", host).is_err());
        assert!(EnvChange::parse("", host).is_err());
    }

    #[test]
    fn merge_prefers_workdir_and_user_options() {
        let image = ImageDefaults {
            cmd: words("sh"),
            working_dir: "/srv".into(),
            user: "www".into(),
            ..ImageDefaults::default()
        };
        let process = Process::merge(&image, &Overrides::default(), "h").unwrap();
        assert_eq!(
            (process.cwd.as_str(), process.user.as_str()),
            ("/srv", "www")
        );
        let given = Overrides {
            working_dir: Some("/tmp".into()),
            user: Some("33:33".into()),
            ..Overrides::default()
        };
        let process = Process::merge(&image, &given, "h").unwrap();
        assert_eq!(
            (process.cwd.as_str(), process.user.as_str()),
            ("/tmp", "33:33")
        );
        let given = Overrides {
            working_dir: Some("tmp".into()),
            ..Overrides::default()
        };
        assert!(
            Process::merge(&image, &given, "h")
                .unwrap_err()
                .to_string()
                .contains("needs to be an absolute path")
        );
    }
}
