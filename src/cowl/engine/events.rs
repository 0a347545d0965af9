//! Docker's events of containers, images and volumes.
//!
//! A process that acts appends a JSON object and a newline to the file `events` of the store, under
//! its lock; any number of clients follow it. A full file is renamed to `events.old`, which
//! bounds what is kept. A line that a killed writer left unfinished is skipped.

mod filter;
mod reader;
mod record;

pub use filter::EventFilter;
pub(super) use record::actor_of;

use super::Engine;
use super::duration::moment;
use super::error::{Error, Result};
use super::files;
use super::list::Filters;
use cowl_core::store::{EVENTS as NAME, OLD_EVENTS as OLD};
use jiff::Timestamp;
use rustix::fs::{self, AtFlags, FileType, FlockOperation, Mode, OFlags};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

/// Size in bytes at which a file is renamed: about three thousand events.
const LIMIT: i64 = 1 << 20;

/// The type of an event's actor: `container`, `image` or `volume`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Type {
    /// A container.
    Container,
    /// An image.
    Image,
    /// A volume.
    Volume,
}

impl Type {
    /// Docker's word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Container => "container",
            Self::Image => "image",
            Self::Volume => "volume",
        }
    }
}

/// The object of an event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Actor {
    /// Id of the container or image, or name of the volume.
    #[serde(rename = "ID")]
    pub id: String,
    /// Its name and labels, and attributes of the action.
    #[serde(rename = "Attributes")]
    pub attributes: BTreeMap<String, String>,
}

/// An event as Docker's API has it since version 1.52; older clients get some members twice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// The type of the actor.
    #[serde(rename = "Type")]
    pub kind: Type,
    /// The action.
    #[serde(rename = "Action")]
    pub action: String,
    /// The actor.
    #[serde(rename = "Actor")]
    pub actor: Actor,
    /// `local`.
    pub scope: String,
    /// Seconds since 1970.
    pub time: i64,
    /// Nanoseconds since 1970.
    #[serde(rename = "timeNano")]
    pub time_nano: i64,
}

/// The parameters of [`Engine::events`].
#[derive(Debug, Default)]
pub struct EventRequest {
    /// From this time on; with neither this nor [`EventRequest::until`], from now on.
    pub since: Option<Timestamp>,
    /// Up to this time, which may be in the future.
    pub until: Option<Timestamp>,
    /// Only those that match.
    pub filter: EventFilter,
}

impl EventRequest {
    /// Parses a client's times and filters.
    pub fn parse(since: Option<&str>, until: Option<&str>, filters: &Filters) -> Result<Self> {
        let now = Timestamp::now();
        let time = |text: Option<&str>| text.map(|text| moment(text, now)).transpose();
        let request = Self {
            since: time(since)?,
            until: time(until)?,
            filter: EventFilter::parse(filters)?,
        };
        if let (Some(since), Some(until)) = (request.since, request.until)
            && until < since
        {
            return Err(Error::invalid(format!(
                "`since` time ({since}) cannot be after `until` time ({until})"
            )));
        }
        Ok(request)
    }

    fn wants(&self, event: &Event) -> bool {
        let at = i128::from(event.time_nano);
        self.since.is_none_or(|since| at >= since.as_nanosecond())
            && self.until.is_none_or(|until| at <= until.as_nanosecond())
            && self.filter.admits(event)
    }
}

/// The events of a store.
#[derive(Debug, Clone)]
pub struct Events {
    root: PathBuf,
}

impl Events {
    pub(super) fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
        }
    }

    /// Appends an event with the current time.
    pub(super) fn append(&self, kind: Type, action: &str, actor: &Actor) -> Result<()> {
        let root = files::open_dir(&self.root)?;
        loop {
            let flags = OFlags::RDWR | OFlags::APPEND | OFlags::CREATE;
            let safely = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let mode = Mode::RUSR | Mode::WUSR;
            let mut file = File::from(fs::openat(&root, NAME, flags | safely, mode)?);
            rustix::io::retry_on_intr(|| fs::flock(&file, FlockOperation::LockExclusive))?;
            let own = fs::fstat(&file)?;
            if FileType::from_raw_mode(own.st_mode) != FileType::RegularFile {
                return Err(Error::failed(format!("{NAME} is not a regular file")));
            }
            let named = fs::statat(&root, NAME, AtFlags::SYMLINK_NOFOLLOW);
            if !named.is_ok_and(|named| named.st_ino == own.st_ino) {
                // Renamed while this waited for the lock.
                continue;
            }
            if own.st_size >= LIMIT {
                fs::renameat(&root, NAME, &root, OLD)?;
                continue;
            }
            let length = u64::try_from(own.st_size).unwrap_or_default();
            let now = Timestamp::now();
            let event = Event {
                kind,
                action: action.to_owned(),
                actor: actor.clone(),
                scope: "local".to_owned(),
                time: now.as_second(),
                time_nano: i64::try_from(now.as_nanosecond()).unwrap_or(i64::MAX),
            };
            let mut line = Vec::new();
            let mut last = [b'\n'];
            if length > 0 {
                file.read_exact_at(&mut last, length - 1)?;
            }
            if last != [b'\n'] {
                // A killed writer left a partial line.
                line.push(b'\n');
            }
            serde_json::to_writer(&mut line, &event)?;
            line.push(b'\n');
            return Ok(file.write_all(&line)?);
        }
    }
}

