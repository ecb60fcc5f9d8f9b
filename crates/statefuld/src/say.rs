//! Prints for people and programs. Whoever has stopped reading (a closed pipe) does not stop us.

use std::fmt::Display;
use std::io::Write as _;

/// A line of progress or an error: standard error.
pub fn note(text: impl Display) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// What the command was run for: standard output.
pub fn print(text: impl Display) {
    let _ = writeln!(std::io::stdout(), "{text}");
}
