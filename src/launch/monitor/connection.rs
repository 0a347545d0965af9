//! Connections to the control socket.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SocketFlags, accept_with, sockopt};
use rustix::process::geteuid;

use super::BACKLOG;
use super::poller::{Key, Poller};
use crate::control::{MAX_DATAGRAM, Reply, Request, Target};
use crate::message::Exited;
use crate::socket;
use crate::wire::WireError;

/// Most connections at a time. Each has a descriptor, and the monitor needs some for itself.
const MOST: usize = 256;

/// One client.
#[derive(Debug)]
struct Connection {
    socket: OwnedFd,
    key: Key,
    /// Whose end it waits for.
    waiting: Option<Target>,
}

/// All clients, and the socket they come from.
#[derive(Debug)]
pub(super) struct Connections {
    listener: OwnedFd,
    key: Option<Key>,
    clients: Vec<Connection>,
}

/// A request, and where the answer goes.
pub(super) struct Asked {
    pub(super) client: Key,
    pub(super) request: Result<Request, WireError>,
    pub(super) descriptors: Vec<OwnedFd>,
}

impl Connections {
    pub(super) fn new(listener: OwnedFd, poller: &mut Poller) -> Result<Self, Errno> {
        let key = poller.add(listener.as_fd(), EventFlags::IN)?;
        Ok(Self {
            listener,
            key,
            clients: Vec::new(),
        })
    }

    /// Whether the key is one of these.
    pub(super) fn has(&self, key: Key) -> bool {
        self.key == Some(key) || self.clients.iter().any(|client| client.key == key)
    }

    /// Accepts a client or reads a request of one.
    pub(super) fn handle(&mut self, key: Key, poller: &mut Poller) -> Result<Option<Asked>, Errno> {
        if self.key == Some(key) {
            return self.accept(poller).map(|_accepted| None);
        }
        self.receive(key, poller)
    }

    /// Requests of all that have connected, the last ones: the container has ended.
    pub(super) fn last_requests(&mut self, poller: &mut Poller) -> Result<Vec<Asked>, Errno> {
        for _pending in 0..BACKLOG {
            if !self.accept(poller)? {
                break;
            }
        }
        let keys: Vec<Key> = self.clients.iter().map(|client| client.key).collect();
        let mut requests = Vec::new();
        for key in keys {
            requests.extend(self.receive(key, poller)?);
        }
        Ok(requests)
    }

    /// Reads a request of a client, if there is one.
    fn receive(&mut self, key: Key, poller: &mut Poller) -> Result<Option<Asked>, Errno> {
        let Some(client) = self.clients.iter().find(|client| client.key == key) else {
            return Ok(None);
        };
        let mut message = vec![0; MAX_DATAGRAM];
        let received = socket::receive(client.socket.as_fd(), RecvFlags::DONTWAIT, &mut message);
        let received = match received {
            Err(Errno::AGAIN) => return Ok(None),
            Ok(received) if received.bytes > 0 => received,
            Ok(_) | Err(_) => return self.close(key, poller).map(|()| None),
        };
        message.truncate(received.bytes);
        let request = if received.truncated {
            Err(WireError::Malformed("longer than a message may be"))
        } else {
            Request::decode(&message)
        };
        Ok(Some(Asked {
            client: key,
            request,
            descriptors: received.descriptors,
        }))
    }

    /// False if there is no client to accept.
    fn accept(&mut self, poller: &mut Poller) -> Result<bool, Errno> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = match accept_with(&self.listener, flags) {
            Ok(socket) => socket,
            Err(Errno::MFILE | Errno::NFILE) => {
                return self.listen(false, poller).map(|()| false);
            }
            // It has given up, or there was none.
            Err(_errno) => return Ok(false),
        };
        let peer = sockopt::socket_peercred(&socket)?;
        if !peer.uid.is_root() && peer.uid != geteuid() {
            return Ok(true);
        }
        if let Some(key) = poller.add(socket.as_fd(), EventFlags::IN)? {
            self.clients.push(Connection {
                socket,
                key,
                waiting: None,
            });
        }
        if self.clients.len() >= MOST {
            self.listen(false, poller)?;
        }
        Ok(true)
    }

    /// Accepts clients, or lets them wait.
    fn listen(&mut self, wanted: bool, poller: &mut Poller) -> Result<(), Errno> {
        match (wanted, self.key) {
            (true, None) => self.key = poller.add(self.listener.as_fd(), EventFlags::IN)?,
            (false, Some(key)) => {
                poller.remove(key, self.listener.as_fd())?;
                self.key = None;
            }
            (true, Some(_)) | (false, None) => {}
        }
        Ok(())
    }

    fn close(&mut self, key: Key, poller: &mut Poller) -> Result<(), Errno> {
        if let Some(position) = self.clients.iter().position(|client| client.key == key) {
            let client = self.clients.remove(position);
            poller.remove(client.key, client.socket.as_fd())?;
        }
        self.listen(true, poller)
    }

    /// Answers. A client that does not read its answers is dropped.
    pub(super) fn reply(
        &mut self,
        client: Key,
        reply: &Reply,
        descriptors: &[BorrowedFd<'_>],
        poller: &mut Poller,
    ) -> Result<(), Errno> {
        let Some(found) = self.clients.iter().find(|found| found.key == client) else {
            return Ok(());
        };
        let sent = reply
            .encode()
            .ok()
            .filter(|message| message.len() <= MAX_DATAGRAM)
            .map(|message| socket::send(found.socket.as_fd(), &message, descriptors));
        match sent {
            Some(Ok(())) => Ok(()),
            Some(Err(_)) | None => self.close(client, poller),
        }
    }

    /// Has a client wait for the end of a program.
    pub(super) fn wait(&mut self, client: Key, target: Target) {
        if let Some(found) = self.clients.iter_mut().find(|found| found.key == client) {
            found.waiting = Some(target);
        }
    }

    /// Answers all who wait for this program.
    pub(super) fn ended(
        &mut self,
        target: &Target,
        exited: Exited,
        poller: &mut Poller,
    ) -> Result<(), Errno> {
        let waiting = |client: &&mut Connection| client.waiting.as_ref() == Some(target);
        let told: Vec<Key> = self
            .clients
            .iter_mut()
            .filter(waiting)
            .map(|client| {
                client.waiting = None;
                client.key
            })
            .collect();
        told.into_iter()
            .try_for_each(|client| self.reply(client, &Reply::Exited(exited), &[], poller))
    }

    /// Those that wait for the container's end. The others are closed.
    pub(super) fn into_waiting(self) -> Waiting {
        let waits = |client: &Connection| client.waiting == Some(Target::Program);
        Waiting(
            self.clients
                .into_iter()
                .filter(waits)
                .map(|client| client.socket)
                .collect(),
        )
    }
}

/// Clients that wait for the end of a container that has ended.
#[derive(Debug)]
pub(super) struct Waiting(Vec<OwnedFd>);

impl Waiting {
    pub(super) fn answer(self, exited: Exited) {
        let Ok(message) = Reply::Exited(exited).encode() else {
            return;
        };
        for socket in self.0 {
            match socket::send(socket.as_fd(), &message, &[]) {
                // One that is gone finds the exit record.
                Ok(()) | Err(_) => {}
            }
        }
    }
}
