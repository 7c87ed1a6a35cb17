//! Splitter of a stream of bytes into JSON messages.
//!
//! OVSDB puts JSON texts on a stream back to back, without a length or a separator (RFC 7047, section 4). Each byte is
//! looked at once, however the stream is cut into reads; the messages are parsed by others.

use std::collections::VecDeque;

/// Reason for which a stream of bytes cannot be one of JSON-RPC messages.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SplitError {
    /// A byte between messages that begins no JSON object.
    #[error(
        "byte 0x{0:02x} where a JSON object should begin: the peer does not speak OVSDB (is it a TLS port?)"
    )]
    NotAnObject(u8),
    /// A message grew beyond the configured limit.
    #[error(
        "a message is longer than the limit of {limit} bytes: raise the message size limit or monitor fewer rows"
    )]
    TooLong {
        /// The limit in force.
        limit: usize,
    },
}

/// Cuts a stream of bytes into JSON objects.
#[derive(Debug)]
pub struct Splitter {
    limit: usize,
    message: Vec<u8>,
    depth: usize,
    in_string: bool,
    escaped: bool,
    complete: VecDeque<Vec<u8>>,
}

impl Splitter {
    /// A splitter that refuses messages longer than `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            message: Vec::new(),
            depth: 0,
            in_string: false,
            escaped: false,
            complete: VecDeque::new(),
        }
    }

    /// Takes what was read. After an error the stream is of no more use.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), SplitError> {
        let mut rest = bytes;
        while !rest.is_empty() {
            if self.depth == 0 {
                let Some(start) = rest.iter().position(|byte| !byte.is_ascii_whitespace()) else { break };
                if rest[start] != b'{' {
                    return Err(SplitError::NotAnObject(rest[start]));
                }
                rest = &rest[start..];
            }
            let end = self.scan(rest);
            let taken = end.unwrap_or(rest.len());
            if self.message.len() + taken > self.limit {
                return Err(SplitError::TooLong { limit: self.limit });
            }
            self.message.extend_from_slice(&rest[..taken]);
            if end.is_some() {
                self.complete.push_back(std::mem::take(&mut self.message));
            }
            rest = &rest[taken..];
        }
        Ok(())
    }

    /// True if the last bytes began a message, or went on with one, that is not complete.
    pub fn is_within_message(&self) -> bool {
        self.depth > 0
    }

    /// The next complete message.
    pub fn next_message(&mut self) -> Option<Vec<u8>> {
        self.complete.pop_front()
    }

    /// The length of the current message's part of `bytes`, if it ends there.
    fn scan(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut at = 0;
        while let Some(&byte) = bytes.get(at) {
            at += 1;
            if self.in_string {
                if self.escaped {
                    self.escaped = false;
                } else if byte == b'\\' {
                    self.escaped = true;
                } else if byte == b'"' {
                    self.in_string = false;
                }
                continue;
            }
            match byte {
                b'"' => self.in_string = true,
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => {
                    self.depth -= 1;
                    if self.depth == 0 {
                        return Some(at);
                    }
                }
                _ => {}
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn split(chunks: &[&[u8]], limit: usize) -> Result<Vec<String>, SplitError> {
        let mut splitter = Splitter::new(limit);
        for chunk in chunks {
            splitter.push(chunk)?;
        }
        Ok(std::iter::from_fn(|| splitter.next_message()).map(|m| String::from_utf8(m).unwrap()).collect())
    }

    #[test]
    fn messages_are_cut_where_the_outer_brace_closes() {
        let stream = br#" {"a":1}{"b":"}\"{["}
	{"c":[{"d":"\\"}]}"#;
        let whole = split(&[stream], 100).unwrap();
        assert_eq!(whole, [r#"{"a":1}"#, r#"{"b":"}\"{["}"#, r#"{"c":[{"d":"\\"}]}"#]);
        let bytes: Vec<&[u8]> = stream.chunks(1).collect();
        assert_eq!(split(&bytes, 100).unwrap(), whole);
    }

    #[test]
    fn garbage_and_giants_are_refused() {
        assert_eq!(split(&[b"HTTP/1.1 400"], 100), Err(SplitError::NotAnObject(b'H')));
        assert_eq!(split(&[b"\x15\x03\x01"], 100), Err(SplitError::NotAnObject(0x15)));
        assert_eq!(split(&[b"{\"a\":", b"12345}"], 10), Err(SplitError::TooLong { limit: 10 }));
        assert!(split(&[b"{\"a\":", b"1234}"], 10).is_ok());
    }

    proptest! {
        #[test]
        fn any_chunking_gives_the_same_messages(
            texts in prop::collection::vec(".*", 1..6),
            cuts in prop::collection::vec(1usize..9, 1..40),
        ) {
            let messages: Vec<String> =
                texts.iter().map(|t| serde_json::json!({ "m": t, "l": [[t], {}] }).to_string()).collect();
            let stream = messages.join(" ");
            let mut rest = stream.as_bytes();
            let mut chunks = Vec::new();
            for cut in cuts.iter().cycle() {
                if rest.is_empty() { break }
                let (chunk, tail) = rest.split_at((*cut).min(rest.len()));
                chunks.push(chunk);
                rest = tail;
            }
            prop_assert_eq!(split(&chunks, 1 << 20).unwrap(), messages);
        }

        #[test]
        fn no_input_panics(chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..8)) {
            let chunks: Vec<&[u8]> = chunks.iter().map(Vec::as_slice).collect();
            let _ = split(&chunks, 64);
        }
    }
}
