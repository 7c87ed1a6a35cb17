//! Compares what we read with what the real oslo.config reads, on random files and command lines.
use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use fuzz::{Random, fuzz};
use serde::Deserialize;

use super::{defaults, ini::DEFAULT, options::Options, *};

/// Debian's, which has Debian's python3-oslo.config, whatever else is in the path.
const PYTHON: &str = "/usr/bin/python3";
/// Configurations for each start of Python.
const BATCH: usize = 50;

const SECTIONS: &[&str] =
    &["DEFAULT", "DEFAULT", "DEFAULT", "ovn", "ovn", "ovs", "OVN", "Ovs", "default", "Default"];
const KEYS: &[&str] = &[
    "state_path",
    "bind_host",
    "metadata_proxy_socket",
    "metadata_proxy_shared_secret",
    "auth_ca_cert",
    "nova_client_cert",
    "ovn_sb_connection",
    "ovn_sb_private_key",
    "ovn_sb_ca_cert",
    "ovsdb_connection",
    "State_path",
    "other",
];
const PIECES: &[&str] = &[
    "a",
    "/srv",
    "tcp:127.0.0.1:6642",
    "ä",
    " ",
    ",",
    "=",
    ":",
    "#",
    ";",
    "[x]",
    "'",
    "\"",
    "\\",
    "\t",
    "\x1c",
    "\u{85}",
    "$",
    "$$",
    "\\$",
    "${",
    "}",
    "$state_path",
    "${state_path}",
    "$bind_host.",
    "${ovn.ovn_sb_private_key}",
    "$ovn.ovn_sb_ca_cert",
    "$auth_ca_cert",
    "${ovs.ovsdb_connection}",
    "$nothing",
    "${no.where}",
    "${ovn.nothing}",
    "$1",
    "${state path}",
    "$metadata_proxy_socket",
    "$nova_client_cert",
];
const SPACES: &[&str] = &["", "", " ", "\t", "  ", "\x1f"];
const ENDS: &[&str] = &["\n", "\n", "\n", "\r\n", "\r", "\n\n", "\n \n"];
/// Names in a folder; some are not read.
const NAMES: &[&str] =
    &["10-a.conf", "9-b.conf", "B.conf", "a.conf", ".dot.conf", ".conf", "c.CONF", "d.conf~", "e.ini"];

#[test]
fn files_are_read_as_oslo_config_reads_them() {
    let folder = Folder::new("files");
    fuzz("oslo_config", |random| {
        let cases: Vec<Vec<Place>> = (0..BATCH).map(|index| case(random, &folder.0, index)).collect();
        for (case, theirs) in cases.iter().zip(oslo(&cases)) {
            let ours = read(case).map_err(|error| error.to_string()).and_then(|ini| {
                // An option of the command line is looked at whatever else is wanted.
                match value(&ini, DEFAULT, "state_path") {
                    Reading::Text(_) => Ok(ini),
                    Reading::Error(error) => Err(error),
                }
            });
            let Theirs::Values(values) = &theirs else {
                assert!(ours.is_err(), "{theirs:?}, and we read {}", shown(case));
                continue;
            };
            let ini = ours.unwrap_or_else(|error| panic!("{error}, and oslo.config reads {}", shown(case)));
            for (section, option, theirs) in values {
                // Those of the others are not texts.
                if let Some(option) = KEYS.iter().find(|key| *key == option) {
                    let section = SECTIONS.iter().find(|known| *known == section).unwrap();
                    assert_eq!(
                        value(&ini, section, option),
                        *theirs,
                        "[{section}] {option} of {}",
                        shown(case)
                    );
                }
            }
        }
    });
}

