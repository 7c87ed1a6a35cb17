//! Good answers a second, and the processor time of each agent for one, under loads of one guest.

use std::{process::Command, time::Duration};

use anyhow::{Result, ensure};
use metadata_tests::{
    command::{Words as _, run},
    guest::METADATA,
    load::{self, Load, Mode},
    port::{mac, uuid},
    process,
    spread::Spread,
};

use crate::{
    Arguments,
    pair::{Pair, Side},
    report::{Better, Report, Row},
};

const LOADS: [Load; 4] = [
    Load { connections: 1, mode: Mode::KeepAlive },
    Load { connections: 1, mode: Mode::Close },
    Load { connections: 32, mode: Mode::KeepAlive },
    Load { connections: 32, mode: Mode::Close },
];
/// For an agent that has just been started.
const WARM_UP: Duration = Duration::from_millis(500);
/// Rows that one command adds: what it takes grows with the square.
const BATCH: usize = 100;

/// One agent under one load, in one round.
#[derive(Debug, Clone, Copy)]
struct Figures {
    good: f64,
    failed: f64,
    /// In milliseconds.
    p50: f64,
    /// Microseconds of the agent's for a good answer.
    cpu: f64,
}

pub(crate) fn all(pair: &mut Pair, arguments: &Arguments, report: &mut Report) -> Result<()> {
    let _upstreams = pair.answer_constantly()?;
    measure(pair, arguments, report, "")?;
    if arguments.foreign > 0 {
        add_foreign(pair, arguments.foreign)?;
        measure(pair, arguments, report, &format!(", {} ports of other hosts", arguments.foreign))?;
    }
    Ok(())
}

fn measure(pair: &mut Pair, arguments: &Arguments, report: &mut Report, beside: &str) -> Result<()> {
    let mut rounds: Vec<[Vec<Figures>; 2]> = Vec::new();
    for _ in 0..arguments.rounds {
        rounds.push(pair.both(|pair, side| {
            let guest = &pair.guests[0].netns;
            load::run_counting(guest, METADATA, LOADS[0], WARM_UP)?;
            LOADS.iter().map(|load| round(pair, side, *load, arguments.time())).collect()
        })?);
    }
    for (number, load) in LOADS.into_iter().enumerate() {
        let of = |figure: fn(&Figures) -> f64| {
            let pairs = rounds.iter().map(|[theirs, ours]| [figure(&theirs[number]), figure(&ours[number])]);
            pairs.collect::<Vec<_>>()
        };
        let connections = match (load.connections, load.mode) {
            (1, Mode::Close) => "1 connection, new for each".to_owned(),
            (1, _) => "1 connection, kept".to_owned(),
            (many, Mode::Close) => format!("{many} connections, new for each"),
            (many, _) => format!("{many} connections, kept"),
        };
        let name = |what: &str| format!("{what}, {connections}{beside}");
        report.add(Row::new(name("good answers/s"), of(|figures| figures.good), 0, "", Better::More));
        report.add(Row::new(name("CPU for a good answer"), of(|figures| figures.cpu), 0, "µs", Better::Less));
        report.add(Row::new(
            name("half of good answers within"),
            of(|figures| figures.p50),
            2,
            "ms",
            Better::Less,
        ));
        let failed = of(|figures| figures.failed);
        let [theirs, ours] = [0, 1].map(|side| Spread::of(failed.iter().map(|pair| pair[side])).middle);
        report.note(
            &name("answers that are none (502, 503)"),
            [theirs, ours].map(|share| format!("{:.0} %", share * 100.0)),
        );
    }
    Ok(())
}

fn round(pair: &Pair, side: Side, load: Load, time: Duration) -> Result<Figures> {
    let cpu = |side| match side {
        Side::Theirs => pair.neutron.cpu_time(),
        Side::Ours => process::cpu_time(pair.cloud.agent.id()?),
    };
    let (before, idle) = (cpu(side)?, pair.neutron.cpu_time()?);
    let measured = load::run_counting(&pair.guests[0].netns, METADATA, load, time)?;
    let (after, other) = (cpu(side)?, pair.neutron.cpu_time()?.saturating_sub(idle));
    ensure!(side == Side::Theirs || other < time / 10, "neutron's agent took {other:?} in a round of ours");
    if side == Side::Ours {
        // It writes a line for each request.
        pair.cloud.agent.discard_log()?;
    }
    let (good, failed) = (measured.requests as f64, measured.failed as f64);
    Ok(Figures {
        good: measured.rate(),
        failed: failed / (good + failed),
        p50: measured.percentile(50) / 1e3,
        cpu: (after - before).as_secs_f64() * 1e6 / good.max(1.0),
    })
}

/// Ports that Neutron has in other networks, on no chassis of ours.
fn add_foreign(pair: &Pair, count: usize) -> Result<()> {
    let switch = format!("neutron-{}", uuid()?);
    run(pair.cloud.chassis.nbctl().words(format!("ls-add {switch}")))?;
    for batch in 0..count.div_ceil(BATCH) {
        let mut command: Command = pair.cloud.chassis.nbctl();
        command.arg("--timeout=120");
        for number in batch * BATCH..count.min((batch + 1) * BATCH) {
            let (id, address) = (uuid()?, format!("10.{}.{}.2", number / 256, number % 256));
            command.words(format!("-- lsp-add {switch} {id} -- lsp-set-addresses {id}"));
            command.arg(format!("{} {address}", mac()?));
            command.words(format!("-- set Logical_Switch_Port {id}")).arg(format!(
                "external_ids={{\"neutron:device_id\"=\"{}\",\"neutron:project_id\"=\"{}\",\"neutron:cidrs\"=\"{address}/24\"}}",
                uuid()?,
                pair.networks[0].project
            ));
        }
        run(&mut command)?;
    }
    run(pair.cloud.chassis.nbctl().words("--timeout=120 --wait=sb sync"))?;
    Ok(())
}
