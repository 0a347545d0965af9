//! The filesystem daemon: a keeper that makes the mount, and a worker that serves it.
#![cfg_attr(
    test,
    allow(
        clippy::disallowed_methods,
        reason = "tests build their inputs with plain std::fs"
    )
)]

pub mod counters;
mod failure;
pub mod fuse;
pub mod keeper;
mod lru;
pub mod overlay;
pub mod process;
mod sys;
pub mod worker;
