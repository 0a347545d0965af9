//! Over a socket that keeps its messages apart, as the connection does; an empty one stands for
//! the connection's end.

use std::sync::mpsc::{Receiver, Sender, channel};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use std::os::fd::{AsFd, OwnedFd};

use cowl_tests::profile::NEVER;

use super::*;

/// What a test does with the other end of the connection.
struct Client {
    socket: OwnedFd,
    /// Requests that are under way, by their first byte.
    begun: Receiver<u8>,
    /// Ends the answer to a request that blocks.
    finish: Sender<()>,
}

impl Client {
    fn ask(&self, request: &[u8]) {
        rustix::io::write(&self.socket, request).unwrap();
    }

    /// The next request that a thread begins to answer.
    fn begun(&self) -> u8 {
        self.begun.recv_timeout(NEVER).unwrap()
    }
}

const BLOCKS: u8 = 1;
const QUICK: u8 = 2;
const WAKES: u8 = 3;

/// Runs `client` against threads to which a request of [`BLOCKS`] takes until it is told to
/// finish.
fn against_threads(client: impl FnOnce(&Client, &dyn Fn() -> usize)) {
    let (ours, theirs) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .unwrap();
    let (begin, begun) = channel();
    let (finish, finished) = channel();
    let finished = Mutex::new(finished);
    let answer = |inbox: &Inbox, _: &mut Reply| {
        let kind = inbox.request()[0];
        if kind == WAKES {
            return;
        }
        begin.send(kind).unwrap();
        if kind == BLOCKS {
            finished.lock().recv().unwrap();
        }
    };
    let inbox = || Inbox::private(4096);
    let waker = ours.try_clone().unwrap();
    let wake = || Ok(rustix::io::write(&waker, &[WAKES]).map(drop)?);
    let mut threads = Threads::new(theirs.as_fd(), Vec::new(), inbox, answer, wake).unwrap();
    threads.pause = Duration::from_millis(1);
    let client_end = Client {
        socket: ours,
        begun,
        finish,
    };
    std::thread::scope(|scope| {
        let run = scope.spawn(|| threads.run(|| Ok(())));
        client(&client_end, &|| threads.count.load(Ordering::Relaxed));
        // Closing would not do: the waker has a copy.
        rustix::net::shutdown(&client_end.socket, rustix::net::Shutdown::Both).unwrap();
        assert!(run.join().unwrap().is_err());
    });
    assert_eq!(threads.count.load(Ordering::Relaxed), 0);
    assert_eq!(threads.waiting.load(Ordering::Relaxed), 0);
}

#[test]
fn request_is_answered_while_others_block() {
    against_threads(|client, threads| {
        for blocked in 1..=100 {
            client.ask(&[BLOCKS]);
            assert_eq!(client.begun(), BLOCKS);
            client.ask(&[QUICK]);
            assert_eq!(client.begun(), QUICK, "behind {blocked}");
        }
        assert!(threads() > 100);
        (0..100).for_each(|_| client.finish.send(()).unwrap());
    });
}

#[test]
fn idle_threads_end() {
    against_threads(|client, threads| {
        for _ in 0..20 {
            client.ask(&[BLOCKS]);
            client.begun();
        }
        assert!(threads() > 20);
        (0..20).for_each(|_| client.finish.send(()).unwrap());
        let end = std::time::Instant::now() + NEVER;
        while threads() > THREADS && std::time::Instant::now() < end {
            std::thread::yield_now();
        }
        assert_eq!(threads(), THREADS);
        client.ask(&[QUICK]);
        assert_eq!(client.begun(), QUICK);
    });
}

#[test]
fn requests_wait_at_max_threads() {
    against_threads(|client, threads| {
        for _ in 0..MAX_THREADS {
            client.ask(&[BLOCKS]);
            client.begun();
        }
        assert_eq!(threads(), MAX_THREADS);
        client.ask(&[QUICK]);
        assert!(client.begun.try_recv().is_err());
        client.finish.send(()).unwrap();
        assert_eq!(client.begun(), QUICK);
        (1..MAX_THREADS).for_each(|_| client.finish.send(()).unwrap());
    });
}
