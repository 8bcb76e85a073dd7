//! `simulate`: runs seeds, replays one, checks that runs are repeatable, and proves with planted bugs
//! that the invariants can fail.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
