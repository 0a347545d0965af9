//! System calls and kernel tables that more than one crate needs, so that none of them is wrapped
//! or parsed twice.
//!
//! It knows nothing of images, stores or containers, depends on no other crate of cowl and
//! allocates nothing where a caller may be between `clone` and `exec` ([`open::openat2`]).
#![cfg_attr(
    test,
    allow(
        clippy::disallowed_methods,
        reason = "tests build their inputs with plain std::fs"
    )
)]

pub mod boot;
pub mod frame;
pub mod memory;
pub mod mountinfo;
pub mod opcode;
pub mod open;
pub mod process;
pub mod signals;
pub mod socket;
pub mod stack;
pub mod startup;
pub mod stdio;
mod sys;
pub mod userns;
