//! `cowl load`, `save`, `import`, `tag`, `images`, `history`, `rmi`, `info`, `check`.

use super::args::{History, Images, Import, Info, Load, Rmi, Save, Tag, given};
use super::progress::Progress;
use super::table::{ellipsis, printable};
use super::template::{Failed, Template, Type};
use super::units::{human_duration, human_size, human_size_of};
use super::{Stdout, clock, each, format, print_error};
use crate::engine::container::state::Status;
use crate::engine::error::{Error, Kind, Result};
use crate::engine::image::{Listed, Removed, Step, short_id};
use crate::engine::info::{STORAGE_DRIVER, VERSION};
use crate::engine::list::Filters;
use crate::engine::load::{ImportRequest, LoadRequest};
use crate::engine::{Engine, Listing, host};
use cowl_core::digest::ImageId;
use cowl_core::image::Watch;
use cowl_core::store::{Reference, Trust};
use jiff::Timestamp;
use serde_json::json;

const NONE: &str = "<none>";

fn trust(verify: bool) -> Trust {
    if verify { Trust::Hash } else { Trust::Size }
}

pub(super) fn load(engine: &Engine, args: &Load, out: &mut Stdout) -> Result<u8> {
    let progress = Progress::new(args.quiet);
    let platforms = args.platform.iter().map(String::as_str).filter_map(given);
    let platforms: Vec<String> = platforms.map(str::to_owned).collect();
    let request = LoadRequest {
        platforms: &platforms,
        trust: trust(args.verify),
        watch: Some(&progress as &dyn Watch),
    };
    let loaded = engine.load(args.input.as_deref().and_then(given), &request);
    progress.finish();
    for loaded in loaded? {
        if let Some(warning) = engine.foreign_platform(loaded.image)? {
            print_error(&format!("WARNING: {warning}"));
        }
        if args.quiet {
            continue;
        }
        for name in &loaded.tags {
            out.line(&format!("Loaded image: {name}"))?;
        }
        if loaded.tags.is_empty() {
            out.line(&format!("Loaded image ID: {}", loaded.image))?;
        }
    }
    Ok(0)
}

pub(super) fn save(engine: &Engine, args: &Save) -> Result<u8> {
    engine.save(
        &args.images,
        args.platform.as_deref().and_then(given),
        args.output.as_deref().and_then(given),
    )?;
    Ok(0)
}

/// Parses a new name for an image.
pub(super) fn new_name(command: &str, text: &str) -> Result<Reference> {
    let name: Reference = text
        .parse()
        .map_err(|error| Error::invalid(format!("{command}: {error}")))?;
    // A name cannot have a digest, which is computed from the image.
    if name.digest().is_some() {
        return Err(Error::invalid(format!(
            "{command}: {name}: an image cannot be given a digest; name it NAME[:TAG]"
        )));
    }
    Ok(name)
}

pub(super) fn tag(engine: &Engine, args: &Tag) -> Result<u8> {
    engine.tag_image(&args.source, &new_name("tag", &args.target)?)?;
    Ok(0)
}

pub(super) fn import(engine: &Engine, args: &Import, out: &mut Stdout) -> Result<u8> {
    let name = args.name.as_deref();
    let name = name.map(|name| new_name("import", name)).transpose()?;
    let file = (args.file.as_os_str() != "-").then_some(args.file.as_path());
    let progress = Progress::new(args.quiet);
    let request = ImportRequest {
        name: name.as_ref(),
        changes: &args.change,
        message: &args.message,
        platform: args.platform.as_deref().and_then(given),
        trust: trust(args.verify),
        watch: Some(&progress as &dyn Watch),
    };
    let id = engine.import(file, &request);
    progress.finish();
    let id = id?;
    out.line(&id.to_string())?;
    Ok(0)
}

pub(super) fn images(engine: &Engine, args: &Images, out: &mut Stdout) -> Result<u8> {
    let Listing {
        items: mut listed,
        skipped,
    } = engine.images()?;
    warn(&skipped);
    let mut filters = format::filters(&args.filter)?;
    if let Some(name) = args.name.as_deref().and_then(given) {
        let wanted: Reference = match name.parse() {
            Ok(wanted) => wanted,
            // A pattern, as in --filter reference.
            Err(_) if name.contains(['*', '?', '[']) => {
                filters
                    .entry("reference".to_owned())
                    .or_default()
                    .push(name.to_owned());
                return listed_images(engine, args, listed, &filters, out);
            }
            Err(error) => return Err(Error::invalid(format!("images: {error}"))),
        };
        // A name without a tag matches all tags.
        let tagged = name
            .rsplit('/')
            .next()
            .is_some_and(|last| last.contains([':', '@']));
        listed.retain(|image| {
            image.reference.as_ref().is_some_and(|own| {
                if tagged {
                    *own == wanted
                } else {
                    own.repository() == wanted.repository()
                }
            })
        });
    }
    listed_images(engine, args, listed, &filters, out)
}

