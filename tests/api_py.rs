//! docker-py, the library that Python programs use Docker with, over `cowl serve`: the scripts of
//! `fixtures/docker-py`, each class over a server and a store of its own.

use cowl_tests::busybox::shop;
use cowl_tests::command::{docker_py, fixture, program, run};
use cowl_tests::profile::{root, user};
use cowl_tests::server::Server;

/// Runs the tests of one class of a script; exactly `expected` must pass.
#[track_caller]
fn passes(script: &str, class: &str, tests: usize) {
    let library = docker_py();
    assert!(
        library.join("docker").exists(),
        "{} has no docker-py: `make test-deps` installs it (or set COWL_DOCKER_PY)",
        library.display()
    );
    let store = shop("store");
    let server = Server::start(&store);
    let script = fixture("docker-py").join(script);
    let mut python = program(
        "python3",
        ["-B".as_ref(), script.as_os_str(), class.as_ref()],
    );
    let python = python.env("PYTHONPATH", library).env(
        "DOCKER_HOST",
        format!("unix://{}", server.socket().display()),
    );
    let outcome = run(python);
    assert!(outcome.status.success(), "{outcome}");
    let ran = format!("Ran {tests} test");
    assert!(outcome.stderr.contains(&ran), "{ran}: {outcome}");
}

#[test]
fn docker_py_runs_containers_as_root() {
    root(|| passes("containers.py", "Containers", 19));
}

#[test]
fn docker_py_runs_containers_as_user() {
    user(|| passes("basic.py", "Basic", 4));
}

#[test]
fn docker_py_reads_logs() {
    root(|| passes("streams.py", "Logs", 2));
}

#[test]
fn docker_py_attaches() {
    root(|| passes("streams.py", "Attach", 3));
}

#[test]
fn docker_py_runs_execs() {
    root(|| passes("streams.py", "Exec", 5));
}

#[test]
fn docker_py_copies_archives() {
    root(|| passes("streams.py", "Archives", 3));
}

#[test]
fn docker_py_manages_images() {
    root(|| passes("images.py", "Images", 5));
}

#[test]
fn docker_py_manages_volumes() {
    root(|| passes("images.py", "Volumes", 2));
}

#[test]
fn docker_py_asks_for_the_system_and_its_events() {
    root(|| passes("system.py", "System", 7));
}
