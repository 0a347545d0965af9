//! What clients of the control socket ask for, and the answers.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::io::Errno;

use super::connection::Asked;
use super::console::{Attachment, Console};
use super::container::{Container, raw};
use super::poller::Key;
use super::reserved::no_exec;
use super::serve::resize;
use super::{failed, io_failed, refused};
use crate::control::{AttachRequest, NamespaceSet, Reply, Request, State, Target};
use crate::message::Failed;
use crate::sandbox::Namespace;
use crate::status::Lock;

impl Container {
    /// Does what a client asks for and answers.
    pub(super) fn answer(&mut self, asked: Asked, lock: &mut Lock) -> Result<(), Errno> {
        let Asked {
            client,
            request,
            descriptors,
        } = asked;
        let answer = match request {
            Err(error) => Err(refused(error.to_string())),
            Ok(Request::Exec(request)) => match self.exec(request, descriptors, client) {
                // The answer comes when it runs.
                Ok(()) => return Ok(()),
                Err(failed) => Err(failed),
            },
            Ok(Request::Wait(target)) => match self.wait_for(client, target) {
                Ok(None) => return Ok(()),
                Ok(Some(reply)) => Ok(reply),
                Err(failed) => Err(failed),
            },
            Ok(Request::Attach(request)) => self.attach(&request, descriptors),
            Ok(Request::Root(())) => {
                let root = [self.kept.rootfs.as_fd()];
                let poller = &mut self.poller;
                return self
                    .connections
                    .reply(client, &Reply::Done(()), &root, poller);
            }
            Ok(Request::Namespaces(())) => return self.give_namespaces(client),
            Ok(Request::FindExec(id)) => return self.find_exec(&id, client),
            Ok(Request::Reserve(request)) => self.reserve(request, descriptors),
            Ok(Request::Signal(request)) => self.send_signal(&request.target, request.number),
            Ok(Request::Resize(request)) => self.resize(&request.target, request.size),
            Ok(Request::Inspect(())) => Ok(Reply::State(self.state())),
            Ok(Request::Pause(paused)) => self.pause(paused, lock),
            Ok(Request::Update(limits)) => self
                .cgroups
                .update(&limits)
                .map(Reply::Warnings)
                .map_err(|error| refused(error.to_string())),
            Ok(Request::Stats(())) => self
                .cgroups
                .stats()
                .map(Reply::Stats)
                .map_err(|error| io_failed("read the container's counters", &error)),
            Ok(Request::Pids(())) => self.pids(),
        };
        let reply = answer.unwrap_or_else(Reply::Failed);
        self.connections
            .reply(client, &reply, &[], &mut self.poller)
    }

    fn state(&self) -> State {
        State {
            pid: raw(self.pid),
            paused: self.paused,
            execs: self
                .execs
                .iter()
                .filter(|exec| !exec.is_probe())
                .map(super::exec::Exec::state)
                .collect(),
        }
    }

    fn exec_position(&self, id: &str) -> Result<usize, Failed> {
        self.execs
            .iter()
            .position(|exec| exec.id == id)
            .ok_or_else(|| no_exec(id))
    }

    fn console(&mut self, target: &Target) -> Result<&mut Console, Failed> {
        match target {
            Target::Program => Ok(&mut self.console),
            Target::Exec(id) => {
                let position = self.exec_position(id)?;
                let exec = self.execs.get_mut(position);
                exec.map(|exec| &mut exec.console)
                    .ok_or_else(|| refused("No such exec instance"))
            }
        }
    }

    fn wait_for(&mut self, client: Key, target: Target) -> Result<Option<Reply>, Failed> {
        if let Target::Exec(id) = &target {
            let position = self.exec_position(id)?;
            let exited = self.execs.get(position).and_then(|exec| exec.exited);
            if let Some(exited) = exited {
                return Ok(Some(Reply::Exited(exited)));
            }
        }
        self.connections.wait(client, target);
        Ok(None)
    }

    /// Takes the waits that clients asked for before the end and that were not read until then.
    /// Other requests come too late: their clients find that the container does not run.
    pub(super) fn take_last_waits(&mut self) -> Result<(), Errno> {
        for asked in self.connections.last_requests(&mut self.poller)? {
            let Ok(Request::Wait(target)) = asked.request else {
                continue;
            };
            let reply = match self.wait_for(asked.client, target) {
                Ok(None) => continue,
                Ok(Some(reply)) => reply,
                Err(failed) => Reply::Failed(failed),
            };
            self.connections
                .reply(asked.client, &reply, &[], &mut self.poller)?;
        }
        Ok(())
    }

