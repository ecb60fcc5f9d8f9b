//! Stands in for the real binary in this crate's tests: the same subcommands, nothing else.

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.split_first() {
        Some((command, rest)) if command == "shim" && rest.len() == 1 => {
            statefuld_node::shim::main(Path::new(&rest[0]))
        }
        Some((command, rest)) if command == "sample" => statefuld_node::sample::main(rest),
        _ => {
            eprintln!("usage: statefuld-node-helper shim DIR | sample [OPTIONS]");
            ExitCode::FAILURE
        }
    }
}
