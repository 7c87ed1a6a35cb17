//! The `metadata-agent` program.
#![forbid(unsafe_code)]
use std::process::ExitCode;

fn main() -> ExitCode {
    match metadata_agent::cli::run() {
        Ok(status) => status,
        Err(error) => {
            eprintln!("metadata-agent: {error:#}");
            metadata_agent::cli::status(&error)
        }
    }
}
