//! One guest's connection: heads in, requests out to Nova, answers back.
mod account;
mod admission;
mod body;

use std::{
    io,
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use account::Account;
use bytes::{Buf as _, BytesMut};
use http1::{Framing, HeadEnd, Request};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _},
    time::{timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::{
    access::{AccessEntry, Caller},
    answer::{Form, Refusal, Whom},
    closing::{Acknowledging, GuestSocket},
    forward,
    metrics::Metrics,
    outcome::{Completion, Outcome},
    receive::{departure, receive},
    seat::{Held, Seat},
    shutdown::Shutdown,
    tick::Tick,
    turn::{self, within},
    upstream::{NovaAnswer, Upstream},
};
use crate::{
    config::Limits,
    directory::{Limit, Phase, Resolution, Resource, SignedIdentity},
    link::NOVA_BUFFER,
};

/// Empty lines between two requests that are no part of the second.
const MOST_EMPTY_LINES: u32 = 8;

/// Names under which a guest may address us in a target.
const HOSTS: [&str; 2] = ["169.254.169.254", "[fe80::a9fe:a9fe]"];

/// Room for the head of an answer, which is seldom longer.
const HEAD_ROOM: usize = 512;

/// Timeout of a connection's first request when the agent stops.
const FIRST_REQUEST: Duration = Duration::from_secs(1);

/// Kind of end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// Everything was said.
    Closed,
    /// An answer was given to something that was not read to its end: the rest must be read and thrown away, or the
    /// reset that the kernel sends for unread bytes overtakes the answer.
    Unread,
    /// An answer was broken off, and nothing but a reset tells the guest so.
    Broken,
    /// It had to give way to others for that limit, in that phase.
    Evicted(Limit, Phase),
}

/// Shared by all conversations of a worker.
#[derive(Debug, Clone, Copy)]
pub(super) struct Common<'a> {
    pub(super) limits: &'a Limits,
    pub(super) metrics: &'a Metrics,
    pub(super) upstream: &'a Upstream,
    pub(super) tick: &'a Tick,
}

/// A conversation with a guest, over whatever carries bytes.
#[derive(Debug)]
pub(super) struct Connection<'a, S> {
    pub(super) stream: S,
    pub(super) caller: &'a Caller,
    common: Common<'a>,
    pub(super) seat: &'a Seat,
    /// Ends the connection when what is under way is done.
    shutdown: &'a Shutdown,
    received: BytesMut,
    account: Account<'a>,
    /// Hop limit that the socket was given, if it was.
    hop_limit: Option<u8>,
}

impl<'a, S: AsyncRead + AsyncWrite + GuestSocket + Unpin> Connection<'a, S> {
    pub(super) fn new(
        stream: S,
        caller: &'a Caller,
        common: Common<'a>,
        seat: &'a Seat,
        shutdown: &'a Shutdown,
    ) -> Self {
        let (received, account) = (BytesMut::new(), Account::new(seat));
        Self { stream, caller, common, seat, shutdown, received, account, hop_limit: None }
    }

    /// Serves one request after another.
    pub(super) async fn serve(&mut self) -> End {
        let mut is_fresh = true;
        loop {
            if let Err(end) = self.begins(is_fresh).await {
                return end;
            }
            is_fresh = false;
            // Apart, since its state is large and most connections are idle.
            match Box::pin(self.exchange()).await {
                Ok(None) => self.seat.begin(Phase::Idle),
                Ok(Some(end)) => return end,
                Err(error) => {
                    debug!(tap = %self.caller.port.tap, %error, "connection of a guest ended");
                    return End::Broken;
                }
            }
        }
    }

