//! The process of a container: the image's and the client's configuration, merged by Docker's
//! rules.
//!
//! [`merge`] is called once, at the container's creation; `inspect` shows its result. A start
//! derives the [`Process`] from it.

use super::docker::{ContainerConfig, Healthcheck};
use super::error::{Error, Result};
use cowl_launch::process::DEFAULT_PATH;
use serde_json::Map;

/// The process of a container, ready to be started.
#[derive(Debug, Clone, PartialEq, Eq)]
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

/// Completes the client's configuration from the image's.
pub fn merge(asked: &ContainerConfig, image: &ContainerConfig) -> Result<ContainerConfig> {
    let mut merged = asked.clone();
    if merged.user.is_empty() {
        merged.user.clone_from(&image.user);
    }
    merge_missing(&mut merged.exposed_ports, &image.exposed_ports);
    for entry in &image.env {
        let name = name_of(entry);
        if merged.env.iter().all(|own| name_of(own) != name) {
            merged.env.push(entry.clone());
        }
    }
    for (name, value) in &image.labels {
        let label = merged.labels.entry(name.clone());
        label.or_insert_with(|| value.clone());
    }
    merge_command(&mut merged, image);
    merge_healthcheck(&mut merged, image);
    if merged.working_dir.is_empty() {
        merged.working_dir.clone_from(&image.working_dir);
    }
    if let Some(volumes) = &image.volumes {
        merge_missing(merged.volumes.get_or_insert_default(), volumes);
    }
    if merged.stop_signal.is_empty() {
        merged.stop_signal.clone_from(&image.stop_signal);
    }
    merged.shell = merged.shell.or_else(|| image.shell.clone());
    if argv(&merged).is_empty() {
        return Err(Error::invalid(
            "no command specified: the image names none; add one after the image",
        ));
    }
    Ok(merged)
}

/// Refuses what is wrong with any image.
pub(super) fn check(asked: &ContainerConfig) -> Result<()> {
    if argv(asked).iter().any(|word| word.contains('\0')) {
        return Err(Error::invalid("a command can't hold a zero byte"));
    }
    for entry in &asked.env {
        if entry.contains('\0') {
            return Err(Error::invalid(
                "an environment variable can't hold a zero byte",
            ));
        }
        if name_of(entry).is_empty() {
            return Err(Error::invalid(format!(
                "invalid environment variable: {entry}"
            )));
        }
    }
    let cwd = &asked.working_dir;
    if !cwd.is_empty() && (!cwd.starts_with('/') || cwd.contains('\0')) {
        return Err(Error::invalid(format!(
            "the working directory '{cwd}' is invalid, it needs to be an absolute path"
        )));
    }
    Ok(())
}

/// A client's entrypoint drops the image's command too; one empty string means no entrypoint.
fn merge_command(merged: &mut ContainerConfig, image: &ContainerConfig) {
    if merged.entrypoint.as_ref().is_none_or(Vec::is_empty) {
        if merged.cmd.as_ref().is_none_or(Vec::is_empty) {
            merged.cmd.clone_from(&image.cmd);
        }
        if merged.entrypoint.is_none() {
            merged.entrypoint.clone_from(&image.entrypoint);
        }
    }
    if merged.entrypoint == Some(vec![String::new()]) {
        merged.entrypoint = None;
    }
}

/// Fields that the client leaves out come from the image.
fn merge_healthcheck(merged: &mut ContainerConfig, image: &ContainerConfig) {
    let Some(of_image) = &image.healthcheck else {
        return;
    };
    let Some(own) = &mut merged.healthcheck else {
        merged.healthcheck = Some(of_image.clone());
        return;
    };
    let or = |own: i64, image: i64| if own == 0 { image } else { own };
    let has_test = own.test.as_ref().is_some_and(|test| !test.is_empty());
    *own = Healthcheck {
        test: if has_test {
            own.test.take()
        } else {
            of_image.test.clone()
        },
        interval: or(own.interval, of_image.interval),
        timeout: or(own.timeout, of_image.timeout),
        start_period: or(own.start_period, of_image.start_period),
        start_interval: or(own.start_interval, of_image.start_interval),
        retries: or(own.retries, of_image.retries),
    };
}

fn merge_missing(
    own: &mut Map<String, serde_json::Value>,
    others: &Map<String, serde_json::Value>,
) {
    for (key, value) in others {
        if !own.contains_key(key) {
            own.insert(key.clone(), value.clone());
        }
    }
}

/// Program and arguments of a merged configuration.
pub fn argv(config: &ContainerConfig) -> Vec<String> {
    let words = |words: &Option<Vec<String>>| words.clone().unwrap_or_default();
    [words(&config.entrypoint), words(&config.cmd)].concat()
}

/// The command as Docker shows it: arguments that contain a space are quoted.
pub fn shown(argv: &[String]) -> String {
    let mut words = argv.iter();
    let mut shown = words.next().cloned().unwrap_or_default();
    for word in words {
        let quote = if word.contains(' ') { "'" } else { "" };
        shown.extend([" ", quote, word.as_str(), quote]);
    }
    shown
}

