//! Nova's machines: one that dies sends nothing, no reset and no farewell, and only its silence tells.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use metadata_tests::{
    agent::Options,
    cloud::{Chassis as _, Cloud},
    guest::Guest,
    http,
    stage::Stage,
    upstream::{Machine, Script, Upstream},
    wait::until,
};

use super::{OK, SOON, answer};

/// `timeout_connect` of these tests.
const CONNECT: Duration = Duration::from_secs(2);
/// Time limit of a step that takes long, on a machine that is busy.
const MARGIN: Duration = Duration::from_secs(3);

/// A server on each of two machines, and an agent that knows one or both, with one worker, so that it is known what its pool holds.
struct Pair {
    cloud: Cloud<Stage>,
    guests: [Guest; 2],
    machines: [Machine; 2],
    servers: [Upstream; 2],
}

impl Pair {
    fn start() -> Result<Self> {
        Self::with_known(2)
    }

    fn with_known(known: usize) -> Result<Self> {
        let stage = Stage::start()?;
        let machine = |number| Machine::attach(stage.sandbox(), stage.host(), number);
        let machines = [machine(1)?, machine(2)?];
        let server = |at: &Machine| Upstream::start(&at.netns, at.address, answer());
        let servers = [server(&machines[0])?, server(&machines[1])?];
        let hosts: Vec<_> = machines[..known].iter().map(|machine| machine.address.to_string()).collect();
        let more = vec![
            ("DEFAULT", format!("nova_metadata_host = {}", hosts.join(", "))),
            ("metadata_haproxy", format!("timeout_connect = {}", CONNECT.as_secs())),
            ("metadata_ebpf", "workers = 1".to_owned()),
            ("metadata_ebpf", "connection_rate = 0".to_owned()),
        ];
        let cloud = Cloud::on(stage, &Options { more, ..Options::default() })?;
        let guests = cloud.overlapping_guests()?;
        Ok(Self { cloud, guests, machines, servers })
    }

    /// Makes connections to both that wait for requests.
    fn fill_pools(&self) -> Result<()> {
        for _ in 0..4 {
            assert_eq!(self.guests[0].get("/pooled")?.text(), "ok");
        }
        assert_eq!(self.servers.each_ref().map(Upstream::connections), [1, 1]);
        Ok(())
    }

    fn up(&self, index: usize) -> Result<f64> {
        self.metric("metadata_nova_up", index)
    }

    fn metric(&self, name: &str, index: usize) -> Result<f64> {
        self.cloud.agent.metric(&format!("{name}{{endpoint=\"{}\"}}", self.machines[index].address))
    }
}

#[test]
fn a_machine_that_dies_is_found_out_by_the_request_that_it_does_not_take() -> Result<()> {
    let pair = Pair::start()?;
    pair.fill_pools()?;
    pair.machines[0].vanish()?;
    let mut slow = 0;
    for round in 0..6 {
        let asked = Instant::now();
        assert_eq!(pair.guests[0].get("/a")?.text(), "ok", "in round {round}");
        let took = asked.elapsed();
        println!("round {round} took {took:?}");
        assert!(took < CONNECT + MARGIN, "round {round} took {took:?}");
        slow += usize::from(took > CONNECT / 2);
    }
    assert!(slow > 0, "no request was sent to the dead machine");
    assert_eq!([pair.up(0)?, pair.up(1)?], [0.0, 1.0]);
    Ok(())
}

#[test]
fn a_machine_that_dies_with_a_request_in_hand_is_found_out_by_probes() -> Result<()> {
    let pair = Pair::start()?;
    for server in &pair.servers {
        server.set_script(Script::Held(OK.to_vec()));
    }
    let mut connection = pair.guests[0].connect()?;
    connection.send(&http::request_head("GET", "/held", &[], 0))?;
    let taken = until("a server has the request", SOON, || {
        let taken = pair.servers.iter().position(|server| !server.take_requests().is_empty());
        taken.context("none has")
    })?;
    pair.servers[1 - taken].set_script(answer());
    pair.machines[taken].vanish()?;
    let vanished = Instant::now();
    assert_eq!(connection.response("GET")?.text(), "ok");
    println!("answered after {:?}", vanished.elapsed());
    assert!(vanished.elapsed() < CONNECT + MARGIN, "answered after {:?}", vanished.elapsed());
    Ok(())
}

