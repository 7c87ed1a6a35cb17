//! Max-min fairness: when something runs short, whoever has little of it gets more, and whoever has most gives way.
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tracing::{debug, warn};

use super::metrics::Metrics;
use crate::{
    config::Limits,
    directory::{Amounts, Directory, Holds, Limit, Resource, Tap},
    notice::Notice,
};

/// Time for which it is told that a total was exhausted.
const TOLD: Duration = Duration::from_secs(60);

/// Limits of a resource: of one tap, and of all of them.
fn bounds(resource: Resource, limits: &Limits) -> [Bound; 2] {
    let bound = |most, limit| Some((most, limit)).filter(|(most, _)| *most > 0);
    match resource {
        Resource::Connections => [
            bound(limits.port_connections, Limit::PortConnections),
            bound(limits.connections, Limit::Connections),
        ],
        Resource::Requests => {
            [bound(limits.port_requests, Limit::PortRequests), bound(limits.requests, Limit::Requests)]
        }
        Resource::Held => [bound(limits.port_held, Limit::PortHeld), None],
        Resource::Bytes => [None, bound(limits.unfinished_bytes, Limit::UnfinishedBytes)],
    }
}

/// So much and no more, if there is a limit.
type Bound = Option<(u32, Limit)>;

/// Fair shares: what all taps together hold, and who gets more of it.
#[derive(Debug)]
pub(super) struct Shares {
    directory: Arc<Directory>,
    limits: Limits,
    metrics: Metrics,
    used: Amounts,
    exhausted: [Exhausted; Resource::COUNT],
}

/// Time at which a total was exhausted last.
#[derive(Debug, Default)]
struct Exhausted {
    notice: Notice,
    last: Mutex<Option<Instant>>,
}

impl Shares {
    pub(super) fn new(directory: Arc<Directory>, limits: Limits, metrics: Metrics) -> Self {
        Self { directory, limits, metrics, used: Amounts::default(), exhausted: Default::default() }
    }

    /// So much more of that for a tap, in place of others' if need be.
    pub(super) fn take(&self, tap: &Arc<Tap>, resource: Resource, amount: u32) -> Result<(), Limit> {
        let [of_tap, of_all] = bounds(resource, &self.limits);
        tap.used.add(resource, amount);
        self.used.add(resource, amount);
        let taken = of_tap
            .map_or(Ok(()), |(most, limit)| {
                self.fit(
                    || tap.used.of(resource) <= most,
                    || self.evict_departed(tap, resource, limit),
                    limit,
                )
            })
            .and_then(|()| {
                of_all.map_or(Ok(()), |(most, limit)| {
                    self.fit(
                        || self.used.of(resource) <= most,
                        || self.evict_of_heaviest(tap, resource, most, limit),
                        limit,
                    )
                })
            });
        if taken.is_err() {
            self.give_back(tap, resource, amount);
        }
        taken
    }

    /// Makes room until it fits, or there is none to be made.
    fn fit(&self, fits: impl Fn() -> bool, make_room: impl Fn() -> bool, limit: Limit) -> Result<(), Limit> {
        while !fits() {
            if !make_room() {
                return Err(limit);
            }
        }
        Ok(())
    }

    pub(super) fn give_back(&self, tap: &Tap, resource: Resource, amount: u32) {
        tap.used.subtract(resource, amount);
        self.used.subtract(resource, amount);
    }

    pub(super) fn give_back_all(&self, tap: &Tap, holds: Holds) {
        for (resource, amount) in Resource::ALL.into_iter().zip(holds).filter(|(_, amount)| *amount > 0) {
            self.give_back(tap, resource, amount);
        }
    }

    /// A tap that has all it may have keeps nothing for guests that have ended their side and may have gone.
    fn evict_departed(&self, tap: &Tap, resource: Resource, limit: Limit) -> bool {
        self.evict(tap, resource, true, limit)
    }

    /// Has the tap give way that has most, if that is more than `tap` will have.
    fn evict_of_heaviest(&self, tap: &Arc<Tap>, resource: Resource, most: u32, limit: Limit) -> bool {
        let now = Instant::now();
        let exhausted = &self.exhausted[resource as usize];
        *exhausted.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
        let Some(heaviest) = self.directory.heaviest(|tap| tap.used.of(resource), Some(tap)) else {
            return false;
        };
        let (theirs, own) = (heaviest.used.of(resource), tap.used.of(resource));
        if let Some(times) = exhausted.notice.times(now) {
            let (by, share) = if own > theirs { (&**tap, own) } else { (&*heaviest, theirs) };
            warn!(limit = limit.name(), most, times, heaviest = %by, share, "all guests together are at a limit");
        }
        theirs > own && self.evict(&heaviest, resource, false, limit)
    }

    /// Has one connection of a tap give way; if `departed`, one that may have gone.
    fn evict(&self, tap: &Tap, resource: Resource, departed: bool, limit: Limit) -> bool {
        let Some(place) = tap.dispensable(resource, departed) else { return false };
        // If another thread was faster, there is room as well.
        if let Some(holds) = place.evict(limit) {
            debug!(%tap, limit = limit.name(), "a connection gives way");
            self.metrics.gave_way(limit);
            self.give_back_all(tap, holds);
        }
        true
    }