    /// Waits until a request begins, or says how the connection ends.
    async fn begins(&mut self, is_fresh: bool) -> Result<(), End> {
        let until = turn::now() + self.common.limits.idle;
        // The last answer counts until it is acknowledged. Most often that comes with the next request.
        if !is_fresh {
            self.account.charge_answers(&self.stream).map_err(|_| End::Broken)?;
        }
        let mut acknowledging: Option<Acknowledging> = None;
        // Empty lines that follow a body say nothing (RFC 9112, section 2.2). More of them count as part of a head, which has
        // a length and a time.
        let mut may_skip = MOST_EMPTY_LINES;
        loop {
            while may_skip > 0 && self.received.starts_with(b"\r\n") {
                self.received.advance(2);
                may_skip -= 1;
            }
            let may_be_empty = may_skip > 0 && *self.received == *b"\r";
            if !self.received.is_empty() && !may_be_empty {
                return Ok(());
            }
            // What an idle connection keeps is nothing.
            if self.received.is_empty() {
                self.received = BytesMut::new();
            }
            // The first look is shared with others: it is needed only if the next request takes its time.
            let (is_left, now) = (self.account.charged() > 0, turn::now());
            let shares_look = is_left && acknowledging.is_none();
            let look = match &mut acknowledging {
                Some(acknowledging) if is_left => {
                    now + acknowledging.next_look(self.account.charged(), now).ok_or(End::Broken)?
                }
                _ => until,
            };
            let received = tokio::select! {
                biased;
                received = timeout_at(look.min(until).into(), receive(&mut self.stream, &mut self.received)) => received.ok(),
                () = self.common.tick.next(), if shares_look => None,
                () = stopped(&self.shutdown.stop, is_fresh) => return Err(End::Closed),
            };
            match received {
                Some(Ok(1..)) => {}
                None if shares_look || look < until => {
                    self.account.look(&self.stream).map_err(|_| End::Broken)?;
                    acknowledging.get_or_insert_with(|| Acknowledging::new(self.account.charged(), now));
                }
                _ => return Err(End::Closed),
            }
        }
    }

    /// One request; tells how the connection ends, if it does. An error is the guest's: it went away.
    async fn exchange(&mut self) -> io::Result<Option<End>> {
        self.seat.begin(Phase::Reading);
        let head = within(self.common.limits.head, pin!(self.head())).await;
        let head = match head {
            Ok(Ok(Ok(Some(head)))) => head,
            Ok(Ok(Ok(None))) => return Ok(Some(End::Closed)),
            Ok(Ok(Err(refusal))) => return self.refuse_unread(refusal).await,
            Ok(Err(error)) => return Err(error),
            Err(_) => return self.refuse_unread(Refusal::Slow).await,
        };
        let request = match Request::parse(&head, &HOSTS) {
            Ok(request) => request,
            Err(problem) => return self.refuse_unread(Refusal::Malformed(problem)).await,
        };
        let mut entry = AccessEntry::begin(self.common.metrics, self.caller, Some(&request));
        self.limit_answers(entry.outcome.policy())?;
        let end = self.answer(&request, &mut entry.outcome).await;
        concluded(end, &mut entry.outcome)
    }

    /// The next head, or nothing if the guest left instead.
    async fn head(&mut self) -> io::Result<Result<Option<BytesMut>, Refusal>> {
        let limit = self.common.limits.head_bytes;
        let mut end = HeadEnd::default();
        loop {
            match end.find(&self.received) {
                // Most often nothing follows it, and then nothing has to be shared.
                Ok(Some(end)) if end <= limit && end == self.received.len() => {
                    return Ok(Ok(Some(std::mem::take(&mut self.received))));
                }
                Ok(Some(end)) if end <= limit => return Ok(Ok(Some(self.received.split_to(end)))),
                Ok(None) if self.received.len() < limit => {}
                Ok(_) => return Ok(Err(Refusal::HeadTooLarge(limit))),
                Err(problem) => return Ok(Err(Refusal::Malformed(problem))),
            }
            if let Err(limit) = self.account.charge(self.received.len() as u32) {
                return Ok(Err(limited(limit)));
            }
            if receive(&mut self.stream, &mut self.received).await? == 0 {
                return Ok(Ok(None));
            }
        }
    }

    /// Answers something that is no request, or that is not known to be one yet.
    async fn refuse_unread(&mut self, refusal: Refusal) -> io::Result<Option<End>> {
        let mut entry = AccessEntry::begin(self.common.metrics, self.caller, None);
        self.limit_answers(entry.outcome.policy())?;
        let end = self.refuse(refusal, Form::LAST, &mut entry.outcome).await;
        concluded(end, &mut entry.outcome)
    }

    async fn refuse(
        &mut self,
        refusal: Refusal,
        form: Form,
        outcome: &mut Outcome,
    ) -> io::Result<Option<End>> {
        let limits = self.common.limits;
        let identity = outcome.who.as_deref().map(|who| &who.identity);
        let mut out = Vec::with_capacity(512);
        refusal.write(Whom { port: &self.caller.port.id, identity }, form, limits, &mut out);
        outcome.status = Some(refusal.status(limits).as_u16());
        outcome.refusal = Some(refusal);
        self.finish(&out, form, End::Unread).await
    }

