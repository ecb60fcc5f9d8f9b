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
        let built = tidy().and_then(|()| run(linting(cargo(&tests).arg("--no-run"))));
        let installed = installing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        built.and(installed)
    })?;
    // Root is needed for containers; the tests say so themselves where it is missing.
    let mut cargo = cargo(&tests);
    // Whole instances mostly wait: one more of them at a time than there are processors.
    if std::env::var_os("RUST_TEST_THREADS").is_none() {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        cargo.env("RUST_TEST_THREADS", (processors + 1).to_string());
    }
    if let Some(tools) = tools {
        let path = std::env::var("PATH").unwrap_or_default();
        cargo.env("PATH", format!("{}:{path}", tools.display()));
    }
    run(linting(&mut cargo))
}

/// Formatting, clippy with warnings denied, licences.
fn lint() -> Result<()> {
    tidy()?;
    run(&mut cargo(&["clippy", "--workspace", "--all-targets", "--quiet", "--", "--deny", "warnings"]))
}

/// What needs no compiler.
fn tidy() -> Result<()> {
    run(&mut cargo(&["fmt", "--all", "--check"]))?;
    licences::check()
}

/// Has clippy compile what is ours, with warnings denied: as `cargo clippy` has it check, which from a clean checkout would
/// go through every dependency once more.
fn linting(command: &mut Command) -> &mut Command {
    command.env("RUSTC_WORKSPACE_WRAPPER", "clippy-driver").env("CLIPPY_ARGS", "--deny__CLIPPY_HACKERY__warnings")
}

/// Without what `cargo run` has told this program of itself: build scripts look at it, and would run again for a cargo that
/// is called by hand.
fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")) {
            command.env_remove(name);
        }
    }
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
