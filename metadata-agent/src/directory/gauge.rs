//! A gauge: counts holders, each of which has a permit for a while.
use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

/// A gauge: the number of permits that are held.
#[derive(Debug, Clone, Default)]
pub(crate) struct Gauge(Arc<AtomicU32>);

impl Gauge {
    /// One more, unless there are `most` already; 0 for no limit.
    pub(crate) fn take(&self, most: u32) -> Option<Permit> {
        let permit = Permit(self.0.clone());
        let before = self.0.fetch_add(1, Ordering::Relaxed);
        (most == 0 || before < most).then_some(permit)
    }
}

/// Counts for as long as it lives.
#[derive(Debug)]
pub(crate) struct Permit(Arc<AtomicU32>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permits_are_given_back() {
        let gauge = Gauge::default();
        let held: Vec<_> = (0..5).filter_map(|_| gauge.take(3)).collect();
        assert_eq!(held.len(), 3);
        drop(held);
        assert_eq!((0..3).filter_map(|_| gauge.take(3)).collect::<Vec<_>>().len(), 3);
        assert!((0..100).all(|_| gauge.take(0).is_some()));
    }
}
