//! The project's own habits: `cargo xtask test` installs what the tests need, checks formatting, lints and
//! licences, and runs every test; `cargo xtask lint` is the middle of it alone. `cargo xtask deb` makes a Debian package.

mod deb;
mod install;
mod licences;
mod software;

use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};

fn main() -> ExitCode {
    let task = std::env::args().nth(1).unwrap_or_default();
    let result = match task.as_str() {
        "test" => test(),
        "lint" => lint(),
        "install" => install::all().map(|_| ()),
        "deb" => deb::make(std::env::args_os().skip(2)),
        _ => {
            eprintln!("usage: cargo xtask test | lint | install | deb");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Everything that has to pass before a change lands. What the tests need comes over the network while the compiler works.
fn test() -> Result<()> {
    let tests = ["test", "--workspace", "--no-fail-fast"];
    let tools = std::thread::scope(|scope| {
        let installing = scope.spawn(install::all);
        let built = lint().and_then(|()| run(cargo(&tests).arg("--no-run")));
        let installed = installing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        built.and(installed)
    })?;
    // Root is needed for containers; the tests say so themselves where it is missing.
    let mut cargo = cargo(&tests);
    if let Some(tools) = tools {
        let path = std::env::var("PATH").unwrap_or_default();
        cargo.env("PATH", format!("{}:{path}", tools.display()));
    }
    run(&mut cargo)
}

/// Formatting, clippy with warnings denied, licences.
fn lint() -> Result<()> {
    run(&mut cargo(&["fmt", "--all", "--check"]))?;
    run(&mut cargo(&["clippy", "--workspace", "--all-targets", "--quiet", "--", "--deny", "warnings"]))?;
    licences::check()
}

/// Without what `cargo run` has told this program of itself: build scripts look at it, and would run again for a cargo that
/// is called by hand.
fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.env_remove("CARGO_MANIFEST_DIR").env_remove("CARGO_MANIFEST_PATH");
    command.args(arguments);
    command
}

fn run(command: &mut Command) -> Result<()> {
    eprintln!("+ {command:?}");
    let status = command.status().with_context(|| format!("{command:?} cannot be started"))?;
    if !status.success() {
        bail!("{command:?} failed ({status})");
    }
    Ok(())
}
