//! The status of a container, derived from locks and records that stay true when a process is
//! killed.
//!
//! * The directory's lock: held by the engine from before the container is visible, then by the monitor.
//! * `lock`: held by the monitor until the container has ended.
//! * `running.json`: names the monitor and the container's first process.
//! * `exit.json`: written by the monitor before it releases its locks.
//!
//! The kernel releases the locks of a killed process. See `cowl_launch::status`.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The monitor's record of the end (`exit.json`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// As Docker gives it: the program's, or 128 + signal.
    pub exit_code: u8,
    /// The OOM killer killed a process of the container.
    pub oom_killed: bool,
    /// When; unknown if the monitor was killed.
    pub finished_at: Option<Timestamp>,
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
}

/// What a status is derived from. The fields are read in this order, the order in which they
/// become true, so that a change during the read never shows a later one without its predecessor.
#[derive(Debug, Clone)]
pub struct Facts {
    /// The engine or the monitor holds the directory's lock.
    pub alive: bool,
    /// The monitor holds `lock`.
    pub monitored: bool,
    /// The monitor recorded that the program started.
    pub started: bool,
    /// `exit.json`.
    pub exit: Option<Exit>,
}

/// What a container is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// Being created.
    Created,
    /// Its creation was killed before a program started. The sweep removes it.
    Abandoned,
    /// Its monitor lives.
    Running,
    /// Ended.
    Exited(Exit),
}

/// Exit code of a container whose monitor was killed before it could record one (containerd's for
/// a lost shim).
pub const LOST: u8 = 255;

impl Status {
    /// Whether the engine or monitor in charge was killed. Processes, cgroups or a mount may be
    /// left.
    pub fn is_orphaned(&self) -> bool {
        matches!(
            self,
            Self::Abandoned
                | Self::Exited(Exit {
                    finished_at: None,
                    ..
                })
        )
    }

    /// Derives the status from the facts.
    pub fn derive(facts: Facts) -> Self {
        match facts {
            Facts {
                exit: Some(exit), ..
            } => Self::Exited(exit),
            Facts {
                monitored: true, ..
            } => Self::Running,
            Facts { alive: true, .. } => Self::Created,
            Facts { started: true, .. } => Self::Exited(Exit {
                exit_code: LOST,
                oom_killed: false,
                finished_at: None,
            }),
            Facts { started: false, .. } => Self::Abandoned,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derive_maps_each_combination_of_facts() {
        let exit = || Exit {
            exit_code: 3,
            oom_killed: false,
            finished_at: None,
        };
        let lost = Exit {
            exit_code: LOST,
            oom_killed: false,
            finished_at: None,
        };
        // (alive, monitored, started, exited)
        let table = [
            ((false, false, false, false), Status::Abandoned),
            ((true, false, false, false), Status::Created),
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
                exit: exited.then(exit),
            };
            assert_eq!(Status::derive(facts.clone()), status, "{facts:?}");
        }
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
            }
        );
    }
}
