//! The header lines of a head, and where a head ends.
use memchr::memchr;

use super::{Malformed, has_control, is_token};

/// More than any client or server sends.
const MOST_FIELDS: usize = 100;

/// Finds the end of a head in bytes that arrive bit by bit, looking at each byte once.
#[derive(Debug, Default)]
pub struct HeadEnd {
    seen: usize,
    line: usize,
    begun: bool,
}

impl HeadEnd {
    /// Length of the head in `received`, its empty line and any that stand before it included. `received` begins with
    /// what was given the last time.
    pub fn find(&mut self, received: &[u8]) -> Result<Option<usize>, Malformed> {
        while let Some(at) = memchr(b'\n', &received[self.seen..]) {
            let end = self.seen + at;
            if end == self.line || received[end - 1] != b'\r' {
                return Err(Malformed::LineEnd);
            }
            let is_empty = end - self.line == 1;
            self.seen = end + 1;
            self.line = self.seen;
            if is_empty && self.begun {
                return Ok(Some(self.seen));
            }
            // Clients of old send an empty line after a body (RFC 9112, section 2.2).
            self.begun |= !is_empty;
        }
        self.seen = received.len();
        Ok(None)
    }
}

/// The first line of a complete head, and the rest of it.
pub(super) fn first_line(head: &[u8]) -> (&[u8], &[u8]) {
    let mut rest = head;
    while let Some(after) = rest.strip_prefix(b"\r\n") {
        rest = after;
    }
    let end = memchr(b'\n', rest).map_or(rest.len(), |at| at + 1);
    let (line, rest) = rest.split_at(end);
    (line.strip_suffix(b"\r\n").unwrap_or(line), rest)
}

/// Header lines that were found to be proper ones, in their order.
#[derive(Debug, Clone, Copy)]
pub struct Fields<'b>(&'b [u8]);

impl<'b> Fields<'b> {
    /// Of the lines that follow the first one, up to and with the empty line.
    pub(super) fn parse(lines: &'b [u8]) -> Result<Self, Malformed> {
        let mut count = 0;
        for line in split(lines) {
            count += 1;
            if count > MOST_FIELDS {
                return Err(Malformed::TooLarge);
            }
            check(line)?;
        }
        Ok(Self(lines))
    }

    /// Of lines that were parsed before.
    pub(super) fn parsed(lines: &'b [u8]) -> Self {
        Self(lines)
    }

    /// Names and values, the latter without the space around them.
    pub fn iter(self) -> impl Iterator<Item = (&'b [u8], &'b [u8])> {
        split(self.0).filter_map(field)
    }

    /// The values of one name, whatever its case.
    pub fn values(self, name: &str) -> impl Iterator<Item = &'b [u8]> {
        self.iter()
            .filter_map(move |(other, value)| other.eq_ignore_ascii_case(name.as_bytes()).then_some(value))
    }

    /// The fields of several names, found together.
    pub(super) fn named<const N: usize>(self, names: [&'static str; N]) -> [Named<'b>; N] {
        let mut found = names.map(|name| Named { fields: self, name, first: None, count: 0 });
        for (name, value) in self.iter() {
            if let Some(named) =
                found.iter_mut().find(|named| name.eq_ignore_ascii_case(named.name.as_bytes()))
            {
                named.first.get_or_insert(value);
                named.count += 1;
            }
        }
        found
    }
}

/// The fields of one name, of which most heads have one or none.
#[derive(Debug, Clone, Copy)]
pub(super) struct Named<'b> {
    fields: Fields<'b>,
    name: &'static str,
    first: Option<&'b [u8]>,
    count: usize,
}

impl<'b> Named<'b> {
    /// True if there is one.
    pub(super) fn exists(self) -> bool {
        self.count > 0
    }

    /// The members of all values, which are lists.
    pub(super) fn members(self) -> impl Iterator<Item = &'b [u8]> {
        let further = if self.count > 1 { self.count } else { 0 };
        let values = self.first.into_iter().chain(self.fields.values(self.name).take(further).skip(1));
        let members = values.flat_map(|value| value.split(|byte| *byte == b','));
        members.map(<[u8]>::trim_ascii).filter(|member| !member.is_empty())
    }

    /// True if the lists have that member, whatever its case.
    pub(super) fn has_member(self, word: &str) -> bool {
        self.members().any(|member| member.eq_ignore_ascii_case(word.as_bytes()))
    }

    /// The one value of a name that must not be repeated.
    pub(super) fn only(self, repeated: Malformed) -> Result<Option<&'b [u8]>, Malformed> {
        if self.count > 1 { Err(repeated) } else { Ok(self.first) }
    }

    /// True if chunks follow, as the Transfer-Encoding that this is says.
    pub(super) fn is_chunked(self) -> Result<bool, Malformed> {
        match self.only(Malformed::TransferEncoding)? {
            None => Ok(false),
            Some(coding) if coding.eq_ignore_ascii_case(b"chunked") => Ok(true),
            Some(_) => Err(Malformed::TransferEncoding),
        }
    }
}

