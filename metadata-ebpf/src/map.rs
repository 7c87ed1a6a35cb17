//! The layouts of the maps: written by one side, read by the other, so sizes are checked at compile time.
#![forbid(unsafe_code)]
mod limit;
mod mac;
mod record;

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::{address::SOURCES_PER_PORT, counter};

pub use limit::FrameLimit;
pub use mac::{InvalidMac, Mac};
pub use record::{
    FrameRecord, RECORD_ALL, RECORD_DROPPED, RECORD_LIMIT, RECORD_PORT, RECORDED_HEAD, Recorded, is_recorded,
};

/// Version of these layouts. Pinned maps of another version cannot be adopted; it names the pin directory.
pub const LAYOUT: u32 = 5;

/// A source without an open connection that sent nothing for this long may make room for a new one, in nanoseconds.
///
/// Longer than a connection takes from its SYN to where the agent counts it in `OPEN`.
pub const SOURCE_IDLE_NS: u64 = 5 * 1_000_000_000;

/// Most addresses of a port itself that the programs know: those after them count as any other source.
pub const OWN_ADDRESSES: usize = 16;

/// Most addresses of a network's metadata port that the programs answer for.
pub const NETWORK_ADDRESSES: usize = 8;

/// Value of `CONTROL`, a single entry: what the agent tells the programs about itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Control {
    /// Lease of the agent, on the kernel's monotonic clock in nanoseconds. Renewed while the agent runs; when it is over,
    /// frames pass as if there were no program.
    pub alive_until: u64,
    /// Selection of our frames that are recorded, see [`is_recorded`]; 0 for none.
    pub logging: u32,
    /// Not zero while the agent leaves for good: what is under way goes on, and new connections pass.
    pub leaving: u32,
    /// Not zero where the service has its IPv6 address.
    pub ipv6: u32,
    /// Interface index of the agent's own guest, whose frames are not counted.
    pub probe: u32,
}

/// Value of `OPEN`, one for each port index: memory that the programs and the process which guests talk to have in common.
/// Neither believes the other's half more than it must: the addresses are for that process' log, and the counters decide
/// only which source gives way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct OpenSources {
    /// Connections that each source of the port has open, as that process counts them.
    pub connections: [u32; SOURCES_PER_PORT],
    /// Address of each source, as the programs have learned it; see [`Source::address`].
    pub addresses: [[u32; 4]; SOURCES_PER_PORT],
}

/// Value of `PORT_COUNTERS`, one for each port index: the outcomes of one port's frames.
///
/// The agent writes the whole value when it assigns the index; the programs only add. They do so atomically, since frames
/// of one port come by on several processors, and on frames that are ours alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct PortCounts {
    /// Generation of the assignment that is counted for. An agent that does not know this map leaves it as it was.
    pub generation: u64,
    /// Time of the last frame that was dropped, in nanoseconds of the kernel's monotonic clock; 0 if none was.
    pub dropped_at: u64,
    /// The outcome of that one, by the number of its counter.
    pub dropped_as: u64,
    /// Frames, by the numbers of the counters.
    pub frames: [u64; counter::CAPACITY as usize],
}

/// Key of `PORTS`: the device a frame came in on, and what tells those behind it apart. That is the VLAN on a tap, and
/// the MAC address on a network's device.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
#[repr(C)]
pub struct PortKey {
    /// Interface index of the tap, or of the network's device.
    pub ifindex: u32,
    /// VLAN id of the frame, 0 for untagged frames.
    pub vlan: u32,
    /// MAC address of the station, [`Mac::NONE`] on a tap.
    pub mac: Mac,
}

/// Value of `NETWORKS`, by the interface index of a network's device: the metadata port that the device is bound to, as
/// which it answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Network {
    /// Its MAC address.
    pub mac: Mac,
    /// Its addresses, an IPv4 address as `::ffff:a.b.c.d`; zeros where there are no more.
    pub addresses: [[u32; 4]; NETWORK_ADDRESSES],
}

/// Value of `PORTS`: the assignment of a port. Written by the agent only.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Port {
    /// Index into `SOURCES`.
    pub index: u32,
    /// Generation of the assignment, 1 to 255.
    pub generation: u32,
    /// Index into `SOURCES` of the port at whose limits this one's requests are counted: that of the tap's untagged
    /// frames, so that a trunk's subports give a guest nothing more. A station has limits of its own.
    pub meter: u32,
    /// Keeps what follows aligned.
    pub reserved: u32,
    /// Rate of the connections that the tap may open.
    pub connections: FrameLimit,
    /// Rate of the ARP, neighbour discovery and echo requests of the tap that are answered.
    pub answers: FrameLimit,
    /// Until then, on the kernel's monotonic clock in nanoseconds, segments of connections that are not ours pass: they
    /// may belong to who served this tap before. 0 where nobody did.
    pub foreign_until: u64,
    /// The port's own addresses, which always find a place among its sources, an IPv4 address as `::ffff:a.b.c.d`;
    /// zeros where there are no more.
    pub own: [[u32; 4]; OWN_ADDRESSES],
    /// For the agent alone: by which port, and by which instance and project, the assignment is used.
    pub owner: Owner,
}

