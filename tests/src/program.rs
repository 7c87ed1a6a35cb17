//! The program under test: found where it was built, and refused if a source is newer.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};

const BINARY: &str = "METADATA_AGENT_BIN";

/// The agent that was built: named in the environment, or found in the target directory that we are in ourselves.
pub fn of_agent() -> Result<PathBuf> {
    let binary = match std::env::var_os(BINARY) {
        Some(path) => PathBuf::from(path),
        None => {
            let ours = std::env::current_exe()?;
            // Tests are one directory below it.
            let folder = ours.ancestors().skip(1).find(|folder| !folder.ends_with("deps"));
            folder.context("the test program is nowhere")?.join("metadata-agent")
        }
    };
    ensure!(
        binary.is_file(),
        "there is no {} ({BINARY} may name another): `cargo xtask test` and `cargo xtask demo` build it",
        binary.display()
    );
    is_current(&binary)?;
    Ok(binary)
}

/// An error if a source is newer than the program: a test of a former one would tell lies. Sources are those that cargo has noted
/// beside it; a program without such a note is somebody's who knows which it is.
fn is_current(binary: &Path) -> Result<()> {
    let Ok(note) = fs::read_to_string(binary.with_extension("d")) else { return Ok(()) };
    let built = fs::metadata(binary)?.modified()?;
    let (_, sources) = note.split_once(": ").context("cargo's note of the agent's sources has no list")?;
    // A commit changes the version's name, and nothing that is tested.
    for source in sources.split_whitespace().filter(|source| !source.contains("/.git/")) {
        // What is gone is not newer; cargo finds it out.
        let Ok(changed) = fs::metadata(source).and_then(|source| source.modified()) else { continue };
        ensure!(
            changed <= built,
            "{} is older than {source}: `cargo build -p metadata-agent` first, or `cargo xtask test NAME`",
            binary.display()
        );
    }
    Ok(())
}
