//! The addresses of a name: looked up once for all who ask, and kept for a few seconds.
use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    net::lookup_host,
    sync::Mutex,
    task::JoinHandle,
    time::{Instant, timeout_at},
};
use tracing::warn;

use crate::notice::Notice;

/// Lifetime of addresses. Those of a load balancer that moves change for new connections after that.
const FRESH: Duration = Duration::from_secs(5);
/// Lifetime of a failure (negative caching).
const FAILED: Duration = Duration::from_secs(1);
/// Time for which new addresses are waited for where there are former ones.
const PATIENCE: Duration = Duration::from_millis(300);

/// A host and port, and what is known of where they are.
#[derive(Debug)]
pub(super) struct Name {
    host: String,
    port: u16,
    known: Mutex<KnownAddresses>,
    /// Lookups failed, and former addresses were used.
    outdated: Notice,
}

#[derive(Debug, Default)]
struct KnownAddresses {
    addresses: Vec<SocketAddr>,
    /// Reason for which there are no newer ones.
    problem: Option<String>,
    asked: Option<Instant>,
    under_way: Option<Lookup>,
}

/// On a task of its own: whoever began it may go away, and nobody shall begin another while it takes its time.
#[derive(Debug)]
struct Lookup {
    began: Instant,
    task: JoinHandle<io::Result<Vec<SocketAddr>>>,
}

impl Name {
    pub(super) fn new(host: &str, port: u16) -> Self {
        Self { host: host.to_owned(), port, known: Mutex::default(), outdated: Notice::default() }
    }

    /// Addresses of the name, or the reason for which they cannot be told. A resolver that is slow or away leaves
    /// former addresses in use.
    pub(super) async fn addresses(&self) -> Result<Vec<SocketAddr>, String> {
        let (host, port) = (self.host.clone(), self.port);
        self.addresses_by(|| async move { Ok(lookup_host((host, port)).await?.collect()) }).await
    }

    async fn addresses_by<L>(&self, look_up: impl FnOnce() -> L) -> Result<Vec<SocketAddr>, String>
    where
        L: Future<Output = io::Result<Vec<SocketAddr>>> + Send + 'static,
    {
        let mut known = self.known.lock().await;
        if known.is_fresh(Instant::now()) {
            return known.current();
        }
        let has_former = !known.addresses.is_empty();
        // Stays there when whoever waits for it goes away.
        let lookup = known
            .under_way
            .get_or_insert_with(|| Lookup { began: Instant::now(), task: tokio::spawn(look_up()) });
        let ended = if has_former {
            timeout_at(lookup.began + PATIENCE, &mut lookup.task).await.ok()
        } else {
            Some((&mut lookup.task).await)
        };
        if let Some(ended) = ended {
            known.under_way = None;
            known.learn(ended.unwrap_or_else(|error| Err(io::Error::other(error))), Instant::now());
        }
        if has_former
            && let Some(problem) = &known.problem
            && let Some(times) = self.outdated.times(std::time::Instant::now())
        {
            warn!(
                host = self.host,
                times, problem, "nova cannot be looked up, its former addresses are used"
            );
        }
        known.current()
    }
}

impl KnownAddresses {
    fn is_fresh(&self, now: Instant) -> bool {
        let lasts = if self.problem.is_some() { FAILED } else { FRESH };
        self.asked.is_some_and(|asked| now.saturating_duration_since(asked) < lasts)
    }

    fn learn(&mut self, found: io::Result<Vec<SocketAddr>>, now: Instant) {
        self.asked = Some(now);
        self.problem = match found {
            Ok(addresses) if addresses.is_empty() => Some("the name has no address".to_owned()),
            Ok(addresses) => {
                self.addresses = addresses;
                None
            }
            Err(error) => Some(error.to_string()),
        };
    }

    fn current(&self) -> Result<Vec<SocketAddr>, String> {
        match &self.problem {
            Some(problem) if self.addresses.is_empty() => Err(problem.clone()),
            _ => Ok(self.addresses.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::{sync::Semaphore, time::timeout};

    use super::{super::testing::run, *};

    fn address(last: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, last], 8775))
    }

    #[test]
    fn addresses_last_longer_than_failures_and_outlive_them() {
        let start = Instant::now();
        let mut known = KnownAddresses::default();
        assert!(!known.is_fresh(start));
        known.learn(Err(io::Error::other("no such name")), start);
        assert_eq!(known.current(), Err("no such name".to_owned()));
        assert!(known.is_fresh(start + FAILED / 2) && !known.is_fresh(start + FAILED));
        known.learn(Ok(Vec::new()), start);
        assert_eq!(known.current(), Err("the name has no address".to_owned()));
        known.learn(Ok(vec![address(1)]), start);
        assert!(known.is_fresh(start + FRESH / 2) && !known.is_fresh(start + FRESH));
        known.learn(Err(io::Error::other("no such name")), start);
        assert_eq!(known.current(), Ok(vec![address(1)]));
        known.learn(Ok(vec![address(2)]), start);
        assert_eq!(known.current(), Ok(vec![address(2)]));
    }

    #[test]
    fn who_asks_while_a_lookup_is_under_way_waits_for_that_one() {
        static LOOKUPS: AtomicU32 = AtomicU32::new(0);
        static GATE: Semaphore = Semaphore::const_new(0);
        let look_up = || async {
            LOOKUPS.fetch_add(1, Ordering::Relaxed);
            let _open = GATE.acquire().await;
            Ok(vec![address(1)])
        };
        let name = Name::new("nova", 8775);
        run(async {
            // Most do not wait for its end.
            for _ in 0..5 {
                let asked = timeout(Duration::from_millis(10), name.addresses_by(look_up)).await;
                assert!(asked.is_err(), "{asked:?}");
            }
            GATE.add_permits(1);
            let all = tokio::join!(name.addresses_by(look_up), name.addresses_by(look_up));
            assert_eq!(all, (Ok(vec![address(1)]), Ok(vec![address(1)])));
        });
        assert_eq!(LOOKUPS.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_resolver_that_hangs_delays_nobody_who_knows_former_addresses() {
        let name = Name::new("nova", 8775);
        run(async {
            let known = name.addresses_by(|| async { Ok(vec![address(1)]) }).await;
            assert_eq!(known, Ok(vec![address(1)]));
            name.known.lock().await.asked = None;
            let began = Instant::now();
            // Each that waited by itself would take that long.
            for _ in 0..1000 {
                assert_eq!(name.addresses_by(std::future::pending).await, Ok(vec![address(1)]));
            }
            assert!(began.elapsed() < 200 * PATIENCE, "{:?}", began.elapsed());
        });
    }

    #[test]
    fn real_names_are_found_or_said_not_to_be() {
        let literal = Name::new("::1", 8775);
        assert_eq!(run(literal.addresses()), Ok(vec!["[::1]:8775".parse().unwrap()]));
        let problem = run(Name::new("nova.invalid", 8775).addresses()).unwrap_err();
        assert!(!problem.is_empty());
    }
}
