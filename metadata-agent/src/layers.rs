//! Layering, held against the sources: the two planes do not know each other, the settings know nobody, and
//! no imports go round in a circle.
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// The parts of the agent, each with those that it may import: of the ones above it.
const PARTS: &[(&str, &[&str])] = &[
    ("version", &[]),
    ("error_chain", &[]),
    ("boot_clock", &[]),
    ("files", &[]),
    ("handshakes", &[]),
    ("meminfo", &[]),
    ("memory", &[]),
    ("mounts", &[]),
    ("log_format", &[]),
    ("log_writer", &[]),
    ("notice", &[]),
    ("panics", &[]),
    ("race", &[]),
    ("tls", &[]),
    ("watchdog", &[]),
    ("config", &[]),
    ("logging", &["log_format", "log_writer", "panics", "config"]),
    ("descriptors", &[]),
    ("packets", &["descriptors"]),
    ("takeover", &["descriptors", "packets", "handshakes"]),
    ("directory", &["config"]),
    ("open_sources", &["directory"]),
    // What the two processes say to each other.
    ("link", &["packets", "config", "directory"]),
    ("startup", &["files", "config", "link"]),
    ("confinement", &["link"]),
    // The data plane: a process of its own.
    (
        "proxy",
        &[
            "boot_clock",
            "error_chain",
            "meminfo",
            "notice",
            "panics",
            "race",
            "tls",
            "config",
            "directory",
            "link",
        ],
    ),
    // The control plane.
    ("watchers", &[]),
    ("admin", &["watchers"]),
    ("nova", &["error_chain", "notice", "race", "tls", "config", "link"]),
    ("datapath", &["error_chain", "descriptors", "handshakes", "config", "directory"]),
    ("health", &["datapath", "link", "nova"]),
    ("explain", &["datapath", "directory", "link"]),
    (
        "supervisor",
        &["descriptors", "packets", "handshakes", "config", "directory", "link", "nova", "health"],
    ),
    ("inventory", &["files", "directory", "datapath", "health", "explain"]),
    // A node that changes hands; no part of a running agent.
    ("migration", &["descriptors", "datapath", "inventory"]),
    ("tokens", &["files", "config", "directory", "datapath"]),
    (
        "reconcile",
        &["boot_clock", "directory", "link", "datapath", "health", "explain", "inventory", "tokens"],
    ),
    ("metrics", &["version", "inventory", "reconcile"]),
    (
        "control",
        &[
            "descriptors",
            "logging",
            "takeover",
            "config",
            "directory",
            "admin",
            "datapath",
            "health",
            "explain",
            "link",
            "inventory",
            "reconcile",
            "metrics",
            "nova",
            "watchers",
        ],
    ),
    // What puts both together.
    (
        "cli",
        &[
            "version",
            "boot_clock",
            "files",
            "memory",
            "mounts",
            "descriptors",
            "packets",
            "tls",
            "watchdog",
            "logging",
            "startup",
            "takeover",
            "config",
            "directory",
            "open_sources",
            "link",
            "confinement",
            "proxy",
            "nova",
            "supervisor",
            "watchers",
            "admin",
            "datapath",
            "health",
            "explain",
            "inventory",
            "migration",
            "tokens",
            "reconcile",
            "metrics",
            "control",
        ],
    ),
];

const CONTROL_PLANE: [&str; 12] = [
    "watchers",
    "explain",
    "admin",
    "datapath",
    "health",
    "inventory",
    "tokens",
    "reconcile",
    "metrics",
    "control",
    "nova",
    "supervisor",
];

/// The path of a module or of what is in one, from the crate's root.
type ModulePath = Vec<String>;

/// A module's source.
type Sources = BTreeMap<ModulePath, String>;

/// A path in the code of a module that leads out of it, or to where it may.
#[derive(Debug)]
struct Import {
    from: ModulePath,
    to: ModulePath,
    is_of_tests: bool,
}

/// Everything that is imported and should not be.
fn problems(sources: &Sources) -> Vec<String> {
    let mut reader = Reader::default();
    for (module, source) in sources {
        let tokens: TokenStream = source.parse().unwrap_or_else(|error| panic!("{module:?}: {error}"));
        reader.read(module, tokens, false);
    }
    let Reader { mut imports, test_modules } = reader;
    for import in &mut imports {
        import.is_of_tests |= test_modules.iter().any(|module| import.from.starts_with(module));
    }
    forbidden(&imports, &test_modules).into_iter().chain(circles(&imports, sources)).collect()
}

