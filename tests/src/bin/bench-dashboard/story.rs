//! The story: guests ask, some boot, one meets its limits, all together meet theirs, and Nova, the guest-facing process and the
//! Southbound go and come.

use std::{
    f64::consts::TAU,
    net::TcpStream,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use metadata_tests::{
    agent::Options,
    check::{META_DATA, is_identity_of},
    cloud::{Chassis as _, Cloud},
    command::{Words as _, run},
    guest::Guest,
    http::{Connection, request_head},
    nova::Pace,
    ovn::{Lab, Routing},
    port::{Port, uuid},
    prometheus::AGENT,
};
use nix::{
    libc,
    sys::{
        signal::{Signal, kill},
        socket::{setsockopt, sockopt},
    },
    unistd::Pid,
};

use crate::Event;

const GUESTS: usize = 6;
/// Guests that boot later.
const LATE: usize = 2;
const PACE: Pace = Pace { answer: Duration::from_millis(4), workers: 4 };
/// Options that make limits such as a few guests can meet.
const LIMITS: [&str; 5] = [
    "connections = 48",
    "port_connections = 20",
    "request_rate = 30",
    "request_burst = 30",
    "token_mode = optional",
];
/// Connections that a guest keeps open, where it may have 20.
const PARKED: usize = 24;
const USER_DATA: &str = "/latest/user-data";
const SECOND: Duration = Duration::from_secs(1);

/// A node with its guests.
#[derive(Debug)]
pub(crate) struct Node {
    // Dropped in this order: who uses something goes before it.
    guests: Vec<Guest>,
    /// Machines whose ports are not known yet.
    late: Vec<Guest>,
    pub(crate) cloud: Cloud<Lab>,
}

impl Node {
    pub(crate) fn start() -> Result<Self> {
        let mut more = LIMITS.map(|line| ("metadata_ebpf", line.to_owned())).to_vec();
        more.push(("metadata_ebpf", format!("admin_listen = {AGENT}")));
        let mut cloud = Cloud::on(Lab::start()?, &Options { more, ..Options::default() })?;
        cloud.quiet = true;
        cloud.nova.set_pace(Some(PACE));
        let networks = [("red", Routing::Routed), ("blue", Routing::Isolated)];
        let networks = networks.map(|(name, routing)| cloud.chassis.add_network(name, routing));
        let [red, blue] = networks;
        let networks = [red?, blue?];
        let guests = (0..GUESTS).map(|number| cloud.add_guest(&networks[number % 2]));
        let guests = guests.collect::<Result<Vec<_>>>()?;
        let late = (0..LATE).map(|number| cloud.chassis.boot(Port::new(&networks[number % 2])?));
        let late = late.collect::<Result<Vec<_>>>()?;
        for guest in &guests {
            cloud.agent.wait_served(guest, cloud.chassis.ifindex(guest)?)?;
        }
        for guest in guests.iter().chain(&late) {
            cloud.nova.add_instance(&guest.port);
            cloud.nova.set_user_data(&guest.port, "#!/bin/sh\necho hello\n");
        }
        Ok(Self { guests, late, cloud })
    }

    /// Everything that happens, which takes four minutes.
    pub(crate) fn live(&mut self) -> Result<Vec<Event>> {
        let Self { guests, late, cloud } = self;
        let began = Instant::now();
        let is_over = &AtomicBool::new(false);
        thread::scope(|scope| {
            let start = |(number, guest)| scope.spawn(move || ask(guest, number, began, is_over));
            let mut asking: Vec<_> = guests.iter().enumerate().map(start).collect();
            let mut told = || -> Result<Vec<Event>> {
                let mut story = Story { began, events: Vec::new() };
                story.at(20, "two guests boot");
                boot(cloud, late)?;
                asking.extend(late.iter().enumerate().map(|(number, guest)| start((GUESTS + number, guest))));
                story.at(55, "one asks too much");
                greedy(&guests[0], story.until(75))?;
                story.at(85, "too many connections, and guests that leave");
                crowd(guests, story.until(105))?;
                story.at(120, "Nova is away");
                cloud.nova.pause();
                story.wait(135);
                cloud.nova.resume(cloud.chassis.host())?;
                story.at(155, "the guest-facing process is killed");
                let process = cloud.agent.guest_process()?;
                kill(Pid::from_raw(process.cast_signed()), Signal::SIGKILL)?;
                story.at(175, "the Southbound is away");
                cloud.chassis.kill_southbound()?;
                story.wait(195);
                cloud.chassis.start_southbound()?;
                story.at(215, "a port without a device");
                plug_nothing(cloud)?;
                story.wait(240);
                Ok(story.events)
            };
            let events = told();
            is_over.store(true, Ordering::Relaxed);
            for guest in asking {
                guest.join().ok().context("a guest panicked")??;
            }
            events
        })
    }
}

/// Events so far, and the time at which it all began.
struct Story {
    began: Instant,
    events: Vec<Event>,
}

impl Story {
    fn until(&self, second: u32) -> Instant {
        self.began + SECOND * second
    }

    fn wait(&self, second: u32) {
        thread::sleep(self.until(second).saturating_duration_since(Instant::now()));
    }

    fn at(&mut self, second: u32, name: &'static str) {
        self.wait(second);
        eprintln!("{second} s: {name}");
        self.events.push(Event { second: f64::from(second), name });
    }
}

/// Asks in waves until it is over. A wrong identity is an error, and no answer is none: Nova goes away, and connections are
/// ended for others.
fn ask(guest: &Guest, number: usize, began: Instant, is_over: &AtomicBool) -> Result<()> {
    let mut token = None;
    for count in 0.. {
        if is_over.load(Ordering::Relaxed) {
            break;
        }
        let wave = (TAU * (began.elapsed().as_secs_f64() / 80.0 + number as f64 / 24.0)).sin();
        thread::sleep(SECOND.div_f64(7.0 + 4.0 * wave));
        match count % 10 {
            0 => drop(guest.get("/latest/meta-data/nothing")),
            3 => drop(guest.get(USER_DATA)),
            // Some know session tokens, and ask anew for one now and then.
            6 if number.is_multiple_of(2) => {
                let token = match &token {
                    Some(token) if count % 50 != 6 => token,
                    _ => token.insert(new_token(guest).unwrap_or_default()),
                };
                let header = ("X-aws-ec2-metadata-token", token.as_str());
                drop(guest.request("GET", USER_DATA, &[header], b""));
            }
            _ => {
                if let Ok(response) = guest.get(META_DATA)
                    && response.status == 200
                {
                    is_identity_of(&guest.port, &response)?;
                }
            }
        }
    }
    Ok(())
}

fn new_token(guest: &Guest) -> Option<String> {
    let time = ("X-aws-ec2-metadata-token-ttl-seconds", "600");
    let response = guest.request("PUT", "/latest/api/token", &[time], b"").ok()?;
    (response.status == 200).then(|| response.text())
}

/// Machines run before their ports are known to the Southbound, as when Neutron is slow.
fn boot(cloud: &Cloud<Lab>, machines: &[Guest]) -> Result<()> {
    machines.iter().try_for_each(|machine| cloud.chassis.plug(machine))?;
    thread::sleep(6 * SECOND);
    for machine in machines {
        cloud.chassis.create_port(&machine.port)?;
        cloud.chassis.wait_bound(machine)?;
        machine.dhcp()?;
    }
    Ok(())
}

/// A guest opens more connections than it may, and asks faster than it may.
fn greedy(guest: &Guest, end: Instant) -> Result<()> {
    while Instant::now() < end {
        let parked = park(guest);
        for _ in 0..40 {
            drop(guest.get(META_DATA));
        }
        drop(parked);
        thread::sleep(SECOND / 4);
    }
    Ok(())
}

/// Guests of which none has more than it may have take all connections there are, and some leave in the middle of a request.
fn crowd(guests: &[Guest], end: Instant) -> Result<()> {
    while Instant::now() < end {
        let parked: Vec<_> = guests[..3].iter().map(park).collect();
        for guest in &guests[3..] {
            leave(guest)?;
        }
        thread::sleep(SECOND / 2);
        drop(parked);
    }
    Ok(())
}

/// Connections that are kept after a request; those that are refused are not.
fn park(guest: &Guest) -> Vec<Connection<TcpStream>> {
    let open = || -> Result<Connection<TcpStream>> {
        let mut connection = guest.connect()?;
        connection.request("GET", META_DATA, &[], b"")?;
        Ok(connection)
    };
    (0..PARKED).filter_map(|_| open().ok()).collect()
}

/// Resets a connection with half a body on it.
fn leave(guest: &Guest) -> Result<()> {
    let Ok(mut connection) = guest.connect() else { return Ok(()) };
    connection.send(&request_head("POST", "/openstack/latest/password", &[], 10))?;
    connection.send(b"half")?;
    thread::sleep(SECOND / 20);
    setsockopt(connection.stream(), sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
    Ok(())
}

/// An interface whose device is nowhere.
fn plug_nothing(cloud: &Cloud<Lab>) -> Result<()> {
    let ids = format!("external_ids={{iface-id=\"{}\",vm-uuid=\"{}\"}}", uuid()?, uuid()?);
    let mut vsctl = cloud.chassis.vsctl();
    run(vsctl.words("--no-wait add-port br-int nowhere -- set Interface nowhere").arg(ids))?;
    Ok(())
}
