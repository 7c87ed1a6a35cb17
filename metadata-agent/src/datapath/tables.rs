//! Access to the maps: assignments, the agent's own state (`CONTROL`), counters.
#![forbid(unsafe_code)]
use std::{collections::BTreeMap, path::Path, time::Duration};

use aya::{
    Ebpf,
    maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray},
};
use metadata_ebpf::{
    address::MAX_PORTS,
    counter::Counter,
    map::{Control, Network, Owner, Port, PortCounts, PortKey, PortSources},
};
use nix::time::{ClockId, clock_gettime};

use super::{Assignment, Error, Indexes};

/// Maps that outlive the agent, so that a restarted one finds ports and sources as they were.
pub(super) const PINNED: [&str; 7] =
    ["PORTS", "SOURCES", "NETWORKS", "COUNTERS", "PORT_COUNTERS", "CONTROL", "OPEN"];

/// The maps of the loaded programs.
pub(super) struct Tables {
    ports: HashMap<MapData, PortKey, Port>,
    sources: Array<MapData, PortSources>,
    networks: HashMap<MapData, u32, Network>,
    counters: PerCpuArray<MapData, u64>,
    port_counters: Array<MapData, PortCounts>,
    control: Array<MapData, Control>,
    /// Each once more, to pin it again if somebody took the pin away.
    pins: Vec<(&'static str, MapData)>,
    /// As last written.
    said: Control,
}

/// An assignment that was found in the maps, and whose it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Adopted {
    /// The assignment.
    pub assignment: Assignment,
    /// Port, instance and project that it was for.
    pub owner: Owner,
}

impl Tables {
    /// Takes them from the loaded object, which has pinned them in `folder`.
    pub(super) fn take(ebpf: &mut Ebpf, folder: &Path) -> Result<Self, Error> {
        let pins = PINNED.map(|name| Ok((name, pinned(folder, name)?)));
        Ok(Self {
            ports: typed(ebpf, "PORTS")?,
            sources: typed(ebpf, "SOURCES")?,
            networks: typed(ebpf, "NETWORKS")?,
            counters: typed(ebpf, "COUNTERS")?,
            port_counters: typed(ebpf, "PORT_COUNTERS")?,
            control: typed(ebpf, "CONTROL")?,
            pins: pins.into_iter().collect::<Result<_, _>>()?,
            said: Control { alive_until: 0, logging: 0, leaving: 0, ipv6: 0, probe: 0 },
        })
    }

    /// Pins those again that have lost their pins in `folder`; returns whether there were any.
    pub(super) fn pin_again(&self, folder: &Path) -> Result<bool, Error> {
        let mut any = false;
        for (name, map) in &self.pins {
            let path = folder.join(name);
            if !path.exists() {
                map.pin(&path).map_err(|error| Error::Pin { path, error: std::io::Error::other(error) })?;
                any = true;
            }
        }
        Ok(any)
    }

    /// Contents of the maps: the assignments of a former agent, and the generation each index had last.
    ///
    /// An agent that died between the two writes of an assignment left half of one, which nothing could use: removed.
    pub(super) fn assignments(&mut self) -> Result<(BTreeMap<PortKey, Adopted>, Indexes), Error> {
        let mut states = Vec::with_capacity(MAX_PORTS as usize);
        for index in 0..MAX_PORTS {
            states.push(self.sources.get(&index, 0).map_err(|error| failed("SOURCES", error))?);
        }
        let entries: Result<Vec<_>, _> = self.ports.iter().collect();
        let mut assigned = BTreeMap::new();
        for (key, port) in entries.map_err(|error| failed("PORTS", error))? {
            let is_whole = states.get(port.index as usize).is_some_and(|state| {
                let of = PortKey { ifindex: state.ifindex, vlan: state.vlan, mac: state.mac };
                (of, state.generation, state.ended) == (key, port.generation, 0)
            });
            if is_whole {
                let assignment = Assignment { index: port.index, generation: port.generation as u8 };
                // A former agent may have assigned the index without knowing that there are counters.
                if self.raw_counts(assignment)?.generation != u64::from(assignment.generation) {
                    self.count_anew(assignment)?;
                }
                assigned.insert(key, Adopted { assignment, owner: port.owner });
            } else {
                self.ports.remove(&key).map_err(|error| failed("PORTS", error))?;
            }
        }
        let used: Vec<u32> = assigned.values().map(|adopted| adopted.assignment.index).collect();
        for (index, state) in (0..MAX_PORTS).zip(&states) {
            if state.ifindex != 0 && !used.contains(&index) {
                self.release(Assignment { index, generation: state.generation as u8 })?;
            }
        }
        let generations = states.iter().map(|state| state.generation as u8).collect();
        Ok((assigned, Indexes::new(generations, used.into_iter())))
    }