/// Imports of a part that it may not have.
fn forbidden(imports: &[Import], test_modules: &BTreeSet<ModulePath>) -> Vec<String> {
    let is_test_module = |part: &String| test_modules.contains(std::slice::from_ref(part));
    let parts = imports.iter().filter_map(|import| Some((import.from.first()?, import)));
    let problem = |(part, import): (&String, &Import)| {
        let to = import.to.join("::");
        let Some(wanted) = import.to.first() else {
            return Some(format!("{part} imports the whole crate, or its root"));
        };
        let Some((_, allowed)) = PARTS.iter().find(|(name, _)| name == part) else {
            return Some(format!("{part} is no part that is known here, and imports {to}"));
        };
        (wanted != part && !allowed.contains(&wanted.as_str())).then(|| format!("{part} imports {to}"))
    };
    parts.filter(|(part, _)| !is_test_module(part)).filter_map(problem).collect()
}

/// Modules side by side that import each other, whatever of them does. Tests may: they begin what they test.
fn circles(imports: &[Import], sources: &Sources) -> Vec<String> {
    let mut reaches: BTreeMap<ModulePath, BTreeSet<ModulePath>> = BTreeMap::new();
    for Import { from, to, .. } in imports.iter().filter(|import| !import.is_of_tests) {
        let shared = from.iter().zip(to).take_while(|(one, other)| one == other).count();
        if let (Some(one), Some(other)) = (from.get(..=shared), to.get(..=shared))
            && sources.contains_key(other)
        {
            reaches.entry(one.to_vec()).or_default().insert(other.to_vec());
        }
    }
    // All that can be reached, by as many steps as there are modules.
    for _ in 0..reaches.len() {
        let before = reaches.clone();
        for reached in reaches.values_mut() {
            let further = reached.iter().filter_map(|module| before.get(module)).flatten();
            *reached = further.chain(reached.iter()).cloned().collect();
        }
    }
    let in_circle = reaches.iter().filter(|(module, reached)| reached.contains(*module));
    in_circle.map(|(module, _)| format!("{} is in a circle", module.join("::"))).collect()
}

/// Finds the paths in sources that begin with `crate`, `super` or `self`, in macros' arguments too.
#[derive(Debug, Default)]
struct Reader {
    imports: Vec<Import>,
    test_modules: BTreeSet<ModulePath>,
}

impl Reader {
    fn read(&mut self, module: &[String], tokens: TokenStream, is_of_tests: bool) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let mut at = 0;
        while at < tokens.len() {
            let rest = &tokens[at..];
            at += match rest {
                [TokenTree::Punct(_), TokenTree::Group(attribute), item @ ..]
                    if attribute.stream().to_string().replace(' ', "") == "cfg(test)" =>
                {
                    // Up to the end of what it stands before.
                    let is_end = |token: &TokenTree| match token {
                        TokenTree::Punct(punct) => punct.as_char() == ';',
                        TokenTree::Group(group) => group.delimiter() == Delimiter::Brace,
                        _ => false,
                    };
                    let length = item.iter().position(is_end).map_or(item.len(), |end| end + 1);
                    if let [TokenTree::Ident(word), TokenTree::Ident(name), TokenTree::Punct(_), ..] = item
                        && word == "mod"
                    {
                        self.test_modules.insert(below(module, name));
                    }
                    self.read(module, item[..length].iter().cloned().collect(), true);
                    2 + length
                }
                [TokenTree::Ident(word), TokenTree::Ident(name), TokenTree::Group(body), ..]
                    if word == "mod" && body.delimiter() == Delimiter::Brace =>
                {
                    self.read(&below(module, name), body.stream(), is_of_tests);
                    3
                }
                [TokenTree::Ident(word), ..] if separator(&rest[1..]) => match word.to_string().as_str() {
                    "crate" => self.read_path(module, Vec::new(), &rest[1..], is_of_tests),
                    "self" => self.read_path(module, module.to_vec(), &rest[1..], is_of_tests),
                    "super" => self.read_path(module, above(module), &rest[1..], is_of_tests),
                    _ => 0,
                }
                .saturating_add(1),
                [TokenTree::Group(group), ..] => {
                    self.read(module, group.stream(), is_of_tests);
                    1
                }
                _ => 1,
            };
        }
    }

    /// Notes where the path leads that begins with `base` and goes on with `tokens`, of which it returns the number.
    fn read_path(
        &mut self,
        module: &[String],
        base: ModulePath,
        tokens: &[TokenTree],
        is_of_tests: bool,
    ) -> usize {
        let mut to = base;
        let mut at = 0;
        while separator(&tokens[at..]) {
            match tokens.get(at + 2) {
                Some(TokenTree::Ident(name)) if name == "super" => to = above(&to),
                Some(TokenTree::Ident(name)) if name == "self" => {}
                Some(TokenTree::Ident(name)) => to.push(name.to_string()),
                Some(TokenTree::Group(group)) => {
                    let members: Vec<TokenTree> = group.stream().into_iter().collect();
                    let is_comma = |token: &TokenTree| matches!(token, TokenTree::Punct(punct) if punct.as_char() == ',');
                    for member in members.split(is_comma).filter(|member| !member.is_empty()) {
                        // As it would stand behind the path.
                        let colons: TokenStream = "::".parse().unwrap();
                        let member: Vec<_> = colons.into_iter().chain(member.iter().cloned()).collect();
                        self.read_path(module, to.clone(), &member, is_of_tests);
                    }
                    return at + 3;
                }
                // All of it, or a type's arguments.
                _ => break,
            }
            at += 3;
        }
        self.imports.push(Import { from: module.to_vec(), to, is_of_tests });
        at
    }
}

