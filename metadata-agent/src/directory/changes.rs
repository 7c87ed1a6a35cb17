//! Difference between a directory and what another process was told of it.
use std::{collections::HashMap, sync::Arc};

use super::{Directory, Entry, Port, Resolution};

/// A change set: what the other process has not heard of, once.
#[derive(Debug, Default)]
pub struct Changes {
    told: HashMap<u32, (Arc<Port>, Arc<Resolution>)>,
}

impl Changes {
    /// Ports that are new or not what they were, and indexes that have none any more; from now on they count as told.
    pub fn take(&mut self, directory: &Directory) -> (Vec<Entry>, Vec<u32>) {
        let published = directory.published.load();
        let mut entered = Vec::new();
        for (index, port) in &published.ports {
            let resolution = port.current();
            let is_told = self
                .told
                .get(index)
                .is_some_and(|(told, as_what)| Arc::ptr_eq(told, port) && Arc::ptr_eq(as_what, &resolution));
            if !is_told {
                entered.push(Entry::new(*index, port, &resolution));
                self.told.insert(*index, (port.clone(), resolution));
            }
        }
        let gone: Vec<u32> =
            self.told.keys().filter(|index| !published.ports.contains_key(index)).copied().collect();
        self.told.retain(|index, _| published.ports.contains_key(index));
        (entered, gone)
    }
}

impl Directory {
    /// Takes the changes of another process' directory.
    ///
    /// An assignment stays the same object for as long as index, generation and port are the same; one that ends has its
    /// connections reset.
    pub fn apply(&self, entered: Vec<Entry>, gone: &[u32]) {
        let mut ports = self.published.load().ports.clone();
        let mut ended: Vec<Arc<Port>> = gone.iter().filter_map(|index| ports.remove(index)).collect();
        for Entry { index, generation, port: id, tap, is_probe, identity } in entered {
            let resolution = Resolution::from(identity);
            match ports.get(&index) {
                Some(port) if port.generation == generation && port.id == id && **port.tap.name() == *tap => {
                    port.resolve(resolution);
                }
                _ => {
                    let tap = self.tap(&tap);
                    let port = if is_probe {
                        Port::probe(&id, tap, generation)
                    } else {
                        Port::new(id, tap, generation, resolution)
                    };
                    ended.extend(ports.insert(index, Arc::new(port)));
                }
            }
        }
        self.publish(ports);
        for port in ended {
            port.gone.cancel();
        }
    }
}

#[cfg(test)]
mod tests {
    use metadata_ebpf::address::Tag;

    use super::*;
    use crate::directory::{Identity, Signer};

    fn known() -> Resolution {
        let identity = Identity {
            port: "p".into(),
            instance: "i".into(),
            project: "t".into(),
            network: "n".into(),
            fixed_ips: vec![],
        };
        Resolution::Known(Arc::new(Signer::new("secret").sign(identity).unwrap()))
    }

    /// Both directories, and what passes between them, as it does: as text.
    struct Pair {
        control: Directory,
        changes: Changes,
        guests: Directory,
    }

    impl Pair {
        fn new() -> Self {
            Self { control: Directory::default(), changes: Changes::default(), guests: Directory::default() }
        }

        fn publish(&mut self, ports: &[(u32, &Arc<Port>)]) -> (usize, usize) {
            self.control.publish(ports.iter().map(|(index, port)| (*index, (*port).clone())).collect());
            let (entered, gone) = self.changes.take(&self.control);
            let entered: Vec<Entry> = serde_json::from_slice(&serde_json::to_vec(&entered).unwrap()).unwrap();
            let told = (entered.len(), gone.len());
            self.guests.apply(entered, &gone);
            told
        }

        fn port(&self, generation: u8, index: u32) -> Option<Arc<Port>> {
            self.guests.port(Tag::new(generation, index, 0))
        }
    }

    #[test]
    fn only_news_travels_and_arrives_as_it_was() {
        let mut pair = Pair::new();
        let [one, other] = ["tap0", "tap1"].map(|tap| {
            Arc::new(Port::new("p".into(), pair.control.tap(tap), 3, Resolution::Pending("soon".into())))
        });
        assert_eq!(pair.publish(&[(7, &one), (8, &other)]), (2, 0));
        assert_eq!(pair.publish(&[(7, &one), (8, &other)]), (0, 0));
        let there = pair.port(3, 7).unwrap();
        assert!(matches!(there.resolution(), Resolution::Pending(reason) if &*reason == "soon"));

        one.resolve(known());
        assert_eq!(pair.publish(&[(7, &one), (8, &other)]), (1, 0));
        let again = pair.port(3, 7).unwrap();
        assert!(Arc::ptr_eq(&there, &again), "the assignment lasts, and its connections with it");
        let (Resolution::Known(told), Resolution::Known(meant)) = (again.resolution(), known()) else {
            panic!("another resolution")
        };
        assert!(told.headers(true).eq(meant.headers(true)));
        assert!(!there.gone.is_cancelled());

        assert_eq!(pair.publish(&[(8, &other)]), (0, 1));
        assert!(pair.port(3, 7).is_none() && there.gone.is_cancelled());
    }

    #[test]
    fn another_assignment_of_an_index_ends_the_former_one() {
        let mut pair = Pair::new();
        let tap = pair.control.tap("tap0");
        let assignment = |id: &str, generation| {
            Arc::new(Port::new(id.into(), tap.clone(), generation, Resolution::Pending("".into())))
        };
        pair.publish(&[(7, &assignment("p", 3))]);
        let former = pair.port(3, 7).unwrap();
        assert_eq!(pair.publish(&[(7, &assignment("p", 4))]), (1, 0));
        assert!(former.gone.is_cancelled() && pair.port(3, 7).is_none() && pair.port(4, 7).is_some());
        // A tap is one for all its ports, here as there.
        pair.publish(&[(7, &assignment("p", 4)), (8, &assignment("q", 1))]);
        let taps = [pair.port(4, 7), pair.port(1, 8)].map(|port| port.unwrap().tap.clone());
        assert!(Arc::ptr_eq(&taps[0], &taps[1]));
    }

    #[tokio::test]
    async fn a_connection_waits_a_moment_for_its_port() {
        let directory = Arc::new(Directory::default());
        let tag = Tag::new(3, 7, 0);
        let within = std::time::Duration::from_secs(60);
        let waiting = tokio::spawn({
            let directory = directory.clone();
            async move { directory.port_soon(tag, within).await }
        });
        tokio::task::yield_now().await;
        let port = Port::new("p".into(), directory.tap("tap0"), 3, Resolution::Pending("".into()));
        directory.publish([(7, Arc::new(port))].into());
        assert_eq!(waiting.await.unwrap().unwrap().id, "p");
        let never = directory.port_soon(Tag::new(4, 7, 0), std::time::Duration::from_millis(1)).await;
        assert!(never.is_none());
    }
}
