//! What helps at a prompt, generated from the command line's own definitions: completions and manual pages.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::CommandFactory as _;

use crate::cli::{self, Cli};
use crate::say;

/// `statefuld completions SHELL`.
pub fn completions(args: &cli::Completions) -> Result<ExitCode> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "statefuld", &mut text);
    say::print(String::from_utf8(text).context("the completions are not text")?.trim_end());
    Ok(ExitCode::SUCCESS)
}

/// `statefuld man [DIR]`.
pub fn pages(args: cli::Man) -> Result<ExitCode> {
    match args.folder {
        Some(folder) => write(&folder)?,
        None => say::print(page(&Cli::command())?.trim_end()),
    }
    Ok(ExitCode::SUCCESS)
}

/// A page for the program and one for each command that is not hidden.
fn write(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("{} cannot be made", folder.display()))?;
    let mut program = Cli::command();
    program.build();
    let put = |name: &str, command: &clap::Command| {
        let path = folder.join(format!("{name}.8"));
        std::fs::write(&path, page(command)?).with_context(|| format!("{} cannot be written", path.display()))
    };
    put("statefuld", &program)?;
    for command in program.get_subcommands().filter(|c| !c.is_hide_set()) {
        put(&format!("statefuld-{}", command.get_name()), command)?;
    }
    Ok(())
}

fn page(command: &clap::Command) -> Result<String> {
    let mut text = Vec::new();
    clap_mangen::Man::new(command.clone()).section("8").render(&mut text).context("the page cannot be made")?;
    String::from_utf8(text).context("the page is not text")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_that_people_use_has_a_page() {
        let dir = tempfile::tempdir().expect("a folder");
        write(dir.path()).expect("written");
        for name in ["statefuld", "statefuld-up", "statefuld-why", "statefuld-doctor", "statefuld-bench"] {
            let text = std::fs::read_to_string(dir.path().join(format!("{name}.8"))).expect(name);
            assert!(text.contains(".TH") && text.contains(".SH NAME"), "{name}");
        }
        assert!(!dir.path().join("statefuld-daemon.8").exists(), "hidden commands have none");
    }
}
