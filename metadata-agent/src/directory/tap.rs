//! Usage by one tap, all its ports together: an instance has no more with a trunk of many VLANs than without.
use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::{
    gauge::Gauge,
    place::Place,
    rate::{Bucket, SlidingWindow},
    usage::{Amounts, Resource},
};
use crate::config::RequestLimits;

/// A device behind which guests are. Both families count together, and reconnecting does not help.
#[derive(Debug)]
pub struct Tap {
    name: Arc<str>,
    /// Resources that its connections hold.
    pub(crate) used: Amounts,
    /// Connections beyond a limit that are still heard out.
    pub(crate) turned_away: Gauge,
    rates: Mutex<Rates>,
    /// Its connections, by their address in memory.
    places: Mutex<HashMap<usize, Arc<Place>>>,
}

#[derive(Debug, Default)]
struct Rates {
    bucket: Bucket,
    windows: [SlidingWindow; 2],
}

impl Tap {
    /// One that takes nothing yet.
    pub(super) fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            used: Amounts::default(),
            turned_away: Gauge::default(),
            rates: Mutex::default(),
            places: Mutex::default(),
        }
    }

    pub(crate) fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Counts a request, or says how long the next one has to wait.
    pub(crate) fn request(&self, limits: &RequestLimits, now: Instant) -> Result<(), Duration> {
        // A panic elsewhere leaves counts that are as good as any.
        let mut rates = self.rates.lock().unwrap_or_else(PoisonError::into_inner);
        let Rates { bucket, windows } = &mut *rates;
        let limited = windows.iter_mut().zip(limits.windows);
        let in_window = limited.filter_map(|(window, limit)| window.wait(limit?, now)).max();
        if let Some(wait) = bucket.wait(limits.rate, now).max(in_window) {
            return Err(wait);
        }
        bucket.add(limits.rate, now);
        for (window, limit) in windows.iter_mut().zip(limits.windows) {
            if let Some(limit) = limit {
                window.add(limit, now);
            }
        }
        Ok(())
    }

    /// Of the connections that hold something of that, the one that can be spared first; of those that may have gone only,
    /// if `departed`.
    pub(crate) fn dispensable(&self, resource: Resource, departed: bool) -> Option<Arc<Place>> {
        let places = self.places();
        let ranked = places.values().filter_map(|place| Some((place.rank(resource, departed)?, place)));
        ranked.min_by_key(|(rank, _)| *rank).map(|(_, place)| place.clone())
    }

    pub(crate) fn enter(&self, place: &Arc<Place>) {
        self.places().insert(Arc::as_ptr(place).addr(), place.clone());
    }

    pub(crate) fn leave(&self, place: &Arc<Place>) {
        self.places().remove(&Arc::as_ptr(place).addr());
    }

    fn places(&self) -> MutexGuard<'_, HashMap<usize, Arc<Place>>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Display for Tap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Rate, WindowLimit};

    #[test]
    fn the_strictest_limit_holds_and_refused_requests_do_not_count() {
        let window = WindowLimit { count: 4, window: Duration::from_secs(10) };
        let limits = RequestLimits { rate: Rate { rate: 100, burst: 200 }, windows: [Some(window), None] };
        let (tap, now) = (Tap::new("tap0"), Instant::now());
        assert_eq!((0..50).filter(|_| tap.request(&limits, now).is_ok()).count(), 4);
        let wait = tap.request(&limits, now).unwrap_err();
        assert!(wait > Duration::from_secs(5) && wait <= window.window, "{wait:?}");
        assert!(tap.request(&limits, now + Duration::from_secs(20)).is_ok());
    }
}