impl Process {
    /// The process of a merged configuration.
    pub fn of(config: &ContainerConfig) -> Self {
        let cwd = &config.working_dir;
        Self {
            argv: argv(config),
            env: environment(config),
            cwd: if cwd.starts_with('/') {
                cwd.clone()
            } else {
                // An image may omit the leading slash.
                format!("/{cwd}")
            },
            user: config.user.clone(),
        }
    }
}

fn environment(config: &ContainerConfig) -> Vec<String> {
    let mut env = vec![
        DEFAULT_PATH.to_owned(),
        format!("HOSTNAME={}", config.hostname),
    ];
    if config.tty {
        env.push("TERM=xterm".to_owned());
    }
    for entry in &config.env {
        let name = name_of(entry);
        if name.len() == entry.len() {
            // A bare name unsets.
            env.retain(|old| name_of(old) != name);
            continue;
        }
        match env.iter_mut().find(|old| name_of(old) == name) {
            Some(old) => old.clone_from(entry),
            None => env.push(entry.clone()),
        }
    }
    env
}

fn name_of(entry: &str) -> &str {
    entry.split_once('=').map_or(entry, |(name, _)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Option<Vec<String>> {
        (!text.is_empty()).then(|| text.split_whitespace().map(str::to_owned).collect())
    }

    fn config(entrypoint: &str, cmd: &str) -> ContainerConfig {
        ContainerConfig {
            entrypoint: words(entrypoint),
            cmd: words(cmd),
            ..ContainerConfig::default()
        }
    }

    /// (image's entrypoint, image's command, given entrypoint, given command, expected)
    #[test]
    fn merge_combines_entrypoint_and_command_as_docker() {
        let table = [
            ("", "a b", None, "", "a b"),
            ("", "a b", None, "c", "c"),
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
            let asked = ContainerConfig {
                entrypoint: given.map(|word| vec![word.to_owned()]),
                ..config("", command)
            };
            match merge(&asked, &config(entrypoint, cmd)) {
                Ok(merged) => assert_eq!(Some(argv(&merged)), words(expected)),
                Err(error) => assert!(expected.is_empty(), "{error}"),
            }
        }
    }

    #[test]
    fn the_clients_environment_is_preferred_and_a_bare_name_unsets() {
        let list = |text| words(text).unwrap();
        let image = ContainerConfig {
            env: list("PATH=/bin A=1 B=2 D=4"),
            ..config("", "sh")
        };
        let asked = ContainerConfig {
            env: list("A=x=y B C="),
            tty: true,
            hostname: "abc".into(),
            ..ContainerConfig::default()
        };
        let merged = merge(&asked, &image).unwrap();
        assert_eq!(merged.env, list("A=x=y B C= PATH=/bin D=4"));
        assert_eq!(
            Process::of(&merged).env,
            list("PATH=/bin HOSTNAME=abc TERM=xterm A=x=y C= D=4")
        );
        for wrong in ["=1", "A=\0", ""] {
            let asked = ContainerConfig {
                env: vec![wrong.to_owned()],
                ..ContainerConfig::default()
            };
            check(&asked).unwrap_err();
        }
    }

    #[test]
    fn labels_ports_volumes_and_health_are_merged() {
        let image: ContainerConfig = serde_json::from_str(
            r#"{"Cmd": ["sh"], "Labels": {"a": "image", "b": "image"}, "ExposedPorts": {"80/tcp": {}},
                "Volumes": {"/data": {}}, "StopSignal": "SIGINT", "Healthcheck": {"Test": ["CMD", "true"], "Retries": 3}}"#,
        )
        .unwrap();
        let asked: ContainerConfig = serde_json::from_str(
            r#"{"Labels": {"a": "mine"}, "Volumes": {"/own": {}}, "Healthcheck": {"Interval": 5}}"#,
        )
        .unwrap();
        let merged = merge(&asked, &image).unwrap();
        assert_eq!(merged.labels["a"], "mine");
        assert_eq!(merged.labels["b"], "image");
        assert!(merged.exposed_ports.contains_key("80/tcp"));
        let volumes: Vec<_> = merged.volumes.as_ref().unwrap().keys().collect();
        assert_eq!(volumes, ["/own", "/data"]);
        assert_eq!(merged.stop_signal, "SIGINT");
        let health = merged.healthcheck.unwrap();
        assert_eq!((health.interval, health.retries), (5, 3));
        assert_eq!(health.test, words("CMD true"));
    }

    #[test]
    fn the_clients_working_directory_and_user_are_preferred() {
        let image = ContainerConfig {
            working_dir: "/srv".into(),
            user: "www".into(),
            ..config("", "sh")
        };
        let process = |asked: &ContainerConfig| Process::of(&merge(asked, &image).unwrap());
        let plain = process(&ContainerConfig::default());
        assert_eq!((plain.cwd.as_str(), plain.user.as_str()), ("/srv", "www"));
        let asked = ContainerConfig {
            working_dir: "/tmp".into(),
            user: "33:33".into(),
            ..ContainerConfig::default()
        };
        let own = process(&asked);
        assert_eq!((own.cwd.as_str(), own.user.as_str()), ("/tmp", "33:33"));
        let asked = ContainerConfig {
            working_dir: "tmp".into(),
            ..ContainerConfig::default()
        };
        let refused = check(&asked).unwrap_err().to_string();
        assert!(
            refused.contains("needs to be an absolute path"),
            "{refused}"
        );
    }
}
