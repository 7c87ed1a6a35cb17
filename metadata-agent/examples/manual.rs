//! Writes the man page and the shells' completions into a folder, for packages.
#![forbid(unsafe_code)]
use std::{fs::File, path::PathBuf};

use anyhow::Context as _;
use clap_complete::{Shell, generate_to};

fn main() -> anyhow::Result<()> {
    let folder: PathBuf = std::env::args_os().nth(1).context("no folder")?.into();
    let command = metadata_agent::cli::command();
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        generate_to(shell, &mut command.clone(), "metadata-agent", &folder)?;
    }
    // One with all commands, as administrators look for it.
    let mut page = File::create(folder.join("metadata-agent.8"))?;
    let manual = clap_mangen::Man::new(command.clone()).section("8");
    manual.render_title(&mut page)?;
    manual.render_name_section(&mut page)?;
    manual.render_synopsis_section(&mut page)?;
    manual.render_description_section(&mut page)?;
    for subcommand in command.get_subcommands().filter(|subcommand| !subcommand.is_hide_set()) {
        use std::io::Write as _;
        let name = subcommand.get_name();
        writeln!(page, ".SH \"{}\"", name.to_uppercase())?;
        let manual = clap_mangen::Man::new(subcommand.clone().bin_name(format!("metadata-agent {name}")));
        manual.render_synopsis_section(&mut page)?;
        manual.render_description_section(&mut page)?;
        manual.render_options_section(&mut page)?;
    }
    Ok(())
}
