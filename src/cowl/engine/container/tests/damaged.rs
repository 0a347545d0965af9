//! A damaged file, or a non-file in its place, disables only its container.

use super::*;

#[test]
fn list_skips_a_damaged_config_and_find_damaged_finds_it() {
    let store = Store::new();
    let good = store.make("ab", "web").release();
    drop(store.make("cd", "hurt").release());
    let id = "cd".repeat(32);
    let path = store.temp.path().join("containers").join(&id);
    std::fs::write(path.join("config.json"), r#"{"version": 1, "id""#).unwrap();
    let listed = store.containers.list().unwrap();
    assert_eq!((listed.items.len(), listed.skipped.len()), (1, 1));
    assert_eq!(listed.items[0].config, good.config);
    let refused = store.containers.find("cdcd").unwrap_err();
    assert!(
        refused.to_string().contains("cowl rm -f cdcdcdcdcdcd"),
        "{refused}"
    );
    assert!(store.containers.find_damaged("ab").unwrap().is_none());
    let (damaged, _) = store.containers.find_damaged("cdcd").unwrap().unwrap();
    store.remove(&damaged);
    assert!(!path.exists());
}

/// Damages `path`, one way after another, and calls `check` after each.
fn damage(path: &Path, check: impl Fn(&str)) {
    let cases: [(&str, &dyn Fn()); 5] = [
        ("empty", &|| std::fs::write(path, "").unwrap()),
        ("cut", &|| std::fs::write(path, "{").unwrap()),
        ("directory", &|| std::fs::create_dir(path).unwrap()),
        ("symlink", &|| symlink(path, path).unwrap()),
        ("FIFO", &|| {
            rustix::fs::mknodat(CWD, path, FileType::Fifo, Mode::RWXU, 0).unwrap();
        }),
    ];
    for (what, make) in cases {
        match std::fs::symlink_metadata(path) {
            Ok(found) if found.is_dir() => std::fs::remove_dir(path).unwrap(),
            Ok(_) => std::fs::remove_file(path).unwrap(),
            Err(_missing) => {}
        }
        make();
        check(what);
    }
}

fn engine() -> (tempfile::TempDir, Engine) {
    let temp = tempfile::tempdir().unwrap();
    let engine = Engine::open_or_create(&temp.path().join("store")).unwrap();
    (temp, engine)
}

/// Creates a container that has ended.
fn ended(engine: &Engine, id: &str, name: &str) -> PathBuf {
    let guard = engine.containers.guard().unwrap();
    let config = config(id, name);
    let claim = engine
        .containers
        .claim_name(&guard, name, &config.id, false);
    assert_eq!(claim.unwrap(), Claim::Made);
    let pending = engine.containers.create(&guard, config).unwrap();
    drop(monitor(&pending.container, NO_PROCESS));
    let path = engine.containers.path().join(id.repeat(64 / id.len()));
    let record = r#"{"exit_code":3,"oom_killed":false,"finished_at":"2026-01-01T00:00:00Z"}"#;
    std::fs::write(path.join(status::EXIT), record).unwrap();
    path
}

#[test]
fn a_damaged_file_of_one_container_leaves_the_others_usable() {
    let (_temp, engine) = engine();
    ended(&engine, "ab", "good");
    let path = ended(&engine, "cd", "hurt");
    for file in [CONFIG, status::EXIT, status::LOCK] {
        let whole = std::fs::read(path.join(file)).unwrap();
        damage(&path.join(file), |what| {
            // A lock has no content.
            if file == status::LOCK && !matches!(what, "symlink" | "FIFO") {
                return;
            }
            engine.sweep().unwrap();
            let Listing { items, skipped } = engine.containers().unwrap();
            assert_eq!(items.len(), 1, "{file} {what}");
            assert_eq!(items[0].0.config.name, "good");
            let warning = skipped[0].to_string();
            assert!(
                warning.starts_with("container cdcdcdcdcdcd: its ")
                    && warning.contains("cowl rm -f cdcdcdcdcdcd removes it")
                    && warning.contains(file),
                "{file} {what}: {warning}"
            );
            assert!(
                engine.remove("cdcd", false, false).is_err(),
                "{file} {what}"
            );
        });
        std::fs::remove_file(path.join(file)).unwrap();
        std::fs::write(path.join(file), whole).unwrap();
    }
    assert_eq!(engine.containers().unwrap().items.len(), 2);
}

#[test]
fn forced_remove_removes_a_container_with_a_damaged_file() {
    let (temp, engine) = engine();
    let damaged = temp.path().join("damaged");
    for file in [CONFIG, status::EXIT, status::LOCK, status::RUNNING] {
        damage(&damaged, |what| {
            let path = ended(&engine, "cd", "hurt");
            std::fs::remove_file(path.join(file)).unwrap();
            std::fs::rename(&damaged, path.join(file)).unwrap();
            engine.remove("cdcd", true, false).unwrap();
            assert!(!path.exists(), "{file} {what}");
        });
    }
}

#[test]
fn remove_removes_a_container_whose_work_or_upper_is_not_a_directory() {
    let (temp, engine) = engine();
    let damaged = temp.path().join("damaged");
    for directory in [WORK, UPPER] {
        damage(&damaged, |what| {
            let path = ended(&engine, "cd", "hurt");
            std::fs::remove_dir_all(path.join(directory)).unwrap();
            std::fs::rename(&damaged, path.join(directory)).unwrap();
            engine.remove("cdcd", false, false).unwrap();
            assert!(!path.exists(), "{directory} {what}");
        });
    }
}

#[test]
fn sweep_skips_what_is_not_a_directory() {
    let (_temp, engine) = engine();
    ended(&engine, "ab", "good");
    engine.volumes().unwrap();
    let at = |name: &str| engine.store().root().join(name);
    let id = "c".repeat(64);
    let places = [
        (format!("containers/{id}"), true),
        (format!("containers/.gone-alone-{id}"), false),
        (format!("containers/.gone-with-volumes-{id}"), false),
        ("volumes/.gone-x".to_owned(), false),
        ("volumes/.new-x".to_owned(), false),
    ];
    for (place, reported) in places {
        damage(&at(&place), |what| {
            engine.sweep().unwrap();
            let Listing { items, skipped } = engine.containers().unwrap();
            let directory = what == "directory";
            assert_eq!(items.len(), 1, "{place} {what}");
            assert_eq!(
                skipped.len(),
                usize::from(reported && !directory),
                "{place} {what}"
            );
        });
        if reported {
            std::fs::remove_file(at(&place)).unwrap();
        }
        assert!(std::fs::symlink_metadata(at(&place)).is_err(), "{place}");
    }
}

#[test]
fn a_damaged_volumes_directory_stops_only_what_needs_volumes() {
    let (_temp, engine) = engine();
    let volumes = engine.store().root().join("volumes");
    let data = crate::engine::volumes::VolumeRequest {
        name: Some("data".to_owned()),
        ..Default::default()
    };
    damage(&volumes, |what| {
        if what == "directory" {
            return;
        }
        let engine = Engine::open(engine.store().root()).unwrap();
        ended(&engine, "ab", "good");
        engine.sweep().unwrap();
        engine.remove("good", false, false).unwrap();
        let error = engine.volumes().unwrap_err().to_string();
        assert!(error.contains("volumes"), "{what}: {error}");
        assert!(engine.create_volume(&data).is_err(), "{what}");
    });
    std::fs::remove_file(&volumes).unwrap();
    engine.create_volume(&data).unwrap();
}