    fn attach(
        &mut self,
        request: &AttachRequest,
        descriptors: Vec<std::os::fd::OwnedFd>,
    ) -> Result<Reply, Failed> {
        let mut descriptors = descriptors.into_iter();
        let mut stream = |sent: bool| {
            if sent {
                let missing = || refused("a descriptor is missing");
                descriptors.next().map(Some).ok_or_else(missing)
            } else {
                Ok(None)
            }
        };
        let attachment = Attachment {
            stdin: stream(request.streams.stdin)?,
            stdout: stream(request.streams.stdout)?,
            stderr: stream(request.streams.stderr)?,
        };
        let attached = |errno| failed("attach the standard streams", errno);
        match &request.target {
            Target::Program => self.console.attach(attachment, &mut self.poller),
            Target::Exec(id) => {
                let position = self.exec_position(id)?;
                match self.execs.get_mut(position) {
                    Some(exec) => exec.console.attach(attachment, &mut self.poller),
                    None => Ok(()),
                }
            }
        }
        .map_err(attached)?;
        Ok(Reply::Done(()))
    }

    fn send_signal(&mut self, target: &Target, number: u8) -> Result<Reply, Failed> {
        let sent = match target {
            Target::Program => self.signal(i32::from(number)),
            Target::Exec(id) => {
                let position = self.exec_position(id)?;
                let exec = self.execs.get(position);
                match exec.and_then(|exec| exec.pidfd.as_ref()) {
                    None => Ok(false),
                    Some(pidfd) => {
                        match crate::sys::signal::send(pidfd.as_fd(), i32::from(number)) {
                            Ok(()) => Ok(true),
                            Err(Errno::SRCH | Errno::INVAL) => Ok(false),
                            Err(errno) => Err(errno),
                        }
                    }
                }
            }
        };
        match sent {
            Ok(true) => Ok(Reply::Done(())),
            Ok(false) => Err(refused("the process has ended, or there is no such signal")),
            Err(errno) => Err(failed("send the signal", errno)),
        }
    }

    fn resize(
        &mut self,
        target: &Target,
        size: crate::process::WindowSize,
    ) -> Result<Reply, Failed> {
        match resize(self.console(target)?, size) {
            Ok(true) => Ok(Reply::Done(())),
            Ok(false) => Err(refused("the process has no terminal")),
            Err(errno) => Err(failed("set the size of the terminal", errno)),
        }
    }

    fn pause(&mut self, paused: bool, lock: &mut Lock) -> Result<Reply, Failed> {
        if paused == self.paused {
            let state = if paused { "already" } else { "not" };
            return Err(refused(format!("the container is {state} paused")));
        }
        self.cgroups.freeze(paused).map_err(|error| {
            let what = if error.raw_os_error() == Some(Errno::OPNOTSUPP.raw_os_error()) {
                "freeze the container's processes without a freezer cgroup"
            } else {
                "freeze the container's processes"
            };
            io_failed(what, &error)
        })?;
        self.paused = paused;
        if let (false, Some(health)) = (paused, &mut self.health) {
            health.resume(std::time::Instant::now());
        }
        self.describe(lock)?;
        Ok(Reply::Done(()))
    }

    fn pids(&self) -> Result<Reply, Failed> {
        let counted = self.cgroups.pids();
        let pids = counted.map_err(|error| io_failed("list the processes", &error))?;
        // Without a cgroup only those that were started here are known.
        let known = || {
            let execs = self.execs.iter().filter_map(super::exec::Exec::running);
            std::iter::once(raw(self.pid)).chain(execs)
        };
        Ok(Reply::Pids(pids.unwrap_or_else(|| known().collect())))
    }

    fn give_namespaces(&mut self, client: Key) -> Result<(), Errno> {
        let namespaces = self.kept.namespaces;
        let own = |namespace| namespace != Namespace::Host;
        let Some(joinable) = &self.kept.joinable else {
            let gone = Reply::Failed(refused("the container is not running"));
            return self.connections.reply(client, &gone, &[], &mut self.poller);
        };
        let set = NamespaceSet {
            pid: joinable.pid.is_some(),
            ipc: own(namespaces.ipc),
            uts: own(namespaces.uts),
            net: own(namespaces.net),
        };
        let descriptors: Vec<BorrowedFd<'_>> = joinable
            .pid
            .iter()
            .chain(joinable.shareable())
            .map(AsFd::as_fd)
            .collect();
        let reply = Reply::Namespaces(set);
        self.connections
            .reply(client, &reply, &descriptors, &mut self.poller)
    }
}
