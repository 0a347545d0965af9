//! Shared harness of the end-to-end tests: one file in this directory per promise, all of them
//! through these modules.
//!
//! * [`profile`] puts a test into namespaces of its own, as root or as an ordinary user, and fails
//!   it if it leaves a process or a mount behind. Whatever a failing test leaves goes with its
//!   namespaces.
//! * [`store`] is a cowl store with guards for what is mounted and run from it.
//! * [`busybox`] is such a store with real images in it.
//! * [`disk`] is a disk with all that it would hold after a power cut at any moment.
//! * [`host`] says what this host can do, [`skip`] what happens to a test that it cannot run.
//! * [`random`] gives the numbers that follow from a seed.
//! * [`sample`] draws the points that a test tries, and prints how to repeat one.
//! * [`server`] is `cowl serve` with the clients that a test sends to it.
//! * [`pty`] gives a program a terminal.
//! * [`command`] runs programs to their end and says what came out.
//! * [`requests`] counts what the kernel asks a worker.
//! * [`tree`] reads a whole directory tree and tells two of them apart.
//!
//! Invariant: nothing outside a test's own directory and namespaces is changed, but for control
//! groups of the containers it runs, which are looked for at its end.

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
