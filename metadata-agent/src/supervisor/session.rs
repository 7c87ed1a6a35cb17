//! One guest-facing process' life, from the privileged side: what is said to it, and what is done for it.
use std::{
    io, mem,
    os::fd::{AsFd as _, BorrowedFd},
    time::Duration,
};

use socket2::SockRef;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, MissedTickBehavior, interval, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{
    Guests, Order, Parts,
    backoff::GOOD,
    dials::{Dialled, Dials},
    inquiries::{self, Inquiries},
    numbers::Families,
    orphan::Meeting,
    printable,
    process::Process,
    renewal::Renewal,
    signer,
    speech::{SILENCE, in_time, next},
};
use crate::{
    directory::{Changes, Entry},
    handshakes,
    link::{Command, Event, MOST_NOTES, MOST_NUMBERS, Seen},
    packets::{AsyncChannel, LONGEST},
};

/// Timeout of a process until it is ready.
const READY: Duration = Duration::from_secs(10);
/// Interval at which the process is asked how it is.
const ASK: Duration = Duration::from_secs(1);
/// Timeout of its end when it is told to: what is under way is served for some seconds.
const ENDING: Duration = Duration::from_secs(8);
/// Ports in one message, so that it is no longer than a packet.
const AT_A_TIME: usize = 16;

/// End of a process.
#[derive(Debug)]
pub(super) enum Ended {
    AsTold,
    Died(String),
}

/// Desired state of whichever process there is.
#[derive(Debug)]
pub(super) struct Wanted {
    parts: Parts,
    families: Families,
    pub(super) serving: CancellationToken,
    /// Sender for the requests that are watched.
    watch: Option<mpsc::Sender<Seen>>,
    is_outlived: bool,
    is_retired: bool,
    is_stopped: bool,
}

impl Wanted {
    pub(super) fn new(parts: Parts) -> Self {
        let families = Families::of(&parts.numbers);
        Self {
            parts,
            families,
            serving: CancellationToken::new(),
            watch: None,
            is_outlived: false,
            is_retired: false,
            is_stopped: false,
        }
    }

    /// True once it takes nothing new any more.
    pub(super) fn is_ending(&self) -> bool {
        self.is_retired || self.is_stopped
    }

    /// Has guests connect later, to another agent, unless one accepts with the same sockets.
    fn begin_no_handshake(&self) {
        for listener in self.parts.listeners.iter().filter(|_| !self.is_outlived) {
            if let Err(error) = handshakes::begin_none(&SockRef::from(listener)) {
                warn!(%error, "guests that connect just now are refused");
            }
        }
    }

    /// Closes the sockets that another agent accepts with: should that one end, the kernel would go on spreading connections
    /// over them.
    fn leave_listeners(&mut self) {
        if self.is_outlived {
            self.parts.listeners.clear();
        }
    }

    /// Notes what is wanted from now on.
    fn note(&mut self, order: &Order) {
        match order {
            Order::Serve => self.serving.cancel(),
            Order::Log(filter) => self.parts.setup.log.clone_from(filter),
            Order::Outlive => self.is_outlived = true,
            Order::Retire => self.is_retired = true,
            Order::Stop => self.is_stopped = true,
            Order::Settle => self.parts.setup.lingers = false,
            Order::Watch(sink) => self.watch.clone_from(sink),
            Order::Ask(_) | Order::Inquire(..) => {}
        }
    }
}

/// Waits before the next process is started; false if none is to be.
pub(super) async fn wait(
    delay: Duration,
    wanted: &mut Wanted,
    orders: &mut mpsc::UnboundedReceiver<Order>,
) -> bool {
    let until = Instant::now() + delay;
    loop {
        tokio::select! {
            () = sleep_until(until) => return true,
            order = orders.recv() => match order {
                Some(order) => wanted.note(&order),
                None => return false,
            },
        }
        if wanted.is_ending() {
            return false;
        }
    }
}

