//! `cowl mount` and `umount`.

use cowl_core::handover::{IdKind, IdMap};

use super::args::{Mount, Owners, Umount};
use crate::engine::error::{Context as _, Error, Result};
use crate::engine::{Engine, MountRequest};

pub(super) fn mount(engine: &Engine, args: &Mount) -> Result<u8> {
    engine.mount(&MountRequest {
        image: &args.image,
        dir: &args.dir,
        upper: args.upper.as_deref(),
        work: args.work.as_deref(),
        io_mode: args.io,
        ids: &id_map(&args.owners)?,
    })?;
    Ok(0)
}

fn id_map(owners: &Owners) -> Result<IdMap> {
    let mut ids = IdMap::default();
    for (option, kind, ranges, squashed) in [
        (
            "--uidmapping",
            IdKind::User,
            &owners.uidmapping,
            owners.squash_to_uid,
        ),
        (
            "--gidmapping",
            IdKind::Group,
            &owners.gidmapping,
            owners.squash_to_gid,
        ),
    ] {
        if let Some(ranges) = ranges {
            ids.map(kind, ranges)
                .map_err(|error| Error::invalid(format!("{option}: {error}")))?;
        }
        if let Some(id) = squashed {
            ids.squash(kind, id);
        }
    }
    if owners.squash_to_root {
        ids.squash_to_root();
    }
    ids.read_overflow_ids()
        .context(|| "reading the system's overflow ids")?;
    Ok(ids)
}

pub(super) fn umount(engine: &Engine, args: &Umount) -> Result<u8> {
    engine.umount(&args.dir)?;
    Ok(0)
}
