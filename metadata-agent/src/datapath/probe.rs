//! The agent's own guest: a device with the program on it and a namespace behind it, from which it asks for the service
//! as a guest does. What answers it answers everybody.
#![forbid(unsafe_code)]
use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, TcpStream},
    os::fd::RawFd,
    sync::{Arc, mpsc as blocking},
    thread,
    time::Duration,
};

use metadata_ebpf::address::{METADATA_PORT, METADATA_V4, METADATA_V6};
use netlink_packet_route::link::{InfoData, InfoVeth};
use rtnetlink::{LinkUnspec, LinkVeth};
use tokio::sync::mpsc;

use super::{
    Device, Error, Netns,
    netlink::{block_on, delete, find, netlink, refused, write_sysctl},
};

/// The device of the host, which stands for a tap.
const HOST_END: &str = "metadata-probe";
/// The end in the namespace.
const INNER_END: &str = "probe";
/// On-link with the service, and nobody else's: RFC 3927 reserves the first 256 addresses.
const ADDRESS: (Ipv4Addr, u8) = (Ipv4Addr::new(169, 254, 0, 1), 16);
const ADDRESS_V6: (Ipv6Addr, u8) = (Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1), 64);
/// Time limit of each step of an attempt.
const PATIENCE: Duration = Duration::from_secs(1);

/// Family over which the service is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// The device, and the thread behind it.
#[derive(Debug)]
pub struct Probe {
    /// The device that has to have the program.
    pub device: Device,
    netns: Arc<Netns>,
    questions: blocking::Sender<Family>,
    answers: mpsc::Receiver<Result<(), String>>,
    asked: bool,
}

impl Probe {
    /// Makes namespace and device, which go away with the process. `expected` is what an answer begins with.
    pub fn start(expected: &'static [u8]) -> Result<Self, Error> {
        let failed = |what| move |error| Error::Probe { what, error };
        let netns = Arc::new(Netns::unnamed().map_err(failed("making its namespace"))?);
        // A former agent's goes with its namespace, which takes the kernel a moment.
        if let Some(former) = block_on(find(HOST_END)).map_err(failed("looking for a former one"))? {
            block_on(delete(former.ifindex)).map_err(failed("removing a former one"))?;
        }
        block_on(create(netns.fd())).map_err(failed("making its device"))?;
        let inner = netns.run(|| block_on(set_up_inside())).map_err(failed("setting it up"))?;
        let ifindex = block_on(set_up_host_end()).map_err(failed("setting up its device"))?;
        let (questions, asked) = blocking::channel();
        let (tell, answers) = mpsc::channel(1);
        let answer = move || {
            while let Ok(family) = asked.recv() {
                let result = attempt(address(family, inner), expected);
                if tell.blocking_send(result.map_err(|error| format!("over {family:?}: {error}"))).is_err() {
                    return;
                }
            }
        };
        let behind = netns.clone();
        let inside = move || {
            // The thread is there for nothing else; it ends with the channel.
            if behind.enter().is_ok() {
                answer();
            }
        };
        let spawned = thread::Builder::new().name("metadata-probe".to_owned()).spawn(inside);
        spawned.map_err(failed("starting its thread"))?;
        let device = Device::tap(ifindex, HOST_END);
        Ok(Self { device, netns, questions, answers, asked: false })
    }

    /// Brings both ends to what they should be, whatever was done to them, unless they are gone.
    pub fn repair(&self) -> Result<(), Error> {
        let failed = |error| Error::Probe { what: "setting it up again", error };
        self.netns.run(|| block_on(set_up_inside())).map_err(failed)?;
        let ifindex = block_on(set_up_host_end()).map_err(failed)?;
        let is_ours = ifindex == self.device.ifindex;
        is_ours.then_some(()).ok_or_else(|| failed(io::Error::other("another device has its name")))
    }

    /// Begins an attempt, unless one is under way.
    pub fn ask(&mut self, family: Family) {
        if !self.asked {
            self.asked = self.questions.send(family).is_ok();
        }
    }

    /// Result of the attempt under way, with the reason if it failed. Waits for ever if there is none. May be
    /// cancelled.
    pub async fn answer(&mut self) -> Result<(), String> {
        match self.answers.recv().await {
            Some(answer) => {
                self.asked = false;
                answer
            }
            None => std::future::pending().await,
        }
    }
}

fn address(family: Family, inner: u32) -> SocketAddr {
    match family {
        Family::V4 => (METADATA_V4, METADATA_PORT).into(),
        Family::V6 => SocketAddrV6::new(METADATA_V6, METADATA_PORT, 0, inner).into(),
    }
}

/// Makes a connection through the real path.
fn attempt(address: SocketAddr, expected: &[u8]) -> Result<(), String> {
    let connect = TcpStream::connect_timeout(&address, PATIENCE);
    let mut stream = connect.map_err(|error| format!("cannot connect to {}: {error}", address.ip()))?;
    let exchange = |stream: &mut TcpStream| -> io::Result<Vec<u8>> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.write_all(b"OPTIONS * HTTP/1.1\r\nHost: metadata\r\n\r\n")?;
        let mut answer = vec![0; expected.len()];
        stream.read_exact(&mut answer)?;
        Ok(answer)
    };
    match exchange(&mut stream) {
        Ok(answer) if answer == expected => Ok(()),
        Ok(answer) => Err(format!("an unexpected answer: {:?}", String::from_utf8_lossy(&answer))),
        Err(error) => Err(format!("connected to {}, and no answer came: {error}", address.ip())),
    }
}

async fn create(netns: RawFd) -> io::Result<()> {
    let inner = LinkUnspec::new_with_name(INNER_END).setns_by_fd(netns).build();
    let pair = LinkVeth::new(HOST_END, INNER_END).set_info_data(InfoData::Veth(InfoVeth::Peer(inner)));
    netlink()?.link().add(pair.build()).execute().await.map_err(refused)
}

async fn set_up_host_end() -> io::Result<u32> {
    let host = find(HOST_END).await?.ok_or_else(|| io::Error::other("the device vanished"))?;
    write_sysctl(&format!("net/ipv6/conf/{HOST_END}/disable_ipv6"), "1")?;
    let up = LinkUnspec::new_with_index(host.ifindex).up().build();
    netlink()?.link().set(up).execute().await.map_err(refused)?;
    Ok(host.ifindex)
}

/// Returns the index of the inner end.
async fn set_up_inside() -> io::Result<u32> {
    let inner = find(INNER_END).await?.ok_or_else(|| io::Error::other("the inner end vanished"))?;
    for (setting, value) in
        [("disable_ipv6", "0"), ("accept_dad", "0"), ("accept_ra", "0"), ("addr_gen_mode", "1")]
    {
        write_sysctl(&format!("net/ipv6/conf/{INNER_END}/{setting}"), value)?;
    }
    let handle = netlink()?;
    let up = LinkUnspec::new_with_index(inner.ifindex).up().build();
    handle.link().set(up).execute().await.map_err(refused)?;
    let (address, length) = ADDRESS;
    let address = handle.address().add(inner.ifindex, IpAddr::V4(address), length);
    address.replace().execute().await.map_err(refused)?;
    if std::path::Path::new("/proc/sys/net/ipv6").exists() {
        let (address, length) = ADDRESS_V6;
        let address = handle.address().add(inner.ifindex, IpAddr::V6(address), length);
        address.replace().execute().await.map_err(refused)?;
    }
    Ok(inner.ifindex)
}
