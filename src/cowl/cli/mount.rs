//! `cowl mount` and `umount`.

use super::args::{Mount, Umount};
use crate::engine::error::Result;
use crate::engine::{Engine, MountRequest};

pub(super) fn mount(engine: &Engine, args: &Mount) -> Result<u8> {
    engine.mount(&MountRequest {
        image: &args.image,
        dir: &args.dir,
        upper: args.upper.as_deref(),
        work: args.work.as_deref(),
        io_mode: args.io,
    })?;
    Ok(0)
}

pub(super) fn umount(engine: &Engine, args: &Umount) -> Result<u8> {
    engine.umount(&args.dir)?;
    Ok(0)
}