/// Has a process, until it ends. `ready` is called when it can serve.
pub(super) async fn run(
    wanted: &mut Wanted,
    orders: &mut mpsc::UnboundedReceiver<Order>,
    guests: &Guests,
    ready: impl FnOnce(),
) -> Ended {
    let mut session = match Session::start(wanted, guests) {
        Ok(session) => session,
        Err(error) => return Ended::Died(format!("it cannot be started: {error}")),
    };
    let died = match timeout(READY, session.get_ready(wanted, guests)).await {
        Ok(Ok(())) => {
            ready();
            session.talk(wanted, orders, guests).await
        }
        Ok(Err(error)) => error,
        Err(_) => io::Error::other(format!("it was not ready within {} s", READY.as_secs())),
    };
    let is_silent = matches!(
        died.kind(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
    );
    // How it ended says more than that nobody is at the other end.
    let ended = timeout(Duration::from_millis(100), session.process.ended()).await.ok();
    let how = ended.filter(|_| is_silent).unwrap_or_else(|| died.to_string());
    if session.end() {
        info!(how, "the guest-facing process has ended as it was told");
        return Ended::AsTold;
    }
    Ended::Died(how)
}

#[derive(Debug)]
struct Session {
    process: Process,
    channel: AsyncChannel,
    changes: Changes,
    renewal: Renewal,
    dials: Dials,
    /// Meeting place for the next agent if the process loses this one, unless it takes nothing new any more.
    meeting: Option<Meeting>,
    /// Those who wait for its numbers.
    asked: Vec<oneshot::Sender<()>>,
    /// Questions of operators.
    inquiries: Inquiries,
    born: Instant,
    /// Requests that operators who watch were not told of.
    unseen: u64,
    /// Times that it was asked how it is since it has said anything. Time would count against it while this process stands
    /// still.
    unanswered: u64,
    /// Time by which it has to have ended.
    deadline: Option<Instant>,
    is_over: bool,
}

impl Session {
    fn start(wanted: &Wanted, guests: &Guests) -> io::Result<Self> {
        let (process, channel) = Process::start((wanted.parts.command)())?;
        let meeting = Meeting::arrange(&wanted.parts.run_dir, process.id())?;
        info!(pid = process.id(), "the guest-facing process is started");
        Ok(Self {
            process,
            channel: AsyncChannel::new(channel)?,
            changes: Changes::default(),
            renewal: Renewal::new(guests.dialler.clone()),
            dials: Dials::new(guests.dialler.clone()),
            meeting: Some(meeting),
            asked: Vec::new(),
            inquiries: Inquiries::default(),
            born: Instant::now(),
            unseen: 0,
            unanswered: 0,
            deadline: None,
            is_over: false,
        })
    }

    /// Until it is confined and knows all ports.
    async fn get_ready(&mut self, wanted: &Wanted, guests: &Guests) -> io::Result<()> {
        let signing = signer::start(guests.dialler.clone())?;
        let Parts { setup, listeners, open, .. } = &wanted.parts;
        let mut descriptors = vec![open.as_fd(), signing.as_fd()];
        descriptors.extend(self.meeting.iter().map(|meeting| meeting.socket.as_fd()));
        descriptors.extend(listeners.iter().map(|listener| listener.as_fd()));
        self.send(&Command::Begin(Box::new(setup.clone())), &descriptors).await?;
        self.renewal.tell(&self.channel).await?;
        match next(&self.channel).await? {
            Event::Ready { lacking } => {
                let lacking: Vec<_> = lacking.iter().map(|text| printable(text, 200)).take(16).collect();
                for lacking in &lacking {
                    warn!(lacking, "the guest-facing process is not confined as it should be");
                }
                if wanted.parts.required && !lacking.is_empty() {
                    let text = "it is not confined as [metadata_ebpf] confinement_required wants it: ";
                    return Err(io::Error::other(text.to_owned() + &lacking.join("; ")));
                }
                guests.report().lacking = lacking;
            }
            other => return Err(unexpected(&other)),
        }
        self.send_ports(wanted).await?;
        if wanted.serving.is_cancelled() {
            self.send(&Command::Serve, &[]).await?;
        }
        if wanted.watch.is_some() {
            self.send(&Command::Watch(true), &[]).await?;
        }
        Ok(())
    }

    /// Until it ends; tells why.
    async fn talk(
        &mut self,
        wanted: &mut Wanted,
        orders: &mut mpsc::UnboundedReceiver<Order>,
        guests: &Guests,
    ) -> io::Error {
        let mut news = wanted.parts.directory.watch();
        news.mark_changed();
        let mut ask = interval(ASK);
        ask.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let deadline = self.deadline.unwrap_or_else(Instant::now);
            let step = tokio::select! {
                event = next(&self.channel) => event.and_then(|event| self.hear(event, wanted, guests)),
                dialled = self.dials.next() => self.hand_over(dialled).await,
                order = orders.recv() => match order {
                    Some(order) => self.obey(order, wanted).await,
                    None => self.obey(Order::Stop, wanted).await,
                },
                // The control plane has as many as the process needs.
                Ok(()) = news.changed() => self.send_ports(wanted).await,
                _ = ask.tick() => self.ask().await,
                how = self.process.ended() => Err(io::Error::other(how)),
                () = sleep_until(deadline), if self.deadline.is_some() => Err(self.kill_stuck()),
            };
            if let Err(error) = step {
                return error;
            }
        }
    }

    async fn obey(&mut self, order: Order, wanted: &mut Wanted) -> io::Result<()> {
        wanted.note(&order);
        match order {
            Order::Serve => {
                // The news of what is to be served may not have been heard yet.
                self.send_ports(wanted).await?;
                self.send(&Command::Serve, &[]).await
            }
            Order::Log(filter) => self.send(&Command::Log(filter), &[]).await,
            Order::Ask(asked) => {
                self.asked.push(asked);
                self.send(&Command::Ask, &[]).await
            }
            Order::Inquire(inquiry, answer) => {
                let id = self.inquiries.ask(inquiry.clone(), answer);
                self.send(&Command::Inquire { id, inquiry }, &[]).await
            }
            Order::Watch(sink) => self.send(&Command::Watch(sink.is_some()), &[]).await,
            Order::Settle => self.send(&Command::Settle, &[]).await,
            Order::Outlive => self.send(&Command::Outlive, &[]).await,
            Order::Retire => {
                self.is_over = true;
                // An agent that comes while this one's connections end is not to find what ends with them.
                self.meeting = None;
                wanted.begin_no_handshake();
                wanted.leave_listeners();
                self.send(&Command::Retire, &[]).await
            }
            Order::Stop => {
                self.is_over = true;
                self.meeting = None;
                self.deadline = Some(Instant::now() + ENDING);
                wanted.begin_no_handshake();
                self.send(&Command::Stop, &[]).await
            }
        }
    }

    /// Takes what it says, which may be anything.
    fn hear(&mut self, event: Event, wanted: &Wanted, guests: &Guests) -> io::Result<()> {
        self.unanswered = 0;
        match event {
            Event::Ready { .. } | Event::Adopted { .. } => return Err(unexpected(&event)),
            Event::Dial { id, endpoint, within } => self.dials.begin(id, endpoint, within),
            Event::Told { id, told } => self.inquiries.answer(id, told),
            Event::Seen(seen) => {
                if let Some(sink) = &wanted.watch {
                    let mut seen = inquiries::clean_seen(seen);
                    seen.lost = seen.lost.saturating_add(mem::take(&mut self.unseen));
                    let count = seen.lost.saturating_add(seen.requests.len() as u64);
                    // Whoever does not take it in time loses it: it is not waited for, and told with the next.
                    if sink.try_send(seen).is_err() {
                        self.unseen = count;
                    }
                }
            }
            Event::Status { numbers, notes } => {
                let mut report = guests.report();
                let own = Some(numbers).filter(|numbers| numbers.len() <= MOST_NUMBERS);
                match own.as_deref().and_then(|numbers| wanted.families.check(numbers)) {
                    Some(numbers) => numbers.clone_into(&mut report.numbers),
                    None => {
                        return Err(io::Error::other(
                            "it says numbers that it cannot have, and may be taken over",
                        ));
                    }
                }
                if self.born.elapsed() >= GOOD {
                    (report.ended, report.crashes) = (None, 0);
                }
                report.notes = notes.iter().map(|note| printable(note, MOST_NOTES / 8)).take(8).collect();
                for asked in self.asked.drain(..) {
                    // Whoever asked may be gone.
                    let _ = asked.send(());
                }
            }
        }
        Ok(())
    }

    /// A new connection is greeted with the certificates that are there by now.
    async fn hand_over(&mut self, dialled: Dialled) -> io::Result<()> {
        self.renewal.tell(&self.channel).await?;
        in_time(dialled.hand_over(&self.channel)).await
    }

    fn kill_stuck(&mut self) -> io::Error {
        self.process.kill();
        io::Error::other("it was stuck, and was killed")
    }

    async fn ask(&mut self) -> io::Result<()> {
        if self.unanswered >= SILENCE.as_secs() {
            return Err(self.kill_stuck());
        }
        self.unanswered += 1;
        // Connections that are kept are not used on with what was replaced.
        self.renewal.tell(&self.channel).await?;
        self.send(&Command::Ask, &[]).await
    }

    async fn send_ports(&mut self, wanted: &Wanted) -> io::Result<()> {
        let (entered, mut gone) = self.changes.take(&wanted.parts.directory);
        for entered in pieces(entered)? {
            self.send(&Command::Ports { entered, gone: mem::take(&mut gone) }, &[]).await?;
        }
        if !gone.is_empty() {
            self.send(&Command::Ports { entered: Vec::new(), gone }, &[]).await?;
        }
        Ok(())
    }

    async fn send(&self, command: &Command, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        in_time(self.channel.send(command, descriptors)).await
    }

    /// Ends the process, and all that there was for it; tells whether it was to end.
    fn end(self) -> bool {
        let Self { process, channel, is_over, .. } = self;
        drop(process);
        channel.dispose();
        is_over
    }
}

/// Ports in messages that fit into a packet.
fn pieces(entered: Vec<Entry>) -> io::Result<Vec<Vec<Entry>>> {
    let mut pieces: Vec<Vec<Entry>> = Vec::new();
    let mut left = 0;
    for entry in entered {
        let length = serde_json::to_vec(&entry)?.len() + 1;
        match pieces.last_mut() {
            Some(piece) if length <= left && piece.len() < AT_A_TIME => {
                left -= length;
                piece.push(entry);
            }
            _ => {
                left = (LONGEST / 2).saturating_sub(length);
                pieces.push(vec![entry]);
            }
        }
    }
    Ok(pieces)
}

fn unexpected(event: &Event) -> io::Error {
    let text = printable(&format!("{event:?}"), 100);
    io::Error::other(format!("it says what it should not: {text}"))
}
