//! Writes each kind of event. An event that cannot be written is lost: its action has already
//! happened.

use super::{Actor, Events, Type};
use crate::engine::Engine;
use crate::engine::container::config::{Config, Mount, MountSource};
use crate::engine::container::state::{Exit, Status};
use crate::engine::container::{Container, StartLock};
use crate::engine::volumes::DRIVER;
use cowl_core::digest::ImageId;
use jiff::Timestamp;
use std::collections::BTreeMap;

/// Attributes that belong to an action.
type Extra<'a> = &'a [(&'a str, &'a str)];

impl Events {
    /// Writes an event; ignores a failure.
    pub(in crate::engine) fn tell(&self, kind: Type, action: &str, actor: &Actor) {
        self.append(kind, action, actor).unwrap_or_default();
    }
}

/// A container as an event's actor: its labels, image and name.
pub(in crate::engine) fn actor_of(config: &Config, extra: Extra<'_>) -> Actor {
    let mut attributes = config.config.labels.clone();
    let own = [
        ("image", config.config.image.as_str()),
        ("name", config.name.as_str()),
    ];
    attributes.extend(owned(&own).chain(owned(extra)));
    Actor {
        id: config.id.clone(),
        attributes,
    }
}

fn owned(pairs: Extra<'_>) -> impl Iterator<Item = (String, String)> {
    let pairs = pairs.iter();
    pairs.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
}

impl Engine {
    pub(in crate::engine) fn event_log(&self) -> Events {
        Events::new(self.store.root())
    }

    pub(in crate::engine) fn tell_container(
        &self,
        config: &Config,
        action: &str,
        extra: Extra<'_>,
    ) {
        let actor = actor_of(config, extra);
        self.event_log().tell(Type::Container, action, &actor);
    }

    /// The start of a container's program, and the mounts of its volumes.
    pub(in crate::engine) fn tell_start(&self, config: &Config) {
        for mount in &config.mounts {
            self.tell_mount(config, mount);
        }
        self.tell_container(config, "start", &[]);
    }

    fn tell_mount(&self, config: &Config, mount: &Mount) {
        if let MountSource::Volume { name, .. } = &mount.source {
            let writable = (!mount.read_only).to_string();
            let extra = [
                ("container", config.id.as_str()),
                ("destination", &mount.destination),
                ("propagation", ""),
                ("read/write", &writable),
            ];
            self.tell_volume(name, "mount", &extra);
        }
    }

    /// Writes the end of a container's program, if it has ended and no other command has written
    /// it. Writes nothing if the status is damaged. Starts and removals of the container wait, so
    /// that the end comes before their events.
    pub(in crate::engine) fn tell_end(&self, container: &Container) {
        // If it has been removed, its end is written already.
        if let Ok(lock) = self.containers.take(container) {
            self.tell_end_locked(container, &lock);
        }
    }

    /// [`Engine::tell_end`] for the holder of the start lock.
    pub(in crate::engine) fn tell_end_locked(&self, container: &Container, _lock: &StartLock) {
        if let Ok(Status::Exited(exit) | Status::Restarting(exit)) = container.status()
            && container.claim_end().unwrap_or_default()
        {
            self.tell_exit(&container.config, &exit);
        }
    }

    fn tell_exit(&self, config: &Config, exit: &Exit) {
        let started: Option<Timestamp> = exit.started_at.parse().ok();
        let ran = match (started, exit.finished_at) {
            (Some(from), Some(to)) => to.duration_since(from).as_secs().max(0),
            _ => 0,
        };
        let (ran, code) = (ran.to_string(), exit.exit_code.to_string());
        for name in config.volumes() {
            self.tell_volume(name, "unmount", &[("container", &config.id)]);
        }
        if exit.oom_killed {
            self.tell_container(config, "oom", &[]);
        }
        let extra = [("execDuration", ran.as_str()), ("exitCode", &code)];
        self.tell_container(config, "die", &extra);
    }

    pub(in crate::engine) fn tell_volume(&self, name: &str, action: &str, extra: Extra<'_>) {
        let own = [("driver", DRIVER)];
        let actor = Actor {
            id: name.to_owned(),
            attributes: owned(&own).chain(owned(extra)).collect(),
        };
        self.event_log().tell(Type::Volume, action, &actor);
    }

    /// `name` is the image's name, or its id again, as in Docker.
    pub(in crate::engine) fn tell_image(&self, id: ImageId, action: &str, name: &str) {
        let labels = self.labels_of_image(id);
        self.tell_image_with(id, action, name, labels);
    }

    /// The same for an image that is gone.
    pub(in crate::engine) fn tell_image_with(
        &self,
        id: ImageId,
        action: &str,
        name: &str,
        labels: BTreeMap<String, String>,
    ) {
        let mut attributes = labels;
        attributes.insert("name".to_owned(), name.to_owned());
        let actor = Actor {
            id: id.to_string(),
            attributes,
        };
        self.event_log().tell(Type::Image, action, &actor);
    }

    /// A prune has freed `bytes`.
    pub(in crate::engine) fn tell_prune(&self, kind: Type, bytes: u64) {
        let reclaimed = ("reclaimed".to_owned(), bytes.to_string());
        let actor = Actor {
            id: String::new(),
            attributes: BTreeMap::from([reclaimed]),
        };
        self.event_log().tell(kind, "prune", &actor);
    }
}