fn listed_images(
    engine: &Engine,
    args: &Images,
    mut listed: Vec<Listed>,
    filters: &Filters,
    out: &mut Stdout,
) -> Result<u8> {
    engine.filter_images(&mut listed, filters)?;
    for image in &listed {
        if let Some(damage) = &image.damage {
            print_error(&format!(
                "warning: image {}: {damage}; load it again",
                short_id(image.id)
            ));
        }
    }
    let now = Timestamp::now();
    if args.quiet && args.format.is_none() {
        // One id for each name, as in Docker.
        for image in listed {
            out.line(&shown_id(image.id, args.no_trunc))?;
        }
        return Ok(0);
    }
    let rows: Vec<_> = listed
        .iter()
        .map(|image| as_json(image, args.no_trunc, now))
        .collect();
    let table = if args.digests {
        "{{.Repository}}\t{{.Tag}}\t{{.Digest}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}"
    } else {
        "{{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}"
    };
    let header = json!({
        "Repository": "REPOSITORY", "Tag": "TAG", "Digest": "DIGEST", "ID": "IMAGE ID",
        "CreatedSince": "CREATED", "CreatedAt": "CREATED AT", "Size": "SIZE",
        "Containers": "CONTAINERS", "SharedSize": "SHARED SIZE", "UniqueSize": "UNIQUE SIZE",
        "VirtualSize": "SIZE",
    });
    let format = args.format.as_deref().unwrap_or("table");
    let of = &Type::Row("*formatter.imageContext");
    format::print(format, table, &header, &rows, of, out)?;
    Ok(0)
}

/// Reports damaged items, which the list leaves out.
pub(super) fn warn(damage: &[Error]) {
    for error in damage {
        print_error(&format!("warning: {error}"));
    }
}

fn names(image: &Listed) -> (String, String) {
    let none = || NONE.to_owned();
    image.reference.as_ref().map_or_else(
        || (none(), none()),
        |own| (own.repository(), own.tag().map_or_else(none, str::to_owned)),
    )
}

/// The fields of Docker's `--format json`.
pub(super) fn as_json(image: &Listed, no_trunc: bool, now: Timestamp) -> serde_json::Value {
    let (repository, tag) = names(image);
    let named = image.reference.as_ref().and_then(Reference::digest);
    let digest = named.or(image.digest);
    let digest = digest.map_or_else(|| NONE.to_owned(), |digest| digest.to_string());
    json!({
        "Containers": "N/A",
        "CreatedAt": image.created.map_or_else(|| "N/A".to_owned(), clock::go),
        "CreatedSince": ago(image.created, now),
        "Digest": digest,
        "ID": shown_id(image.id, no_trunc),
        "Repository": repository,
        "SharedSize": "N/A",
        "Size": human_size(image.size),
        "Tag": tag,
        "UniqueSize": "N/A",
        "VirtualSize": human_size_of(image.size, 4),
    })
}

fn shown_id(id: ImageId, whole: bool) -> String {
    if whole { id.to_string() } else { short_id(id) }
}

fn ago(then: Option<Timestamp>, now: Timestamp) -> String {
    then.map_or_else(|| "N/A".to_owned(), |then| since(then, now))
}

fn since(then: Timestamp, now: Timestamp) -> String {
    let seconds = u64::try_from(now.duration_since(then).as_secs()).unwrap_or_default();
    format!("{} ago", human_duration(seconds))
}

/// `history` shows no time before 2000: reproducible builds use such times.
const MILLENNIUM: i64 = 946_684_800;

/// Age of a step in a history; empty without a time, as Docker shows it.
fn step_ago(then: Option<Timestamp>, now: Timestamp) -> String {
    then.filter(|then| then.as_second() > MILLENNIUM)
        .map_or_else(String::new, |then| since(then, now))
}

pub(super) fn history(engine: &Engine, args: &History, out: &mut Stdout) -> Result<u8> {
    let now = Timestamp::now();
    engine.check_platforms(&args.image, args.platform.as_deref().and_then(given))?;
    let steps = engine.history(&args.image)?;
    let rows: Vec<_> = steps.iter().map(|step| step_row(step, args, now)).collect();
    let header = json!({
        "ID": "IMAGE", "CreatedSince": if args.human { "CREATED" } else { "CREATED AT" }, "CreatedAt": "CREATED AT",
        "CreatedBy": "CREATED BY", "Size": "SIZE", "Comment": "COMMENT",
    });
    let table = "{{.ID}}\t{{.CreatedSince}}\t{{.CreatedBy}}\t{{.Size}}\t{{.Comment}}";
    let format = match (&args.format, args.quiet) {
        (Some(format), _) => format,
        (None, true) => "{{.ID}}",
        (None, false) => "table",
    };
    let of = &Type::Row("*image.historyContext");
    format::print(format, table, &header, &rows, of, out)?;
    Ok(0)
}

