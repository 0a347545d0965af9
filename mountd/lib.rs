//! The filesystem daemon: a keeper that makes the mount, and a worker that serves it.
#![cfg_attr(
    test,
    allow(
        clippy::disallowed_methods,
        reason = "tests build their inputs with plain std::fs"
    )
)]

mod control;
pub mod counters;
pub mod dropin;
mod failure;
pub mod fuse;
mod journal;
pub mod keeper;
mod lru;
mod mount;
pub mod overlay;
pub mod process;
mod sys;
mod worker;
