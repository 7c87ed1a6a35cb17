//! `--config-file` and `--config-dir`, in the order of the command line: later ones win.
use std::path::PathBuf;

use anyhow::bail;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches, value_parser};

use crate::config::{self, Config, Place};

const FILE: &str = "config-file";
const FOLDER: &str = "config-dir";

/// Places of the configuration: files and folders.
#[derive(Debug, Default)]
pub(super) struct ConfigFiles(Vec<Place>);

impl ConfigFiles {
    /// True if there are any.
    pub(super) fn are_named(&self) -> bool {
        !self.0.is_empty()
    }

    pub(super) fn read(&self) -> anyhow::Result<Config> {
        if self.0.is_empty() {
            bail!("no configuration: name at least one with --{FILE} or --{FOLDER}");
        }
        Ok(Config::read(&self.0)?)
    }

    /// Effective configuration, as a file.
    pub(super) fn effective(&self) -> anyhow::Result<String> {
        Ok(config::effective(&self.0)?)
    }
}

impl Args for ConfigFiles {
    fn augment_args(command: Command) -> Command {
        let paths = |name, value, help| {
            let argument = Arg::new(name).long(name).value_name(value).help(help);
            argument.action(ArgAction::Append).value_parser(value_parser!(PathBuf))
        };
        command.args([
            paths(FILE, "FILE", "An INI file; this and the next may be given several times, later ones win"),
            paths(FOLDER, "FOLDER", "A folder of INI files (*.conf), read in the order of their names"),
        ])
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for ConfigFiles {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = |name, place: fn(PathBuf) -> Place| {
            let paths = matches.get_many::<PathBuf>(name).into_iter().flatten().cloned().map(place);
            matches.indices_of(name).into_iter().flatten().zip(paths)
        };
        let mut places: Vec<_> = given(FILE, Place::File).chain(given(FOLDER, Place::Folder)).collect();
        places.sort_by_key(|(index, _)| *index);
        Ok(Self(places.into_iter().map(|(_, place)| place).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_is_that_of_the_command_line() {
        let command = ConfigFiles::augment_args(Command::new("x"));
        let words = "x --config-dir a --config-file b --config-file=c --config-dir=d --config-file e";
        let matches = command.try_get_matches_from(words.split(' ')).unwrap();
        let ConfigFiles(places) = ConfigFiles::from_arg_matches(&matches).unwrap();
        let (file, folder) = (|path: &str| Place::File(path.into()), |path: &str| Place::Folder(path.into()));
        assert_eq!(places, [folder("a"), file("b"), file("c"), folder("d"), file("e")]);
    }
}
