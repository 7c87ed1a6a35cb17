//! A listener between a client and a server, which hears and changes what they say.
use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering},
};

use ovsdb_client::Splitter;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    task::{JoinHandle, JoinSet},
};

use super::Server;

/// A listener between a client and a server that keeps what the server says, and can rename the client's methods.
pub struct Relay {
    pub port: u16,
    pub heard: Arc<Mutex<Vec<String>>>,
    /// Makes the next modification that the server tells unreadable.
    pub garble: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Relay {
    pub async fn start(server: &Server, rename: &'static [&'static str]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let heard: Arc<Mutex<Vec<String>>> = Arc::default();
        let garble: Arc<AtomicBool> = Arc::default();
        let (target, log, garbler) = (server.port, Arc::clone(&heard), Arc::clone(&garble));
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = TcpStream::connect(("127.0.0.1", target)).await else { continue };
                let (from_client, to_client) = client.into_split();
                let (from_server, to_server) = server.into_split();
                let (log, garbler) = (Arc::clone(&log), Arc::clone(&garbler));
                connections.spawn(async move {
                    let renamed = |message: &mut String| {
                        for method in rename {
                            let (from, to) = (format!("\"{method}\""), format!("\"no_{method}\""));
                            // The database _Server is monitored with monitor_cond in any case.
                            if !message.contains("_Server") {
                                *message = message.replace(&from, &to);
                            }
                        }
                    };
                    tokio::select! {
                        () = relay(from_client, to_server, renamed) => {}
                        () = relay(from_server, to_client, |message| {
                            if message.contains("\"modify\"") && garbler.swap(false, Ordering::Relaxed) {
                                *message = message.replace("\"modify\"", "\"garbled\"");
                            }
                            log.lock().unwrap().push(message.clone());
                        }) => {}
                    }
                });
            }
        });
        Self { port, heard, garble, task }
    }

    pub fn remote(&self) -> String {
        format!("tcp:127.0.0.1:{}", self.port)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn relay(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut pass: impl FnMut(&mut String)) {
    let mut splitter = Splitter::new(1 << 30);
    let mut buffer = vec![0; 4096];
    loop {
        match from.read(&mut buffer).await {
            Ok(length) if length > 0 => splitter.push(&buffer[..length]).unwrap(),
            _ => return,
        }
        while let Some(message) = splitter.next_message() {
            let mut message = String::from_utf8(message).unwrap();
            pass(&mut message);
            if to.write_all(message.as_bytes()).await.is_err() {
                return;
            }
        }
    }
}
