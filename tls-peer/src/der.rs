//! As much of DER as it takes to cut a certificate into pieces and put it together again.

pub(crate) const SEQUENCE: u8 = 0x30;
pub(crate) const OBJECT: u8 = 0x06;
pub(crate) const BOOLEAN: u8 = 0x01;
pub(crate) const BIT_STRING: u8 = 0x03;
pub(crate) const OCTET_STRING: u8 = 0x04;

/// The tag of a field `[number]` that holds others.
pub(crate) const fn context(number: u8) -> u8 {
    0xa0 | number
}

/// An element: tag, length and content.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Element<'a> {
    pub(crate) tag: u8,
    pub(crate) content: &'a [u8],
    /// All of it.
    pub(crate) whole: &'a [u8],
}

impl<'a> Element<'a> {
    /// The content, if the tag is that.
    pub(crate) fn expect(self, tag: u8) -> Option<&'a [u8]> {
        (self.tag == tag).then_some(self.content)
    }
}

/// The first element, and what is behind it.
pub(crate) fn first(bytes: &[u8]) -> Option<(Element<'_>, &[u8])> {
    let [tag, length, rest @ ..] = bytes else { return None };
    // Tags of several bytes do not occur in certificates.
    if tag & 0x1f == 0x1f {
        return None;
    }
    let (length, rest) = match length {
        0..=0x7f => (usize::from(*length), rest),
        0x81..=0x84 => {
            let (digits, rest) = rest.split_at_checked(usize::from(length - 0x80))?;
            (digits.iter().fold(0, |value, digit| value << 8 | usize::from(*digit)), rest)
        }
        _ => return None,
    };
    let (content, behind) = rest.split_at_checked(length)?;
    let whole = &bytes[..bytes.len() - behind.len()];
    Some((Element { tag: *tag, content, whole }, behind))
}

/// All elements; none if there is something else among them.
pub(crate) fn all(mut bytes: &[u8]) -> Option<Vec<Element<'_>>> {
    let mut elements = Vec::new();
    while !bytes.is_empty() {
        let (element, rest) = first(bytes)?;
        elements.push(element);
        bytes = rest;
    }
    Some(elements)
}

/// An element of these parts.
pub(crate) fn wrap(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut out = vec![tag];
    if length < 0x80 {
        out.push(length as u8);
    } else {
        let digits = length.to_be_bytes();
        let digits = &digits[digits.iter().take_while(|digit| **digit == 0).count()..];
        out.push(0x80 | digits.len() as u8);
        out.extend_from_slice(digits);
    }
    parts.iter().for_each(|part| out.extend_from_slice(part));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_wrapped_is_found() {
        for length in [0, 1, 127, 128, 255, 256, 65_535, 65_536] {
            let content = vec![7; length];
            let wrapped = wrap(SEQUENCE, &[&content[..length / 2], &content[length / 2..]]);
            let both = [&wrapped[..], b"rest"].concat();
            let (element, rest) = first(&both).unwrap();
            assert_eq!(
                (element.expect(SEQUENCE), element.whole, rest),
                (Some(&content[..]), &wrapped[..], &b"rest"[..])
            );
            assert!(first(&wrapped[..wrapped.len() - 1]).is_none());
        }
        assert!(first(&[0x1f, 1, 0]).is_none() && first(&[0x30, 0x80]).is_none() && first(&[]).is_none());
        assert!(first(&[0x30, 0x84, 0xff, 0xff, 0xff, 0xff]).is_none());
    }
}
