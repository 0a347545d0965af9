//! The status of a container, derived from locks and records that stay correct when a process is
//! killed.
//!
//! * The directory's lock: held by the engine from before the container is visible, then by the
//!   monitor.
//! * `lock`: held by the monitor until the container has ended.
//! * `running.json`: names the monitor and the container's first process.
//! * `exit.json`: written by the monitor before it releases its locks.
//! * `restart.json` and the restart policy: whether it is about to be started again.
//!
//! The kernel releases the locks of a killed process. See `cowl_launch::status`.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The monitor's record of the end (`exit.json`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Pid of the first process; 0 if none could be started.
    #[serde(default)]
    pub pid: u32,
    /// As in Docker: the program's exit code, or 128 + signal.
    pub exit_code: u8,
    /// The OOM killer killed a process of the container.
    pub oom_killed: bool,
    /// When the program started; empty if it did not.
    #[serde(default)]
    pub started_at: String,
    /// When the program ended; unknown if the monitor was killed.
    pub finished_at: Option<Timestamp>,
    /// Why the program did not start, or what could not be cleaned up; else empty.
    #[serde(default)]
    pub error: String,
}

/// The monitor's record of its processes (`running.json`).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct MonitorRecord {
    /// The monitor's process id.
    pub monitor: i32,
    /// The container's first process; 0 until there is one.
    pub pid: i32,
    /// Boot id. With `start_time` it identifies the process `pid`; empty if unknown.
    pub boot: String,
    /// See `cowl_launch::identity`.
    pub start_time: u64,
    /// Empty until that process has executed the program.
    pub started_at: String,
    /// All processes of the container are frozen.
    #[serde(default)]
    pub paused: bool,
}

/// What a status is derived from. The fields are read in this order, in which they become true, so
/// a change during the read never shows a later one without an earlier one.
#[derive(Debug, Clone)]
pub struct Facts {
    /// The engine or the monitor holds the directory's lock.
    pub alive: bool,
    /// The monitor holds `lock`.
    pub monitored: bool,
    /// The monitor recorded that the program started.
    pub started: bool,
    /// The monitor recorded that it froze the container.
    pub paused: bool,
    /// Its restart policy wants it to be started again.
    pub restarting: bool,
    /// `exit.json`.
    pub exit: Option<Exit>,
}

/// The status of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// Created and not started yet; with the record of its last start, if that failed.
    Created(Option<Exit>),
    /// Being created or started.
    Starting,
    /// Its monitor is alive.
    Running,
    /// It runs, and all its processes are frozen.
    Paused,
    /// Ended, and its restart policy is about to start it again.
    Restarting(Exit),
    /// Ended.
    Exited(Exit),
}

/// The status of a container with its times.
#[derive(Debug, Clone, PartialEq)]
pub struct State {
    /// The status.
    pub status: Status,
    /// Its first process; 0 if it does not run.
    pub pid: i32,
    /// When its program was started last.
    pub started_at: Option<Timestamp>,
    /// Docker's `Health` object, if it has a health check.
    pub health: Option<serde_json::Value>,
}

/// Exit code of a container whose monitor was killed before it could record one (containerd's for
/// a lost shim).
pub const LOST: u8 = 255;

impl Exit {
    /// The record of a container whose monitor was killed.
    fn lost() -> Self {
        Self {
            pid: 0,
            exit_code: LOST,
            oom_killed: false,
            started_at: String::new(),
            finished_at: None,
            error: String::new(),
        }
    }
}

impl Status {
    /// Whether the monitor in charge was killed. Processes, cgroups or a mount may be left.
    pub fn is_orphaned(&self) -> bool {
        matches!(
            self,
            Self::Exited(Exit {
                finished_at: None,
                ..
            })
        )
    }

    /// Whether it has processes or is about to.
    pub fn is_live(&self) -> bool {
        matches!(
            self,
            Self::Starting | Self::Running | Self::Paused | Self::Restarting(_)
        )
    }

    /// Docker's word.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Created(_) | Self::Starting => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Restarting(_) => "restarting",
            Self::Exited(_) => "exited",
        }
    }

    /// Derives the status from the facts.
    pub fn derive(facts: Facts) -> Self {
        match facts {
            Facts {
                exit: Some(exit),
                restarting,
                ..
            } => {
                if restarting {
                    Self::Restarting(exit)
                } else if exit.pid == 0 && exit.started_at.is_empty() && !exit.error.is_empty() {
                    Self::Created(Some(exit))
                } else {
                    Self::Exited(exit)
                }
            }
            Facts {
                monitored: true,
                paused: true,
                ..
            } => Self::Paused,
            Facts {
                monitored: true, ..
            } => Self::Running,
            Facts { alive: true, .. } => Self::Starting,
            Facts { started: true, .. } => Self::Exited(Exit::lost()),
            Facts { started: false, .. } => Self::Created(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derive_maps_each_combination_of_facts() {
        let exit = || Exit {
            pid: 7,
            exit_code: 3,
            ..Exit::lost()
        };
        let lost = Exit::lost();
        // (alive, monitored, started, exited)
        let table = [
            ((false, false, false, false), Status::Created(None)),
            ((true, false, false, false), Status::Starting),
            ((true, true, false, false), Status::Running),
            ((true, true, true, false), Status::Running),
            ((false, false, true, false), Status::Exited(lost)),
            // The record is written before the lock is released.
            ((false, true, true, true), Status::Exited(exit())),
            ((true, true, true, true), Status::Exited(exit())),
            ((false, false, true, true), Status::Exited(exit())),
        ];
        for ((alive, monitored, started, exited), status) in table {
            let facts = Facts {
                alive,
                monitored,
                started,
                paused: false,
                restarting: false,
                exit: exited.then(exit),
            };
            assert_eq!(Status::derive(facts.clone()), status, "{facts:?}");
        }
    }

    #[test]
    fn a_failed_start_leaves_a_created_container() {
        let exit = Exit {
            pid: 0,
            exit_code: 127,
            error: "not found".to_owned(),
            finished_at: Some(Timestamp::UNIX_EPOCH),
            ..Exit::lost()
        };
        let facts = Facts {
            alive: false,
            monitored: false,
            started: false,
            paused: false,
            restarting: false,
            exit: Some(exit.clone()),
        };
        assert_eq!(Status::derive(facts), Status::Created(Some(exit)));
    }

    #[test]
    fn records_of_the_monitor_are_parsed() {
        let text = r#"{"pid":13,"exit_code":137,"signal":9,"oom_killed":true,"started_at":"2026-11-25T01:02:03.000000004Z",
                       "finished_at":"2026-11-25T01:02:04.5Z","error":""}"#;
        let exit: Exit = serde_json::from_str(text).unwrap();
        assert_eq!((exit.exit_code, exit.oom_killed), (137, true));
        assert_eq!(
            exit.finished_at.unwrap().to_string(),
            "2026-11-25T01:02:04.5Z"
        );
        let running: MonitorRecord = serde_json::from_str(
            r#"{"monitor":12,"pid":13,"boot":"0-1","start_time":4711,"started_at":""}"#,
        )
        .unwrap();
        assert_eq!(
            running,
            MonitorRecord {
                monitor: 12,
                pid: 13,
                boot: "0-1".to_owned(),
                start_time: 4711,
                started_at: String::new(),
                paused: false,
            }
        );
    }
}
