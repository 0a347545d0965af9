//! The `cowl` program.

fn main() -> std::process::ExitCode {
    cowl::cli::main()
}
