//! The command line of `run` and `create` as Docker's `Config` and `HostConfig`.

use super::args::Options;
use super::mount_option;
use crate::cli::args::given;
use crate::engine::create::{CreateRequest, check_syntax};
use crate::engine::docker::{ContainerConfig, HostConfig, RestartPolicy};
use crate::engine::error::{Context, Error, Result};
use cowl_core::handover::IoModeChoice;
use cowl_launch::control::StreamSet;
use std::collections::BTreeMap;
use std::path::Path;

/// Builds the request; reads the files and environment variables that options name. `detached` is
/// `-d`.
pub(super) fn request(options: Options, detached: bool) -> Result<CreateRequest> {
    check_pull(&options)?;
    let attached = attached(&options, detached)?;
    let cwd = std::env::current_dir().context(|| "the current directory")?;
    let mut words = options.image_and_command.into_iter();
    let image = words.next().unwrap_or_default();
    let command: Vec<String> = words.collect();
    let mut volumes = serde_json::Map::new();
    let mut binds = Vec::new();
    for text in &options.volume {
        if text.is_empty() {
            return Err(Error::invalid("invalid empty volume spec"));
        }
        match bind(text, &cwd) {
            Some(bind) => binds.push(bind),
            None => drop(volumes.insert(text.clone(), serde_json::json!({}))),
        }
    }
    let mut config = ContainerConfig {
        healthcheck: options.health.into_healthcheck()?,
        user: options.user.unwrap_or_default(),
        attach_stdin: attached.stdin,
        attach_stdout: attached.stdout,
        attach_stderr: attached.stderr,
        exposed_ports: exposed(&options.expose)?,
        tty: options.tty,
        open_stdin: options.interactive,
        stdin_once: options.interactive && attached.stdin,
        env: environment(&options.env_file, &options.env)?,
        cmd: (!command.is_empty()).then_some(command),
        image,
        volumes: (!volumes.is_empty()).then_some(volumes),
        working_dir: options.workdir.unwrap_or_default(),
        entrypoint: options.entrypoint.map(|program| vec![program]),
        labels: labels(&options.label_file, &options.label)?,
        stop_signal: options.stop_signal.unwrap_or_default(),
        stop_timeout: options.stop_timeout,
        ..ContainerConfig::default()
    };
    let mut host = HostConfig {
        binds,
        volumes_from: options.volumes_from,
        auto_remove: options.rm,
        restart_policy: restart_policy(options.restart.as_deref(), options.rm)?,
        readonly_rootfs: options.read_only,
        storage_opt: storage(&options.storage_opt, options.io)?,
        annotations: pairs("annotation", &options.annotation)?,
        ..HostConfig::default()
    };
    if options.log_driver.is_some() || !options.log_opt.is_empty() {
        let log = log_config(options.log_driver, &options.log_opt)?;
        host.other.insert("LogConfig".to_owned(), log);
    }
    options.network.apply(&mut config, &mut host)?;
    options.namespaces.apply(&mut host)?;
    options.isolation.apply(&mut host)?;
    host.resources = options.resources.into_resources()?;
    host.oom_score_adj = options.oom_score_adj.unwrap_or_default();
    host.shm_size = i64::try_from(options.shm_size.unwrap_or_default())
        .map_err(|_range| Error::invalid("the size of /dev/shm is too large"))?;
    for text in options.tmpfs {
        let (target, settings) = text.split_once(':').unwrap_or((&text, ""));
        host.tmpfs.insert(target.to_owned(), settings.to_owned());
    }
    for text in &options.mount {
        host.mounts.push(mount_option::parse(text, &cwd)?);
    }
    if let Some(file) = options.cidfile.as_deref().and_then(given) {
        let file = file.to_string_lossy().into_owned();
        host.other.insert("ContainerIDFile".to_owned(), file.into());
    }
    check_syntax(&host)?;
    Ok(CreateRequest {
        // In Docker an empty name counts as absent.
        name: options.name.filter(|name| !name.is_empty()),
        config,
        host,
        platform: options.platform.0,
    })
}

