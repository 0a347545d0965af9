//! Health checks.

use std::time::{Duration, Instant};

use cowl_tests::busybox::{containers, in_shop, shop};
use cowl_tests::profile::{directory, root, user};
use cowl_tests::server::until;
use cowl_tests::store::Store;

fn inspected(store: &Store, template: &str) -> String {
    let text = store.ok(["inspect", "--format", template, "checked"]);
    text.trim().to_owned()
}

/// Waits until the container's health is this.
#[track_caller]
fn wait_for(store: &Store, expected: &str) {
    let end = Instant::now() + Duration::from_mins(2);
    loop {
        let found = inspected(store, "{{.State.Health.Status}}");
        if found == expected {
            return;
        }
        assert!(Instant::now() < end, "{found} instead of {expected}");
    }
}

fn health_cmd_sets_the_health() {
    let store = shop("store");
    let shared = directory().join("shared");
    std::fs::create_dir(&shared).unwrap();
    let volume = format!("{}:/shared", shared.display());
    let options = [
        "-d",
        "--name",
        "checked",
        "-v",
        &volume,
        "-e",
        "WHO=me",
        "-w",
        "/shared",
        "--health-cmd",
        "echo $WHO in $PWD; test -e well",
        "--health-interval",
        "50ms",
        "--health-retries",
        "2",
        "--health-start-period",
        "1h",
        "--health-start-interval",
        "50ms",
    ];
    in_shop(&store, &options, &["sleep", "1000"]).ok();
    // Failures during the start period do not count.
    while inspected(&store, "{{len .State.Health.Log}}") == "0" {}
    assert_eq!(
        inspected(
            &store,
            "{{.State.Health.Status}} {{.State.Health.FailingStreak}}"
        ),
        "starting 0"
    );
    let all = store.ok([
        "ps",
        "--format",
        "{{.Status}}",
        "--filter",
        "health=starting",
    ]);
    assert!(all.ends_with("(health: starting)\n"), "{all}");
    std::fs::write(shared.join("well"), "").unwrap();
    wait_for(&store, "healthy");
    let all = store.ok([
        "ps",
        "--format",
        "{{.Status}}",
        "--filter",
        "health=healthy",
    ]);
    assert!(all.ends_with("(healthy)\n"), "{all}");
    // After a success the start period is over.
    std::fs::remove_file(shared.join("well")).unwrap();
    wait_for(&store, "unhealthy");
    while inspected(&store, "{{len .State.Health.Log}}") != "5" {}
    let last = "{{(index .State.Health.Log 4).ExitCode}} {{(index .State.Health.Log 4).Output}}";
    assert_eq!(inspected(&store, last), "1 me in /shared");
    let none = store.ok(["ps", "-q", "--filter", "health=none"]);
    assert_eq!(none, "");
    store.ok(["rm", "-f", "checked"]);
}

#[test]
fn health_cmd_sets_the_health_as_root() {
    root(|| health_cmd_sets_the_health());
}

#[test]
fn health_cmd_sets_the_health_as_user() {
    user(|| health_cmd_sets_the_health());
}

#[test]
fn health_timeout_kills_the_check() {
    root(|| {
        let store = shop("store");
        let options = [
            "-d",
            "--name",
            "checked",
            "--health-cmd",
            "echo so far; exec sleep 1234",
            "--health-interval",
            "50ms",
            "--health-timeout",
            "1s",
            "--health-retries",
            "1",
        ];
        in_shop(&store, &options, &["sleep", "1000"]).ok();
        wait_for(&store, "unhealthy");
        // On a busy machine a check may be killed before it has written anything.
        let results = "{{range .State.Health.Log}}{{.ExitCode}} {{json .Output}};{{end}}";
        until(|| {
            let results = inspected(&store, results);
            let mut results = results.split_terminator(';');
            results.any(|result| match result {
                r#"-1 "Health check exceeded timeout (1s): so far\n""# => true,
                r#"-1 "Health check exceeded timeout (1s)""# => false,
                other => panic!("{other}"),
            })
        });
        store.ok(["pause", "checked"]);
        // At most the frozen one.
        let running = cowl_tests::profile::processes()
            .iter()
            .filter(|(_, line)| line.contains("sleep 1234"))
            .count();
        assert!(running <= 1, "{running}");
        store.ok(["rm", "-f", "checked"]);
    });
}

/// The timeout expires before it has executed its program, or even has a pid.
#[test]
fn health_timeout_kills_a_check_that_is_being_started() {
    root(|| {
        let store = shop("store");
        let check = [
            "--health-cmd",
            "exec sleep 1234",
            "--health-interval",
            "50ms",
        ];
        let limits = ["--health-timeout", "1ms", "--health-retries", "3"];
        let options = [&["-d", "--name", "checked"], &check[..], &limits].concat();
        in_shop(&store, &options, &["sleep", "1000"]).ok();
        wait_for(&store, "unhealthy");
        store.ok(["rm", "-f", "checked"]);
    });
}

#[test]
fn health_options_refuse_what_docker_refuses() {
    user(|| {
        let store = shop("store");
        for (options, text) in [
            (
                &["--health-interval", "1us", "--health-cmd", "x"][..],
                "Interval in Healthcheck cannot be less than 1ms",
            ),
            (
                &["--health-timeout", "5"],
                "time: missing unit in duration \"5\"",
            ),
            (
                &["--health-start-period", "-5s"],
                "--health-start-period cannot be negative",
            ),
            (
                &["--health-retries", "-1"],
                "--health-retries cannot be negative",
            ),
            (
                &["--no-healthcheck", "--health-cmd", "x"],
                "--no-healthcheck conflicts with --health-* options",
            ),
        ] {
            let refusal = in_shop(&store, options, &["true"]).refused(125);
            assert!(refusal.contains(text), "{options:?}: {refusal}");
        }
        assert_eq!(containers(&store), [""; 0]);
    });
}
