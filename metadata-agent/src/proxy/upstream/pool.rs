//! Idle connections to Nova, each for the one instance that it has served.
//!
//! All workers share them: the kernel gives a guest's connections to workers by chance, and another connection to Nova costs
//! more than moving one from thread to thread.
//!
//! Bytes that a server sends too many on a connection, whenever it sends them, are then read by nobody but the instance
//! that they were sent to. That nothing was said yet can be seen, but not that nothing will be.
use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tracing::debug;

use super::connection::Connection;
use crate::{directory::Identity, tls::Tls};

/// An idle connection older than this is not used again. A boot asks many times within that, and nova's servers have few
/// places for connections on which nothing is asked.
const IDLE: Duration = Duration::from_secs(3);
/// Nor is one that was begun so long ago, however busy: the host's name may have another address now.
const LIFETIME: Duration = Duration::from_secs(60);
/// Most connections kept, and of them to one endpoint.
const KEPT: (usize, usize) = (64, 32);

/// Number of a worker, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct WorkerId(pub(super) usize);

/// The last used at the end.
#[derive(Debug, Default)]
pub(super) struct Pool {
    idle: Mutex<VecDeque<Idle>>,
}

#[derive(Debug)]
struct Idle {
    connection: Connection,
    since: Instant,
    /// Worker whose runtime the connection is in.
    worker: WorkerId,
}

impl Pool {
    /// Keeps a worker's connection, in place of that which was not used for longest if there are too many.
    pub(super) fn put(&self, connection: Connection, worker: WorkerId, now: Instant) {
        let mut idle = self.lock();
        let to_endpoint = |other: &Idle| other.connection.endpoint == connection.endpoint;
        if idle.iter().filter(|other| to_endpoint(other)).count() >= KEPT.1 {
            let oldest = idle.iter().position(to_endpoint);
            oldest.and_then(|oldest| idle.remove(oldest));
        }
        if idle.len() >= KEPT.0 {
            idle.pop_front();
        }
        idle.push_back(Idle { connection, since: now, worker });
    }

    /// One to that endpoint over which a request of `who` can go, for the worker that runs this.
    pub(super) fn take(
        &self,
        endpoint: usize,
        who: &Identity,
        tls: Option<&Tls>,
        worker: WorkerId,
        now: Instant,
    ) -> Option<Connection> {
        loop {
            let mut idle = {
                let mut idle = self.lock();
                let is_theirs = |Idle { connection, .. }: &Idle| {
                    connection.endpoint == endpoint && connection.is_for(who)
                };
                let is_here = |idle: &Idle| idle.worker == worker && is_theirs(idle);
                let latest = idle.iter().rposition(is_here).or_else(|| idle.iter().rposition(is_theirs))?;
                idle.remove(latest)?
            };
            if !idle.is_usable(tls, now) {
                continue;
            }
            if idle.worker != worker
                && let Err(error) = idle.connection.move_here()
            {
                debug!(%error, "cannot take over another worker's connection to nova");
                continue;
            }
            return Some(idle.connection);
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
        let Self { connection, since, .. } = self;
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
    use std::{io::Write as _, net::TcpListener};

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

    const HERE: WorkerId = WorkerId(0);

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
            let (pool, now) = (Pool::default(), Instant::now());
            pool.put(connection(&listener, 0, "a").await, HERE, now);
            let take = |endpoint, who: &Identity| pool.take(endpoint, who, None, HERE, now);
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
    fn a_connection_goes_on_in_the_runtime_of_the_worker_that_takes_it() {
        let (listener, _) = listening();
        let (pool, now) = (Pool::default(), Instant::now());
        let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (other, here) = (runtime(), runtime());
        for (runtime, worker) in [(&here, HERE), (&other, WorkerId(1))] {
            runtime.block_on(async { pool.put(connection(&listener, 0, "a").await, worker, now) });
        }
        let [mut mine, theirs] = [(); 2].map(|()| listener.accept().unwrap().0);
        let who = identity("a").identity.clone();
        here.block_on(async {
            let mut own = pool.take(0, &who, None, HERE, now).unwrap();
            mine.write_all(b"x").unwrap();
            while own.is_quiet() {
                sleep(Duration::from_millis(5)).await;
            }
            let mut moved = pool.take(0, &who, None, HERE, now).unwrap();
            // Nobody runs the other runtime any more, which would tell of nothing.
            other.shutdown_background();
            drop(theirs);
            while moved.is_quiet() {
                sleep(Duration::from_millis(5)).await;
            }
        });
    }

    #[test]
    fn the_least_recently_used_gives_way() {
        let (listener, _) = listening();
        run(async {
            let (pool, now) = (Pool::default(), Instant::now());
            let (all, to_one) = KEPT;
            let instances: Vec<_> = (0..to_one + 2).map(|number| number.to_string()).collect();
            let mut held = Vec::new();
            for instance in &instances {
                pool.put(connection(&listener, 0, instance).await, HERE, now);
                held.push(listener.accept().unwrap());
            }
            assert_eq!(pool.lock().len(), to_one);
            for endpoint in 1..10 {
                for instance in &instances[..to_one] {
                    pool.put(connection(&listener, endpoint, instance).await, HERE, now);
                    held.push(listener.accept().unwrap());
                }
            }
            assert_eq!(pool.lock().len(), all);
            assert!(pool.take(0, &identity(&instances[to_one]).identity, None, HERE, now).is_none());
            assert!(pool.take(9, &identity(&instances[0]).identity, None, HERE, now).is_some());
            // One whose other end is gone is none.
            pool.put(connection(&listener, 20, "a").await, HERE, now);
            drop(listener.accept().unwrap());
            sleep(Duration::from_millis(50)).await;
            assert!(pool.take(20, &identity("a").identity, None, HERE, now).is_none());
        });
    }
}