fn separator(tokens: &[TokenTree]) -> bool {
    let is_colon = |token: &TokenTree| matches!(token, TokenTree::Punct(punct) if punct.as_char() == ':');
    matches!(tokens, [one, other, ..] if is_colon(one) && is_colon(other))
}

fn below(module: &[String], name: &impl ToString) -> ModulePath {
    [module, &[name.to_string()]].concat()
}

fn above(module: &[String]) -> ModulePath {
    module[..module.len().saturating_sub(1)].to_vec()
}

/// The files of this crate.
fn sources(folder: &Path, module: &[String], found: &mut Sources) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        if path.is_dir() {
            sources(&path, &below(module, &name), found);
        } else if path.extension().is_some_and(|extension| extension == "rs") && name != "main" {
            let own = if matches!(name, "lib" | "mod") { module.to_vec() } else { below(module, &name) };
            found.insert(own, fs::read_to_string(&path).unwrap());
        }
    }
}

#[test]
fn the_planes_do_not_know_each_other() {
    let mut found = Sources::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &[], &mut found);
    for (part, _) in PARTS {
        assert!(found.contains_key(&[(*part).to_owned()][..]), "{part} is gone");
    }
    let problems = problems(&found);
    assert!(problems.is_empty(), "{problems:#?}");
}

#[test]
fn each_part_imports_of_those_above_it() {
    for (at, (part, allowed)) in PARTS.iter().enumerate() {
        let is_above = |wanted: &str| PARTS[..at].iter().any(|(other, _)| *other == wanted);
        assert!(allowed.iter().all(|wanted| is_above(wanted)), "{part}");
    }
    for (part, allowed) in PARTS {
        let of_control = |part: &&str| CONTROL_PLANE.contains(part);
        let crosses = (of_control(part) && allowed.contains(&"proxy"))
            || (*part == "proxy" && allowed.iter().any(of_control));
        assert!(!crosses, "{part} knows the other plane");
    }
}

#[test]
fn every_way_to_import_is_seen() {
    let found = |module: &[&str], source: &str| {
        let modules: [(&[&str], &str); 6] = [
            (&[], "mod proxy; mod health; mod control; #[cfg(test)] mod layers;"),
            (&["proxy"], "mod server; mod metrics;"),
            (&["proxy", "metrics"], "use super::server::Proxy;"),
            (&["health"], "use crate::datapath::Family;"),
            (&["control"], ""),
            (module, source),
        ];
        let owned = |path: &[&str]| path.iter().map(|name| (*name).to_owned()).collect::<ModulePath>();
        problems(&modules.into_iter().map(|(path, source)| (owned(path), source.to_owned())).collect())
    };
    let server: &[&str] = &["proxy", "server"];
    for source in [
        "use crate::health::Problem;",
        "use crate::{config, health::{Problem, Health as H}};",
        "use crate::health;",
        "fn f() { let x = crate::health::f(|y| y); }",
        "fn f() { info!(x = crate::health::X, \"text\"); }",
        "fn f(x: &dyn crate::health::X) {}",
        "use super::super::health::Problem;",
        "mod inner { use super::super::super::health::Problem; }",
        "#[cfg(test)] mod tests { use crate::health::Problem; }",
        "#[cfg(test)] mod tests { mod more { use super::super::super::super::health::Problem; } }",
    ] {
        assert_eq!(found(server, source).len(), if source.contains("H}") { 2 } else { 1 }, "{source}");
    }
    assert_eq!(found(&["health"], "use super::proxy::Nova;"), ["health imports proxy::Nova"]);
    assert_eq!(found(server, "use crate::*;"), ["proxy imports the whole crate, or its root"]);
    assert_eq!(found(server, "use crate::{self as all};"), ["proxy imports the whole crate, or its root"]);
    assert_eq!(found(server, "use crate::Nova;"), ["proxy imports Nova"]);
    assert_eq!(
        found(&["new"], "use crate::proxy;"),
        ["new is no part that is known here, and imports proxy"]
    );
    assert_eq!(
        found(server, "use super::{metrics::Metrics};"),
        ["proxy::metrics is in a circle", "proxy::server is in a circle"]
    );
    for source in [
        "",
        "// crate::health\n/// crate::health\nconst X: &str = \"crate::health\";",
        "use crate::config::Limits; use super::{self, health}; pub(crate) fn f() {}",
        "mod health {} use self::health::X;",
        "#[cfg(test)] mod tests { use super::super::metrics::Metrics; }",
    ] {
        assert_eq!(found(server, source), Vec::<String>::new(), "{source}");
    }
    assert_eq!(found(&["layers"], "use crate::{proxy, health};"), Vec::<String>::new());
}
