//! A Nova that breaks framing at random, and signs each byte of an answer with whose it is: what arrives at somebody else
//! went astray.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddrV4, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::Result;

use crate::{netns::Namespace, random::Random};

/// Longer than a segment that is cut anywhere can be without a whole mark in it.
const MARK: usize = 40;

/// The mark of an instance, which its answers are made of.
pub fn mark(instance: &str) -> String {
    format!("<{instance}>\n.")
}

/// Marks of instances in bytes, wherever they begin.
pub fn marks(bytes: &[u8]) -> impl Iterator<Item = &str> {
    let begins = bytes.windows(MARK).filter(|window| window[0] == b'<' && &window[37..] == b">\n.");
    begins.filter_map(|window| std::str::from_utf8(&window[1..37]).ok())
}

/// The server. It ends when it is dropped.
#[derive(Debug)]
pub struct AstrayNova {
    stopping: Arc<AtomicBool>,
    address: SocketAddrV4,
    host: Namespace,
    /// Answers that were broken on purpose.
    pub broken: Arc<AtomicU64>,
}

impl AstrayNova {
    /// Listens in the chassis' namespace.
    pub fn start(host: &Namespace, address: SocketAddrV4, seed: u64) -> Result<Self> {
        let listener = host.listen(address)?;
        let (stopping, broken) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stop, count) = (stopping.clone(), broken.clone());
        thread::Builder::new()
            .name("nova".to_owned())
            .spawn(move || accept(&listener, &stop, &count, seed))?;
        Ok(Self { stopping, address, host: Namespace::existing(host.name()), broken })
    }
}

impl Drop for AstrayNova {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Relaxed);
        // Wakes it up; whether it still listens does not matter.
        let address = self.address;
        let _ = self.host.run(move || TcpStream::connect(address));
    }
}

fn accept(listener: &TcpListener, stop: &Arc<AtomicBool>, broken: &Arc<AtomicU64>, seed: u64) {
    for (number, stream) in (seed..).zip(listener.incoming().flatten()) {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let broken = broken.clone();
        // A guest's connection that breaks ends its thread.
        thread::spawn(move || serve(&stream, &broken, &mut Random::new(number)).ok());
    }
}

/// One connection: answers, of which some are not what they seem to be.
fn serve(stream: &TcpStream, broken: &AtomicU64, random: &mut Random) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut out = stream;
    loop {
        let (mut is_head, mut instance, mut length) = (false, String::new(), 0);
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        is_head |= line.starts_with("HEAD ");
        loop {
            line.clear();
            reader.read_line(&mut line)?;
            let Some((name, value)) = line.trim_end().split_once(": ") else { break };
            match name {
                "X-Instance-ID" => value.clone_into(&mut instance),
                "Content-Length" => length = value.parse().unwrap_or(0),
                _ => {}
            }
        }
        std::io::copy(&mut reader.by_ref().take(length), &mut std::io::sink())?;
        let body = mark(&instance).repeat(1 + random.below(400) as usize);
        let whole = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
        let kind = if is_head { 10 + random.below(3) } else { random.below(20) };
        broken.fetch_add(u64::from(kind < 6 || kind == 10), Ordering::Relaxed);
        // What is wrong follows a moment later, when an answer may have been taken for complete.
        let [answer, surplus] = match kind {
            // One answer too many.
            0 => [format!("{whole}{body}"), format!("{whole}{body}")],
            // A body where there is none.
            1 => ["HTTP/1.1 204 No Content\r\n\r\n".to_owned(), body],
            2 => ["HTTP/1.1 304 Not Modified\r\nContent-Length: 10\r\n\r\n".to_owned(), body],
            // A body that is longer than it says.
            3 => [
                format!(
                    "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{}",
                    body.len() / 2,
                    &body[..body.len() / 2]
                ),
                body[body.len() / 2..].to_owned(),
            ],
            // Two answers in one, as far as somebody believes the first length.
            4 => ["HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".to_owned(), format!("{whole}{body}")],
            // Chunks, and more behind the last.
            5 => {
                let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
                [format!("{head}{:x}\r\n{body}\r\n0\r\n\r\n", body.len()), body]
            }
            10 => [whole, body],
            11 | 12 => [whole, String::new()],
            _ => [format!("{whole}{body}"), String::new()],
        };
        out.write_all(answer.as_bytes())?;
        if !surplus.is_empty() {
            thread::sleep(Duration::from_micros(random.below(4000)));
            out.write_all(surplus.as_bytes())?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_found_wherever_they_begin() {
        let instance = "0b0c9c6c-9c1c-4f9e-8d7a-1c9c1c9c1c9c";
        assert_eq!(mark(instance).len(), MARK);
        let bytes = [b"...", mark(instance).as_bytes(), mark(instance).as_bytes()].concat();
        assert_eq!(marks(&bytes).collect::<Vec<_>>(), [instance; 2]);
        assert_eq!(marks(&bytes[4..bytes.len() - 1]).count(), 0);
    }
}