    /// Sends an answer of our own; how the connection ends, if it does.
    async fn finish(&mut self, out: &[u8], form: Form, end: End) -> io::Result<Option<End>> {
        if form.keep_alive {
            self.send(out).await?;
            return Ok(None);
        }
        self.send_last(out).await?;
        Ok(Some(end))
    }

    async fn answer(&mut self, request: &Request<'_>, outcome: &mut Outcome) -> io::Result<Option<End>> {
        let has_body = request.method != b"HEAD";
        let mut form = Form { version: request.version, keep_alive: request.keep_alive, has_body };
        let admitted = match self.admit().await? {
            Ok(who) => {
                outcome.who = Some(who.clone());
                let token = match &who.policy {
                    Some(policy) => self.admit_by_policy(request, policy, outcome)?,
                    None => Ok(None),
                };
                token.map(|token| (who, token))
            }
            Err(refusal) => Err(refusal),
        };
        let (who, token) = match admitted {
            Ok(admitted) => admitted,
            Err(refusal) => {
                // Refusing costs little, but not nothing: who asks too often must connect again, which has a limit too.
                let may_repeat = refusal.limit() != Some(Limit::RequestRate);
                form.keep_alive &=
                    may_repeat && request.body == Framing::Length(0) && !self.shutdown.retire.is_cancelled();
                return self.refuse(refusal, form, outcome).await;
            }
        };
        let body = within(self.common.limits.head, pin!(self.body(request))).await;
        let body = match body.unwrap_or(Ok(Err(Refusal::Slow)))? {
            Ok(body) => body,
            Err(refusal) => return self.refuse(refusal, Form { keep_alive: false, ..form }, outcome).await,
        };
        form.keep_alive &= !self.shutdown.retire.is_cancelled();
        if let Some(time) = token {
            return self.issue(time, &who, form, outcome).await;
        }
        // What is complete counts as a request, and no longer by its bytes.
        let place = self.seat.hold(Resource::Requests).and_then(|place| Ok((place, self.account.charge(0)?)));
        let _place: Held<'a> = match place {
            Ok((place, ())) => place,
            Err(limit) => return self.refuse(limited(limit), form, outcome).await,
        };
        let asked = turn::now();
        let is_v4 = self.caller.is_v4;
        let build = |host: &str| forward::to_nova(request, &body, &who, is_v4, host);
        let repeatable = request.is_safe() && body.is_empty();
        let answer =
            self.common.upstream.send(&who, &self.caller.port.tap, request.method, repeatable, build);
        let answer = self.unless_departed(Phase::Waiting, pin!(answer)).await?;
        outcome.nova = Some(turn::now().saturating_duration_since(asked));
        match answer {
            Ok(answer) => self.pass_on(answer, request, !body.is_empty(), form, outcome).await,
            Err(refusal) => self.refuse(refusal, form, outcome).await,
        }
    }

    /// Waits for something on the guest's behalf, for as long as the guest is there.
    async fn unless_departed<F: Future>(
        &mut self,
        phase: Phase,
        awaited: Pin<&mut F>,
    ) -> io::Result<F::Output> {
        let Self { stream, received, seat, .. } = self;
        seat.begin(phase);
        tokio::select! {
            biased;
            done = awaited => Ok(done),
            error = departure(stream, received, || seat.begin(Phase::HalfClosed)) => Err(error),
        }
    }

    /// Identity behind the request, waited for if it is not known yet: to hold a request is the one answer that every
    /// boot client understands.
    async fn admit(&mut self) -> io::Result<Result<Arc<SignedIdentity>, Refusal>> {
        let (port, limits, shutdown) = (&self.caller.port, self.common.limits, self.shutdown);
        if let Err(wait) = port.tap.request(&limits.rates, turn::now()) {
            return Ok(Err(Refusal::Limited { limit: Limit::RequestRate, wait }));
        }
        let mut current = port.resolution();
        if let Resolution::Pending(_) = current {
            let _held = match self.seat.hold(Resource::Held) {
                Ok(held) => held,
                Err(limit) => return Ok(Err(limited(limit))),
            };
            let resolved = async {
                tokio::select! {
                    resolved = timeout(limits.hold, port.resolved()) => resolved.ok(),
                    // Nobody here will be told any more.
                    () = shutdown.retire.cancelled() => None,
                }
            };
            if let Some(resolved) = self.unless_departed(Phase::Waiting, pin!(resolved)).await? {
                current = resolved;
            }
            self.seat.begin(Phase::Reading);
        }
        Ok(match current {
            Resolution::Known(who) => Ok(who),
            Resolution::Pending(reason) => Err(Refusal::Unknown(reason.to_string())),
            Resolution::Conflict(reason) => Err(Refusal::Conflict(reason.to_string())),
        })
    }

    /// Nova's answer, piece by piece. Its head goes with the first: most answers are complete with it.
    async fn pass_on(
        &mut self,
        mut answer: NovaAnswer,
        request: &Request<'_>,
        request_had_body: bool,
        mut form: Form,
        outcome: &mut Outcome,
    ) -> io::Result<Option<End>> {
        let (mut piece, mut more) = answer.first();
        let mut out = Vec::with_capacity(HEAD_ROOM + piece.len());
        outcome.status = Some(answer.head.status);
        let framing = answer.head.write_for(request, form.keep_alive, &mut out);
        form.keep_alive &= framing != Framing::Close;
        while more {
            framing.write(&piece, &mut out);
            outcome.bytes += piece.len() as u64;
            self.account.behind = NOVA_BUFFER;
            self.send(&out).await?;
            self.account.behind = 0;
            self.account.look(&self.stream).map_err(gave_way)?;
            out.clear();
            piece.clear();
            let read = self.unless_departed(Phase::Sending, pin!(answer.read(&mut piece))).await?;
            more = match read {
                Ok(more) => more,
                Err(error) => {
                    self.common.upstream.broke_off(&answer, &error);
                    return Ok(Some(End::Broken));
                }
            };
        }
        self.common.upstream.give_back(answer, request_had_body);
        outcome.bytes += piece.len() as u64;
        framing.write(&piece, &mut out);
        framing.write_end(&mut out);
        if form.keep_alive {
            self.send(&out).await?;
            return Ok(None);
        }
        self.send_last(&out).await?;
        Ok(Some(if self.received.is_empty() { End::Closed } else { End::Unread }))
    }

    /// Hands the end of the last answer to the kernel, to go out with the end of the connection.
    async fn send_last(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.seat.begin(Phase::Sending);
        let sent = match self.stream.try_send_last(bytes) {
            Ok(sent) => sent,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) => return Err(error),
        };
        match bytes.get(sent..) {
            None | Some([]) => Ok(()),
            Some(left) => self.send(left).await,
        }
    }

    /// Hands bytes to the kernel. While they have to wait for the guest, they count, and what the kernel has of it.
    async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.seat.begin(Phase::Sending);
        let mut left = bytes;
        loop {
            match within(self.common.limits.pause, pin!(self.stream.write(left))).await {
                Ok(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    let (sent, rest) = left.split_at(written?);
                    self.account.sent(sent);
                    left = rest;
                }
                Err(_) => return Err(io::ErrorKind::TimedOut.into()),
            }
            if left.is_empty() {
                return Ok(());
            }
            self.account.wait(&self.stream, left).map_err(gave_way)?;
        }
    }
}

fn gave_way(limit: Limit) -> io::Error {
    io::Error::other(format!("it gave way to others: {}", limit.name()))
}

fn limited(limit: Limit) -> Refusal {
    Refusal::Limited { limit, wait: Duration::ZERO }
}

/// Notes how an exchange ended. What a guest did not stay for ends its connection, and is no error of ours.
fn concluded(end: io::Result<Option<End>>, outcome: &mut Outcome) -> io::Result<Option<End>> {
    match end {
        Ok(end) => {
            let broken = end == Some(End::Broken);
            outcome.end = if broken { Completion::BrokenOff } else { Completion::Complete };
            Ok(end)
        }
        Err(error) => {
            outcome.end = Completion::Left(error);
            Ok(Some(End::Broken))
        }
    }
}

/// Waits until a connection that waits for a request has to go. One that has had none was accepted a moment ago: its
/// request is on its way.
async fn stopped(stop: &CancellationToken, is_fresh: bool) {
    stop.cancelled().await;
    if is_fresh {
        tokio::time::sleep(FIRST_REQUEST).await;
    }
}
