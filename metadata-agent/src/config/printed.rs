//! The table of options, printed: as a sample configuration, as the table of the documentation, and as what is in effect.
use super::{
    Error, Place, defaults,
    ini::{Ini, Value},
    read, references,
    setting::{Entry, Preset},
    table::{OWN, TABLE},
};

/// Columns of the sample's comments.
const COLUMNS: usize = 100;

/// Our section with all of its options, each with its meaning and commented out: `/etc/metadata-agent.conf` of the package.
pub fn sample() -> String {
    let mut text = String::from(
        "# Options of the metadata agent's own, each with its default. Those that Neutron has stay in its files, which the unit\n\
         # names as well. `metadata-agent check-config` says what is in effect, and what cannot be used.\n",
    );
    text.push_str(&format!("[{OWN}]\n"));
    for entry in TABLE.iter().filter(|entry| entry.section() == OWN) {
        text.push('\n');
        let comment =
            [entry.meaning().to_owned(), format!("Values: {}.", entry.range().trim_end_matches('.'))];
        for line in comment.iter().flat_map(|part| wrapped(&part.replace('`', "'"))) {
            text.push_str(&format!("# {line}\n"));
        }
        let value = match entry.preset() {
            Preset::Text(text) => text,
            Preset::Required { .. } => "",
        };
        text.push_str(format!("#{} = {value}", entry.name()).trim_end());
        text.push('\n');
    }
    text
}

/// All options as a table of Markdown, for a document of the folder `docs`.
pub fn options_table() -> String {
    let mut text =
        String::from("| section | option | default | values | |\n| --- | --- | --- | --- | --- |\n");
    for entry in TABLE {
        let default = match entry.preset() {
            Preset::Text("") => String::new(),
            Preset::Text(text) => format!("`{text}`"),
            Preset::Required { .. } => "must be set".into(),
        };
        let (section, name, range) = (entry.section(), entry.name(), entry.range());
        text.push_str(&format!(
            "| {section} | {name} | {default} | {range} | {} |\n",
            linked(entry.meaning()).replace('|', "\\|")
        ));
    }
    text
}

/// Effective configuration, as a file that means the same: options that have their default are commented out, the
/// others stand below the place that they are from. The secret is not shown, and neither is what refers to it or to an
/// option that is none of the table: the reference is.
pub fn effective(places: &[Place]) -> Result<String, Error> {
    let ini = read(places)?;
    let shown = shown(&ini);
    let mut text = String::new();
    let mut section = "";
    for entry in TABLE {
        if entry.section() != section {
            section = entry.section();
            let gap = if text.is_empty() { "" } else { "\n" };
            text.push_str(&format!("{gap}[{section}]\n"));
        }
        text.push_str(&in_effect(*entry, &ini, &shown));
    }
    Ok(text)
}

fn in_effect(entry: &dyn Entry, ini: &Ini, shown: &Ini) -> String {
    let (section, name) = (entry.section(), entry.name());
    match (ini.raw(section, name), entry.preset()) {
        (Some(Value { text, origin }), _) => {
            let resolved = references::resolve(shown, section, text);
            // A dollar sign of the value would be a reference once more.
            let value = resolved.map_or_else(|_| text.clone(), |resolved| resolved.replace('$', "$$"));
            let value = entry.shown(&value).replace('\n', "\n    ");
            format!("# {origin}\n{name} = {value}\n")
        }
        (None, Preset::Text(default)) => format!("{}\n", format!("#{name} = {default}").trim_end()),
        (None, Preset::Required { .. }) => String::new(),
    }
}

/// The options that anybody may see: those of the table and those of Neutron's that the agent knows a default of, without
/// the secret.
fn shown(ini: &Ini) -> Ini {
    ini.filtered(|section, option, value| {
        defaults::of(section, option)?;
        let entry = TABLE.iter().find(|entry| (entry.section(), entry.name()) == (section, option));
        Some(entry.map_or_else(|| value.to_owned(), |entry| entry.shown(value)))
    })
}

