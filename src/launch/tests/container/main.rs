//! Real containers over a busybox root: what is promised of `cowl-runtime`, promise by promise.
//! Needs root.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::verbose_file_reads,
    reason = "tests build their inputs and look at the results with plain std::fs, and fail by panic"
)]

mod attacks;
mod exec;
mod harness;
mod hosts;
mod isolation;
mod life;
mod limits;
mod monitor;
mod run;
mod seccomp;
mod streams;