    /// Begins an assignment: nothing is known behind it yet, and nothing leads to it.
    pub(super) fn begin(&mut self, key: PortKey, assignment: Assignment) -> Result<(), Error> {
        self.count_anew(assignment)?;
        let state = PortSources::assigned(key, assignment.generation);
        self.sources.set(assignment.index, state, 0).map_err(|error| failed("SOURCES", error))
    }

    /// Makes frames of `key` belong to a port, or changes what is known about it; what was learned behind it stays.
    pub(super) fn enter(&mut self, key: PortKey, port: Port) -> Result<(), Error> {
        self.ports.insert(key, port, 0).map_err(|error| failed("PORTS", error))
    }

    /// Notes which metadata port the network's device with this index is bound to.
    pub(super) fn enter_network(&mut self, ifindex: u32, network: Network) -> Result<(), Error> {
        self.networks.insert(ifindex, network, 0).map_err(|error| failed("NETWORKS", error))
    }

    /// The networks' devices.
    pub(super) fn networks(&self) -> Result<Vec<u32>, Error> {
        self.networks.keys().collect::<Result<_, _>>().map_err(|error| failed("NETWORKS", error))
    }

    /// Forgets it, and tells whether that was a network's device.
    pub(super) fn leave_network(&mut self, ifindex: u32) -> Result<bool, Error> {
        if self.networks.get(&ifindex, 0).is_err() {
            return Ok(false);
        }
        self.networks.remove(&ifindex).map_err(|error| failed("NETWORKS", error))?;
        Ok(true)
    }

    /// Ends an assignment: from now on nothing comes in for it, and nothing but resets goes out.
    pub(super) fn end(&mut self, key: PortKey, assignment: Assignment) -> Result<(), Error> {
        // An entry that is not there is what is wanted, and aya has no error of its own for it.
        if self.ports.get(&key, 0).is_ok() {
            self.ports.remove(&key).map_err(|error| failed("PORTS", error))?;
        }
        let state = self.sources.get(&assignment.index, 0).map_err(|error| failed("SOURCES", error))?;
        self.sources.set(assignment.index, state.ended(), 0).map_err(|error| failed("SOURCES", error))
    }

    /// Forgets an assignment that has ended, but for its generation.
    pub(super) fn release(&mut self, assignment: Assignment) -> Result<(), Error> {
        let state = PortSources::released(assignment.generation);
        self.sources.set(assignment.index, state, 0).map_err(|error| failed("SOURCES", error))
    }

    /// Number of new sources of that index that were refused.
    pub(super) fn exhausted(&self, assignment: Assignment) -> Result<u64, Error> {
        Ok(self.state(assignment)?.map_or(0, |state| state.exhausted))
    }

    /// State of an assignment, while the index is its own.
    pub(super) fn state(&self, assignment: Assignment) -> Result<Option<PortSources>, Error> {
        let state = self.sources.get(&assignment.index, 0).map_err(|error| failed("SOURCES", error))?;
        Ok((state.generation as u8 == assignment.generation).then_some(state))
    }

