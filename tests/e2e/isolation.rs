//! No byte of one tenant reaches another, whatever happens: taps come, go and change hands, the agent is restarted with
//! its maps, without them and with those of another layout, guests leave answers unacknowledged, and Nova breaks
//! framing. What arrives is looked at in the guests.

use std::{
    collections::BTreeSet,
    env, fs,
    io::{Read as _, Write as _},
    process::Command,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use metadata_ebpf::map::LAYOUT;
use metadata_tests::{
    agent::Options,
    astray::{AstrayNova, marks},
    capture::Capture,
    cloud::{Chassis as _, Cloud},
    command::{Words as _, run},
    guest::{Guest, METADATA},
    http::{self, request_head},
    netns::Namespace,
    nova,
    port::{Network, Port, uuid},
    random::Random,
    stage::{Path, Stage},
    wait::until,
};

/// Taps that are in use at a time.
const TAPS: usize = 6;
/// Seconds for which it goes on; another number by METADATA_TEST_ISOLATION.
const TIME: u64 = 10;

/// A guest with what it received, and who it has been.
struct Tenant {
    guest: Guest,
    /// Its instance, and those that the same machine was before.
    instances: Arc<Mutex<BTreeSet<String>>>,
    is_silent: bool,
    running: Arc<AtomicBool>,
    threads: Vec<thread::JoinHandle<Result<()>>>,
}

/// Marks and answers that all guests received together.
#[derive(Debug, Default)]
struct Received {
    marks: AtomicU64,
    answers: AtomicU64,
    astray: Mutex<Vec<String>>,
}

impl Tenant {
    fn start(
        cloud: &Cloud<Stage>,
        network: &Network,
        tap: &str,
        received: &Arc<Received>,
        seed: u64,
    ) -> Result<Self> {
        let port = Port { tap: tap.to_owned(), ..Port::new(network)? };
        let guest = cloud.chassis.add_guest_on(port, Path::OnLink)?;
        let instances = Arc::new(Mutex::new(BTreeSet::from([guest.port.instance.clone()])));
        let running = Arc::new(AtomicBool::new(true));
        let capture = Capture::start(&guest)?;
        let looking = {
            let (instances, running, received) = (instances.clone(), running.clone(), received.clone());
            thread::spawn(move || look(&capture, &instances, &running, &received))
        };
        let asking = {
            let (running, received) = (running.clone(), received.clone());
            let netns = Namespace::existing(guest.netns.name());
            thread::spawn(move || {
                let mut random = Random::new(seed);
                while running.load(Ordering::Relaxed) {
                    // Whatever becomes of it: resets and broken answers are a part of this.
                    let answered = netns.run(|| ask(&mut random))?;
                    received.answers.fetch_add(answered.unwrap_or(0), Ordering::Relaxed);
                    thread::sleep(Duration::from_millis(5));
                }
                Ok(())
            })
        };
        Ok(Self { guest, instances, is_silent: false, running, threads: vec![looking, asking] })
    }

    /// Lets it go on, as another instance.
    fn become_another(&mut self) -> Result<()> {
        self.guest.port.instance = uuid()?;
        let mut instances = self.instances.lock().unwrap_or_else(PoisonError::into_inner);
        instances.insert(self.guest.port.instance.clone());
        Ok(())
    }

    /// Has it acknowledge nothing, or go on with it.
    fn silence(&mut self) -> Result<()> {
        self.is_silent = !self.is_silent;
        let words = match self.is_silent {
            true => "qdisc add dev eth0 root tbf rate 8bit burst 64 latency 1ms",
            false => "qdisc del dev eth0 root",
        };
        run(self.guest.netns.command("tc")?.words(words))?;
        Ok(())
    }

    fn stop(self) -> Result<()> {
        self.running.store(false, Ordering::Relaxed);
        self.threads
            .into_iter()
            .try_for_each(|thread| thread.join().ok().context("a guest's thread panicked")?)
    }
}

/// Compares what arrives with who the guest is and was.
fn look(
    capture: &Capture,
    instances: &Mutex<BTreeSet<String>>,
    running: &AtomicBool,
    received: &Received,
) -> Result<()> {
    while running.load(Ordering::Relaxed) {
        for segment in capture.segments()? {
            for found in marks(segment.bytes()) {
                received.marks.fetch_add(1, Ordering::Relaxed);
                let instances = instances.lock().unwrap_or_else(PoisonError::into_inner);
                if !instances.contains(found) {
                    let text = format!("{found} at {instances:?}");
                    received.astray.lock().unwrap_or_else(PoisonError::into_inner).push(text);
                }
            }
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Some requests on a connection: read to the end, left in the middle, or never read at all. Tells how many answers it
/// has heard.
fn ask(random: &mut Random) -> Result<u64> {
    let mut stream = http::connect_from(None, METADATA, Duration::from_secs(2))?;
    let mut answers = 0;
    for _ in 0..=random.below(4) {
        let method = if random.below(8) == 0 { "HEAD" } else { "GET" };
        stream.write_all(&request_head(method, "/latest/user-data", &[], 0))?;
        match random.below(10) {
            // It goes away, and its kernel resets what still comes.
            0 => return Ok(answers),
            // It takes nothing, for longer than a retransmission takes.
            1 => {
                thread::sleep(Duration::from_millis(500));
                return Ok(answers);
            }
            _ => {
                let mut some = vec![0; 1 + random.below(20_000) as usize];
                if stream.read(&mut some)? == 0 {
                    return Ok(answers);
                }
                answers += 1;
            }
        }
    }
    Ok(answers)
}

#[test]
fn no_byte_of_one_tenant_reaches_another() -> Result<()> {
    let time = env::var("METADATA_TEST_ISOLATION").ok().and_then(|text| text.parse().ok()).unwrap_or(TIME);
    let seed = env::var("METADATA_TEST_SEED").ok().and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or_else(|| u64::from(std::process::id()));
    println!("METADATA_TEST_SEED={seed}");
    let mut random = Random::new(seed);
    let mut cloud = Cloud::on(Stage::start()?, &Options { hold: 1, ..Options::default() })?;
    cloud.nova.pause();
    let nova = AstrayNova::start(cloud.chassis.host(), nova::ADDRESS, seed)?;
    let network = cloud.chassis.add_network("green")?;
    let taps = (0..TAPS).map(|_| Ok(Port::new(&network)?.tap)).collect::<Result<Vec<_>>>()?;
    let received = Arc::new(Received::default());
    let mut tenants = Vec::new();
    for (number, tap) in (0..).zip(&taps) {
        tenants.push(Some(Tenant::start(&cloud, &network, tap, &received, seed + number)?));
    }
    introduce(&cloud, &tenants)?;

    let deadline = Instant::now() + Duration::from_secs(time);
    let (mut rounds, mut done) = (0_u64, [0_u64; 7]);
    while Instant::now() < deadline {
        rounds += 1;
        let place = random.below(TAPS as u64) as usize;
        let kind = random.below(7) as usize;
        done[kind] += 1;
        match kind {
            // Another machine in its place, under the same name.
            0 | 1 => {
                if let Some(tenant) = tenants[place].take() {
                    cloud.chassis.stop_tap(&tenant.guest)?;
                    tenant.stop()?;
                }
                introduce(&cloud, &tenants)?;
                forgotten(&cloud, &taps[place])?;
                let seed = seed.wrapping_add(1000 * rounds);
                tenants[place] = Some(Tenant::start(&cloud, &network, &taps[place], &received, seed)?);
            }
            // The same machine, as another instance.
            2 => tenants[place].as_mut().map_or(Ok(()), Tenant::become_another)?,
            3 => tenants[place].as_mut().map_or(Ok(()), Tenant::silence)?,
            4 => restart(&mut cloud, |_| Ok(()))?,
            5 => restart(&mut cloud, |pins| run(Command::new("umount").arg(pins)).map(drop))?,
            _ => restart(&mut cloud, |pins| {
                let [own, other] = [LAYOUT, LAYOUT + 1].map(|layout| pins.join(format!("layout-{layout}")));
                Ok(fs::rename(own, other)?)
            })?,
        }
        introduce(&cloud, &tenants)?;
        thread::sleep(Duration::from_millis(random.below(1500)));
        let astray = received.astray.lock().unwrap_or_else(PoisonError::into_inner);
        ensure!(astray.is_empty(), "in round {rounds}, after {kind}: {:?}", &astray[..astray.len().min(5)]);
        cloud.agent.discard_log()?;
    }
    for tenant in tenants.into_iter().flatten() {
        tenant.stop()?;
    }
    let astray = received.astray.lock().unwrap_or_else(PoisonError::into_inner);
    ensure!(astray.is_empty(), "{:?}", &astray[..astray.len().min(5)]);
    let [seen, answers] = [&received.marks, &received.answers].map(|count| count.load(Ordering::Relaxed));
    let broken = nova.broken.load(Ordering::Relaxed);
    println!("{rounds} rounds {done:?}: {seen} marks in {answers} answers, {broken} broken by Nova");
    ensure!(answers > rounds && seen > 100 && broken > 0, "little happened");
    Ok(())
}

/// Waits until the agent knows nothing of a tap: it takes a device of that name for whom the inventory says.
fn forgotten(cloud: &Cloud<Stage>, tap: &str) -> Result<()> {
    until("the agent has read the inventory", Duration::from_secs(60), || {
        let ports = cloud.agent.ports()?;
        ensure!(ports.iter().all(|status| status.tap != tap), "{ports:?}");
        Ok(())
    })
}

/// Tells the agent who is there.
fn introduce(cloud: &Cloud<Stage>, tenants: &[Option<Tenant>]) -> Result<()> {
    let ports: Vec<&Port> = tenants.iter().flatten().map(|tenant| &tenant.guest.port).collect();
    cloud.chassis.write_inventory(&ports)?;
    cloud.agent.reload()
}

fn restart(cloud: &mut Cloud<Stage>, meanwhile: impl FnOnce(&std::path::Path) -> Result<()>) -> Result<()> {
    cloud.agent.kill()?;
    meanwhile(&cloud.agent.run_dir().join("bpf"))?;
    cloud.agent.resume()?;
    until("the agent answers", Duration::from_secs(60), || cloud.agent.ports().map(drop))
}