/// Of a chunked body's trailer and of a head alike.
pub(super) fn check(line: &[u8]) -> Result<(), Malformed> {
    if line.starts_with(b" ") || line.starts_with(b"\t") {
        return Err(Malformed::Fold);
    }
    let (name, value) = field(line).ok_or(Malformed::FieldName)?;
    if !is_token(name) {
        return Err(Malformed::FieldName);
    }
    // CR alone is among the control characters.
    if has_control(value) {
        return Err(Malformed::FieldValue);
    }
    Ok(())
}

/// The lines that are not empty, without their ends.
fn split(mut rest: &[u8]) -> impl Iterator<Item = &[u8]> {
    let lines = std::iter::from_fn(move || {
        let at = memchr(b'\n', rest);
        let (line, after) = at.map_or((rest, &[][..]), |at| (&rest[..at], &rest[at + 1..]));
        let has_ended = rest.is_empty();
        rest = after;
        (!has_ended).then(|| line.strip_suffix(b"\r").unwrap_or(line))
    });
    lines.filter(|line| !line.is_empty())
}

fn field(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let colon = memchr(b':', line)?;
    let space = |byte: &u8| matches!(byte, b' ' | b'\t');
    let mut value = &line[colon + 1..];
    while value.first().is_some_and(space) {
        value = &value[1..];
    }
    while value.last().is_some_and(space) {
        value = &value[..value.len() - 1];
    }
    Some((&line[..colon], value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_ends_where_it_ends_however_it_arrives() {
        let text = b"\r\nGET / HTTP/1.1\r\nA: b\r\n\r\nGET";
        for step in 1..text.len() {
            let mut end = HeadEnd::default();
            let found = (0..=text.len())
                .step_by(step)
                .chain([text.len()])
                .find_map(|length| end.find(&text[..length]).unwrap());
            assert_eq!(found, Some(text.len() - 3), "in steps of {step}");
        }
        assert_eq!(HeadEnd::default().find(b"GET / HTTP/1.1\r\n"), Ok(None));
    }

    #[test]
    fn lines_end_in_one_way() {
        for text in ["GET / HTTP/1.1\n\n", "\nGET", "A\r\nB\n\r\n", "A\r\n\n"] {
            assert_eq!(HeadEnd::default().find(text.as_bytes()), Err(Malformed::LineEnd), "{text:?}");
        }
    }

    #[test]
    fn fields_are_strict() {
        for (lines, problem) in [
            ("A: b\r\n c\r\n\r\n", Malformed::Fold),
            ("A: b\r\n\tc: d\r\n\r\n", Malformed::Fold),
            (": b\r\n\r\n", Malformed::FieldName),
            ("A : b\r\n\r\n", Malformed::FieldName),
            ("A\r\n\r\n", Malformed::FieldName),
            ("A(b): c\r\n\r\n", Malformed::FieldName),
            ("\u{e4}: c\r\n\r\n", Malformed::FieldName),
            ("A\0: c\r\n\r\n", Malformed::FieldName),
            ("A: b\0c\r\n\r\n", Malformed::FieldValue),
            ("A: b\rc\r\n\r\n", Malformed::FieldValue),
            ("A: b\r\r\n\r\n", Malformed::FieldValue),
            ("A: \x7f\r\n\r\n", Malformed::FieldValue),
        ] {
            assert_eq!(Fields::parse(lines.as_bytes()).err(), Some(problem), "{lines:?}");
        }
        assert_eq!(Fields::parse("A: b\r\n".repeat(101).as_bytes()).err(), Some(Malformed::TooLarge));
    }

    #[test]
    fn values_are_found_whatever_the_case() {
        let fields = Fields::parse(b"a:  b \t\r\nC: d, E ,,f\r\nA:\r\nc: \xff\r\n\r\n").unwrap();
        assert_eq!(fields.values("A").collect::<Vec<_>>(), [&b"b"[..], b""]);
        assert_eq!(fields.iter().count(), 4);
        let [c, b, a] = fields.named(["c", "b", "a"]);
        assert_eq!(c.members().collect::<Vec<_>>(), [&b"d"[..], b"E", b"f", b"\xff"]);
        assert!(c.has_member("D") && !c.has_member("d, E"));
        assert_eq!(c.only(Malformed::Host), Err(Malformed::Host));
        assert_eq!((b.exists(), b.members().count(), b.only(Malformed::Host)), (false, 0, Ok(None)));
        assert_eq!(a.members().collect::<Vec<_>>(), [b"b"]);
    }
}
