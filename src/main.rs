//! The `hatchery` command.

fn main() -> std::process::ExitCode {
    hatchery::cli::main()
}
