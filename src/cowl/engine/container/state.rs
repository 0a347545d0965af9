//! What a container is doing, derived from facts that a killed process can't leave wrong.
//!
//! The facts: who holds the lock of the directory (the engine, from before the container can be seen, and without a gap the monitor) and the lock
//! `lock` (the monitor, until the container is over; its `running.json` names the two processes), and `exit.json` (written by the monitor before it lets go). See
//! `cowl_launch::status`. Whatever is killed in between, the kernel lets go of its lock.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// What the monitor wrote when the container was over (`exit.json`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// As Docker gives it: the program's, or 128 + signal.
    pub exit_code: u8,
    /// The kernel killed a process of the container for want of memory.
    pub oom_killed: bool,
    /// When; unknown if the monitor was killed.
    pub finished_at: Option<Timestamp>,
}

/// What the monitor wrote into `running.json`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Monitored {
    /// The monitor's process id.
    pub monitor: i32,
    /// The container's first process; 0 until there is one.
    pub pid: i32,
    /// With `start_time`, which process of that number; empty if the monitor couldn't tell.
    pub boot: String,
    /// See `cowl_launch::identity`.
    pub start_time: u64,
    /// Empty until that process has become the program.
    pub started_at: String,
}

/// The facts, read in the order of the fields, which is the order in which they come true: a reader may find an older one gone, never a newer one missing.
#[derive(Debug, Clone)]
pub struct Facts {
    /// The engine or the monitor holds the directory's lock.
    pub alive: bool,
    /// The monitor holds `lock`.
    pub monitored: bool,
    /// The monitor once said that the program had been started.
    pub started: bool,
    /// `exit.json`.
    pub exit: Option<Exit>,
}

/// What a container is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// Being made.
    Created,
    /// Its maker was killed before anything was started: to be removed.
    Abandoned,
    /// Its monitor lives.
    Running,
    /// Over.
    Exited(Exit),
}

/// Exit code of a container whose monitor was killed before it could record one (containerd's for a lost shim).
pub const LOST: u8 = 255;

impl Status {
    /// Over, and nobody has written down how: whoever should have was killed, and something of the container may be left.
    pub fn is_without_record(&self) -> bool {
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
    fn every_combination_of_facts_has_one_status() {
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
            // The record is written before the lock is released: over is over.
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
    fn the_monitors_records_are_understood() {
        let text = r#"{"pid":13,"exit_code":137,"signal":9,"oom_killed":true,"started_at":"2026-11-25T01:02:03.000000004Z",
                       "finished_at":"2026-11-25T01:02:04.5Z","error":""}"#;
        let exit: Exit = serde_json::from_str(text).unwrap();
        assert_eq!((exit.exit_code, exit.oom_killed), (137, true));
        assert_eq!(
            exit.finished_at.unwrap().to_string(),
            "2026-11-25T01:02:04.5Z"
        );
        let running: Monitored = serde_json::from_str(
            r#"{"monitor":12,"pid":13,"boot":"0-1","start_time":4711,"started_at":""}"#,
        )
        .unwrap();
        assert_eq!(
            running,
            Monitored {
                monitor: 12,
                pid: 13,
                boot: "0-1".to_owned(),
                start_time: 4711,
                started_at: String::new(),
            }
        );
    }
}
