//! The launcher: puts a process into namespaces and cgroups over a root that someone else mounted, and watches it to its end.
//!
//! It knows no image, no store and no engine. An engine fills in a [`plan::Plan`], opens the descriptors it speaks of and calls
//! [`client::Launch::spawn`]; what runs then is `cowl-runtime run`, one small single-threaded process per container (the *monitor*), which
//! neither needs the engine to stay alive nor shares a page with it. What the monitor leaves behind is described in [`status`].
#![cfg_attr(
    test,
    allow(
        clippy::disallowed_methods,
        reason = "tests build their inputs with plain std::fs"
    )
)]

mod arena;
pub mod cgroup;
pub mod client;
mod environment;
pub mod identity;
mod init;
pub mod monitor;
mod mounts;
mod path;
pub mod plan;
mod seccomp;
mod socket;
pub mod status;
mod step;
mod sys;
mod user;
pub mod wire;
