//! References in values, as oslo.config replaces them: `$name`, `${name}` and `${group.name}`; `$$` and `\$` are a dollar.
//!
//! A name is looked for in the value's own section and then in DEFAULT, and is that option's default when no file sets it.
use super::{
    defaults,
    ini::{DEFAULT, Ini, normalized},
};

/// Deeper nesting than this can only be a circle.
const MAX_DEPTH: usize = 16;

/// A reference to an option that does not exist, or to itself.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unresolved;

/// The text with all references replaced.
pub(super) fn resolve(ini: &Ini, section: &str, text: &str) -> Result<String, Unresolved> {
    substitute(ini, section, text, 0)
}

fn substitute(ini: &Ini, section: &str, text: &str, depth: usize) -> Result<String, Unresolved> {
    if depth > MAX_DEPTH {
        return Err(Unresolved);
    }
    let text = text.replace("\\$", "$$");
    let mut out = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = reference(rest) {
            out.push_str(&value(ini, section, name, depth)?);
            rest = after;
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    Ok(out)
}

/// oslo.config knows the options that are registered. Here it is those of Neutron's with a default, then whatever the files
/// have: a reference that means something there means the same here.
fn value(ini: &Ini, section: &str, name: &str, depth: usize) -> Result<String, Unresolved> {
    let places = match name.split_once('.') {
        Some((group, option)) => vec![(normalized(group), option)],
        None => vec![(section.to_owned(), name), (DEFAULT.to_owned(), name)],
    };
    let set = |place: &&(String, &str)| ini.raw(&place.0, place.1).is_some();
    let known = |place: &&(String, &str)| defaults::of(&place.0, place.1).is_some();
    let place = places.iter().find(known).or_else(|| places.iter().find(set));
    let (section, option) = place.ok_or(Unresolved)?;
    let text = ini.raw(section, option).map(|value| value.text.clone());
    let text = text.or_else(|| defaults::of(section, option)).unwrap_or_default();
    // References in it are those of its own section.
    substitute(ini, section, &text, depth + 1)
}

/// The name after a `$`, and what comes behind; none if that is no reference and stands as it is.
fn reference(rest: &str) -> Option<(&str, &str)> {
    let (braced, start) = match rest.strip_prefix('{') {
        Some(inner) => (true, inner),
        None => (false, rest),
    };
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
    let (name, after) = start.split_at(start.find(|c| !word(c)).unwrap_or(start.len()));
    if !name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') {
        return None;
    }
    if braced { Some((name, after.strip_prefix('}')?)) } else { Some((name, after)) }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn x(text: &str) -> Result<String, Unresolved> {
        let mut ini = Ini::default();
        ini.parse(Path::new("test.ini"), text).unwrap();
        resolve(&ini, "a", &ini.raw("a", "x").unwrap().text)
    }

    #[test]
    fn references() {
        let text = "[DEFAULT]\nstate_path = /srv\n[a]\nx = $state_path/y and ${state_path}, ${b.z}; $$5 $ \\$ ${ $1\n\
            [b]\nz = $state_path";
        assert_eq!(x(text).unwrap(), "/srv/y and /srv, /srv; $5 $ $ ${ $1");
        assert_eq!(x("[a]\nx = $state_path/x").unwrap(), "/var/lib/neutron/x");
        assert_eq!(x("[a]\nx = ${metadata_proxy_socket}.x").unwrap(), "/var/lib/neutron/metadata_proxy.x");
        // A circle, names of nothing, and a dot that belongs to the name.
        for text in ["$x", "$unknown", "$state_path.", "${state_path}$b.y"] {
            assert_eq!(x(&format!("[a]\nx = {text}")), Err(Unresolved), "{text}");
        }
    }
}
