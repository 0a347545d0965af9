//! Programs that clients describe before they start them, as Docker's `exec` does in two requests.
//!
//! The monitor keeps the description, which only clients understand, until the container ends; so
//! a client that knows the id can go on where another one was killed.

use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;

use rustix::io::Errno;

use super::container::{Container, raw};
use super::exec::Exec;
use super::poller::Key;
use super::refused;
use crate::control::{ExecDetails, ExecPhase, ExecState, RESERVED, Reply, ReserveRequest};
use crate::message::Failed;
use crate::status;

/// Bytes of a description that is recorded when the container has ended.
const RECORDED: u32 = 16 << 10;

/// What a client keeps with a program: bytes in a memory file of the client's making.
#[derive(Debug)]
pub(super) struct Description {
    memory: OwnedFd,
    bytes: u32,
}

/// A program that is to be started.
#[derive(Debug)]
pub(super) struct Reserved {
    id: String,
    description: Description,
}

impl Container {
    /// Keeps the description of a program that is to be started.
    pub(super) fn reserve(
        &mut self,
        request: ReserveRequest,
        descriptors: Vec<OwnedFd>,
    ) -> Result<Reply, Failed> {
        let ReserveRequest {
            id,
            description_bytes: bytes,
        } = request;
        let missing = || refused("a descriptor is missing");
        let memory = descriptors.into_iter().next().ok_or_else(missing)?;
        let taken = self.execs.iter().any(|exec| exec.id == id);
        if taken || self.reserved.iter().any(|it| it.id == id) {
            return Err(refused(format!("there is an exec {id} already")));
        }
        if self.reserved.len() >= RESERVED {
            self.reserved.pop_front();
        }
        let description = Description { memory, bytes };
        self.reserved.push_back(Reserved { id, description });
        Ok(Reply::Done(()))
    }

    /// Answers what is known of a program.
    pub(super) fn find_exec(&mut self, id: &str, client: Key) -> Result<(), Errno> {
        let known = self.execs.iter().find(|exec| exec.id == id);
        let reserved = self.reserved.iter().find(|it| it.id == id);
        let (details, description) = match (known, reserved) {
            (Some(exec), _) => (exec.details(), exec.description.as_ref()),
            (None, Some(reserved)) => (reserved.details(), Some(&reserved.description)),
            (None, None) => {
                let unknown = Reply::Failed(no_exec(id));
                let poller = &mut self.poller;
                return self.connections.reply(client, &unknown, &[], poller);
            }
        };
        let memory: Vec<_> = description.iter().map(|it| it.memory.as_fd()).collect();
        self.connections
            .reply(client, &Reply::Exec(details), &memory, &mut self.poller)
    }

    /// Writes `execs.json`: how those ended whose clients may still ask.
    pub(super) fn record_execs(&self) -> std::io::Result<()> {
        let mut records = Vec::new();
        for exec in &self.execs {
            let (Some(description), Some(exited)) = (&exec.description, exec.exited) else {
                continue;
            };
            let description = if description.bytes > RECORDED {
                "null".to_owned()
            } else {
                status::quoted(&description.read()?)
            };
            records.push(format!(
                "{{\"id\":{},\"pid\":{},\"exit_code\":{},\"description\":{description}}}",
                status::quoted(&exec.id),
                exec.pid.map_or(0, raw),
                exited.exit_code,
            ));
        }
        if records.is_empty() {
            return Ok(());
        }
        let text = format!("[{}]\n", records.join(","));
        status::replace(self.kept.status.as_fd(), status::EXECS, &text)
    }

    /// A program that was described could not even be cloned: it has ended so.
    pub(super) fn end_reserved(&mut self, id: String, exit_code: u8) {
        if let Some(description) = self.take_reserved(&id) {
            self.execs.push(Exec::failed(id, description, exit_code));
        }
    }

    /// The description of a program that is being started now.
    pub(super) fn take_reserved(&mut self, id: &str) -> Option<Description> {
        let position = self.reserved.iter().position(|it| it.id == id)?;
        self.reserved.remove(position).map(|it| it.description)
    }
}

impl Description {
    pub(super) fn bytes(&self) -> u32 {
        self.bytes
    }

    fn read(&self) -> std::io::Result<String> {
        let mut bytes = vec![0; usize::try_from(self.bytes).unwrap_or_default()];
        File::from(self.memory.try_clone()?).read_exact_at(&mut bytes, 0)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

impl Reserved {
    fn details(&self) -> ExecDetails {
        ExecDetails {
            state: ExecState {
                id: self.id.clone(),
                pid: 0,
                exited: None,
            },
            phase: ExecPhase::Created,
            description_bytes: Some(self.description.bytes),
        }
    }
}

/// The refusal of an id that is none, in Docker's words.
pub(super) fn no_exec(id: &str) -> Failed {
    refused(format!("No such exec instance: {id}"))
}
