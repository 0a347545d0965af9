//! Docker's flags of `run` and `create`, each with its effect inside: docs/run-flags.md has the
//! table. `cowl run` is one door, the real `docker create` over `cowl serve` the other.

mod basics;
mod copy;
mod isolation;
mod limits;
mod mounts;
mod network;
mod others;
mod support;
mod terminal;
mod update;
mod usage;
