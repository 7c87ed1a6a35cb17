//! The eBPF programs loaded on their own, run on single frames by BPF_PROG_TEST_RUN: no device, no agent.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf, EbpfLoader, TestRun as _, TestRunOptions,
    maps::{Array, HashMap, MapData, PerCpuArray},
    programs::{
        SchedClassifier, TcAttachType,
        tc::{NlOptions, TcAttachOptions, TcHandle, qdisc_add_clsact},
    },
};
use metadata_agent::datapath::OBJECT;
use metadata_ebpf::{
    counter::Counter,
    map::{Control, Network, OpenSources, Port, PortCounts, PortKey, PortSources},
};

/// The device that test runs are on: the kernel takes the namespace's loopback.
pub const IFINDEX: u32 = 1;
/// More than the longest frame that any test uses, or that a program makes of one.
const OUTPUT: usize = 4096;

/// Name of one of the programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    FromGuest,
    FromNetwork,
    ToGuest,
}

impl Which {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::FromGuest => "from_guest",
            Self::FromNetwork => "from_network",
            Self::ToGuest => "to_guest",
        }
    }
}

pub struct Programs {
    ebpf: Ebpf,
    ports: HashMap<MapData, PortKey, Port>,
    sources: Array<MapData, PortSources>,
    networks: HashMap<MapData, u32, Network>,
    counters: PerCpuArray<MapData, u64>,
    port_counters: Array<MapData, PortCounts>,
    control: Array<MapData, Control>,
    open: Array<MapData, OpenSources>,
}

/// Control of an agent that is there to stay.
pub const ALIVE: Control = Control { alive_until: u64::MAX, logging: 0, leaving: 0, ipv6: 1, probe: 0 };

impl std::fmt::Debug for Programs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Programs")
    }
}

impl Programs {
    pub fn load() -> Result<Self> {
        let mut ebpf = EbpfLoader::new().override_global("SERVICE_IFINDEX", &IFINDEX, true).load(OBJECT)?;
        for which in [Which::FromGuest, Which::FromNetwork, Which::ToGuest] {
            let program: &mut SchedClassifier =
                ebpf.program_mut(which.name()).context("no program")?.try_into()?;
            program.load()?;
        }
        let mut take = |name| ebpf.take_map(name).with_context(|| format!("no map {name}"));
        let (ports, sources, counters) = (take("PORTS")?, take("SOURCES")?, take("COUNTERS")?);
        let port_counters = take("PORT_COUNTERS")?;
        let (control, open, networks) = (take("CONTROL")?, take("OPEN")?, take("NETWORKS")?);
        let mut programs = Self {
            ebpf,
            ports: ports.try_into()?,
            sources: sources.try_into()?,
            networks: networks.try_into()?,
            counters: counters.try_into()?,
            port_counters: port_counters.try_into()?,
            control: control.try_into()?,
            open: open.try_into()?,
        };
        programs.set_control(ALIVE)?;
        Ok(programs)
    }

    pub fn set_control(&mut self, control: Control) -> Result<()> {
        Ok(self.control.set(0, control, 0)?)
    }

    pub fn set_open(&mut self, index: u32, open: OpenSources) -> Result<()> {
        Ok(self.open.set(index, open, 0)?)
    }

    pub fn open(&self, index: u32) -> Result<OpenSources> {
        Ok(self.open.get(&index, 0)?)
    }

    pub fn set_port(&mut self, key: PortKey, port: Option<Port>) -> Result<()> {
        match port {
            Some(port) => self.ports.insert(key, port, 0)?,
            None if self.ports.get(&key, 0).is_ok() => self.ports.remove(&key)?,
            None => {}
        }
        Ok(())
    }

    /// The metadata port of the network whose device test runs are on.
    pub fn set_network(&mut self, network: Network) -> Result<()> {
        Ok(self.networks.insert(IFINDEX, network, 0)?)
    }

    pub fn set_sources(&mut self, index: u32, sources: PortSources) -> Result<()> {
        Ok(self.sources.set(index, sources, 0)?)
    }

    pub fn sources(&self, index: u32) -> Result<PortSources> {
        Ok(self.sources.get(&index, 0)?)
    }

    pub fn counters(&self) -> Result<BTreeMap<&'static str, u64>> {
        let value = |counter: &Counter| -> Result<_> {
            Ok((counter.name(), self.counters.get(&(*counter as u32), 0)?.iter().sum()))
        };
        Counter::ALL.iter().map(value).collect()
    }

    /// Counts of the port with that index.
    pub fn port_counts(&self, index: u32) -> Result<PortCounts> {
        Ok(self.port_counters.get(&index, 0)?)
    }

    /// Runs a program on a frame; gives its action and the frame as it is then.
    pub fn run(&self, which: Which, frame: &[u8]) -> Result<(i32, Vec<u8>)> {
        let mut out = vec![0; OUTPUT];
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            repeat: 1,
            ..TestRunOptions::default()
        };
        let result = self.program(which)?.test_run(options)?;
        out.truncate(result.data_size_out as usize);
        Ok((result.return_value.cast_signed(), out))
    }

    /// Nanoseconds that a run takes, on average over many. The frame must be one that the program leaves as it is.
    pub fn time(&self, which: Which, frame: &[u8], repeat: u32) -> Result<u64> {
        let mut out = vec![0; OUTPUT];
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            repeat,
            ..TestRunOptions::default()
        };
        let result = self.program(which)?.test_run(options)?;
        ensure!(out[..result.data_size_out as usize] == *frame, "the program changed the frame");
        Ok(u64::try_from(result.duration.as_nanos())?)
    }

    /// Puts a program on a device of the calling thread's namespace as a filter with that minor handle, which stays there.
    pub fn leave_filter(&mut self, which: Which, device: &str, handle: u16) -> Result<()> {
        let program: &mut SchedClassifier =
            self.ebpf.program_mut(which.name()).context("no program")?.try_into()?;
        qdisc_add_clsact(device)?;
        let options = NlOptions { priority: 1, handle: TcHandle::new(0, handle), classid: None };
        let id =
            program.attach_with_options(device, TcAttachType::Ingress, TcAttachOptions::Netlink(options))?;
        std::mem::forget(program.take_link(id)?);
        Ok(())
    }

    fn program(&self, which: Which) -> Result<&SchedClassifier> {
        Ok(self.ebpf.program(which.name()).context("no program")?.try_into()?)
    }
}
