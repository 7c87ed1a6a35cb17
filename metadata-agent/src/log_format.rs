//! Format of log lines for people: that of the library, with shorter ways for what an access line has most of.
#![forbid(unsafe_code)]
use std::{cell::RefCell, fmt, time::UNIX_EPOCH};

use tracing::field::{Field, Visit};
use tracing_subscriber::{
    field::{RecordFields, VisitOutput as _},
    fmt::{
        FormatFields,
        format::{DefaultVisitor, Writer},
        time::{FormatTime, SystemTime},
    },
};

/// Length of a time up to its seconds: `2026-11-26T17:41:43`.
const SECONDS: usize = 19;

thread_local! {
    /// The second of the last line, and its text.
    static SECOND: RefCell<(u64, String)> = const { RefCell::new((u64::MAX, String::new())) };
}

/// The library's time (RFC 3339, UTC, microseconds), whose text is made anew once a second.
#[derive(Debug)]
pub(crate) struct Time;

impl FormatTime for Time {
    fn format_time(&self, writer: &mut Writer<'_>) -> fmt::Result {
        let Ok(since) = std::time::SystemTime::now().duration_since(UNIX_EPOCH) else {
            return SystemTime.format_time(writer);
        };
        SECOND.with_borrow_mut(|(second, text)| {
            if *second != since.as_secs() {
                text.clear();
                SystemTime.format_time(&mut Writer::new(text))?;
                // It reads the clock itself: that may be the next second already.
                let now = std::time::SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                *second = if now.as_secs() == since.as_secs() { now.as_secs() } else { u64::MAX };
            }
            if *second != since.as_secs() {
                return writer.write_str(text);
            }
            let seconds = text.get(..SECONDS).ok_or(fmt::Error)?;
            writer.write_str(seconds)?;
            write!(writer, ".{:06}Z", since.subsec_micros())
        })
    }
}

/// The library's fields: `name=value`, texts in quotes.
#[derive(Debug)]
pub(crate) struct Fields;

impl<'w> FormatFields<'w> for Fields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'w>, fields: R) -> fmt::Result {
        let mut visitor = Visitor { writer, is_first: true, result: Ok(()) };
        fields.record(&mut visitor);
        visitor.result
    }
}

struct Visitor<'w> {
    writer: Writer<'w>,
    is_first: bool,
    result: fmt::Result,
}

impl Visitor<'_> {
    /// Writes a field by the library.
    fn by_library(&mut self, record: impl FnOnce(&mut DefaultVisitor<'_>)) {
        let mut visitor = DefaultVisitor::new(self.writer.by_ref(), self.is_first);
        record(&mut visitor);
        let written = visitor.finish();
        self.note(written);
    }

    fn note(&mut self, result: fmt::Result) {
        self.is_first = false;
        self.result = self.result.and(result);
    }

    /// Writes all up to a field's value.
    fn begin(&mut self, name: &str) -> fmt::Result {
        if !self.is_first {
            self.writer.write_char(' ')?;
        }
        self.writer.write_str(name)?;
        self.writer.write_char('=')
    }
}

/// True for a field that is written by its name; `message` has none, `log.` and `r#` are not shown.
fn is_plain(name: &str) -> bool {
    name != "message" && !name.starts_with("log.") && !name.starts_with("r#")
}

/// True for a text that is written as it is between quotes.
fn needs_no_escape(text: &str) -> bool {
    text.bytes()
        .fold(true, |plain, byte| plain & matches!(byte, b' '..=b'~') & (byte != b'"') & (byte != b'\\'))
}

impl Visit for Visitor<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        if !is_plain(field.name()) || !needs_no_escape(value) {
            return self.by_library(|visitor| visitor.record_str(field, value));
        }
        let written = self.begin(field.name()).and_then(|()| {
            self.writer.write_char('"')?;
            self.writer.write_str(value)?;
            self.writer.write_char('"')
        });
        self.note(written);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        if !is_plain(field.name()) {
            return self.by_library(|visitor| visitor.record_u64(field, value));
        }
        let written = self.begin(field.name()).and_then(|()| write!(self.writer, "{value}"));
        self.note(written);
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.by_library(|visitor| visitor.record_error(field, value));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.by_library(|visitor| visitor.record_debug(field, value));
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{Arc, Mutex},
    };

    use tracing::{info, warn};
    use tracing_subscriber::{fmt::MakeWriter, layer::SubscriberExt as _};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl<'a> MakeWriter<'a> for Lines {
        type Writer = Self;

        fn make_writer(&'a self) -> Self {
            self.clone()
        }
    }

    fn say() {
        let error = io::Error::other("a\x1b[31mfailure");
        for text in ["", "plain", "a \"quote\"", "back\\slash", "\x1b[31m", "\u{e4}\u{301}", "~"] {
            info!(target: "access", text, "a message");
            info!(text = %text, debug = ?text, "{text}");
        }
        warn!(number = 7_u64, less = -7_i64, float = 0.123, whole = 1.0, yes = true, "numbers");
        info!(error = %error, source = Some(tracing::field::display("::1")), nothing = None::<&str>, "an error");
        info!(error = &error as &dyn std::error::Error, r#type = "keyword", status = Some(200_u16));
        info!(text = "first");
        info!(text = "\n\t", "lines");
    }

    /// Lines without their times, and these.
    fn parted(lines: &Lines) -> (Vec<String>, Vec<String>) {
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        text.lines()
            .map(|line| line.split_at(line.find(' ').unwrap()))
            .map(|(a, b)| (a.into(), b.into()))
            .unzip()
    }

    #[test]
    fn lines_are_those_of_the_library() {
        let (ours, theirs) = (Lines::default(), Lines::default());
        let both = tracing_subscriber::registry()
            .with(tracing_subscriber::fmt::layer().with_ansi(false).with_writer(theirs.clone()));
        tracing::subscriber::with_default(both, say);
        let layer = tracing_subscriber::fmt::layer().with_ansi(false).with_timer(Time).fmt_fields(Fields);
        let both = tracing_subscriber::registry().with(layer.with_writer(ours.clone()));
        tracing::subscriber::with_default(both, say);
        let ((times, ours), (others, theirs)) = (parted(&ours), parted(&theirs));
        assert_eq!(ours, theirs);
        assert_eq!(ours.len(), 19);
        let shape = |time: &str| time.replace(|c: char| c.is_ascii_digit(), "0");
        for (time, other) in times.iter().zip(&others) {
            assert_eq!(shape(time), shape(other));
            // Written later, and within an hour.
            assert!(time > other && time[..13] == other[..13] || time[..13] > other[..13], "{time} {other}");
        }
    }
}
