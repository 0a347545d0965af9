//! The engine: containers, volumes and the `cowl` command over the store, the filesystem daemon
//! and the launcher.
#![cfg_attr(
    test,
    allow(
        clippy::disallowed_methods,
        reason = "tests build their inputs with plain std::fs"
    )
)]

pub mod api;
pub mod cli;
pub mod engine;
pub mod volume;
