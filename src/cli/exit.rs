//! Exit codes: the one place where an error becomes a number.

use std::io;
use std::process::ExitCode;

use crate::app::AppError;
use crate::config::ConfigError;
use crate::device::DeviceError;
use crate::hub::HubError;
use crate::text::printable_line;

/// How the program ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// What was asked for is done.
    Done,
    /// The work failed.
    Failed,
    /// The command line or the configuration is wrong.
    Usage,
    /// The gate rejected a training job.
    Rejected,
    /// Another process runs the queue of this data directory.
    QueueHeld,
    /// The user interrupted.
    Interrupted,
}

impl Exit {
    /// Returns the number that scripts rely on.
    pub fn code(self) -> u8 {
        match self {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::Rejected => 3,
            Exit::QueueHeld => 75,
            Exit::Interrupted => 130,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit.code())
    }
}

/// A command line that clap takes and that makes no sense all the same.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);

/// Returns how the program ends after this error.
pub fn exit_of(error: &anyhow::Error) -> Exit {
    for cause in error.chain() {
        if cause.is::<UsageError>() || cause.is::<ConfigError>() || cause.is::<DeviceError>() {
            return Exit::Usage;
        }
        if matches!(cause.downcast_ref(), Some(AppError::QueueHeld { .. })) {
            return Exit::QueueHeld;
        }
        if matches!(cause.downcast_ref(), Some(HubError::Interrupted)) {
            return Exit::Interrupted;
        }
        if cause.downcast_ref::<io::Error>().is_some_and(reader_left) {
            // `shammah jobs list | head -1`: the reader has all it wanted.
            return Exit::Done;
        }
    }
    Exit::Failed
}

/// Whether the error needs no message: it is ours to bear in silence.
pub fn is_silent(error: &anyhow::Error) -> bool {
    exit_of(error) == Exit::Done
}

/// Returns the error and its causes on one line; a cause that is quoted already is not said again.
pub fn message(error: &anyhow::Error) -> String {
    let mut message = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if message.is_empty() {
            message = cause;
        } else if !message.contains(&cause) {
            message = format!("{message}: {cause}");
        }
    }
    printable_line(message.trim_end())
}

fn reader_left(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::BrokenPipe
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn errors_find_their_code_through_any_context() {
        let usage = anyhow::Error::from(UsageError("x".to_owned())).context("while asking");
        assert_eq!(exit_of(&usage), Exit::Usage);
        let config = anyhow::Error::from(ConfigError::NotAnAssignment { text: "x".to_owned() });
        assert_eq!(exit_of(&config), Exit::Usage);
        let other: anyhow::Result<()> = Err(io::Error::other("x")).context("y");
        assert_eq!(exit_of(&other.unwrap_err()), Exit::Failed);
        let pipe = anyhow::Error::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert!(is_silent(&pipe));
    }

    #[test]
    fn causes_are_said_once_and_on_one_line() {
        let inner = anyhow::anyhow!("disk full");
        assert_eq!(
            message(&inner.context("cannot write x: disk full")),
            "cannot write x: disk full"
        );
        let inner = anyhow::anyhow!("disk\nfull");
        assert_eq!(message(&inner.context("cannot write x")), "cannot write x: disk full");
    }

    #[test]
    fn codes_are_those_of_the_interface() {
        let all = [
            Exit::Done,
            Exit::Failed,
            Exit::Usage,
            Exit::Rejected,
            Exit::QueueHeld,
            Exit::Interrupted,
        ];
        assert_eq!(all.map(Exit::code), [0, 1, 2, 3, 75, 130]);
    }
}
