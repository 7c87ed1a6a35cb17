//! Writes what is made of the table of options: the sample configuration, and the table in `docs/configuration.md`.
#![forbid(unsafe_code)]
use std::{fs, path::Path};

use anyhow::Context as _;
use metadata_agent::config::{options_table, sample};

fn main() -> anyhow::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("no folder")?;
    fs::write(root.join("packaging/metadata-agent.conf"), sample())?;
    let file = root.join("docs/configuration.md");
    let document = fs::read_to_string(&file)?;
    let (before, rest) = document.split_once("<!-- options -->").context("no place for the table")?;
    let (_, after) = rest.split_once("<!-- end of options -->").context("the table has no end")?;
    let table = options_table();
    Ok(fs::write(file, format!("{before}<!-- options -->\n\n{table}\n<!-- end of options -->{after}"))?)
}
