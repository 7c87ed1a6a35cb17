//! Checks of every test: whose metadata did this guest get, and what did Nova hear?

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddrV4, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::{
    guest::Guest,
    http::{self, Response},
    nova::{Recorded, ec2_id, signature},
    port::Port,
};

pub const META_DATA: &str = "/openstack/latest/meta_data.json";
/// More than a few segments, so that segmentation offload takes part.
const TRANSFER: usize = 1 << 20;

/// The guest asks both of Nova's interfaces who it is and must hear that it is itself.
pub fn own_identity(guest: &Guest) -> Result<()> {
    is_identity_of(&guest.port, &guest.get(META_DATA)?)?;
    let response = guest.get("/latest/meta-data/instance-id")?;
    ensure!(response.text() == ec2_id(&guest.port.instance), "instance-id: {response:?}");
    Ok(())
}

/// One short attempt.
pub fn attempt(guest: &Guest) -> http::Result<Response> {
    let limit = Duration::from_millis(20);
    let mut connection = guest.connect_with(None, limit)?;
    connection.stream().set_read_timeout(Some(Duration::from_secs(15)))?;
    connection.request("GET", META_DATA, &[], b"")
}

/// Asks until there is an answer, which must be right. Each attempt is short, since the kernel would repeat a lost
/// SYN only after a second.
pub fn first_answer(guest: &Guest) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        match attempt(guest) {
            Ok(response) => return is_identity_of(&guest.port, &response).context("the first answer"),
            Err(http::Error::Timeout) if Instant::now() < deadline => {}
            Err(error) => bail!("no answer: {error}"),
        }
    }
}

/// The answer to a request for `META_DATA` is that port's.
pub fn is_identity_of(port: &Port, response: &Response) -> Result<()> {
    ensure!(response.status == 200, "{}: {}", response.status, response.text());
    let document: Value = serde_json::from_slice(&response.body)?;
    for (key, expected) in
        [("uuid", &port.instance), ("project_id", &port.project), ("hostname", &port.hostname())]
    {
        ensure!(document[key] == **expected, "{key} is {}, not the guest's own {expected}", document[key]);
    }
    Ok(())
}

/// The header lines that tell Nova whose request it is, as the agent writes them.
pub fn identity_lines(port: &Port) -> String {
    format!(
        "X-Instance-ID: {}\r\nX-Tenant-ID: {}\r\nX-Instance-ID-Signature: {}\r\nX-Forwarded-For: {}\r\n",
        port.instance,
        port.project,
        signature(&port.instance),
        port.address
    )
}

/// Nova was told once, and correctly, whose request it was.
pub fn was_signed_for(port: &Port, request: &Recorded) -> Result<()> {
    for (name, expected) in [
        ("X-Instance-ID", port.instance.clone()),
        ("X-Tenant-ID", port.project.clone()),
        ("X-Instance-ID-Signature", signature(&port.instance)),
        ("X-Forwarded-For", port.address.to_string()),
    ] {
        let values = request.header(name);
        ensure!(values == [expected.as_str()], "{name} is {values:?}, not {expected}");
    }
    Ok(())
}

/// Sends a megabyte from one guest to a port of another, and back.
pub fn transfer(from: &Guest, to: &Guest, port: u16) -> Result<()> {
    let sent: Vec<u8> = (0..TRANSFER).map(|index| (index * 31 % 251) as u8).collect();
    let address = SocketAddrV4::new(to.port.address, port);
    let listener = to.netns.listen(address)?;
    let mut stream = from.netns.run(|| http::connect_from(None, address, Duration::from_secs(30)))??;
    let (mut echo, _) = listener.accept()?;
    let echoing = thread::spawn(move || -> Result<TcpStream> {
        let mut bytes = vec![0; TRANSFER];
        echo.read_exact(&mut bytes)?;
        echo.write_all(&bytes)?;
        Ok(echo)
    });
    stream.write_all(&sent)?;
    let mut received = vec![0; TRANSFER];
    stream.read_exact(&mut received).context("the guests' connection broke")?;
    echoing.join().ok().context("the echoing side panicked")??;
    ensure!(received == sent, "bytes were changed on the way");
    Ok(())
}
