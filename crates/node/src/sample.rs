//! The journal server of the built-in image.

use std::process::ExitCode;

/// `statefuld sample [--listen ADDRESS:PORT] [--data DIR]`; `args` are those after `sample`.
pub fn main(_args: &[String]) -> ExitCode {
    ExitCode::FAILURE
}