/// As an address does that moves to another machine: nothing of the old connections is known there.
#[test]
fn a_machine_that_is_back_in_time_is_asked_anew() -> Result<()> {
    let Pair { cloud: _cloud, guests: [guest, _], machines: [machine, _], servers: [server, _] } =
        Pair::with_known(1)?;
    assert_eq!(guest.get("/pooled")?.text(), "ok");
    machine.vanish()?;
    let (answer, server) = thread::scope(|scope| -> Result<_> {
        let asking = scope.spawn(|| guest.get("/a"));
        drop(server);
        thread::sleep(CONNECT + CONNECT / 4);
        let server =
            until("another serves", SOON, || Upstream::start(&machine.netns, machine.address, answer()))?;
        machine.reappear()?;
        Ok((asking.join().ok().context("the guest panicked")??, server))
    })?;
    assert_eq!((answer.status, answer.text().as_str()), (200, "ok"));
    assert_eq!(server.take_requests().len(), 1);
    Ok(())
}

/// A server that takes its time is no dead machine.
#[test]
fn a_machine_that_answers_late_is_waited_for() -> Result<()> {
    let pair = Pair::start()?;
    pair.fill_pools()?;
    for server in &pair.servers {
        server.set_script(Script::Held(OK.to_vec()));
        server.take_requests();
    }
    let mut connection = pair.guests[0].connect()?;
    connection.send(&http::request_head("GET", "/held", &[], 0))?;
    thread::sleep(CONNECT * 3);
    for server in &pair.servers {
        server.release();
    }
    assert_eq!(connection.response("GET")?.text(), "ok");
    assert_eq!(pair.servers.each_ref().map(|server| server.take_requests().len()).iter().sum::<usize>(), 1);
    assert_eq!([pair.up(0)?, pair.up(1)?], [1.0, 1.0]);
    Ok(())
}

/// Cost of a machine that stays away: one request at a time finds out that it still does.
#[test]
fn a_machine_that_stays_away_is_tried_by_one_request_at_a_time() -> Result<()> {
    const ASKING: usize = 4;
    let pair = Pair::start()?;
    pair.fill_pools()?;
    pair.machines[0].vanish()?;
    let end = Instant::now() + CONNECT * 6;
    let ask = |guest: &Guest| -> Result<Vec<Duration>> {
        let mut times = Vec::new();
        while Instant::now() < end {
            let asked = Instant::now();
            assert_eq!(guest.get("/a")?.text(), "ok");
            times.push(asked.elapsed());
            thread::sleep(Duration::from_millis(20));
        }
        Ok(times)
    };
    let times = thread::scope(|scope| {
        let asking: Vec<_> = (0..ASKING * 2)
            .map(|index| &pair.guests[index % 2])
            .map(|guest| scope.spawn(move || ask(guest)))
            .collect();
        asking.into_iter().map(|thread| thread.join().expect("a guest panicked")).collect::<Result<Vec<_>>>()
    })?
    .concat();
    let slowest = times.iter().max();
    // What is slow may be so for the machine that this runs on.
    let tried = pair.metric("metadata_nova_failures_total", 0)?;
    println!("{tried} of {} requests tried it, the slowest took {slowest:?}", times.len());
    // Those that found it out, and a trial after each back-off of 0.5, 1, 2 s.
    assert!(
        (1.0..=2.0 * ASKING as f64 + 8.0).contains(&tried),
        "{tried} of {} requests tried it",
        times.len()
    );
    assert!(slowest < Some(&(CONNECT + MARGIN)), "{slowest:?}");
    assert_eq!([pair.up(0)?, pair.up(1)?], [0.0, 1.0]);
    let log = pair.cloud.agent.wait_logged(&["nova failed"])?;
    assert_eq!(log.matches("nova failed").count(), 1, "{log}");

    pair.machines[0].reappear()?;
    until("it is asked again", SOON, || {
        assert_eq!(pair.guests[0].get("/b")?.text(), "ok");
        ensure!(pair.up(0)? == 1.0, "it is not");
        Ok(())
    })
}
