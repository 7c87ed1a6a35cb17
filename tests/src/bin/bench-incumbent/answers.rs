//! Requests that come at once, and bodies that come behind their heads.

use std::{sync::Barrier, thread};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use metadata_tests::{
    check::{META_DATA, is_identity_of},
    command::run,
    nova::Answer,
};

use crate::{Arguments, pair::Pair, report::Report};

const AT_ONCE: usize = 32;
/// As many bodies in a round, as large as an encrypted password.
const BODIES: usize = 100;
const BODY: [u8; 344] = [b'P'; 344];
/// Posts as cloudbase-init does: http.client sends head and body apart. Prints how many answers were 200.
const CLIENT: &str = r#"
import http.client, sys
count, target, size = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
good = 0
for _ in range(count):
    connection = http.client.HTTPConnection("169.254.169.254", timeout=30)
    connection.putrequest("POST", target)
    connection.putheader("Content-Length", str(size))
    connection.endheaders()
    connection.send(b"P" * size)
    good += connection.getresponse().status == 200
    connection.close()
print(good)
"#;
const TARGET: &str = "/openstack/latest/password";

/// As many requests of one guest at the same time, each on a connection of its own.
pub(crate) fn at_once(pair: &mut Pair, arguments: &Arguments, report: &mut Report) -> Result<()> {
    let mut good = [0, 0];
    for _ in 0..arguments.rounds {
        for (good, answered) in good.iter_mut().zip(pair.both(|pair, _| burst(pair))?) {
            *good += answered;
        }
    }
    let all = AT_ONCE * arguments.rounds;
    let failed = good.map(|good| format!("{} of {all}", all - good));
    report.note(&format!("{AT_ONCE} requests at once: without their right answer"), failed);
    Ok(())
}

fn burst(pair: &Pair) -> Result<usize> {
    let guest = &pair.guests[0];
    let barrier = Barrier::new(AT_ONCE);
    thread::scope(|scope| {
        let asking: Vec<_> = (0..AT_ONCE)
            .map(|_| {
                scope.spawn(|| {
                    barrier.wait();
                    guest.get(META_DATA).is_ok_and(|response| is_identity_of(&guest.port, &response).is_ok())
                })
            })
            .collect();
        let mut good = 0;
        for thread in asking {
            good += usize::from(thread.join().ok().context("a request's thread panicked")?);
        }
        Ok(good)
    })
}

/// Bodies that are sent behind the head, as Python's clients do, cloudbase-init among them.
pub(crate) fn bodies(pair: &mut Pair, arguments: &Arguments, report: &mut Report) -> Result<()> {
    let (mut lost, mut failed) = ([0, 0], [0, 0]);
    for _ in 0..arguments.rounds {
        let round = pair.both(|pair, side| {
            let (nova, guest) = (pair.nova_of(side), &pair.guests[0]);
            nova.answer(
                TARGET,
                Answer {
                    status: 200,
                    headers: vec![("content-type", "text/plain; charset=UTF-8")],
                    body: Bytes::new(),
                },
            );
            nova.take_requests();
            let mut python = guest.netns.command("python3")?;
            let size = BODY.len().to_string();
            let good = run(python.args(["-c", CLIENT, &BODIES.to_string(), TARGET, &size]))?;
            let good: usize = good.trim().parse()?;
            let whole = nova.take_requests().iter().filter(|request| request.body == BODY[..]).count();
            Ok((good.saturating_sub(whole), BODIES - good))
        })?;
        for (side, (cut, refused)) in round.into_iter().enumerate() {
            lost[side] += cut;
            failed[side] += refused;
        }
    }
    let all = BODIES * arguments.rounds;
    report.note(
        "bodies sent behind their heads: lost, and answered 200",
        lost.map(|lost| format!("{lost} of {all}")),
    );
    report.note("the same: answered otherwise", failed.map(|failed| format!("{failed} of {all}")));
    Ok(())
}