/// The streams that `-a` names; without `-a` both outputs, and the input with `-i`.
fn attached(options: &Options, detached: bool) -> Result<StreamSet> {
    if options.attach.is_empty() {
        return Ok(StreamSet {
            stdin: options.interactive && !detached,
            stdout: !detached,
            stderr: !detached,
        });
    }
    let mut streams = StreamSet::default();
    for name in &options.attach {
        match name.to_ascii_lowercase().as_str() {
            "stdin" => streams.stdin = true,
            "stdout" => streams.stdout = true,
            "stderr" => streams.stderr = true,
            _ => {
                return Err(Error::invalid("valid streams are STDIN, STDOUT and STDERR"));
            }
        }
    }
    Ok(streams)
}

/// `--storage-opt`, and `--io`.
fn storage(options: &[String], io: Option<IoModeChoice>) -> Result<BTreeMap<String, String>> {
    let mut storage = pairs("storage option", options)?;
    if let Some(mode) = io {
        storage.insert("io".to_owned(), mode.to_string());
    }
    Ok(storage)
}

/// `NAME=VALUE` each.
fn pairs(what: &str, texts: &[String]) -> Result<BTreeMap<String, String>> {
    let pair = |text: &String| {
        let pair = text.split_once('=');
        let (name, value) =
            pair.ok_or_else(|| Error::invalid(format!("invalid {what}: {text}: use NAME=VALUE")))?;
        Ok((name.to_owned(), value.to_owned()))
    };
    texts.iter().map(pair).collect()
}

