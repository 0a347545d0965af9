//! Helpers for the tests of flags.

use cowl_tests::busybox::shop;
use cowl_tests::command::Outcome;
use cowl_tests::host::has_docker_28;
use cowl_tests::server::Server;
use cowl_tests::store::Store;

/// Both clients of one store.
pub(crate) struct Doors {
    pub(crate) store: Store,
    pub(crate) server: Server,
}

impl Doors {
    pub(crate) fn open() -> Self {
        let store = shop("store");
        let server = Server::start(&store);
        Self { store, server }
    }

    /// Runs a script in a container with these flags, once with each client. The outputs must be
    /// equal; returns one.
    #[track_caller]
    pub(crate) fn out(&self, flags: &[&str], script: &str) -> String {
        let own = inside(&self.store, flags, script).ok();
        let flags = [&["create"], flags, &["shop", "sh", "-c", script]].concat();
        let id = self.server.ok(flags);
        let docker = self.store.ok(["start", "-a", id.trim()]);
        self.store.ok(["rm", id.trim()]);
        assert_eq!(own, docker, "cowl and docker differ");
        own
    }

    /// Both clients refuse these flags with the same exit code and reason; an older Docker in its
    /// own words.
    #[track_caller]
    pub(crate) fn refused(&self, flags: &[&str], why: &str) {
        let arguments = [&["create"], flags, &["shop", "true"]].concat();
        let docker = self.server.run(&arguments);
        assert_ne!(docker.code(), 0, "{docker}");
        if has_docker_28() {
            assert!(docker.stderr.contains(why), "docker: {docker}");
        }
        let own = self.store.run(&arguments).refused(docker.code());
        assert!(own.contains(why), "cowl: {own}");
    }
}

/// `cowl run --rm FLAGS shop sh -c SCRIPT`.
#[track_caller]
pub(crate) fn inside(store: &Store, flags: &[&str], script: &str) -> Outcome {
    store.run([&["run", "--rm"], flags, &["shop", "sh", "-c", script]].concat())
}

/// A container that runs until the end of its scope.
pub(crate) struct Detached<'s> {
    store: &'s Store,
    pub(crate) name: &'s str,
}

impl<'s> Detached<'s> {
    /// `cowl run -d --name NAME FLAGS shop sh -c SCRIPT`.
    #[track_caller]
    pub(crate) fn start(store: &'s Store, name: &'s str, flags: &[&str], script: &str) -> Self {
        let arguments = [
            &["run", "-d", "--name", name],
            flags,
            &["shop", "sh", "-c", script],
        ];
        store.ok(arguments.concat());
        Self { store, name }
    }

    /// `cowl exec NAME sh -c SCRIPT`.
    #[track_caller]
    pub(crate) fn exec(&self, script: &str) -> String {
        self.store.ok(["exec", self.name, "sh", "-c", script])
    }

    /// A field of `cowl inspect`.
    #[track_caller]
    pub(crate) fn field(&self, template: &str) -> String {
        let shown = self.store.ok(["inspect", "-f", template, self.name]);
        shown.trim().to_owned()
    }
}

impl Drop for Detached<'_> {
    fn drop(&mut self) {
        let removed = self.store.run(["rm", "-f", self.name]);
        assert!(
            std::thread::panicking() || removed.status.success(),
            "{removed}"
        );
    }
}
