//! How the command ends.

use std::process::ExitCode;

/// How the command ended, as its caller sees it. The numbers are a promise to service managers and scripts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Exit {
    /// The server was stopped and all went as asked; the reload has brought its generation; or what was asked was only an
    /// answer, help or a check.
    CleanStop,
    /// Anything that has no number of its own; a reload that was rolled back or called off.
    Failure,
    /// A flag or a value is wrong. Nothing was started, written or deleted.
    Usage,
    /// The server could not boot: an address that cannot be bound, a preload or start that fails.
    CannotBoot,
    /// Nobody answers at the control socket, or not to this user, or it has too many clients.
    NoAnswer,
    /// How the reload ends is not known: the time was over, or the server ended first.
    Unknown,
}

impl Exit {
    const ALL: [Exit; 6] =
        [Exit::CleanStop, Exit::Failure, Exit::Usage, Exit::CannotBoot, Exit::NoAnswer, Exit::Unknown];

    /// The exit code.
    pub fn code(self) -> u8 {
        match self {
            Exit::CleanStop => 0,
            Exit::Failure => 1,
            Exit::Usage => 2,
            Exit::CannotBoot => 3,
            Exit::NoAnswer => 4,
            Exit::Unknown => 5,
        }
    }

    fn meaning(self) -> &'static str {
        match self {
            Exit::CleanStop => "clean stop; of `reload`: the new generation serves",
            Exit::Failure => {
                "anything else; of `reload`: it was rolled back or called off, and standard error says why"
            }
            Exit::Usage => "usage or configuration: a flag or value is wrong; nothing was started or deleted",
            Exit::CannotBoot => "could not boot: an address that cannot be bound, a preload or start that fails",
            Exit::NoAnswer => {
                "of `reload` and `status`: no server answers at the control socket, or not to this user, or it has too many clients"
            }
            Exit::Unknown => {
                "of `reload`: its outcome is not known, the time was over or the server ended first; it may go on"
            }
        }
    }

    /// The table of exit codes, as help shows it.
    pub(super) fn table() -> String {
        let rows = Exit::ALL.map(|exit| format!("\n  {}  {}", exit.code(), exit.meaning()));
        format!("Exit codes:{}", rows.concat())
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_0_1_2_3_4_5_for_ever() {
        assert_eq!(Exit::CleanStop.code(), 0);
        assert_eq!(Exit::Failure.code(), 1);
        assert_eq!(Exit::Usage.code(), 2);
        assert_eq!(Exit::CannotBoot.code(), 3);
        assert_eq!(Exit::NoAnswer.code(), 4);
        assert_eq!(Exit::Unknown.code(), 5);
        for exit in Exit::ALL {
            assert!(Exit::table().contains(&format!("  {}  {}", exit.code(), exit.meaning())));
        }
    }
}
