//! Formats and files of cowl: digests, trees, layers, the store, the upper and the records that
//! processes hand each other.
//!
//! Nothing here is async, uses a network or prints. Errors are typed; callers word them for users.
#![cfg_attr(
    test,
    allow(
        clippy::disallowed_methods,
        reason = "tests build their inputs with plain std::fs"
    )
)]

pub mod digest;
pub mod handover;
pub mod image;
pub mod layer;
pub mod recipe;
pub mod store;
pub mod sys;
pub mod tree;
pub mod upper;