/// Fingerprints of the port, and of the instance and project, that an assignment belongs to: another agent adopts it
/// only for the same. Zero where not known.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Owner {
    /// Of the Neutron port's id.
    pub port: [u64; 2],
    /// Of instance and project.
    pub identity: [u64; 2],
}

/// Value of `SOURCES`, one for each port index: where replies go, and the sources learned behind the port.
///
/// The agent writes the whole value when it assigns, ends or releases the index, at which time no `PORTS` entry leads
/// here. Between those times only `from_guest` writes. What is behind `lock` is written by its holder, but for the time
/// and the way of a source that is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct PortSources {
    /// Interface index of the tap, 0 while the index is not assigned.
    pub ifindex: u32,
    /// VLAN id of the port, 0 for untagged.
    pub vlan: u32,
    /// Generation of the assignment; kept when the index is released, so that the next one differs.
    pub generation: u32,
    /// Held by the processor that changes what follows, but for the MAC address.
    pub lock: bpf_spin_lock,
    /// MAC address of the station, [`Mac::NONE`] on a tap.
    pub mac: Mac,
    /// State of [`Port::connections`].
    pub connections: u64,
    /// State of [`Port::answers`].
    pub answers: u64,
    /// New sources that were refused, since all places were taken.
    pub exhausted: u64,
    /// A bit for each source that has an address of the port's own.
    pub own: u32,
    /// Not zero once the assignment has ended: what replies lead to the tap then are resets.
    pub ended: u32,
    /// The learned sources.
    pub sources: [Source; SOURCES_PER_PORT],
}

/// A lock of the kernel's (`bpf_spin_lock`, Linux 5.1, commit d83525ca62cf), which finds it in a map's value by this
/// name. Only its helpers may touch it; to userspace it reads as zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct bpf_spin_lock {
    val: u32,
}

/// One source behind a port: the addresses a guest used, needed to answer it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Source {
    /// Time of the last frame, in nanoseconds of the kernel's monotonic clock; 0 while the entry is free.
    ///
    /// Set last when an entry is filled and cleared first when it is reused.
    pub last_seen: u64,
    /// Source address of the guest's frames, an IPv4 address as `::ffff:a.b.c.d`.
    pub address: [u32; 4],
    /// Source MAC of the guest's frames.
    pub mac: Mac,
    /// The MAC the guest sends to: its gateway, the metadata port, or ours. Replies come from there.
    pub via: Mac,
}

const _: () = assert!(size_of::<PortKey>() == 16);
const _: () = assert!(size_of::<Network>() == 8 + NETWORK_ADDRESSES * 16);
const _: () = assert!(
    size_of::<Port>() == 16 + 2 * size_of::<FrameLimit>() + 8 + OWN_ADDRESSES * 16 + size_of::<Owner>()
);
const _: () = assert!(size_of::<Owner>() == 32);
const _: () = assert!(size_of::<Control>() == 24);
const _: () = assert!(size_of::<OpenSources>() == SOURCES_PER_PORT * (4 + 16));
// The kernel rounds values up to that, and their memory is one array.
const _: () = assert!(size_of::<OpenSources>().is_multiple_of(8));
const _: () = assert!(size_of::<Source>() == 8 + 16 + 8 + 8);
const _: () = assert!(size_of::<FrameRecord>() == 40 + RECORDED_HEAD);
const _: () = assert!(size_of::<PortCounts>() == 24 + 8 * counter::CAPACITY as usize);
const _: () = assert!(size_of::<PortSources>() == 56 + SOURCES_PER_PORT * size_of::<Source>());

impl PortKey {
    /// Frames of a VLAN on a tap, 0 for untagged ones.
    #[inline(always)]
    pub const fn tap(ifindex: u32, vlan: u32) -> Self {
        Self { ifindex, vlan, mac: Mac::NONE }
    }

    /// Frames from a MAC address on a network's device.
    #[inline(always)]
    pub const fn station(ifindex: u32, mac: Mac) -> Self {
        Self { ifindex, vlan: 0, mac }
    }

    /// True if it is on a network's device, which it shares with others.
    pub fn is_station(&self) -> bool {
        self.mac != Mac::NONE
    }
}

impl Network {
    /// True if an address, as [`Source::compared`] gives it, is one of the metadata port's.
    #[inline(always)]
    pub fn has(&self, address: [u32; 4]) -> bool {
        contains(&self.addresses, address)
    }
}

/// True if an address is in a list of them.
#[inline(always)]
fn contains<const N: usize>(list: &[[u32; 4]; N], address: [u32; 4]) -> bool {
    let [a, b, c, d] = address;
    let mut found = false;
    let mut i = 0;
    while i < N {
        let one = &list[i];
        found |= one[3] == d && one[2] == c && one[1] == b && one[0] == a;
        i += 1;
    }
    found
}

