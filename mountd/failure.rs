//! Turns an error into the one-line [`MountFailed`] that a user reads.

use std::io;

use cowl_core::handover::MountFailed;

/// Names what was being tried when something went wrong.
pub(crate) trait OrFail<T> {
    /// `what`, one line, becomes the failure's text; the error its number.
    fn or_fail(self, what: impl Into<String>) -> Result<T, MountFailed>;
}

impl<T, E: Into<io::Error>> OrFail<T> for Result<T, E> {
    fn or_fail(self, what: impl Into<String>) -> Result<T, MountFailed> {
        self.map_err(|error| failure(what, &error.into()))
    }
}

/// A failure of the system, or of our own making if the error carries no number.
pub(crate) fn failure(what: impl Into<String>, error: &io::Error) -> MountFailed {
    match error.raw_os_error() {
        Some(errno) => MountFailed {
            what: what.into(),
            errno,
        },
        None => MountFailed {
            what: format!("{}: {error}", what.into()),
            errno: 0,
        },
    }
}