/// `port[-port][/protocol]` each (docker/go-connections, `nat`).
fn exposed(ports: &[String]) -> Result<serde_json::Map<String, serde_json::Value>> {
    let mut exposed = serde_json::Map::new();
    for text in ports {
        let invalid = || {
            Error::invalid(format!(
                "invalid range format for --expose: {text}, error: invalid start port"
            ))
        };
        let (range, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let number = |text: &str| text.parse::<u16>().map_err(|_syntax| invalid());
        let (first, last) = (number(first)?, number(last)?);
        if last < first || !matches!(protocol, "tcp" | "udp" | "sctp") {
            return Err(invalid());
        }
        for port in first..=last {
            exposed.insert(format!("{port}/{protocol}"), serde_json::json!({}));
        }
    }
    Ok(exposed)
}

/// Only local images are used: nothing can be pulled.
fn check_pull(options: &Options) -> Result<()> {
    match options.pull.as_str() {
        "" | "missing" | "never" => Ok(()),
        "always" => {
            let image = options.image_and_command.first().map_or("", String::as_str);
            Err(Error::invalid(format!(
                "--pull always: cowl does not pull: load {image} from an archive (cowl load, cowl import)"
            )))
        }
        other => Err(Error::invalid(format!(
            "invalid pull option: '{other}': must be one of \"always\", \"missing\" or \"never\""
        ))),
    }
}

/// `--log-driver` and `--log-opt`.
fn log_config(driver: Option<String>, options: &[String]) -> Result<serde_json::Value> {
    let mut settings = serde_json::Map::new();
    for text in options {
        let (key, value) = text
            .split_once('=')
            .ok_or_else(|| Error::invalid(format!("invalid logging opt format: {text}")))?;
        settings.insert(key.to_owned(), value.into());
    }
    Ok(serde_json::json!({"Type": driver.unwrap_or_default(), "Config": settings}))
}

/// `--restart`, with the texts of Docker's command line (docker/cli, `opts/parse.go`).
pub(super) fn restart_policy(text: Option<&str>, removed: bool) -> Result<RestartPolicy> {
    let Some(text) = text.filter(|text| !text.is_empty()) else {
        return Ok(RestartPolicy::default());
    };
    let (name, count) = match text.split_once(':') {
        Some(("", _)) => {
            return Err(Error::invalid(
                "invalid restart policy format: no policy provided before colon",
            ));
        }
        Some((name, count)) => {
            let count = count.parse().map_err(|_syntax| {
                Error::invalid(
                    "invalid restart policy format: maximum retry count must be an integer",
                )
            })?;
            (name, count)
        }
        None => (text, 0),
    };
    let policy = RestartPolicy {
        name: name.to_owned(),
        maximum_retry_count: count,
    };
    if removed && policy.is_set() {
        return Err(Error::invalid(
            "conflicting options: cannot specify both --restart and --rm",
        ));
    }
    Ok(policy)
}

/// A `-v` with its host path made absolute; None for an anonymous volume.
fn bind(text: &str, cwd: &Path) -> Option<String> {
    let (source, rest) = text.split_once(':')?;
    // "/dir:ro" is an anonymous volume with a mode.
    if source == "." || source == ".." || source.starts_with("./") || source.starts_with("../") {
        return Some(format!("{}:{rest}", cwd.join(source).display()));
    }
    Some(text.to_owned())
}

/// Reads files first, so that `-e` overrides them.
pub(super) fn environment(files: &[std::path::PathBuf], given: &[String]) -> Result<Vec<String>> {
    let mut env = Vec::new();
    for file in files {
        for line in lines(file)? {
            let (name, value) = variable(&line)?;
            // As in Docker, a bare name in a file passes on a variable that is set and unsets
            // nothing.
            if let Some(value) = value.or_else(|| std::env::var(name).ok()) {
                env.push(format!("{name}={value}"));
            }
        }
    }
    for text in given {
        let passed_on = match text.split_once('=') {
            None => std::env::var(text).ok(),
            Some(_) => None,
        };
        env.push(match passed_on {
            Some(value) => format!("{text}={value}"),
            None => text.clone(),
        });
    }
    Ok(env)
}

fn labels(files: &[std::path::PathBuf], given: &[String]) -> Result<BTreeMap<String, String>> {
    let mut labels = BTreeMap::new();
    let mut set = |name: &str, value: &str| drop(labels.insert(name.to_owned(), value.to_owned()));
    for file in files {
        for line in lines(file)? {
            let (name, value) = variable(&line)?;
            // As in Docker, a bare name in a file is ignored.
            if let Some(value) = value {
                set(name, &value);
            }
        }
    }
    for text in given {
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        set(name, value);
    }
    Ok(labels)
}

/// The lines of an env file, without empty lines and comments.
fn lines(file: &Path) -> Result<Vec<String>> {
    let text = std::fs::read(file).context(|| format!("open {}", file.display()))?;
    let text = String::from_utf8(text)
        .map_err(|_bytes| Error::invalid(format!("{}: not UTF-8", file.display())))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    Ok(text
        .lines()
        .map(|line| line.trim_start().to_owned())
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .collect())
}

/// `NAME=VALUE`, or a name alone.
fn variable(line: &str) -> Result<(&str, Option<String>)> {
    let (name, value) = match line.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (line.trim_end(), None),
    };
    if name.is_empty() {
        return Err(Error::invalid(format!("no variable name on line '{line}'")));
    }
    if name.contains(char::is_whitespace) {
        return Err(Error::invalid(format!(
            "variable '{name}' contains whitespaces"
        )));
    }
    Ok((name, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_variables_is_read_as_docker_reads_it() {
        let temp = tempfile::tempdir().unwrap();
        let file = temp.path().join("env");
        std::fs::write(
            &file,
            "\u{feff}# none\n\n  A=1 = 2 \nNOT_SET_ANYWHERE\nB=\n",
        )
        .unwrap();
        let given = ["A=3".to_owned(), "NOT_SET_EITHER".to_owned()];
        assert_eq!(
            environment(std::slice::from_ref(&file), &given).unwrap(),
            ["A=1 = 2 ", "B=", "A=3", "NOT_SET_EITHER"]
        );
        let labels = labels(std::slice::from_ref(&file), &["C".to_owned()]).unwrap();
        let labels: Vec<_> = labels.iter().map(|(a, b)| format!("{a}:{b}")).collect();
        assert_eq!(labels, ["A:1 = 2 ", "B:", "C:"]);
        for wrong in ["=1", "A B=1", "A\tB"] {
            std::fs::write(&file, wrong).unwrap();
            environment(std::slice::from_ref(&file), &[]).unwrap_err();
        }
    }

    #[test]
    fn a_relative_source_becomes_absolute() {
        let here = Path::new("/here");
        assert_eq!(bind("./a:/b:ro", here).unwrap(), "/here/./a:/b:ro");
        assert_eq!(bind("vol:/b", here).unwrap(), "vol:/b");
        assert_eq!(bind("/b", here), None);
    }
}