    /// Notes for an operator on the totals that were exhausted lately.
    pub(super) fn notes(&self, now: Instant) -> Vec<String> {
        let note = |resource: Resource| {
            let (most, limit) = bounds(resource, &self.limits)[1]?;
            let last = *self.exhausted[resource as usize].last.lock().unwrap_or_else(PoisonError::into_inner);
            let ago = now.saturating_duration_since(last?);
            let heaviest = self.directory.heaviest(|tap| tap.used.of(resource), None)?;
            (ago < TOLD).then(|| {
                format!(
                    "all guests together were at {} = {most} {} s ago; most of it now has {heaviest}: {}",
                    limit.name(),
                    ago.as_secs(),
                    heaviest.used.of(resource)
                )
            })
        };
        Resource::ALL.into_iter().filter_map(note).collect()
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::registry::Registry;

    use super::{super::seat::Seat, *};
    use crate::directory::{Phase, Port, Resolution};

    /// Four connections in all, three of a tap, a hundred bytes.
    fn shares(taps: &[&str]) -> (Arc<Shares>, Vec<Arc<Tap>>) {
        let directory = Arc::new(Directory::default());
        let taps: Vec<_> = taps.iter().map(|tap| directory.tap(tap)).collect();
        let port = |tap: &Arc<Tap>| Port::new("p".into(), tap.clone(), 1, Resolution::Pending("".into()));
        directory.publish((0..).zip(taps.iter().map(|tap| Arc::new(port(tap)))).collect());
        let limits = Limits {
            connections: 4,
            port_connections: 3,
            requests: 2,
            port_requests: 2,
            unfinished_bytes: 100,
            ..Limits::default()
        };
        let metrics = Metrics::register(&mut Registry::default());
        (Arc::new(Shares::new(directory, limits, metrics)), taps)
    }

    fn is_evicted(seat: &Seat) -> bool {
        futures_util::FutureExt::now_or_never(seat.evicted()).is_some()
    }

    #[test]
    fn whoever_has_most_gives_way_to_whoever_has_little() {
        let (shares, taps) = shares(&["tap0", "tap1", "tap2"]);
        let [greedy, other, third] = &taps[..] else { unreachable!() };
        let mut seats: Vec<_> = (0..3).map(|_| Seat::take(&shares, greedy).unwrap()).collect();
        assert_eq!(Seat::take(&shares, greedy).err(), Some(Limit::PortConnections));
        assert!(shares.notes(Instant::now()).is_empty());
        seats[0].begin(Phase::Waiting);
        seats[1].begin(Phase::Reading);
        let first = Seat::take(&shares, other).unwrap();
        assert!(!seats.iter().any(is_evicted));
        // The idle one first, then the slow one.
        let second = Seat::take(&shares, other).unwrap();
        assert_eq!(seats.iter().map(is_evicted).collect::<Vec<_>>(), [false, false, true]);
        let newcomer = Seat::take(&shares, third).unwrap_or_else(|limit| panic!("{limit:?}"));
        assert!(is_evicted(&seats[1]) || is_evicted(&first));
        assert!(!is_evicted(&seats[0]) && !is_evicted(&newcomer));
        assert!(
            shares.notes(Instant::now())[0].contains("connections = 4"),
            "{:?}",
            shares.notes(Instant::now())
        );
        // An evicted one has nothing left to give back, or to get.
        assert!(seats[2].set(Resource::Bytes, 1).is_err());
        seats.clear();
        drop((first, second, newcomer));
        assert!(Resource::ALL.into_iter().all(|resource| shares.used.of(resource) == 0), "{:?}", shares.used);
        assert!(taps.iter().all(|tap| tap.used.of(Resource::Connections) == 0));
    }

    #[test]
    fn whoever_has_most_gets_no_more() {
        let (shares, taps) = shares(&["tap0", "tap1"]);
        let seats: Vec<_> = taps
            .iter()
            .flat_map(|tap| [Seat::take(&shares, tap), Seat::take(&shares, tap)])
            .collect::<Result<_, _>>()
            .unwrap();
        assert_eq!(Seat::take(&shares, &taps[0]).err(), Some(Limit::Connections));
        assert!(!seats.iter().any(is_evicted));
    }

    #[test]
    fn bytes_are_shared_like_places() {
        let (shares, taps) = shares(&["tap0", "tap1"]);
        let [one, two] = [0, 0].map(|tap| Seat::take(&shares, &taps[tap]).unwrap());
        let other = Seat::take(&shares, &taps[1]).unwrap();
        one.set(Resource::Bytes, 60).unwrap();
        two.set(Resource::Bytes, 40).unwrap();
        assert_eq!(two.set(Resource::Bytes, 41), Err(Limit::UnfinishedBytes));
        two.set(Resource::Bytes, 30).unwrap();
        other.set(Resource::Bytes, 10).unwrap();
        assert!(!is_evicted(&one));
        other.set(Resource::Bytes, 30).unwrap();
        assert!(is_evicted(&one) && !is_evicted(&two));
        drop(two);
        assert_eq!(shares.used.of(Resource::Bytes), 30);
    }

    #[test]
    fn a_guest_that_may_have_gone_gives_way_to_its_own_next_request() {
        let (shares, taps) = shares(&["tap0"]);
        let seats = [(); 3].map(|()| Seat::take(&shares, &taps[0]).unwrap());
        let held: Vec<_> = seats[..2].iter().map(|seat| seat.hold(Resource::Requests).unwrap()).collect();
        assert_eq!(seats[2].hold(Resource::Requests).err(), Some(Limit::PortRequests));
        seats[0].begin(Phase::HalfClosed);
        let next = seats[2].hold(Resource::Requests).unwrap();
        assert!(is_evicted(&seats[0]) && !is_evicted(&seats[1]));
        drop((held, next));
        assert_eq!(taps[0].used.of(Resource::Requests), 0);
    }
}
