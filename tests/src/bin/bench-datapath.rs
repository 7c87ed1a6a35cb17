//! Cost of the datapath: for those it is not for, and for those it serves.
//!
//! Every comparison is a ratio of medians over rounds that alternate, in one run: absolute numbers say little about
//! another machine. A redirect is compared with a plain veth pair into the very same listener.
#![forbid(unsafe_code)]

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddrV4, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use metadata_tests::{
    agent::{Options, service_namespace},
    cloud::{Chassis as _, Cloud},
    guest::{Guest, METADATA},
    http,
    netns::Namespace,
    programs::{Programs, Which},
    stage::{Path, Stage},
};

const ROUNDS: usize = 7;
const ROUND: Duration = Duration::from_millis(1500);
const TEST_RUNS: u32 = 2_000_000;
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";

fn main() -> Result<()> {
    println!("| what | measured | goal |\n| --- | --- | --- |");
    bystander()?;
    other_traffic()?;
    redirect()
}

/// Frames that are not ours, by the kernel's own test runs: the time over that of a frame the program does not look at.
fn bystander() -> Result<()> {
    let programs = Programs::load()?;
    let frame = |ethertype: [u8; 2], rest: &[u8]| {
        let mut frame = vec![0xfa, 0x16, 0x3e, 9, 9, 9, 0xfa, 0x16, 0x3e, 1, 2, 3];
        frame.extend(ethertype);
        frame.extend(rest);
        frame.resize(1514, 0);
        frame
    };
    let mut ipv6 = vec![0x60, 0, 0, 0, 5, 0xb4, 6, 64];
    ipv6.extend([0x20; 32]);
    let mut ipv4 = vec![0x45, 0, 5, 0xdc, 0, 1, 0x40, 0, 64, 6, 0, 0];
    ipv4.extend([192, 168, 1, 10, 192, 168, 1, 11]);
    let baseline = frame([0x88, 0xcc], &[]);
    for (name, other) in [("IPv4", frame([8, 0], &ipv4)), ("IPv6", frame([0x86, 0xdd], &ipv6))] {
        let extra: Vec<f64> = (0..ROUNDS)
            .map(|_| {
                let empty = programs.time(Which::FromGuest, &baseline, TEST_RUNS)?;
                Ok(programs.time(Which::FromGuest, &other, TEST_RUNS)? as f64 - empty as f64)
            })
            .collect::<Result<_>>()?;
        println!("| another's {name} frame, over one of unknown type | +{:.0} ns | ≤ 15 ns |", median(extra));
    }
    Ok(())
}

/// Bulk traffic between two guests, with the program on both taps and without.
fn other_traffic() -> Result<()> {
    let mut cloud = Cloud::with_inventory()?;
    cloud.quiet = true;
    let network = cloud.chassis.add_network("bulk")?;
    let guests =
        [cloud.chassis.add_guest(&network, Path::OnLink)?, cloud.chassis.add_guest(&network, Path::OnLink)?];
    cloud.chassis.write_inventory(&guests.each_ref().map(|guest| &guest.port))?;
    let mut ratios = Vec::new();
    for round in 0..ROUNDS {
        for guest in &guests {
            cloud.agent.wait_served(guest, cloud.chassis.ifindex(guest)?)?;
        }
        let with = throughput(&guests[0], &guests[1], 7000 + round as u16 * 2)?;
        cloud.agent.stop()?;
        cloud.agent.clean_up()?;
        let without = throughput(&guests[0], &guests[1], 7001 + round as u16 * 2)?;
        ratios.push(with / without);
        cloud.agent.resume()?;
        cloud.agent.wait_ready()?;
    }
    println!("| throughput between guests, with : without the program | {:.3} | ≥ 0.99 |", median(ratios));
    Ok(())
}

