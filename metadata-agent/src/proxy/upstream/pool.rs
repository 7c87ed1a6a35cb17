//! One worker's idle connections to Nova, each for the one instance that it has served.
//!
//! What a server says too much on a connection, whenever it says it, is then read by nobody but whom it was said to. That
//! nothing was said yet can be seen, but not that nothing will be.
use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::connection::Connection;
use crate::{directory::Identity, tls::Tls};

/// An idle connection older than this is not used again. A boot asks many times within that, and nova's servers have few
/// places for connections on which nothing is asked.
const IDLE: Duration = Duration::from_secs(3);
/// Nor is one that was begun so long ago, however busy: the host's name may have another address now.
const LIFETIME: Duration = Duration::from_secs(60);
/// Most connections kept by all workers together, and of them to one endpoint.
const KEPT: (usize, usize) = (64, 32);

/// The last used at the end.
#[derive(Debug)]
pub(super) struct Pool {
    idle: Mutex<VecDeque<Idle>>,
    kept: usize,
    kept_to_endpoint: usize,
}

#[derive(Debug)]
struct Idle {
    connection: Connection,
    since: Instant,
}

impl Pool {
    /// That of one of so many workers.
    pub(super) fn new(workers: usize) -> Self {
        let share = |kept: usize| (kept / workers.max(1)).max(1);
        Self { idle: Mutex::default(), kept: share(KEPT.0), kept_to_endpoint: share(KEPT.1) }
    }

    /// Keeps a connection, in place of that which was not used for longest if there are too many.
    pub(super) fn put(&self, connection: Connection, now: Instant) {
        let mut idle = self.lock();
        let to_endpoint = |other: &Idle| other.connection.endpoint == connection.endpoint;
        if idle.iter().filter(|other| to_endpoint(other)).count() >= self.kept_to_endpoint {
            let oldest = idle.iter().position(to_endpoint);
            oldest.and_then(|oldest| idle.remove(oldest));
        }
        if idle.len() >= self.kept {
            idle.pop_front();
        }
        idle.push_back(Idle { connection, since: now });
    }

    /// One to that endpoint over which a request of `who` can go.
    pub(super) fn take(
        &self,
        endpoint: usize,
        who: &Identity,
        tls: Option<&Tls>,
        now: Instant,
    ) -> Option<Connection> {
        loop {
            let mut idle = {
                let mut idle = self.lock();
                let is_theirs = |Idle { connection, .. }: &Idle| {
                    connection.endpoint == endpoint && connection.is_for(who)
                };
                let latest = idle.iter().rposition(is_theirs)?;
                idle.remove(latest)?
            };
            if idle.is_usable(tls, now) {
                return Some(idle.connection);
            }
        }
    }

    /// Closes those over which none can go any more.
    pub(super) fn sweep(&self, tls: Option<&Tls>, now: Instant) {
        self.lock().retain_mut(|idle| idle.is_usable(tls, now));
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Idle>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Idle {
    fn is_usable(&mut self, tls: Option<&Tls>, now: Instant) -> bool {
        let Self { connection, since } = self;
        is_young(connection.begun, *since, now)
            && tls.is_none_or(|tls| tls.loaded() <= connection.begun)
            && connection.is_quiet()
    }
}

fn is_young(begun: Instant, idle_since: Instant, now: Instant) -> bool {
    now.saturating_duration_since(idle_since) < IDLE && now.saturating_duration_since(begun) < LIFETIME
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use tokio::{net::TcpStream, time::sleep};
    use tokio_util::either::Either;

    use super::{
        super::testing::{identity, listening, run},
        *,
    };

    #[test]
    fn connections_age_by_idling_and_by_living() {
        let begun = Instant::now();
        let at = |seconds| begun + Duration::from_secs(seconds);
        for (idle_since, now, young) in [(0, 2, true), (0, 3, false), (59, 59, true), (59, 60, false)] {
            assert_eq!(is_young(begun, at(idle_since), at(now)), young, "{idle_since} {now}");
        }
    }

    async fn connection(listener: &TcpListener, endpoint: usize, instance: &str) -> Connection {
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let mut connection =
            Connection::new(Either::Left(stream), endpoint, Instant::now(), Duration::from_secs(1));
        connection.belong_to(&identity(instance));
        connection
    }

    #[test]
    fn a_connection_is_for_the_instance_and_the_endpoint_that_it_was_for() {
        let (listener, _) = listening();
        run(async {
            let (pool, now) = (Pool::new(1), Instant::now());
            pool.put(connection(&listener, 0, "a").await, now);
            let take = |endpoint, who: &Identity| pool.take(endpoint, who, None, now);
            let [a, b] = ["a", "b"].map(|instance| identity(instance).identity.clone());
            assert!(take(0, &b).is_none());
            assert!(take(1, &a).is_none());
            // The same instance in another project is somebody else.
            assert!(take(0, &Identity { project: "other".into(), ..a.clone() }).is_none());
            // Where it is reached is no part of who it is.
            assert!(take(0, &Identity { port: "other".into(), fixed_ips: vec![], ..a.clone() }).is_some());
            assert!(take(0, &a).is_none());
            let mut again = connection(&listener, 0, "a").await;
            again.belong_to(&identity("b"));
            assert!(again.is_for(&a) && !again.is_for(&b), "it was somebody else's");
        });
    }

    #[test]
    fn the_least_recently_used_gives_way() {
        let (listener, _) = listening();
        run(async {
            let (pool, now) = (Pool::new(2), Instant::now());
            let (all, to_one) = (KEPT.0 / 2, KEPT.1 / 2);
            let instances: Vec<_> = (0..to_one + 2).map(|number| number.to_string()).collect();
            let mut held = Vec::new();
            for instance in &instances {
                pool.put(connection(&listener, 0, instance).await, now);
                held.push(listener.accept().unwrap());
            }
            assert_eq!(pool.lock().len(), to_one);
            for endpoint in 1..10 {
                for instance in &instances[..to_one] {
                    pool.put(connection(&listener, endpoint, instance).await, now);
                    held.push(listener.accept().unwrap());
                }
            }
            assert_eq!(pool.lock().len(), all);
            assert!(pool.take(0, &identity(&instances[to_one]).identity, None, now).is_none());
            assert!(pool.take(9, &identity(&instances[0]).identity, None, now).is_some());
            // One whose other end is gone is none.
            pool.put(connection(&listener, 20, "a").await, now);
            drop(listener.accept().unwrap());
            sleep(Duration::from_millis(50)).await;
            assert!(pool.take(20, &identity("a").identity, None, now).is_none());
        });
    }
}
