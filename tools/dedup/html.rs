//! The report as one self-contained page: no network, no script from elsewhere.
//!
//! Names of hostile images are only in a JSON block without any `<`, and the script puts them into
//! text nodes only. A content security policy allows only that script.

use std::collections::BTreeMap;
use std::fs::{File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context, Result};
use cowl_core::digest::Sha256Digest;
use cowl_core::tree::TreeIno;
use data_encoding::BASE64;
use rustix::fs::{Mode, OFlags};
use serde::Serialize;
use serde_json::json;

use crate::cleanup;
use crate::model::Collection;
use crate::report::Report;
use crate::sharing::Sharing;
use crate::show::{lossy, make_printable};

const PAGE: &str = include_str!("page.html");
const SCRIPT: &str = include_str!("page.js");

/// Directories smaller than this fraction of the whole are not expanded in the treemap.
const SMALLEST: u64 = 2000;
/// Most names shown of one directory in the treemap.
const NAMES: usize = 60;
/// Most paths of one row of waste.
const PATHS: usize = 5;

/// Writes the page atomically, unless the path is a link, a device or a pipe, which is written to.
pub(crate) fn write(
    path: &Path,
    collection: &Collection,
    sharing: &Sharing,
    report: &Report,
) -> Result<()> {
    let page = page(collection, sharing, report)?;
    match std::fs::symlink_metadata(path) {
        Ok(there) if !there.is_file() => match write_to(path, page.as_bytes()) {
            // A closed pipe is not an error.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            written => written,
        },
        _ => cleanup::undisturbed(|| replace(path, page.as_bytes())),
    }
    .with_context(|| path.display().to_string())
}

/// Writes to the file that a path leads to. A path of standard output is not opened: opening a pipe
/// without a reader would block, and a file would be overwritten by the output after the page.
fn write_to(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if is_output(path) {
        let mut output = io::stdout().lock();
        output.write_all(bytes)?;
        return output.flush();
    }
    let mut options = File::options();
    options.write(true).create(true).truncate(true);
    options.open(path)?.write_all(bytes)
}

fn is_output(path: &Path) -> bool {
    let (Ok(there), Ok(output)) = (path.metadata(), rustix::fs::fstat(io::stdout())) else {
        return false;
    };
    (there.dev(), there.ino()) == (output.st_dev, output.st_ino)
}

/// Writes a new file at a path with these bytes.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let directory = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    // tempfile's errors name the temporary file and lose the errno.
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(directory, flags, Mode::empty())?;
    let plain = |error: &io::Error| io::Error::from(error.kind());
    let mut file = tempfile::Builder::new()
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(directory)
        .map_err(|error| plain(&error))?;
    file.write_all(bytes)?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

/// The page's text.
pub(crate) fn page(collection: &Collection, sharing: &Sharing, report: &Report) -> Result<String> {
    let waste: Vec<_> = report
        .waste
        .iter()
        .map(|row| {
            json!({
                "image": row.image,
                "cause": row.cause,
                "bytes": row.bytes,
                "files": row.paths.len(),
                "paths": row.files.iter().take(PATHS).map(|(_, path)| path).collect::<Vec<_>>(),
                "layer": row.number,
                "step": row.step,
            })
        })
        .collect();
    let mut report = serde_json::to_value(report).context("the report")?;
    for unused in ["waste", "pairs"] {
        report
            .as_object_mut()
            .and_then(|report| report.remove(unused));
    }
    let treemap = treemap(collection, sharing);
    let mut data = json!({"report": report, "waste": waste, "treemap": treemap});
    make_printable(&mut data);
    let data = data.to_string();
    // Inside a script element only `<` could end it; `>` and `&` for older parsers.
    let data = data
        .replace('<', "\\u003c")
        .replace('>', "\\u003e")
        .replace('&', "\\u0026");
    let hash = BASE64.encode(Sha256Digest::of(SCRIPT.as_bytes()).as_bytes());
    let page = PAGE.replace("@HASH@", &format!("sha256-{hash}"));
    let (before, rest) = page
        .split_once("@DATA@")
        .context("the page has a place for data")?;
    let (between, after) = rest
        .split_once("@SCRIPT@")
        .context("the page has a script")?;
    Ok([before, &data, between, SCRIPT, after].concat())
}

/// A directory or a file of the treemap.
#[derive(Debug, Default, Serialize)]
struct Area {
    name: String,
    bytes: u64,
    /// Of these bytes, those in several of the images.
    shared: u64,
    children: Vec<Area>,
}

/// A directory of the treemap being built.
#[derive(Debug, Default)]
struct Directory {
    bytes: u64,
    shared: u64,
    names: BTreeMap<Vec<u8>, Directory>,
}

impl Directory {
    fn add(&mut self, path: &[u8], bytes: u64, shared: u64) {
        let mut at = self;
        at.bytes += bytes;
        at.shared += shared;
        for name in path
            .split(|byte| *byte == b'/')
            .filter(|name| !name.is_empty())
        {
            at = at.names.entry(name.to_vec()).or_default();
            at.bytes += bytes;
            at.shared += shared;
        }
    }

    fn area(self, name: String, smallest: u64) -> Area {
        let mut names: Vec<_> = self.names.into_iter().collect();
        names.sort_by_key(|(_, below)| std::cmp::Reverse(below.bytes));
        let mut children = Vec::new();
        let mut rest = Area {
            name: "(smaller ones)".to_owned(),
            ..Area::default()
        };
        for (name, below) in names {
            if children.len() < NAMES && below.bytes >= smallest {
                children.push(below.area(lossy(&name), smallest));
            } else {
                rest.bytes += below.bytes;
                rest.shared += below.shared;
            }
        }
        if rest.bytes > 0 && !children.is_empty() {
            children.push(rest);
        }
        Area {
            name,
            bytes: self.bytes,
            shared: self.shared,
            children,
        }
    }
}

/// The distinct contents of the listed images, each at a path in the lowest layer that has it.
fn treemap(collection: &Collection, sharing: &Sharing) -> Area {
    let mut root = Directory::default();
    let mut seen = vec![false; collection.objects.len()];
    for layer in collection
        .chosen()
        .flat_map(|image| collection.stack(&image.layers))
    {
        for number in 0..layer.tree.node_count() {
            let ino = TreeIno(number);
            let node = layer.tree.node(ino).ok();
            let object = node.and_then(|node| layer.content(node.object?));
            let Some(object) = object else { continue };
            let known = seen
                .get_mut(object as usize)
                .map(|seen| std::mem::replace(seen, true));
            if known == Some(false)
                && let Ok(path) = layer.tree.path_of(ino)
            {
                let size = collection.objects.size(object);
                let listed =
                    |image: &&usize| collection.images.get(**image).is_some_and(|i| i.chosen);
                let images = sharing.images_of(object).iter().filter(listed).count();
                root.add(&path, size, if images > 1 { size } else { 0 });
            }
        }
    }
    let smallest = root.bytes / SMALLEST;
    root.area("/".to_owned(), smallest)
}