/// Bytes a second over one connection.
fn throughput(from: &Guest, to: &Guest, port: u16) -> Result<f64> {
    let address = SocketAddrV4::new(to.port.address, port);
    let listener = to.netns.listen(address)?;
    let mut stream = from.netns.run(|| http::connect_from(None, address, Duration::from_secs(5)))??;
    let (mut sink, _) = listener.accept()?;
    let reader = thread::spawn(move || {
        let mut buffer = vec![0; 1 << 18];
        let mut total = 0_usize;
        while let Ok(count @ 1..) = sink.read(&mut buffer) {
            total += count;
        }
        total
    });
    let block = vec![0; 1 << 18];
    let started = Instant::now();
    while started.elapsed() < ROUND {
        stream.write_all(&block)?;
    }
    drop(stream);
    let total = reader.join().ok().context("the reader panicked")?;
    Ok(total as f64 / started.elapsed().as_secs_f64())
}

/// Connections and requests through the redirect, and through a veth pair, to one listener.
fn redirect() -> Result<()> {
    let mut cloud = Cloud::on(
        Stage::start()?,
        &Options { more: vec![("metadata_ebpf", "connection_rate = 0".to_owned())], ..Options::default() },
    )?;
    cloud.quiet = true;
    let [guest, _] = cloud.overlapping_guests()?;
    guest.get("/").context("the guest is not served")?;
    let service = Namespace::existing(&service_namespace(&cloud.chassis));
    // The programs stay when the agent stops, and its place at the socket is free.
    cloud.agent.stop()?;
    let listener = service.listen(METADATA)?;
    let client = Namespace::create(cloud.chassis.sandbox(), "plain")?;
    client.ip(format!("link add eth0 type veth peer name plain0 netns {}", service.name()))?;
    client.ip("addr add 192.168.77.2/24 dev eth0")?;
    client.ip("link set eth0 up")?;
    service.ip("addr add 192.168.77.1/24 dev plain0")?;
    service.ip("link set plain0 up")?;
    client.ip("route add 169.254.169.254 via 192.168.77.1")?;
    let stop = Arc::new(AtomicBool::new(false));
    let server = thread::spawn({
        let stop = stop.clone();
        move || answer_all(&listener, &stop)
    });
    let mut ratios = [Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        for (kind, ratios) in
            [connections as fn(&Namespace) -> Result<f64>, requests].into_iter().zip(&mut ratios)
        {
            ratios.push(kind(&guest.netns)? / kind(&client)?);
        }
    }
    stop.store(true, Ordering::Relaxed);
    // The last accept is waited for.
    drop(guest.connect());
    server.join().ok().context("the server panicked")??;
    let [connections, requests] = ratios;
    println!("| connections/s, redirect : plain veth | {:.3} | ≥ 0.95 |", median(connections));
    println!("| requests/s, redirect : plain veth | {:.3} | ≥ 0.95 |", median(requests));
    Ok(())
}

fn answer_all(listener: &TcpListener, stop: &AtomicBool) -> Result<()> {
    while !stop.load(Ordering::Relaxed) {
        let (mut stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        let mut buffer = [0; 1024];
        while let Ok(1..) = stream.read(&mut buffer) {
            if stream.write_all(ANSWER).is_err() {
                break;
            }
        }
    }
    Ok(())
}

fn connections(from: &Namespace) -> Result<f64> {
    rate(from, || {
        let mut stream = http::connect_from(None, METADATA, Duration::from_secs(5))?;
        ask(&mut stream)
    })
}

fn requests(from: &Namespace) -> Result<f64> {
    let mut stream = from.run(|| http::connect_from(None, METADATA, Duration::from_secs(5)))??;
    rate(from, || ask(&mut stream))
}

fn ask(stream: &mut TcpStream) -> Result<()> {
    stream.write_all(REQUEST)?;
    Ok(stream.read_exact(&mut [0; ANSWER.len()])?)
}

fn rate(from: &Namespace, mut once: impl FnMut() -> Result<()> + Send) -> Result<f64> {
    from.run(|| {
        let started = Instant::now();
        let mut count = 0_u32;
        while started.elapsed() < ROUND {
            once()?;
            count += 1;
        }
        Ok(f64::from(count) / started.elapsed().as_secs_f64())
    })?
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
