//! Chunked bodies (RFC 9112, section 7.1), taken apart as they arrive.
use bytes::{Buf as _, BytesMut};

use super::{Malformed, fields};

/// A chunk's size line or a trailer line: nobody uses extensions, and few use trailers.
const LONGEST_LINE: usize = 1024;
/// All trailer lines.
const MOST_TRAILERS: usize = 32;

/// Position of the next byte in a chunked body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Position {
    Size,
    Data(u64),
    /// The CR LF after a chunk's data.
    DataEnd,
    /// The lines after the last chunk, so many so far.
    Trailer(usize),
    End,
}

/// A decoder.
#[derive(Debug)]
pub struct Chunks(Position);

impl Default for Chunks {
    fn default() -> Self {
        Self(Position::Size)
    }
}

impl Chunks {
    /// Moves data from `received` to `body`; true when the last chunk is behind. What follows it stays in `received`.
    pub fn decode(&mut self, received: &mut BytesMut, body: &mut Vec<u8>) -> Result<bool, Malformed> {
        loop {
            self.0 = match self.0 {
                Position::Size => match take_line(received)? {
                    Some(line) => match size(&line)? {
                        0 => Position::Trailer(0),
                        size => Position::Data(size),
                    },
                    None => return Ok(false),
                },
                Position::Data(left) => {
                    if received.is_empty() {
                        return Ok(false);
                    }
                    let here = usize::try_from(left).unwrap_or(usize::MAX).min(received.len());
                    body.extend_from_slice(&received[..here]);
                    received.advance(here);
                    match left - here as u64 {
                        0 => Position::DataEnd,
                        left => Position::Data(left),
                    }
                }
                Position::DataEnd => match take_line(received)? {
                    Some(line) if line.is_empty() => Position::Size,
                    Some(_) => return Err(Malformed::Chunk),
                    None => return Ok(false),
                },
                Position::Trailer(count) => match take_line(received)? {
                    Some(line) if line.is_empty() => Position::End,
                    Some(line) => {
                        fields::check(&line)?;
                        if count == MOST_TRAILERS {
                            return Err(Malformed::TooLarge);
                        }
                        Position::Trailer(count + 1)
                    }
                    None => return Ok(false),
                },
                Position::End => return Ok(true),
            };
        }
    }
}

/// The next line without its end, if all of it is there.
fn take_line(received: &mut BytesMut) -> Result<Option<BytesMut>, Malformed> {
    let window = &received[..received.len().min(LONGEST_LINE)];
    match window.iter().position(|byte| *byte == b'\n') {
        None if received.len() >= LONGEST_LINE => Err(Malformed::TooLarge),
        None => Ok(None),
        Some(end) => {
            let mut line = received.split_to(end + 1);
            line.truncate(end);
            if line.last() != Some(&b'\r') {
                return Err(Malformed::LineEnd);
            }
            line.truncate(end - 1);
            Ok(Some(line))
        }
    }
}

fn size(line: &[u8]) -> Result<u64, Malformed> {
    let digits = line.iter().position(|byte| *byte == b';').unwrap_or(line.len());
    let (number, extension) = line.split_at(digits);
    // Fifteen digits cannot overflow, and nothing has that size.
    let proper = (1..=15).contains(&number.len())
        && number.iter().all(u8::is_ascii_hexdigit)
        && !extension.iter().any(u8::is_ascii_control);
    let number = std::str::from_utf8(number).ok().filter(|_| proper);
    number.and_then(|number| u64::from_str_radix(number, 16).ok()).ok_or(Malformed::Chunk)
}

#[cfg(test)]
mod tests {
    use super::{super::Framing, *};

    fn decode(pieces: &[&[u8]]) -> Result<(bool, Vec<u8>, Vec<u8>), Malformed> {
        let (mut chunks, mut received, mut body) = (Chunks::default(), BytesMut::new(), Vec::new());
        let mut done = false;
        for piece in pieces {
            received.extend_from_slice(piece);
            done = chunks.decode(&mut received, &mut body)?;
        }
        Ok((done, body, received.to_vec()))
    }

    #[test]
    fn chunks_are_put_together() {
        let text = b"5;a=b\r\nhello\r\n00b\r\n world\r\n12\n\r\n0\r\nX-T: a\r\n\r\nGET";
        let whole = decode(&[text]).unwrap();
        assert_eq!(whole, (true, b"hello world\r\n12\n".to_vec(), b"GET".to_vec()));
        let bytes: Vec<&[u8]> = text.chunks(1).take(text.len() - 3).collect();
        assert_eq!(decode(&bytes).unwrap(), (true, b"hello world\r\n12\n".to_vec(), Vec::new()));
        assert!(!decode(&[b"5\r\nhello\r\n0\r\n"]).unwrap().0);
    }

    #[test]
    fn what_is_written_is_read() {
        let mut out = Vec::new();
        for piece in [&b"hello"[..], b"", &[b'x'; 300]] {
            Framing::Chunked.write(piece, &mut out);
        }
        Framing::Chunked.write_end(&mut out);
        assert_eq!(decode(&[&out]).unwrap(), (true, [&b"hello"[..], &[b'x'; 300]].concat(), Vec::new()));
    }

    #[test]
    fn broken_chunks_are_refused() {
        for (text, problem) in [
            ("5\nhello\r\n0\r\n\r\n", Malformed::LineEnd),
            ("\r\n", Malformed::Chunk),
            ("-5\r\n", Malformed::Chunk),
            ("0x5\r\n", Malformed::Chunk),
            (" 5\r\n", Malformed::Chunk),
            ("5 \r\n", Malformed::Chunk),
            ("5;\x01\r\n", Malformed::Chunk),
            ("10000000000000000\r\n", Malformed::Chunk),
            ("5\r\nhello!\r\n", Malformed::Chunk),
            ("5\r\nhello\n0\r\n\r\n", Malformed::LineEnd),
            ("0\r\nbroken\r\n\r\n", Malformed::FieldName),
            ("0\r\nX: a\n\r\n", Malformed::LineEnd),
        ] {
            assert_eq!(decode(&[text.as_bytes()]).err(), Some(problem), "{text:?}");
        }
        assert_eq!(decode(&[&[b'0'; 1024]]).err(), Some(Malformed::TooLarge));
        let trailers = ["0\r\n", &"A: b\r\n".repeat(40)].concat();
        assert_eq!(decode(&[trailers.as_bytes()]).err(), Some(Malformed::TooLarge));
    }
}
