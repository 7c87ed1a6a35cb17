//! Several endpoints of Nova: they stand in for each other, and one that is of no use costs a guest a moment at most.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use metadata_tests::{
    agent::Options,
    check::{META_DATA, is_identity_of},
    cloud::{Chassis as _, Cloud},
    guest::Guest,
    nova,
    stage::Stage,
    upstream::{Script, Upstream},
    wait::until,
};

use super::{OK, SOON, address, answer, cloud, nobody_listens, told_once};

/// An agent with two servers.
fn pair(options: &[(&'static str, String)]) -> Result<(Cloud<Stage>, [Guest; 2], [Upstream; 2])> {
    let hosts = ("DEFAULT", "nova_metadata_host = 127.0.0.1:8801,127.0.0.1:8802".to_owned());
    let (cloud, guests) = cloud(&[&[hosts], options].concat())?;
    let start = |port| Upstream::start(cloud.chassis.host(), address(port), answer());
    let servers = [start(8801)?, start(8802)?];
    Ok((cloud, guests, servers))
}

fn up(cloud: &Cloud<Stage>, port: u16) -> Result<f64> {
    cloud.agent.metric(&format!("metadata_nova_up{{endpoint=\"127.0.0.1:{port}\"}}"))
}

fn failures(cloud: &Cloud<Stage>, port: u16) -> Result<f64> {
    cloud.agent.metric(&format!("metadata_nova_failures_total{{endpoint=\"127.0.0.1:{port}\"}}"))
}

#[test]
fn endpoints_stand_in_for_each_other() -> Result<()> {
    let hosts = "nova_metadata_host = 127.0.0.1:8801, localhost:8802 127.0.0.1:8803".to_owned();
    let (cloud, [guest, _]) = cloud(&[("DEFAULT", hosts)])?;
    let host = cloud.chassis.host();
    let start = |port| Upstream::start(host, address(port), answer());
    let (first, second, third) = (start(8801)?, start(8802)?, start(8803)?);
    let counts = || [&first, &second, &third].map(|upstream| upstream.take_requests().len());
    for _ in 0..9 {
        assert_eq!(guest.get("/a")?.text(), "ok");
    }
    assert_eq!(counts(), [3, 3, 3], "each has its share");

    // One closes its connections without an answer, which only who asks can find out.
    second.set_script(Script::AnswerAndClose(Vec::new()));
    for _ in 0..9 {
        assert_eq!(guest.get("/b")?.text(), "ok");
    }
    let up = |endpoint: &str| cloud.agent.metric(&format!("metadata_nova_up{{endpoint=\"{endpoint}\"}}"));
    // It is avoided, by the one guest that was not answered: its requests may be to blame.
    let asked = second.take_requests().len();
    assert!((1..=2).contains(&asked), "{asked} requests, of which one was over a connection that was kept");
    assert_eq!(up("localhost:8802")?, 1.0);
    second.set_script(answer());
    until("it is asked again", SOON, || {
        assert_eq!(guest.get("/c")?.text(), "ok");
        ensure!(!second.take_requests().is_empty(), "it is not");
        Ok(())
    })?;
    assert_eq!(up("localhost:8802")?, 1.0);

    // Two are gone altogether: nobody listens. That concerns a POST as little as a GET, since nothing was sent.
    drop((first, second));
    nobody_listens(&cloud, address(8801))?;
    nobody_listens(&cloud, address(8802))?;
    third.take_requests();
    for round in 0..6 {
        let method = if round % 2 == 0 { "POST" } else { "GET" };
        assert_eq!(guest.request(method, "/d", &[], b"")?.text(), "ok", "{method} in round {round}");
    }
    assert_eq!(third.take_requests().len(), 6);
    Ok(())
}

/// Nova's servers close the connection of a request that they cannot read. A guest that sends such ones shall not have
/// the endpoints avoided, for itself or others.
#[test]
fn no_guest_decides_about_novas_health() -> Result<()> {
    let (cloud, [guest, other], servers) = pair(&[])?;
    let counts = || servers.each_ref().map(|server| server.take_requests().len());
    for script in [Script::AnswerAndClose(Vec::new()), answer()] {
        for server in &servers {
            server.set_script(script.clone());
        }
        let expected = if matches!(script, Script::Answer(_)) { (200, [2, 2]) } else { (502, [4, 4]) };
        for _ in 0..4 {
            assert_eq!(other.get("/a")?.status, expected.0);
            assert_eq!([up(&cloud, 8801)?, up(&cloud, 8802)?], [1.0, 1.0]);
        }
        assert_eq!(counts(), expected.1);
    }
    // What is sent once proves nothing either.
    servers[0].set_script(Script::AnswerAndClose(Vec::new()));
    servers[1].set_script(Script::AnswerAndClose(Vec::new()));
    assert_eq!(guest.request("POST", "/a", &[], b"secret")?.status, 502);
    assert_eq!(failures(&cloud, 8801)? + failures(&cloud, 8802)?, 9.0);
    assert!(!cloud.agent.log()?.contains("nova failed"));
    Ok(())
}

/// A guest whose requests one endpoint cannot take, by their length or by what they ask for, has it avoided for itself, and
/// nobody else notices: not even as often as it likes to ask.
#[test]
fn one_guests_requests_take_no_endpoint_down() -> Result<()> {
    let (cloud, [hostile, other], [picky, _good]) = pair(&[])?;
    picky.set_script(Script::Made(|request| {
        let answer: &[u8] = match request {
            _ if request.contains("/large") => b"the head is too large\r\n\r\n",
            _ if request.contains("/odd") => {
                b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok!"
            }
            _ => OK,
        };
        vec![(Duration::ZERO, answer.to_vec())]
    }));
    let end = Instant::now() + Duration::from_secs(4);
    let stop = || Instant::now() > end;
    thread::scope(|scope| -> Result<()> {
        let asking = scope.spawn(|| -> Result<()> {
            for target in ["/large", "/odd"].into_iter().cycle().take_while(|_| !stop()) {
                assert_eq!(hostile.get(target)?.text(), "ok");
                thread::sleep(Duration::from_millis(2));
            }
            Ok(())
        });
        let (mut asked, mut taken) = (0, 0);
        while !stop() {
            assert_eq!(other.get("/a")?.text(), "ok");
            assert_eq!(up(&cloud, 8801)?, 1.0);
            let requests = picky.take_requests();
            taken += requests.iter().filter(|request| request.starts_with(b"GET /a ")).count();
            asked += 1;
        }
        println!("{taken} of {asked} requests of the other guest's");
        assert!(taken * 4 > asked, "{taken} of {asked} requests");
        asking.join().ok().context("the hostile guest panicked")?
    })?;
    assert!(failures(&cloud, 8801)? >= 3.0);
    assert!(!cloud.agent.log()?.contains("nova failed nova="));
    told_once(&cloud, "nova failed a guest's request")
}

/// One that takes requests and never answers. Guests find that out for themselves, until several have; who tries it again then
/// waits no longer than for a connection, and nobody gets anything but an answer of the other's.
#[test]
fn an_endpoint_that_hangs_is_tried_for_a_moment() -> Result<()> {
    const CONNECT: Duration = Duration::from_secs(1);
    let hosts = "nova_metadata_host = 127.0.0.1:8801,127.0.0.1:8802".to_owned();
    let more = vec![
        ("DEFAULT", hosts),
        ("metadata_haproxy", format!("timeout_connect = {}", CONNECT.as_secs())),
        ("metadata_haproxy", "timeout_server = 6".to_owned()),
    ];
    let cloud = Cloud::on(Stage::start()?, &Options { more, ..Options::default() })?;
    let guests: [Guest; 4] = cloud.guests()?;
    let start = |port| Upstream::start(cloud.chassis.host(), address(port), answer());
    let (hanging, _good) = (start(8801)?, start(8802)?);
    hanging.set_script(Script::Silence);
    let finds_out = |guest: &Guest| {
        until("it is known to hang", SOON, || {
            let status = guest.get("/a")?.status;
            ensure!(status == 504, "{status}");
            Ok(())
        })
    };
    thread::scope(|scope| {
        let finding =
            guests[..3].iter().map(|guest| scope.spawn(move || finds_out(guest))).collect::<Vec<_>>();
        finding.into_iter().try_for_each(|guest| guest.join().ok().context("a guest panicked")?)
    })?;
    // The answers that the others got meanwhile were the other's.
    assert_eq!([up(&cloud, 8801)?, up(&cloud, 8802)?], [0.0, 1.0]);
    assert_eq!(hanging.take_requests().len(), 3);

    let end = Instant::now() + 8 * CONNECT;
    let ask = |guest: &Guest| -> Result<Vec<Duration>> {
        let mut times = Vec::new();
        while Instant::now() < end {
            let asked = Instant::now();
            let answer = guest.get("/b")?;
            assert_eq!((answer.status, answer.text().as_str()), (200, "ok"));
            times.push(asked.elapsed());
            thread::sleep(Duration::from_millis(20));
        }
        Ok(times)
    };
    let times = thread::scope(|scope| {
        let asking = guests.each_ref().map(|guest| scope.spawn(move || ask(guest)));
        asking
            .into_iter()
            .map(|asking| asking.join().ok().context("a guest panicked")?)
            .collect::<Result<Vec<_>>>()
    })?
    .concat();
    let tried = hanging.take_requests().len();
    let slow = times.iter().filter(|took| **took > CONNECT / 2).count();
    println!("{tried} trials, {slow} of {} slow, the slowest {:?}", times.len(), times.iter().max());
    // One at a time, each for a second and half a second after the one before, at least.
    assert!((1..=6).contains(&tried), "{tried} requests were sent to it");
    assert!(slow <= tried, "{slow} requests were slow for {tried} trials");
    assert!(times.iter().max() < Some(&(CONNECT * 4)), "{:?}", times.iter().max());

    hanging.set_script(answer());
    until("it is asked again", SOON, || {
        for guest in &guests {
            assert_eq!(guest.get("/c")?.text(), "ok");
        }
        ensure!(up(&cloud, 8801)? == 1.0, "it is not");
        Ok(())
    })
}

/// One that begins answers and does not go on with them: if nothing was passed on, the other is asked.
#[test]
fn an_endpoint_that_breaks_off_is_noticed() -> Result<()> {
    let (cloud, [guest, _], [breaking, good]) = pair(&[])?;
    let head = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n".to_vec();
    breaking.set_script(Script::AnswerAndClose(head.clone()));
    for _ in 0..4 {
        assert_eq!(guest.get("/a")?.text(), "ok");
    }
    assert_eq!(breaking.take_requests().len(), 1, "the guest avoids it");
    assert_eq!([up(&cloud, 8801)?, up(&cloud, 8802)?], [1.0, 1.0]);

    // What has begun cannot be taken back. That may be a slow guest's fault as well: it is told, and nothing else.
    breaking.set_script(answer());
    until("it is asked again", SOON, || {
        assert_eq!(guest.get("/b")?.text(), "ok");
        ensure!(!breaking.take_requests().is_empty(), "it is not");
        Ok(())
    })?;
    drop(good);
    nobody_listens(&cloud, address(8802))?;
    let before = failures(&cloud, 8801)?;
    breaking.set_script(Script::AnswerAndClose([&head[..], b"hello"].concat()));
    until("an answer breaks off", SOON, || {
        let answer = guest.get("/c");
        ensure!(answer.is_err(), "{answer:?}");
        Ok(())
    })?;
    assert_eq!(failures(&cloud, 8801)?, before + 1.0);
    assert_eq!(up(&cloud, 8801)?, 1.0);
    until("the log says so", SOON, || {
        ensure!(cloud.agent.log()?.contains("nova broke off an answer nova=127.0.0.1:8801"));
        Ok(())
    })
}

/// Servers that come and go are not noticed as long as one is there.
#[test]
fn a_flapping_nova_is_not_noticed() -> Result<()> {
    let hosts = format!("nova_metadata_host = 127.0.0.1:8801, {}", nova::ADDRESS);
    let (cloud, [guest, _]) = cloud(&[("DEFAULT", hosts)])?;
    let flapping = Upstream::start(cloud.chassis.host(), address(8801), Script::AnswerAndClose(Vec::new()))?;
    let broken: [&[u8]; 3] = [b"", b"HTTP/1.1 200 OK\r\nConte", b"nonsense\r\n\r\n"];
    let until = Instant::now() + Duration::from_secs(5);
    let mut answers = 0;
    while Instant::now() < until {
        flapping.set_script(Script::AnswerAndClose(broken[answers % 3].to_vec()));
        is_identity_of(&guest.port, &guest.get(META_DATA)?)
            .with_context(|| format!("after {answers} answers"))?;
        answers += 1;
        thread::sleep(Duration::from_millis(2));
    }
    assert!(flapping.connections() > 2, "it was given {} chances", flapping.connections());
    Ok(())
}