fn step_row(step: &Step, args: &History, now: Timestamp) -> serde_json::Value {
    let whole = args.no_trunc;
    let id = step
        .image
        .map_or_else(|| "<missing>".to_owned(), |id| shown_id(id, whole));
    let by = printable(&step.created_by);
    let at = step
        .created
        .map_or_else(String::new, clock::rfc3339_seconds);
    json!({
        "ID": id,
        "CreatedAt": at,
        "CreatedSince": if args.human { step_ago(step.created, now) } else { at },
        "CreatedBy": if whole { by } else { ellipsis(&by, 45) },
        "Size": if args.human { human_size(step.size) } else { step.size.to_string() },
        "Comment": printable(&step.comment),
    })
}

pub(super) fn rmi(engine: &Engine, args: &Rmi, out: &mut Stdout) -> Result<u8> {
    each(&args.images, out, |name, out| {
        let mut removed = Vec::new();
        let done = engine.remove_image(name, args.force, &mut removed);
        for removed in removed {
            match removed {
                Removed::Untagged(name) => out.line(&format!("Untagged: {name}"))?,
                Removed::Deleted(id) => out.line(&format!("Deleted: {id}"))?,
                Removed::DeletedLayers(chain) => out.line(&format!("Deleted: {chain}"))?,
                Removed::NotFreed(error) => warn(&[error]),
            }
        }
        match done {
            // As in Docker, with -f a missing image is reported but is not a failure. No image has
            // the empty name.
            Err(error) if args.force && (error.kind() == Kind::NotFound || name.is_empty()) => {
                print_error(&error);
                Ok(())
            }
            done => done.map(drop),
        }
    })
}

pub(super) fn info(engine: &Engine, args: &Info, out: &mut Stdout) -> Result<u8> {
    if let Some(format) = args.format.as_deref().filter(|format| !format.is_empty()) {
        let info = engine.info()?;
        let line = match format {
            "json" => serde_json::to_string(&info)?,
            template => match Template::parse(template) {
                Ok(template) => template.render(&info, &Type::Json).map_err(Failed::bare)?,
                Err(malformed) => return Ok(malformed.end()),
            },
        };
        out.line(&line)?;
        return Ok(0);
    }
    let Listing {
        items: containers,
        skipped,
    } = engine.containers()?;
    warn(&skipped);
    let count = |wanted: fn(&Status) -> bool| {
        let states = containers.iter().map(|(_, status)| status);
        states.filter(|status| wanted(status)).count()
    };
    let running = count(|status| matches!(status, Status::Running | Status::Restarting(_)));
    let paused = count(|status| *status == Status::Paused);
    let usage = engine.store().usage()?;
    let found = engine.images()?;
    warn(&found.skipped);
    let volumes = engine.volumes()?;
    warn(&volumes.skipped);
    let mut images: Vec<_> = found.items.into_iter().map(|image| image.id).collect();
    images.sort();
    images.dedup();
    let host = host::describe();
    let kernel = rustix::system::uname();
    let lines = [
        format!("Version: {VERSION}"),
        format!("Root Dir: {}", engine.store().root().display()),
        format!("Containers: {}", containers.len()),
        format!(" Running: {running}"),
        format!(" Paused: {paused}"),
        format!(" Stopped: {}", containers.len() - running - paused),
        format!("Images: {}", images.len()),
        format!("Storage Driver: {STORAGE_DRIVER}"),
        format!("Volumes: {}", volumes.items.len()),
        format!("Layers: {}", usage.layers.number),
        format!("Objects: {}", usage.objects.number),
        format!(
            " Bytes: {} ({})",
            usage.objects.bytes,
            human_size(usage.objects.bytes)
        ),
        format!(
            "Trees: {}",
            human_size(usage.layers.bytes + usage.merged.bytes)
        ),
        format!(
            "Blobs: {} ({})",
            usage.blobs.number,
            human_size(usage.blobs.bytes)
        ),
        format!("Kernel Version: {}", kernel.release().to_string_lossy()),
        format!("Architecture: {}", kernel.machine().to_string_lossy()),
        format!("Privilege: {}", host.privilege),
        format!("FUSE: {}", host.fuse),
        format!("I/O Modes: {}", host.io_modes),
    ];
    lines.iter().try_for_each(|line| out.line(line))?;
    Ok(0)
}

pub(super) fn counted(number: u64, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_of_images_and_steps_match_dockers() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let table = [
            (None, "N/A", ""),
            (Some("1970-01-01T00:00:00Z"), "56 years ago", ""),
            (Some("2000-01-01T00:00:00Z"), "26 years ago", ""),
            (Some("2000-01-01T00:00:01Z"), "26 years ago", "26 years ago"),
            (
                Some("2026-01-02T00:00:00Z"),
                "Less than a second ago",
                "Less than a second ago",
            ),
        ];
        for (created, image, step) in table {
            let created = created.map(|text| text.parse().unwrap());
            assert_eq!(
                (ago(created, now), step_ago(created, now)),
                (image.to_owned(), step.to_owned()),
                "{created:?}"
            );
        }
    }
}