    /// True if a former agent was silent for so long that the programs have let everything pass, to whoever serves the
    /// taps besides.
    pub(super) fn has_lapsed(&self) -> Result<bool, Error> {
        let Control { alive_until, .. } =
            self.control.get(&0, 0).map_err(|error| failed("CONTROL", error))?;
        Ok(alive_until > 0 && alive_until < monotonic(Duration::ZERO))
    }

    /// Has segments of connections that are not ours pass until then, on all taps that have a port already.
    pub(super) fn pass_foreign(&mut self, until: u64) -> Result<(), Error> {
        let entries: Result<Vec<_>, _> = self.ports.iter().collect();
        for (key, port) in entries.map_err(|error| failed("PORTS", error))? {
            self.enter(key, Port { foreign_until: until, ..port })?;
        }
        Ok(())
    }

    /// Changes what the programs are told about the agent.
    pub(super) fn say(&mut self, change: impl FnOnce(&mut Control)) -> Result<(), Error> {
        change(&mut self.said);
        self.control.set(0, self.said, 0).map_err(|error| failed("CONTROL", error))
    }

    /// Counts of an assignment.
    pub(super) fn counts(&self, assignment: Assignment) -> Result<PortCounts, Error> {
        let counts = self.raw_counts(assignment)?;
        let is_its_own = counts.generation == u64::from(assignment.generation);
        Ok(if is_its_own { counts } else { PortCounts::new(assignment.generation) })
    }

    fn raw_counts(&self, assignment: Assignment) -> Result<PortCounts, Error> {
        self.port_counters.get(&assignment.index, 0).map_err(|error| failed("PORT_COUNTERS", error))
    }

    fn count_anew(&mut self, assignment: Assignment) -> Result<(), Error> {
        let counts = PortCounts::new(assignment.generation);
        self.port_counters.set(assignment.index, counts, 0).map_err(|error| failed("PORT_COUNTERS", error))
    }

    /// The same, unless nothing changes by it.
    pub(super) fn say_if_new(&mut self, change: impl FnOnce(&mut Control)) -> Result<(), Error> {
        let mut said = self.said;
        change(&mut said);
        if said == self.said { Ok(()) } else { self.say(|control| *control = said) }
    }

    /// The counters, summed over the processors.
    pub(super) fn counters(&self) -> Result<Vec<(Counter, u64)>, Error> {
        Counter::ALL
            .iter()
            .map(|counter| {
                let values = self.counters.get(&(*counter as u32), 0);
                let values = values.map_err(|error| failed("COUNTERS", error))?;
                Ok((*counter, values.iter().sum()))
            })
            .collect()
    }
}

/// A map by its pin.
pub(super) fn pinned(folder: &Path, name: &'static str) -> Result<MapData, Error> {
    MapData::from_pin(folder.join(name)).map_err(|error| failed(name, error))
}

/// The kernel's monotonic clock as the programs read it, in nanoseconds, so much later.
pub(super) fn monotonic(later: Duration) -> u64 {
    // This clock is on every Linux.
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default();
    u64::try_from((now + later).as_nanos()).unwrap_or(u64::MAX)
}

/// Time since then, by the same clock.
pub(super) fn since(then: u64) -> Duration {
    Duration::from_nanos(monotonic(Duration::ZERO).saturating_sub(then))
}

pub(super) fn typed<M: TryFrom<Map, Error = MapError>>(
    ebpf: &mut Ebpf,
    name: &'static str,
) -> Result<M, Error> {
    let map = ebpf.take_map(name);
    let map = map.ok_or_else(|| Error::Load(anyhow::anyhow!("the object has no map {name}")))?;
    M::try_from(map).map_err(|error| failed(name, error))
}

pub(super) fn failed(map: &'static str, error: MapError) -> Error {
    Error::Map { map, error }
}
