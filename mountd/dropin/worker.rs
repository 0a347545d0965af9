//! The process that serves a mount of plain directories, forked off the one that holds it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use cowl_core::handover::{IoMode, Message, MountFailed, WorkerReady, send};
use cowl_core::upper::marks::Namespace;
use rustix::thread::CapabilitySet;

use super::fail;
use crate::counters::Counters;
use crate::failure::OrFail;
use crate::fuse::{Connection, Dispatcher, End, Owners, Server, Wanted};
use crate::journal::Journal;
use crate::overlay::{Config, Layers, LowerParts, Overlay, Rules, UpperDirs};
use crate::{process, worker};

/// What a worker is made of.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) device: OwnedFd,
    pub(super) counters: OwnedFd,
    /// None: the mount does not outlive its worker.
    pub(super) journal: Option<OwnedFd>,
    pub(super) layers: Layers,
    pub(super) upper: Option<UpperDirs>,
    pub(super) owners: Owners,
    pub(super) io_mode: IoMode,
    pub(super) rules: Rules,
}

impl Parts {
    /// The capabilities that serving takes.
    pub(super) fn needed(&self) -> CapabilitySet {
        let needed = worker::needed(self.upper.is_some(), self.io_mode);
        match self.layers.space {
            // Else the marks of the layers would be invisible (xattr(7)).
            Namespace::Trusted => needed | CapabilitySet::SYS_ADMIN,
            Namespace::User => needed,
        }
    }
}

/// Serves until the mount is gone; whether it was unmounted. With `quiet`, standard output and
/// error become that file once the mount answers. Reports over `socket`, to the process that holds
/// the mount, that this one serves, or why it does not.
pub(super) fn run(parts: Parts, socket: OwnedFd, quiet: Option<File>) -> bool {
    let serving = match prepare(parts) {
        Ok(serving) => serving,
        Err(failed) => {
            if let Err(error) = send(socket.as_fd(), &Message::MountFailed(failed), &[]) {
                tracing::error!(%error, "cannot report a failure");
            }
            return false;
        }
    };
    let ready = Message::WorkerReady(WorkerReady {
        io_mode: serving.io_mode,
    });
    let end = serving.to_the_end(move || {
        silence(quiet.as_ref())?;
        send(socket.as_fd(), &ready, &[]).map_err(io::Error::other)
    });
    match end {
        Ok(End::Unmounted) => true,
        Ok(End::Aborted) => {
            fail(&"the connection was cut");
            false
        }
        Err(error) => {
            fail(&error);
            false
        }
    }
}

/// Replaces standard output and error: callers wait until their pipes are closed.
pub(super) fn silence(quiet: Option<&File>) -> io::Result<()> {
    if let Some(null) = quiet {
        rustix::stdio::dup2_stdout(null)?;
        rustix::stdio::dup2_stderr(null)?;
    }
    Ok(())
}

/// What serving needs.
#[derive(Debug)]
struct Serving {
    connection: Connection,
    overlay: Overlay,
    counters: Counters,
    journal: Option<Arc<Journal>>,
    owners: Owners,
    io_mode: IoMode,
}

fn prepare(parts: Parts) -> Result<Serving, MountFailed> {
    let needed = parts.needed();
    let Parts {
        device,
        counters,
        journal,
        layers,
        upper,
        owners,
        io_mode,
        rules,
    } = parts;
    let counters = Counters::map(counters.as_fd()).or_fail("cannot map the request counters")?;
    let journal = journal.map(|memory| Journal::map(memory.as_fd()).map(Arc::new));
    let journal = journal.transpose().or_fail("cannot map the journal")?;
    let wanted = Wanted {
        io_mode,
        writable: upper.is_some(),
        acls: !rules.no_acl,
    };
    let connection = worker::connect(device, wanted, journal.as_deref())?;
    let overlay = Overlay::new(Config {
        lower: LowerParts::Layers(layers),
        upper,
        io_mode,
        rules,
        journal: journal.clone(),
    })
    .map_err(|error| MountFailed {
        what: error.to_string(),
        errno: 0,
    })?;
    // A successor begins where the process that holds the mount is.
    match &journal {
        Some(journal) if journal.is_inherited() => process::restrict(needed, needed)?,
        _ => process::confine(needed, needed)?,
    }
    if let Some(journal) = &journal {
        journal.set_agreed(connection.agreed().to_word());
    }
    Ok(Serving {
        connection,
        overlay,
        counters,
        journal,
        owners,
        io_mode,
    })
}

impl Serving {
    fn to_the_end(&self, ready: impl FnOnce() -> io::Result<()>) -> Result<End, MountFailed> {
        let dispatcher = Dispatcher::new(&self.overlay, &self.connection, &self.owners)
            .or_fail("cannot tell our capabilities")?;
        let journal = self.journal.as_ref();
        let server = Server::new(&self.connection, dispatcher, &self.counters, journal);
        server.run(ready).or_fail("serving the mount")
    }
}
