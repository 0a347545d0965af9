//! Execs of Docker's API, which are created before they are started. The container's monitor keeps
//! their configuration and state; once the container has ended, `execs.json` has them.
//!
//! An exec's id ends with the first digits of its container's id, so that the container is found
//! without a table.

use super::error::{Error, Kind, Result};
use super::exec::ExecRequest;
use super::{Engine, files, names};
use crate::engine::container::Container;
use cowl_launch::control::{ControlError, ExecPhase};
use cowl_launch::status;
use serde::Deserialize;

/// Digits of the container's id in an exec's id: enough to be unique.
const OF_CONTAINER: usize = 24;

/// The state of an exec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownExec {
    /// The container's id.
    pub container: String,
    /// Created, running or ended.
    pub phase: ExecPhase,
    /// Its process in the monitor's pid namespace; 0 if it never ran.
    pub pid: u32,
    /// Its exit code, if it has ended.
    pub exit_code: Option<u8>,
    /// Its client's configuration; None if it was started without one, or if that was too long to
    /// be recorded when the container ended.
    pub description: Option<Vec<u8>>,
}

/// An entry of `execs.json`.
#[derive(Debug, Deserialize)]
struct Recorded {
    id: String,
    pid: u32,
    exit_code: u8,
    description: Option<String>,
}

fn no_exec(id: &str) -> Error {
    Error::not_found(format!("No such exec instance: {id}"))
}

impl Engine {
    /// A new id for a program in a container.
    pub fn new_exec_id(&self, needle: &str) -> Result<String> {
        exec_id(&self.containers.find(needle)?.config.id)
    }

    /// Creates an exec: a running container's monitor keeps its configuration until it is started.
    /// Returns its id.
    ///
    /// # Errors
    /// Fails if the program could not be started: the client that starts it later gets only an exit
    /// code.
    pub fn reserve_exec(
        &self,
        needle: &str,
        request: &ExecRequest,
        description: &[u8],
    ) -> Result<String> {
        let container = self.containers.find(needle)?;
        request.configure(&container.config.config)?;
        let id = exec_id(&container.config.id)?;
        self.running(&container)?.reserve(&id, description)?;
        Ok(id)
    }

    /// The state of an exec by its id.
    pub fn find_exec(&self, id: &str) -> Result<KnownExec> {
        let digits = id.len().checked_sub(OF_CONTAINER);
        let prefix = digits.and_then(|at| id.get(at..)).unwrap_or_default();
        if digits.is_none() || !prefix.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(no_exec(id));
        }
        let Some(container) = self.containers.with_prefix(prefix)? else {
            return Err(no_exec(id));
        };
        let Some(control) = self.control(&container)? else {
            return recorded(&container, id);
        };
        match control.find_exec(id) {
            Ok((details, description)) => Ok(KnownExec {
                container: container.config.id,
                phase: details.phase,
                pid: details.state.pid,
                exit_code: details.state.exited.map(|exited| exited.exit_code),
                description,
            }),
            Err(ControlError::NotRunning) => recorded(&container, id),
            Err(ControlError::Failed(_unknown)) => Err(no_exec(id)),
            Err(error) => Err(error.into()),
        }
    }

    /// The ids of a container's running execs.
    pub(super) fn running_execs(&self, container: &Container) -> Result<Vec<String>> {
        let Some(control) = self.control(container)? else {
            return Ok(Vec::new());
        };
        let state = match control.inspect() {
            Ok(state) => state,
            Err(ControlError::NotRunning) => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        };
        let running = state.execs.into_iter();
        let running = running.filter(|exec| exec.exited.is_none() && exec.pid != 0);
        Ok(running.map(|exec| exec.id).collect())
    }

    /// Checks that an exec was created and has not been started.
    ///
    /// # Errors
    /// [`Kind::Conflict`] in Docker's words.
    pub fn check_startable(&self, id: &str) -> Result<KnownExec> {
        let known = self.find_exec(id)?;
        let why = match known.phase {
            ExecPhase::Created => return Ok(known),
            ExecPhase::Starting | ExecPhase::Running => "is already running",
            ExecPhase::Ended => "has already run",
        };
        let text = format!("Error: Exec command {id} {why}");
        Err(Error::new(Kind::Conflict, text))
    }
}

fn exec_id(container: &str) -> Result<String> {
    let random = names::new_id()?;
    let own = container.get(..OF_CONTAINER).unwrap_or(container);
    let rest = random.get(own.len()..).unwrap_or_default();
    Ok(format!("{rest}{own}"))
}

/// What the monitor recorded of an exec when its container ended.
fn recorded(container: &Container, id: &str) -> Result<KnownExec> {
    let all: Option<Vec<Recorded>> = files::read_json(container.status_dir(), status::EXECS)?;
    let mut all = all.into_iter().flatten();
    let found = all.find(|exec| exec.id == id).ok_or_else(|| no_exec(id))?;
    Ok(KnownExec {
        container: container.config.id.clone(),
        phase: ExecPhase::Ended,
        pid: found.pid,
        exit_code: Some(found.exit_code),
        description: found.description.map(String::into_bytes),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_ends_with_its_containers() {
        let container = "0123456789abcdef".repeat(4);
        let (one, two) = (exec_id(&container).unwrap(), exec_id(&container).unwrap());
        assert_eq!(one.len(), 64);
        assert!(one.ends_with(container.get(..OF_CONTAINER).unwrap()));
        assert_ne!(one, two);
    }
}
