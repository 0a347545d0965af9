//! Docker's flags of `run` and `create`, each with its effect inside the container:
//! docs/run-flags.md has the table. Two clients are tested: `cowl run`, and the real `docker
//! create` over `cowl serve`.

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