#[test]
fn values_mean_what_they_mean_to_oslo_config() {
    /// Good for oslo.config, and of no use to anybody.
    const USELESS: &[(&str, &str)] = &[("nova_metadata_port", ""), ("nova_metadata_port", "0")];
    /// More than one name or address, or one as it stands in a URL, is only ours.
    const OURS: &[(&str, &str)] =
        &[("nova_metadata_host", "[::1]"), ("nova_metadata_host", "a_b.example.com")];
    let values = [
        ("nova_metadata_port", &["8775", " 0775 ", "+1", "", "0", "-1", "65535", "65536", "1.5", "x"][..]),
        ("debug", &["true", "TRUE", "1", "on", "yes", "No", "0", "oFf", "false", "", "2", "t", "enabled"]),
        (
            "nova_metadata_host",
            &[
                "127.0.0.1",
                "::1",
                "fd00::1",
                "[::1]",
                "nova",
                "nova.example.com",
                "nova.example.com.",
                "Nova",
                "1.2.3",
                "1.2.3.4.",
                "300.1.1.1",
                "-a",
                "a-",
                "a..b",
                ".",
                "",
                "1a",
                "a.1",
                "a.1b",
                "a_b.example.com",
                "a/b",
                "$nova",
                "fd00::g",
                "xn--bcher-kva.example",
                "b\u{fc}cher.example",
            ],
        ),
        ("nova_metadata_protocol", &["http", "https", "http ", "HTTP", "", "ftp"]),
    ];
    let folder = Folder::new("values");
    let mut cases = Vec::new();
    for (option, values) in values {
        for value in values {
            let path = folder.0.join(cases.len().to_string());
            let secret = "metadata_proxy_shared_secret = s";
            fs::write(&path, format!("[DEFAULT]\n{secret}\n{option} = {value}\n")).unwrap();
            cases.push((option, *value, vec![Place::File(path)]));
        }
    }
    let places: Vec<_> = cases.iter().map(|(.., places)| places.clone()).collect();
    for ((option, value, places), theirs) in cases.iter().zip(oslo(&places)) {
        let Theirs::Values(theirs) = theirs else { panic!("{theirs:?}") };
        let theirs = theirs.into_iter().find_map(|(_, name, value)| (name == *option).then_some(value));
        let ours = Config::read(places).map(|config| match *option {
            "nova_metadata_port" => config.nova.endpoints[0].port.to_string(),
            "nova_metadata_host" => config.nova.endpoints[0].host.clone(),
            "nova_metadata_protocol" => if config.nova.tls.is_some() { "https" } else { "http" }.to_owned(),
            "debug" => if config.debug { "True" } else { "False" }.to_owned(),
            other => panic!("{other}"),
        });
        let ours = match ours {
            Ok(text) => Reading::Text(Some(text)),
            Err(error) => Reading::Error(error.to_string()),
        };
        match theirs.unwrap() {
            Reading::Text(_) if USELESS.contains(&(*option, *value)) => {
                assert!(matches!(ours, Reading::Error(_)), "{option} = {value:?}: {ours:?}");
            }
            Reading::Error(_) if OURS.contains(&(*option, *value)) => {
                assert!(matches!(ours, Reading::Text(_)), "{option} = {value:?}: {ours:?}");
            }
            theirs => assert_eq!(ours, theirs, "{option} = {value:?}"),
        }
    }
}

/// One of ours, as a text: an option that is set nowhere is its default.
fn value(ini: &Ini, section: &'static str, option: &'static str) -> Reading {
    match Options::new(ini).text(section, option) {
        Ok(Some(value)) => Reading::Text(Some(value.text)),
        Ok(None) => {
            let default = defaults::of(section, option).map(|text| references::resolve(ini, section, &text));
            match default.transpose() {
                Ok(text) => Reading::Text(text.filter(|_| option != "auth_ca_cert")),
                Err(_) => Reading::Error(String::new()),
            }
        }
        Err(error) => Reading::Error(error.to_string()),
    }
}

/// The answer of `oslo.py` for a configuration.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Theirs {
    Values(Vec<(String, String, Reading)>),
    Error(#[expect(dead_code, reason = "shown when a test fails")] String),
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Reading {
    Text(Option<String>),
    Error(String),
}

impl PartialEq for Reading {
    /// The texts of errors are each one's own.
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Text(a), Self::Text(b)) => a == b,
            (Self::Error(_), Self::Error(_)) => true,
            _ => false,
        }
    }
}

