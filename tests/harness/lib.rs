//! Shared harness of the end-to-end tests: one file in this directory per promise, all of them
//! through these modules.
//!
//! * [`profile`] runs a test in namespaces of its own, as root or as an ordinary user, and fails it
//!   if it leaves a process or a mount behind. What a failing test leaves ends with its namespaces.
//! * [`store`] is a cowl store with guards for its mounts and processes.
//! * [`busybox`] is such a store with real images in it.
//! * [`disk`] is a disk whose content after a power cut at any moment can be reconstructed.
//! * [`host`] knows the host's features, [`skip`] handles tests that cannot run on it.
//! * [`random`] generates numbers from a seed.
//! * [`sample`] draws the points that a test tries, and prints how to repeat one.
//! * [`server`] is `cowl serve` and its clients.
//! * [`pty`] gives a program a terminal.
//! * [`command`] runs programs to their end and captures their output.
//! * [`requests`] counts the FUSE requests to a worker.
//! * [`tree`] reads directory trees and compares them.
//!
//! Invariant: a test changes nothing outside its own directory and namespaces, except the cgroups
//! of its containers, which are checked for at its end.

pub mod busybox;
pub mod command;
pub mod disk;
pub mod host;
pub mod profile;
pub mod pty;
pub mod random;
pub mod requests;
pub mod sample;
pub mod server;
pub mod skip;
pub mod store;
pub mod tree;
