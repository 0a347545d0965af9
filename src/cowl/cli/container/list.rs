//! `cowl ps`.

use super::args::Ps;
use crate::cli::image::warn;
use crate::cli::table::{ellipsis, printable, quoted};
use crate::cli::template::{LABELS, Template, Type};
use crate::cli::units::human_size;
use crate::cli::{Stdout, clock, format, print_error};
use crate::engine::container::config::{Config, MountSource};
use crate::engine::error::{Error, Result};
use crate::engine::list::{ListRequest, Summary};
use crate::engine::{Engine, duration, short};
use jiff::Timestamp;
use serde_json::{Value, json};

const TABLE: &str =
    "{{.ID}}\t{{.Image}}\t{{.Command}}\t{{.RunningFor}}\t{{.Status}}\t{{.Ports}}\t{{.Names}}";
/// The Go type of a row.
const ROW: &Type = &Type::Row("*formatter.ContainerContext");
/// Width to which a table truncates commands.
const COMMAND: usize = 20;

pub(in crate::cli) fn ps(engine: &Engine, args: &Ps, out: &mut Stdout) -> Result<u8> {
    if let Err(error) = engine.sweep() {
        // List the containers even if leftovers cannot be removed now.
        print_error(&format!("warning: {error}"));
    }
    let format = args.format.as_deref().filter(|format| !format.is_empty());
    if let Some(format) = format {
        check(format)?;
    }
    let limit = match args.last {
        _ if args.latest => Some(1),
        // -1 is Docker's "no limit".
        last => last.and_then(|last| usize::try_from(last).ok()),
    };
    let listed = engine.list(&ListRequest {
        all: args.all,
        limit,
        filters: format::filters(&args.filter)?,
    })?;
    warn(&listed.skipped);
    let now = Timestamp::now();
    let asks = |format: &str| format.contains(".Size");
    let with_sizes = !args.quiet && (args.size || format.is_some_and(asks));
    let rows = listed.items.iter().map(|summary| {
        let mut row = row(summary, args.no_trunc, now);
        if with_sizes && let Some(fields) = row.as_object_mut() {
            let (changed, whole) = engine.sizes(&summary.config)?;
            fields.insert("Size".to_owned(), size(changed, whole).into());
        }
        Ok(row)
    });
    let rows = rows.collect::<Result<Vec<Value>>>()?;
    let table = format!("{TABLE}{}", if args.size { "\t{{.Size}}" } else { "" });
    let format = match (format, args.quiet) {
        (_, true) => "{{.ID}}",
        (Some(format), false) => format,
        (None, false) => "table",
    };
    format::print(format, &table, &header(), &rows, ROW, out)?;
    Ok(0)
}

/// As Docker, which looks for the size with the whole format, though there may be no container.
fn check(format: &str) -> Result<()> {
    let malformed = |why| Error::invalid(format!("failed to parse template: {why}"));
    let template = Template::parse(format).map_err(malformed)?;
    let mut example = header();
    if let Some(fields) = example.as_object_mut() {
        fields.insert(LABELS.to_owned(), json!({}));
    }
    let failed = |why| Error::invalid(format!("failed to execute template: {why}"));
    template.render_only(&example, ROW).map_err(failed)?;
    Ok(())
}

fn header() -> Value {
    json!({
        "ID": "CONTAINER ID", "Image": "IMAGE", "Command": "COMMAND", "CreatedAt": "CREATED AT",
        "RunningFor": "CREATED", "Ports": "PORTS", "State": "STATE", "Status": "STATUS",
        "Names": "NAMES", "Labels": "LABELS", "Mounts": "MOUNTS", "Networks": "NETWORKS",
        "LocalVolumes": "LOCAL VOLUMES", "Size": "SIZE", "Platform": "PLATFORM",
    })
}

/// The size of a container's own files, and with its image's.
fn size(changed: u64, whole: u64) -> String {
    let own = human_size(changed);
    if whole == 0 {
        return own;
    }
    format!("{own} (virtual {})", human_size(whole))
}

/// The fields of Docker's `--format json`. The size is not computed.
pub(in crate::cli) fn row(summary: &Summary, whole: bool, now: Timestamp) -> Value {
    let config = &summary.config;
    let command = summary.command();
    let command = if whole {
        quoted(&command)
    } else {
        quoted(&ellipsis(&command, COMMAND))
    };
    let age = now.duration_since(config.created).as_secs();
    let age = duration::human(u64::try_from(age).unwrap_or_default());
    let labels: Vec<String> = config
        .config
        .labels
        .iter()
        .map(|(name, value)| printable(&format!("{name}={value}")))
        .collect();
    json!({
        LABELS: config.config.labels,
        "Command": command,
        "CreatedAt": clock::go(config.created),
        "ID": if whole { &config.id } else { short(&config.id) },
        "Image": config.config.image,
        "Labels": labels.join(","),
        "LocalVolumes": config.volumes().count().to_string(),
        "Mounts": mounts(config, whole),
        "Names": config.name,
        "Networks": crate::engine::list::network(config),
        "Platform": null,
        "Ports": "",
        "RunningFor": format!("{age} ago"),
        "Size": "0B",
        "State": summary.state.status.word(),
        "Status": summary.status(now),
    })
}

/// Names of volumes and paths of the host.
fn mounts(config: &Config, whole: bool) -> String {
    let names = config.mounts.iter().map(|mount| {
        let name = match &mount.source {
            MountSource::Volume { name, .. } => name.clone(),
            MountSource::Bind(path) => path.display().to_string(),
            MountSource::Tmpfs { .. } => String::new(),
        };
        if whole { name } else { ellipsis(&name, 15) }
    });
    names.collect::<Vec<_>>().join(",")
}