impl Port {
    /// An assignment without limits, of nobody in particular.
    pub const fn new(index: u32, generation: u8) -> Self {
        let unlimited = FrameLimit::new(0, 0);
        Self {
            index,
            generation: generation as u32,
            meter: index,
            reserved: 0,
            connections: unlimited,
            answers: unlimited,
            foreign_until: 0,
            own: [[0; 4]; OWN_ADDRESSES],
            owner: Owner { port: [0; 2], identity: [0; 2] },
        }
    }

    /// True if an address, as [`Source::compared`] gives it, is one of the port's own.
    #[inline(always)]
    pub fn owns(&self, address: [u32; 4]) -> bool {
        contains(&self.own, address)
    }
}

/// The first word of link-local IPv6 addresses (fe80::/10), as far as it is the same in all of them.
pub const LINK_LOCAL: u32 = 0xfe80_0000_u32.to_be();
/// The bits that are.
pub const LINK_LOCAL_MASK: u32 = 0xffc0_0000_u32.to_be();

impl Source {
    /// A free entry.
    pub const FREE: Self = Self { last_seen: 0, address: [0; 4], mac: Mac::NONE, via: Mac::NONE };

    /// The address as the kernel program compares it.
    #[inline(always)]
    pub const fn mapped(address: Ipv4Addr) -> [u32; 4] {
        [0, 0, 0xffff_u32.to_be(), address.to_bits().to_be()]
    }

    /// An IPv6 address as the kernel program compares it.
    #[inline(always)]
    pub const fn words(address: Ipv6Addr) -> [u32; 4] {
        let bits = address.to_bits();
        [
            ((bits >> 96) as u32).to_be(),
            ((bits >> 64) as u32).to_be(),
            ((bits >> 32) as u32).to_be(),
            (bits as u32).to_be(),
        ]
    }

    /// The source address; `None` when it is an IPv6 address.
    #[inline(always)]
    pub const fn v4(&self) -> Option<Ipv4Addr> {
        let [a, b, c, d] = self.address;
        if a == 0 && b == 0 && c == 0xffff_u32.to_be() {
            Some(Ipv4Addr::from_bits(u32::from_be(d)))
        } else {
            None
        }
    }

    /// An address of either family as the kernel program compares it.
    pub const fn compared(address: IpAddr) -> [u32; 4] {
        match address {
            IpAddr::V4(address) => Self::mapped(address),
            IpAddr::V6(address) => Self::words(address),
        }
    }

    /// The source address as an IPv6 address, which an IPv4 one is mapped to.
    #[inline(always)]
    pub const fn v6(&self) -> Ipv6Addr {
        let [a, b, c, d] = self.address;
        let high = (u32::from_be(a) as u128) << 96 | (u32::from_be(b) as u128) << 64;
        Ipv6Addr::from_bits(high | (u32::from_be(c) as u128) << 32 | u32::from_be(d) as u128)
    }

    /// The source address.
    pub const fn ip(&self) -> IpAddr {
        match self.v4() {
            Some(address) => IpAddr::V4(address),
            None => IpAddr::V6(self.v6()),
        }
    }
}

impl PortCounts {
    /// Nothing was counted yet for that generation.
    pub const fn new(generation: u8) -> Self {
        Self {
            generation: generation as u64,
            dropped_at: 0,
            dropped_as: 0,
            frames: [0; counter::CAPACITY as usize],
        }
    }
}

impl PortSources {
    /// An index as the agent assigns it: nothing learned yet.
    pub const fn assigned(key: PortKey, generation: u8) -> Self {
        Self {
            ifindex: key.ifindex,
            vlan: key.vlan,
            generation: generation as u32,
            lock: bpf_spin_lock { val: 0 },
            mac: key.mac,
            connections: 0,
            answers: 0,
            exhausted: 0,
            own: 0,
            ended: 0,
            sources: [Source::FREE; SOURCES_PER_PORT],
        }
    }

    /// An index as the agent releases it: nothing leads to a device any more, the generation is remembered.
    pub const fn released(generation: u8) -> Self {
        Self::assigned(PortKey::tap(0, 0), generation)
    }

    /// The same index once its assignment has ended: the sources are still known, for the resets of their connections.
    pub const fn ended(self) -> Self {
        Self { ended: 1, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_address_round_trip() {
        let address = Ipv4Addr::new(192, 168, 1, 10);
        let source = Source { address: Source::mapped(address), ..Source::FREE };
        assert_eq!(source.v4(), Some(address));
        assert_eq!(source.ip(), IpAddr::V4(address));
        let address: Ipv6Addr = "fe80::1234:5678:9abc:def0".parse().unwrap();
        let source = Source { address: Source::words(address), ..Source::FREE };
        assert_eq!((source.v4(), source.ip()), (None, IpAddr::V6(address)));
    }
}