/// References to documents as links from one of them.
fn linked(text: &str) -> String {
    let link = |word: &str| {
        let name = word.trim_start_matches("docs/").trim_end_matches(['.', ',', ';']);
        let rest = &word["docs/".len() + name.len()..];
        format!("[{name}]({name}){rest}")
    };
    let words =
        text.split(' ').map(|word| if word.starts_with("docs/") { link(word) } else { word.to_owned() });
    words.collect::<Vec<_>>().join(" ")
}

fn wrapped(text: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if !line.is_empty() && line.len() + 1 + word.len() > COLUMNS => {
                lines.push(word.to_owned());
            }
            Some(line) => {
                if !line.is_empty() {
                    line.push(' ');
                }
                line.push_str(word);
            }
            None => {}
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::Path as FilePath};

    use super::*;
    use crate::config::{Config, Options};

    fn ini(text: &str) -> Ini {
        let mut ini = Ini::default();
        ini.parse(FilePath::new("test.ini"), text).unwrap();
        ini
    }

    fn printed(text: &str) -> String {
        let (ini, shown) = (ini(text), shown(&ini(text)));
        TABLE.iter().map(|entry| in_effect(*entry, &ini, &shown)).collect()
    }

    #[test]
    fn every_option_is_declared_once_and_its_default_is_one_of_its_values() {
        let names: BTreeSet<_> = TABLE.iter().map(|entry| (entry.section(), entry.name())).collect();
        assert_eq!(names.len(), TABLE.len());
        for entry in TABLE {
            if let Preset::Text(text) = entry.preset() {
                assert_eq!(entry.check(text), Ok(()), "{}", entry.name());
            }
            let meaning = entry.meaning();
            assert!(meaning.ends_with('.') && meaning.matches('`').count() % 2 == 0, "{meaning}");
        }
    }

    /// `cargo run -p metadata-agent --example options` writes them.
    #[test]
    fn files_of_the_repository_are_those_of_the_table() {
        let root = FilePath::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let read = |name: &str| fs::read_to_string(root.join(name)).unwrap();
        let remedy = "write it anew: cargo run -p metadata-agent --example options";
        assert_eq!(read("packaging/metadata-agent.conf"), sample(), "{remedy}");
        let document = read("docs/configuration.md");
        let (_, table) = document.split_once("<!-- options -->\n\n").unwrap();
        let (table, _) = table.split_once("\n<!-- end of options -->").unwrap();
        assert_eq!(table, options_table(), "{remedy}");
    }

    #[test]
    fn the_sample_means_the_defaults() {
        let secret = "[DEFAULT]\nmetadata_proxy_shared_secret = s\n";
        let uncommented: String = sample()
            .lines()
            .filter(|line| !line.starts_with("# "))
            .map(|line| line.trim_start_matches('#').to_owned() + "\n")
            .collect();
        assert!(uncommented.lines().count() > 30, "{uncommented}");
        let ini = ini(&format!("{secret}{uncommented}"));
        let config = Config::from_ini(&Options::new(&ini)).unwrap();
        assert_eq!(config.differing, ["[DEFAULT] metadata_proxy_shared_secret = (set)"]);
    }

    #[test]
    fn what_is_in_effect_means_the_same_and_has_no_secret() {
        let text = "[DEFAULT]\nmetadata_proxy_shared_secret = s3cret\nstate_path = /srv\n\
            nova_metadata_host = a,\n  b\nauth_ca_cert = ${state_path}/$$ca\n[ovs]\n\
            ovsdb_connection = unix:/$metadata_proxy_shared_secret\n[database]\nconnection = p4ssword\n\
            [ovn]\novn_sb_ca_cert = /${database.connection}\n[metadata_ebpf]\nworkers = 3\n";
        let printed = printed(text);
        for line in [
            "# test.ini:2\nmetadata_proxy_shared_secret = (set)\n",
            "# test.ini:4\nnova_metadata_host = a,\n    b\n",
            "auth_ca_cert = /srv/$$ca\n",
            "ovsdb_connection = unix:/(set)\n",
            "ovn_sb_ca_cert = /${database.connection}\n",
            "\n#nova_metadata_port = 8775\n",
            "# test.ini:14\nworkers = 3\n",
            "\n#inventory =\n",
        ] {
            assert!(printed.contains(line), "{line}: {printed}");
        }
        assert!(!printed.contains("s3cret") && !printed.contains("p4ssword"), "{printed}");
    }
}
