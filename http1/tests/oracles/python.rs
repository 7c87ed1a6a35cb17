//! Python's own server and client, which read what passed here when it comes to servers in Python.
use std::{
    io::{BufRead as _, BufReader, Write as _},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use serde::Deserialize;

use super::oracles::{Answer, RequestHead};

/// Debian's, whatever else is in the path.
const PYTHON: &str = "/usr/bin/python3";

/// One process, asked over pipes.
#[derive(Debug)]
pub(crate) struct Python {
    process: Child,
    questions: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Reply {
    Error {
        #[expect(dead_code, reason = "a refusal is one, whatever for")]
        error: String,
    },
    Request {
        method: String,
        target: String,
        fields: Vec<(String, String)>,
    },
    Response {
        status: u16,
        fields: Vec<(String, String)>,
        body: String,
    },
}

impl Python {
    pub(crate) fn start() -> Self {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/oracles/python.py");
        let mut command = Command::new(PYTHON);
        let mut process = command.arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (questions, answers) = (process.stdin.take(), process.stdout.take().unwrap());
        Self { process, questions, answers: BufReader::new(answers) }
    }

    /// A request's head as `http.server` reads it, if it does.
    pub(crate) fn request(&mut self, head: &[u8]) -> Option<RequestHead> {
        match self.ask(b'Q', head) {
            Reply::Request { method, target, fields } => {
                Some(RequestHead { method: bytes(&method), target: bytes(&target), fields: pairs(&fields) })
            }
            Reply::Error { .. } => None,
            reply @ Reply::Response { .. } => panic!("{reply:?}"),
        }
    }

    /// A whole response, as `http.client` reads it, if it does.
    pub(crate) fn response(&mut self, text: &[u8], is_head: bool) -> Option<Answer> {
        match self.ask(if is_head { b'H' } else { b'G' }, text) {
            Reply::Response { status, fields, body } => {
                Some(Answer { status, fields: pairs(&fields), body: bytes(&body) })
            }
            Reply::Error { .. } => None,
            reply @ Reply::Request { .. } => panic!("{reply:?}"),
        }
    }

    fn ask(&mut self, kind: u8, text: &[u8]) -> Reply {
        let question = [&[kind], &(text.len() as u32).to_le_bytes()[..], text].concat();
        self.questions.as_mut().unwrap().write_all(&question).unwrap();
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?} of {text:?}"))
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        drop(self.questions.take());
        let _ = self.process.wait();
    }
}

/// One byte for each character.
fn bytes(text: &str) -> Vec<u8> {
    text.chars().map(|c| u8::try_from(u32::from(c)).unwrap()).collect()
}

/// Python leaves the space behind a value.
fn pairs(fields: &[(String, String)]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let trimmed = |value: &str| bytes(value.trim_end_matches([' ', '\t']));
    fields.iter().map(|(name, value)| (bytes(name), trimmed(value))).collect()
}