impl Engine {
    /// Passes events to `each`, oldest first, until `each` returns false, `until` is reached or
    /// `stop` is readable.
    pub fn events(
        &self,
        request: &EventRequest,
        stop: Option<BorrowedFd<'_>>,
        mut each: impl FnMut(&Event) -> Result<bool>,
    ) -> Result<()> {
        // Watch before reading: later events then wake the wait.
        let changes = reader::watch(self.store.root())?;
        let mut reader = reader::Reader::open(self.store.root())?;
        if request.since.is_none() && request.until.is_none() {
            reader.skip()?;
        }
        loop {
            let over = request.until.is_some_and(|until| until <= Timestamp::now());
            while let Some(event) = reader.next()? {
                if request.wants(&event) && !each(&event)? {
                    return Ok(());
                }
            }
            if over || !reader::wait(changes.as_fd(), stop, request.until)? {
                return Ok(());
            }
        }
    }
}

impl Engine {
    /// The last exit code of a container according to its events, which outlive it; None if it
    /// never ran.
    pub fn told_exit_code(&self, id: &str) -> Result<Option<u8>> {
        let filters = [("event", "die"), ("container", id)];
        let filters = filters.map(|(key, value)| (key.to_owned(), vec![value.to_owned()]));
        let mut request = EventRequest::parse(None, None, &filters.into())?;
        request.until = Some(Timestamp::now());
        let mut code = None;
        self.events(&request, None, |event| {
            let told = event.actor.attributes.get("exitCode");
            code = told.and_then(|told| told.parse().ok()).or(code);
            Ok(true)
        })?;
        Ok(code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn actor(id: &str) -> Actor {
        Actor {
            id: id.to_owned(),
            attributes: BTreeMap::from([("name".to_owned(), "x".repeat(900))]),
        }
    }

    fn all(root: &Path) -> Vec<String> {
        let mut reader = reader::Reader::open(root).unwrap();
        let mut ids = Vec::new();
        while let Some(event) = reader.next().unwrap() {
            ids.push(event.actor.id);
        }
        ids
    }

    #[test]
    fn append_after_an_unfinished_line_loses_only_that_line() {
        let root = tempfile::tempdir().unwrap();
        let events = Events::new(root.path());
        events.append(Type::Volume, "create", &actor("a")).unwrap();
        let path = root.path().join(NAME);
        let whole = std::fs::read(&path).unwrap();
        events.append(Type::Volume, "create", &actor("b")).unwrap();
        let cut = std::fs::read(&path).unwrap();
        std::fs::write(&path, &cut[..cut.len() - 20]).unwrap();
        assert_eq!(all(root.path()), ["a"]);
        events.append(Type::Volume, "create", &actor("c")).unwrap();
        assert_eq!(all(root.path()), ["a", "c"]);
        // Zeros that a power cut left.
        std::fs::write(&path, [whole, vec![0; 100]].concat()).unwrap();
        events.append(Type::Volume, "create", &actor("d")).unwrap();
        assert_eq!(all(root.path()), ["a", "d"]);
    }

    #[test]
    fn a_reader_follows_over_a_rename_and_two_files_are_kept() {
        let root = tempfile::tempdir().unwrap();
        let events = Events::new(root.path());
        events.append(Type::Volume, "create", &actor("0")).unwrap();
        let mut follower = reader::Reader::open(root.path()).unwrap();
        let mut followed = Vec::new();
        let numbers: Vec<String> = (0..3000).map(|number| number.to_string()).collect();
        for number in &numbers {
            if number != "0" {
                events
                    .append(Type::Volume, "create", &actor(number))
                    .unwrap();
            }
            while let Some(event) = follower.next().unwrap() {
                followed.push(event.actor.id);
            }
        }
        assert_eq!(followed, numbers);
        let kept = all(root.path());
        assert_eq!(kept.last(), numbers.last());
        assert!(kept.len() < 2500, "{}", kept.len());
        assert!(numbers.ends_with(&kept));
        let size = |name| std::fs::metadata(root.path().join(name)).unwrap().len();
        assert!(size(NAME) + size(OLD) < 3 << 20);
    }

    #[test]
    fn concurrent_appends_lose_nothing() {
        let root = tempfile::tempdir().unwrap();
        let events = Events::new(root.path());
        std::thread::scope(|scope| {
            for writer in 0..8 {
                let events = &events;
                scope.spawn(move || {
                    for number in 0..50 {
                        let id = format!("{writer}-{number}");
                        events.append(Type::Image, "tag", &actor(&id)).unwrap();
                    }
                });
            }
        });
        let mut ids = all(root.path());
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), 400);
    }
}
