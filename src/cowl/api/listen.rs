//! The server's socket and accept loop.

use super::Server;
use super::attach::Pending;
use super::life;
use super::watch::{Peer, Watches};
use crate::engine::error::{Context as _, Error, Result};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustix::fs::Mode;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

/// Serves the store at `root` on the unix socket `socket` until SIGINT or SIGTERM.
///
/// Calls `ready` once the socket accepts connections, and `warn` for each container that could not
/// be started by its policy ([`crate::engine::Engine::start_by_policy`]). The socket has mode 0660.
/// Members of `group` may use it, and if root runs the server that makes them root.
pub fn serve(
    root: PathBuf,
    socket: &Path,
    group: Option<&str>,
    ready: impl FnOnce() -> Result<()>,
    warn: impl FnOnce(Vec<Error>) + Send + 'static,
) -> Result<()> {
    let listener = bind(socket, group).context(|| format!("listening on {}", socket.display()))?;
    let bound = Bound(socket);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context(|| "starting the server's threads")?;
    let served = runtime.block_on(async {
        let server = Arc::new(Server {
            root,
            watches: Watches::new().context(|| "watching containers")?,
            pending: Pending::default(),
        });
        // Report a store that cannot be opened now, not to each client.
        server.open()?;
        let listener = tokio::net::UnixListener::from_std(listener)?;
        let (mut interrupt, mut terminate) = (
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
        );
        ready()?;
        let starting = Arc::clone(&server);
        tokio::task::spawn_blocking(move || {
            let started = starting
                .open()
                .and_then(|engine| engine.start_by_policy(life::reap));
            warn(started.unwrap_or_else(|error| vec![error]));
        });
        loop {
            tokio::select! {
                accepted = listener.accept() => connection(&server, accepted?.0),
                _ = interrupt.recv() => return Ok(()),
                _ = terminate.recv() => return Ok(()),
            }
        }
    });
    drop(bound);
    // Blocked calls end with the process; the next command cleans up after them.
    runtime.shutdown_background();
    served
}

fn connection(server: &Arc<Server>, stream: tokio::net::UnixStream) {
    let server = Arc::clone(server);
    tokio::spawn(async move {
        // If no descriptor is left, close the connection.
        let Ok(peer) = Peer::of(&stream) else { return };
        // The receiver of the connection, if the last request takes it over.
        let last = Mutex::new(None);
        let service = service_fn(|request| {
            let (give, takeover) = oneshot::channel();
            *last.lock().unwrap_or_else(PoisonError::into_inner) = Some(give);
            Arc::clone(&server).answer(request, takeover)
        });
        let served = hyper::server::conn::http1::Builder::new()
            .half_close(true)
            .serve_connection(TokioIo::new(stream), service)
            .without_shutdown();
        // An error means that the client is gone or did not speak HTTP: there is nobody to report
        // it to. A handler is dropped when its client goes away: it may be waiting for the end of a
        // container.
        let served = tokio::select! {
            served = served => served,
            () = peer.gone() => return,
        };
        let last = last.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let (Ok(parts), Some(give)) = (served, last) {
            // If nobody takes the connection, it is closed here.
            drop(give.send((parts.io.into_inner(), parts.read_buf)));
        }
    });
}

/// Removes the socket when dropped.
struct Bound<'a>(&'a Path);

impl Drop for Bound<'_> {
    fn drop(&mut self) {
        // The next server replaces one that is left.
        std::fs::remove_file(self.0).unwrap_or_default();
    }
}

/// Binds the socket. Replaces the socket of a killed server; fails if a server answers on it.
fn bind(socket: &Path, group: Option<&str>) -> Result<UnixListener> {
    let gid = group.map(group_id).transpose()?;
    if let Some(directory) = socket.parent() {
        std::fs::create_dir_all(directory)
            .context(|| format!("creating {}", directory.display()))?;
    }
    match std::fs::symlink_metadata(socket) {
        Ok(there) if !there.file_type().is_socket() => {
            return Err(Error::conflict("the path exists and is not a socket"));
        }
        Ok(_) => match UnixStream::connect(socket) {
            Ok(_) => return Err(Error::conflict("another server answers there")),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(socket)?;
            }
            Err(error) => return Err(error.into()),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error.into()),
    }
    // No other thread runs yet, so changing the umask affects only this one.
    let before = rustix::process::umask(Mode::from_raw_mode(0o117));
    let listener = UnixListener::bind(socket);
    rustix::process::umask(before);
    let listener = listener?;
    if let Some(gid) = gid {
        chown(socket, None, Some(gid)).context(|| "giving the socket to its group")?;
    }
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn group_id(name: &str) -> Result<u32> {
    let found = nix::unistd::Group::from_name(name)
        .map_err(io::Error::from)
        .context(|| format!("looking up group {name}"))?;
    found
        .map(|group| group.gid.as_raw())
        .ok_or_else(|| Error::invalid(format!("there is no group {name}")))
}