fn oslo(cases: &[Vec<Place>]) -> Vec<Theirs> {
    let arguments = |case: &Vec<Place>| -> Vec<String> {
        let argument = |place: &Place| match place {
            Place::File(path) => ["--config-file".to_owned(), path.display().to_string()],
            Place::Folder(path) => ["--config-dir".to_owned(), path.display().to_string()],
        };
        case.iter().flat_map(argument).collect()
    };
    let lines: Vec<String> =
        cases.iter().map(|case| serde_json::to_string(&arguments(case)).unwrap() + "\n").collect();
    let mut python = Command::new(PYTHON);
    python.args(["-c", include_str!("oslo.py")]).env_clear().env("LC_ALL", "C.UTF-8");
    let mut child =
        python.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || stdin.write_all(lines.concat().as_bytes()));
    let output = child.wait_with_output().unwrap();
    // One that ended before it read all has something to say on stderr.
    let _ = writer.join().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{PYTHON} (python3-oslo.config is needed, `cargo xtask setup`): {stderr}"
    );
    let answers = String::from_utf8(output.stdout).unwrap();
    let answers: Vec<_> = answers.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(answers.len(), cases.len());
    answers
}

/// A few files and folders, as the command line names them.
fn case(random: &mut Random, folder: &Path, index: usize) -> Vec<Place> {
    let place = |random: &mut Random, number: usize| {
        let path = folder.join(format!("{index}-{number}"));
        if random.once_in(2) {
            fs::write(&path, text(random)).unwrap();
            return Place::File(path);
        }
        fs::create_dir(&path).unwrap();
        for name in NAMES {
            if random.once_in(2) {
                // What is not read may hold anything.
                let is_read = !name.starts_with('.') && name.ends_with(".conf");
                let text = if is_read { text(random) } else { "[x\n".to_owned() };
                fs::write(path.join(name), text).unwrap();
            }
        }
        Place::Folder(path)
    };
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        if entry.file_name().to_str().unwrap().starts_with(&format!("{index}-")) {
            remove(&entry.path());
        }
    }
    (0..1 + random.below(3)).map(|number| place(random, number)).collect()
}

/// A file's text: mostly in order, for what is not ends the reading.
fn text(random: &mut Random) -> String {
    let mut text = String::new();
    if !random.once_in(60) {
        text.push_str("[DEFAULT]\n");
    }
    for _ in 0..random.below(8) {
        match random.below(10) {
            0..3 => text.push_str(&format!("[{}]{}", random.pick(SECTIONS), random.pick(SPACES))),
            3 => text.push_str(random.pick(&["# x = 1", ";", "#"])),
            4 if random.once_in(10) => {
                text.push_str(random.pick(&[
                    "[ovn",
                    "[]",
                    "[ovn] #",
                    "= x",
                    "nothing",
                    "\u{feff}x = 1",
                    " [ovn]",
                ]));
            }
            _ => {
                let sign = random.pick(&["=", ":"]);
                text.push_str(random.pick(KEYS));
                text.push_str(&[random.pick(SPACES), sign, random.pick(SPACES), &pieces(random)].concat());
                for _ in 0..random.below(6).saturating_sub(3) {
                    text.push_str(
                        &["\n", random.pick(&[" ", "\t"]), random.pick(SPACES), "a", &pieces(random)]
                            .concat(),
                    );
                }
            }
        }
        text.push_str(random.pick(ENDS));
    }
    text
}

fn pieces(random: &mut Random) -> String {
    (0..random.below(4)).map(|_| random.pick(PIECES)).collect()
}

fn shown(case: &[Place]) -> String {
    let file = |path: &Path| format!("{} {:?}\n", path.display(), fs::read_to_string(path).unwrap());
    let place = |place: &Place| match place {
        Place::File(path) => file(path),
        Place::Folder(path) => files(path).unwrap().iter().map(|path| file(path)).collect(),
    };
    case.iter().map(place).collect()
}

fn remove(path: &Path) {
    if path.is_dir() { fs::remove_dir_all(path).unwrap() } else { fs::remove_file(path).unwrap() }
}

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("metadata-agent-oslo-{name}-{}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        remove(&self.0);
    }
}
