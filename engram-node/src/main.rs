//! The binary `engram`.

fn main() -> std::process::ExitCode {
    engram_node::cli::main()
}
