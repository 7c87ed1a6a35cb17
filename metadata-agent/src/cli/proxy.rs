//! The guest-facing process: puts its parts together, gives everything else up, and does as it is told over its channel.
mod dialling;
mod inquiries;
mod orphanage;

use std::{
    cell::Cell,
    io::{self, Read as _},
    net::TcpListener,
    os::fd::{AsFd as _, OwnedFd},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use prometheus_client::{encoding::text::encode, registry::Registry};
use rustls::sign::SigningKey;
use socket2::Socket;
use tokio::{
    runtime,
    task::AbortHandle,
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::{dialling::Dialling, orphanage::Orphanage};

use crate::{
    confinement, descriptors,
    directory::Directory,
    link::{Certificates, Command, Event, MOST_NUMBERS, PROTOCOL, Setup, signing::RemoteKey},
    logging::LogFilter,
    memory::Memory,
    metrics,
    open_sources::SourceTable,
    packets::{AsyncChannel, Channel},
    proxy::{Metrics, NovaClient, Observer, Proxy, Pulses, Shutdown, Watch, Workers},
    tls::Tls,
};

/// Timeout of what it begins with.
const BEGIN: Duration = Duration::from_secs(10);
/// Time for which requests are gathered for one message to who watches.
const GATHERING: Duration = Duration::from_millis(50);
/// Period of the look after the workers.
const PULSE: Duration = Duration::from_secs(1);
/// Longest certificates: more than all authorities of the world take.
const MOST_CERTIFICATES: u64 = 64 << 20;

/// Serves guests, as whoever started this process says over the socket that is its standard input.
pub(super) fn serve_guests() -> anyhow::Result<()> {
    descriptors::close_inherited().context("cannot close what was inherited")?;
    let channel = Socket::from(io::stdin().as_fd().try_clone_to_owned()?);
    let channel = Channel::new(channel).context("this command is for the agent itself")?;
    let (begin, mut given) = channel.receive::<Command>(Some(BEGIN))?;
    let Command::Begin(setup) = begin else { bail!("{begin:?} in place of what it begins with") };
    ensure!(setup.protocol == PROTOCOL, "the other process speaks version {} of the link", setup.protocol);
    ensure!(given.len() == 3 + setup.workers.iter().sum::<usize>(), "{} descriptors", given.len());
    let listeners: Vec<TcpListener> = given.split_off(3).into_iter().map(TcpListener::from).collect();
    let [open, signing, adoption] =
        <[OwnedFd; 3]>::try_from(given).map_err(|_| anyhow::anyhow!("no descriptors"))?;
    let signing = Channel::new(Socket::from(signing))?;
    let twins: io::Result<Vec<_>> =
        listeners.iter().map(|socket| socket.as_fd().try_clone_to_owned()).collect();
    let sources = Arc::new(SourceTable::open(&open, setup.lingers).context("the map OPEN cannot be mapped")?);
    drop(open);
    let signing = Arc::new(Mutex::new(signing));
    let tls = setup.has_tls.then(|| first_certificates(&channel, &signing)).transpose()?;
    let memory = Memory::open()?;
    let mut lacking = confinement::give_up_privileges(&setup.confinement);

    // All threads are started after that, which is of one thread, and before nothing can be started any more.
    let (log, _writer) = LogFilter::install_text(&setup.log, setup.log_format)?;
    memory.give_back_after_bursts()?;
    let (directory, serving, shutdown) =
        (Arc::<Directory>::default(), CancellationToken::new(), Shutdown::default());
    let mut registry = Registry::with_prefix(metrics::PREFIX);
    let proxy_metrics = Metrics::register(&mut registry);
    let watch = proxy_metrics.watch.clone();
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let _inside = runtime.enter();
    let channel = Arc::new(AsyncChannel::new(channel)?);
    let dialling = Arc::new(Dialling::new(&channel));
    let observer: Arc<dyn Observer> = Arc::new(proxy_metrics.clone());
    let nova = Arc::new(NovaClient::new(&setup.nova, dialling.clone(), tls.clone(), &observer));
    let proxy = Arc::new(Proxy::new(directory.clone(), sources.clone(), setup.limits.clone(), proxy_metrics));
    let listeners = by_worker(listeners, &setup);
    let (workers, pulses) = Workers::start(listeners, &proxy, &nova, &serving, &shutdown)?;
    let ended = CancellationToken::new();
    let join = {
        let ended = ended.clone();
        move || {
            workers.join();
            ended.cancel();
        }
    };
    thread::Builder::new().name("join".to_owned()).spawn(join)?;
    lacking.extend(confinement::give_up_system_calls());
    channel.try_send(&Event::Ready { lacking }, &[])?;

    let orphanage = Orphanage::new(adoption, twins?, setup.owner, tls.is_some())?;
    let lease = setup.lease;
    let process = GuestFacing {
        lease,
        orphanage,
        has_agent: Cell::new(true),
        log,
        directory,
        sources,
        dialling,
        tls,
        signing,
        registry,
        proxy,
        watch,
        watching: Mutex::default(),
        serving,
        shutdown,
    };
    runtime.block_on(async {
        tokio::select! {
            () = ended.cancelled() => Ok(()),
            // Another process serves the guests of all workers.
            trouble = process.watch_over(pulses) => bail!(trouble),
            // With the lease over, no segment of a guest's gets here any more.
            told = process.live(channel) => {
                told?;
                // Nobody tells anything any more: what is under way is served.
                process.shutdown.stop();
                ended.cancelled().await;
                Ok(())
            }
        }
    })
}

/// Each worker's listeners.
fn by_worker(listeners: Vec<TcpListener>, setup: &Setup) -> Vec<Vec<TcpListener>> {
    let mut listeners = listeners.into_iter();
    setup.workers.iter().map(|count| listeners.by_ref().take(*count).collect()).collect()
}

fn first_certificates(channel: &Channel, signing: &Arc<Mutex<Channel>>) -> anyhow::Result<Arc<Tls>> {
    match channel.receive::<Command>(Some(BEGIN))? {
        (Command::Certificates, file) => {
            let certificates = read_certificates(file)?;
            let client = client(&certificates, signing)?;
            Ok(Arc::new(Tls::new(client, certificates.trusted)))
        }
        (other, _) => bail!("{other:?} in place of certificates"),
    }
}

fn read_certificates(file: Vec<OwnedFd>) -> anyhow::Result<Certificates> {
    let [file] = <[OwnedFd; 1]>::try_from(file).map_err(|_| anyhow::anyhow!("no certificates"))?;
    let mut file = std::fs::File::from(file);
    // It was written by way of the same descriptor.
    io::Seek::rewind(&mut file)?;
    let mut text = Vec::new();
    file.take(MOST_CERTIFICATES).read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

fn client(
    certificates: &Certificates,
    signing: &Arc<Mutex<Channel>>,
) -> anyhow::Result<Arc<rustls::ClientConfig>> {
    let key = certificates.material.key_kind().map(|kind| {
        let key: Arc<dyn SigningKey> = Arc::new(RemoteKey::new(signing.clone(), kind.clone()));
        key
    });
    Ok(certificates.material.client(key)?)
}

/// Everything that can be told something.
struct GuestFacing {
    lease: Duration,
    orphanage: Orphanage,
    /// False while it is an orphan.
    has_agent: Cell<bool>,
    log: LogFilter,
    directory: Arc<Directory>,
    sources: Arc<SourceTable>,
    dialling: Arc<Dialling>,
    tls: Option<Arc<Tls>>,
    signing: Arc<Mutex<Channel>>,
    registry: Registry,
    proxy: Arc<Proxy>,
    watch: Arc<Watch>,
    watching: Mutex<Option<AbortHandle>>,
    serving: CancellationToken,
    shutdown: Shutdown,
}

impl GuestFacing {
    /// Does as it is told, by one agent after another, until nobody has come for too long.
    async fn live(&self, first: Arc<AsyncChannel>) -> anyhow::Result<()> {
        let mut channel = first;
        loop {
            let told = self.do_as_told(&channel).await;
            self.has_agent.set(false);
            self.dialling.lose();
            self.watch(false, &channel);
            if self.shutdown.is_retiring() || !self.serving.is_cancelled() {
                return told;
            }
            let reason = told.err().map_or_else(|| "it has ended".to_owned(), |error| format!("{error:#}"));
            warn!(reason, "the agent is gone: ports that are known are served until another one comes");
            let Ok(adopted) = timeout(self.lease, self.orphanage.adopted()).await else {
                bail!("no agent came within {} s", self.lease.as_secs());
            };
            let Some((next, signing)) = adopted? else {
                self.shutdown.outlive();
                return Ok(());
            };
            info!("another agent has come");
            *self.signing.lock().unwrap_or_else(PoisonError::into_inner) = signing;
            channel = Arc::new(next);
            self.has_agent.set(true);
            self.dialling.resume(&channel);
        }
    }

    /// Until a worker is stuck, or has ended though it was not to.
    async fn watch_over(&self, mut pulses: Pulses) -> String {
        self.serving.cancelled().await;
        let mut looks = interval(PULSE);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            match pulses.feel() {
                // Nobody would come in place of an orphan, whose other workers serve on.
                Err(trouble) if self.has_agent.get() && !self.shutdown.is_retiring() => return trouble,
                _ => {}
            }
        }
    }

    /// Until nobody tells it anything any more.
    async fn do_as_told(&self, channel: &Arc<AsyncChannel>) -> anyhow::Result<()> {
        loop {
            match channel.receive::<Command>().await {
                Ok((command, given)) => self.obey(command, given, channel)?,
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn obey(&self, command: Command, given: Vec<OwnedFd>, channel: &Arc<AsyncChannel>) -> anyhow::Result<()> {
        match command {
            Command::Begin(_) | Command::Adopt { .. } => bail!("{command:?} to a process that has begun"),
            Command::Certificates => {
                let Some(tls) = &self.tls else { bail!("certificates without TLS") };
                let renewed = read_certificates(given);
                match renewed.and_then(|certificates| client(&certificates, &self.signing)) {
                    Ok(client) => tls.replace(client),
                    // One descriptor more may have been too many.
                    Err(error) => {
                        warn!("new certificates for nova cannot be used, keeping the former: {error:#}")
                    }
                }
            }
            Command::Ports { entered, gone } => self.directory.apply(entered, &gone),
            Command::Serve => self.serving.cancel(),
            Command::Dialled { id, failure } => self.dialling.answer(id, failure, given),
            Command::Log(filter) => self.log.set(&filter)?,
            Command::Settle => self.sources.settle(),
            Command::Ask => self.tell(channel)?,
            Command::Inquire { id, inquiry } => {
                let answer = inquiries::answer(inquiry, self.directory.clone(), self.proxy.clone());
                let channel = channel.clone();
                runtime::Handle::current().spawn(async move {
                    let told = answer.await;
                    // Who does not listen just now will ask again.
                    if let Err(error) = channel.try_send(&Event::Told { id, told }, &[])
                        && error.kind() != io::ErrorKind::WouldBlock
                    {
                        warn!(%error, "what an operator asked about ports cannot be answered");
                    }
                });
            }
            Command::Watch(on) => self.watch(on, channel),
            Command::Outlive => self.shutdown.outlive(),
            Command::Retire => {
                self.orphanage.close();
                self.shutdown.retire();
            }
            Command::Stop => {
                self.orphanage.close();
                self.shutdown.stop();
            }
        }
        Ok(())
    }

    /// Tells of requests as they end, a few at a time, or of none any more.
    fn watch(&self, on: bool, channel: &Arc<AsyncChannel>) {
        self.watch.set(on);
        let mut watching = self.watching.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(former) = watching.take() {
            former.abort();
        }
        if on {
            let (watch, channel) = (self.watch.clone(), channel.clone());
            let task = runtime::Handle::current().spawn(async move {
                loop {
                    let seen = watch.take().await;
                    if channel.try_send(&Event::Seen(seen.clone()), &[]).is_err() {
                        watch.lose(&seen);
                    }
                    sleep(GATHERING).await;
                }
            });
            *watching = Some(task.abort_handle());
        }
    }

    fn tell(&self, channel: &AsyncChannel) -> anyhow::Result<()> {
        let mut numbers = String::new();
        encode(&mut numbers, &self.registry)?;
        if numbers.len() > MOST_NUMBERS {
            warn!(bytes = numbers.len(), "there are too many numbers to be told");
            numbers = "# EOF\n".to_owned();
        }
        match channel.try_send(&Event::Status { numbers, notes: self.proxy.notes() }, &[]) {
            // It is asked again in a moment.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            sent => Ok(sent?),
        }
    }
}
