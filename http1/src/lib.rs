//! HTTP/1.1 as bytes: heads, fields and framing.
//!
#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
mod chunks;
mod fields;
mod request;
mod response;

pub use chunks::Chunks;
pub use fields::{Fields, HeadEnd};
pub use request::{Request, Version};
pub use response::{Response, write_connection, write_field};

/// Framing of a body: the way in which its end is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// So many bytes.
    Length(u64),
    /// Chunks, the last of them empty.
    Chunked,
    /// The connection's end. Responses only.
    Close,
}

impl Framing {
    /// Writes a piece of a body.
    pub fn write(self, piece: &[u8], out: &mut Vec<u8>) {
        match self {
            // An empty chunk would be the end.
            Self::Chunked if piece.is_empty() => {}
            Self::Chunked => {
                out.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
                out.extend_from_slice(piece);
                out.extend_from_slice(b"\r\n");
            }
            Self::Length(_) | Self::Close => out.extend_from_slice(piece),
        }
    }

    /// Writes what follows the last piece.
    pub fn write_end(self, out: &mut Vec<u8>) {
        if self == Self::Chunked {
            out.extend_from_slice(b"0\r\n\r\n");
        }
    }
}

/// Reason for which a message is refused; the text is for whoever sent it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("a line that does not end in CR LF")]
    LineEnd,
    #[error("a request line that is not METHOD SP TARGET SP VERSION")]
    RequestLine,
    #[error("a status line that is not HTTP/1.x SP STATUS")]
    StatusLine,
    #[error("a version of HTTP other than 1.0 and 1.1")]
    Version,
    #[error("a request target that is no path; this is no proxy")]
    Target,
    #[error("a request target with a #, which servers read in different ways")]
    Fragment,
    #[error("a header line without a proper name")]
    FieldName,
    #[error("a header value with control characters")]
    FieldValue,
    #[error("a header folded over several lines")]
    Fold,
    #[error("too many or too long header lines")]
    TooLarge,
    #[error("more than one Host")]
    Host,
    #[error("a Content-Length that is not one number")]
    ContentLength,
    #[error("a Transfer-Encoding other than chunked")]
    TransferEncoding,
    #[error("both Content-Length and Transfer-Encoding")]
    BothFramings,
    #[error("a broken chunk")]
    Chunk,
    #[error("a body that ends too early")]
    Truncated,
}

/// True if `bytes` may be a method or a field's name (RFC 9110, section 5.6.2).
fn is_token(bytes: &[u8]) -> bool {
    /// The characters of a token.
    const ALLOWED: [bool; 256] = {
        let mut allowed = [false; 256];
        let mut byte = 0;
        while byte < 128 {
            let c = byte as u8;
            allowed[byte] = c.is_ascii_alphanumeric()
                || matches!(
                    c,
                    b'!' | b'#'..=b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~'
                );
            byte += 1;
        }
        allowed
    };
    !bytes.is_empty() && bytes.iter().all(|byte| ALLOWED[usize::from(*byte)])
}

/// True if `bytes` have a control character other than a tab. All of them are looked at: so several are at once.
fn has_control(bytes: &[u8]) -> bool {
    bytes.iter().fold(false, |found, byte| found | ((*byte < b' ') & (*byte != b'\t')) | (*byte == 0x7f))
}

/// A Content-Length: digits only, no sign, no list.
fn length(value: &[u8]) -> Result<u64, Malformed> {
    let digits = !value.is_empty() && value.len() <= 18 && value.iter().all(u8::is_ascii_digit);
    let number = digits.then(|| std::str::from_utf8(value).ok()?.parse().ok()).flatten();
    number.ok_or(Malformed::ContentLength)
}
