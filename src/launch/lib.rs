//! The launcher: runs a process in namespaces and cgroups over a mounted root, and monitors it
//! until it ends.
//!
//! It knows no images and no store. An engine fills in a [`sandbox::Sandbox`] and a
//! [`process::Process`], opens the descriptors that belong to them and calls
//! [`client::Launch::spawn`]. That starts `cowl-runtime run`, a small single-threaded process per
//! container, the *monitor*, which does not depend on the engine. The files that it leaves are
//! described in [`status`].
#![cfg_attr(
    test,
    allow(
        clippy::disallowed_methods,
        reason = "tests build their inputs with plain std::fs"
    )
)]

pub mod at_rest;
pub mod cgroup;
pub mod client;
pub mod control;
mod environment;
pub mod identity;
mod init;
mod join;
pub mod joined_mount;
pub mod message;
pub mod monitor;
mod mounts;
mod path;
pub mod process;
mod program;
mod reaper;
pub mod sandbox;
pub mod seccomp;
mod setup;
mod socket;
pub mod status;
mod step;
mod sys;
mod user;
pub mod wire;
