//! The addresses of the service, and the synthetic source address that carries a connection's tag.
//!
//! `from_guest` replaces a guest's source address by `240.0.0.0/8 + tag`, or `fd00:a9fe:a9fe::/96 + tag`. The tag names the port, the generation of
//! that port's assignment and one of the sources behind it, so the peer address of an accepted socket is all that is
//! needed to know who asks, and the destination of a reply is all that is needed to find the way back. No two
//! connections of different tenants can collide, whatever addresses and ports they use.
//!
//! Linux treats 240.0.0.0/4 as ordinary unicast space (`unicast_extensions.sh` in the kernel's selftests pins that)
//! and nobody else does, so the prefix cannot meet a tenant's or an operator's own.
#![forbid(unsafe_code)]
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The address guests ask.
pub const METADATA_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// The same for IPv6, as Neutron and cloud-init have it: link-local, so no network needs an IPv6 subnet for it.
pub const METADATA_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0xa9fe, 0xa9fe);
/// The TCP port guests ask.
pub const METADATA_PORT: u16 = 80;
/// The MAC address that ARP and neighbour discovery for these are answered with, and that the service device has.
///
/// One constant for all hosts: a guest keeps a valid neighbour entry when it is migrated.
pub const SERVICE_MAC: [u8; 6] = [0x02, 0x00, 0xa9, 0xfe, 0xa9, 0xfe];
/// The network of all synthetic source addresses.
pub const TAG_NET_V4: Ipv4Addr = Ipv4Addr::new(240, 0, 0, 0);
/// Its prefix length.
pub const TAG_PREFIX_V4: u8 = 8;

/// The network of all synthetic IPv6 source addresses.
pub const TAG_NET_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xa9fe, 0xa9fe, 0, 0, 0, 0, 0);
/// Its prefix length.
pub const TAG_PREFIX_V6: u8 = 96;

/// Number of ports one host can serve.
pub const MAX_PORTS: u32 = 1 << INDEX_BITS;
/// Number of distinct sources (address and MAC) that are told apart behind one port at a time.
pub const SOURCES_PER_PORT: usize = 1 << SOURCE_BITS;

const SOURCE_BITS: u32 = 4;
const INDEX_BITS: u32 = 12;
const GENERATION_SHIFT: u32 = SOURCE_BITS + INDEX_BITS;

/// Tag of a port, of one assignment of it, and of one source behind it: the low 24 bits of a synthetic address.
///
/// Layout, most significant first: generation (8), port index (12), source (4). The generation is in the address so
/// that a connection of a port that went away can neither be answered to, nor be taken for, the port that follows it
/// under the same index.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Tag(u32);

impl Tag {
    /// `index` counts below [`MAX_PORTS`], `source` below [`SOURCES_PER_PORT`]; higher bits are cut off.
    #[inline(always)]
    pub const fn new(generation: u8, index: u32, source: u32) -> Self {
        Self(
            ((generation as u32) << GENERATION_SHIFT)
                | ((index & (MAX_PORTS - 1)) << SOURCE_BITS)
                | (source & (SOURCES_PER_PORT as u32 - 1)),
        )
    }

    /// The tag in a synthetic address of either family; `None` for any other address.
    pub const fn from_ip(address: IpAddr) -> Option<Self> {
        match address {
            IpAddr::V4(address) => Self::from_v4(address),
            IpAddr::V6(address) => Self::from_v6(address),
        }
    }

    /// The tag in a synthetic address; `None` for an address outside [`TAG_NET_V6`] or with more than 24 bits there.
    #[inline(always)]
    pub const fn from_v6(address: Ipv6Addr) -> Option<Self> {
        let bits = address.to_bits();
        if bits >> 24 == TAG_NET_V6.to_bits() >> 24 { Some(Self(bits as u32 & 0x00ff_ffff)) } else { None }
    }

    /// The synthetic IPv6 address that carries this tag.
    #[inline(always)]
    pub const fn to_v6(self) -> Ipv6Addr {
        let [a, b, c, d, e, f, ..] = TAG_NET_V6.segments();
        Ipv6Addr::new(a, b, c, d, e, f, (self.0 >> 16) as u16, self.0 as u16)
    }

    /// The tag in a synthetic address; `None` for an address outside [`TAG_NET_V4`].
    #[inline(always)]
    pub const fn from_v4(address: Ipv4Addr) -> Option<Self> {
        let bits = address.to_bits();
        if bits >> 24 == TAG_NET_V4.to_bits() >> 24 { Some(Self(bits & 0x00ff_ffff)) } else { None }
    }

    /// The synthetic address that carries this tag.
    #[inline(always)]
    pub const fn to_v4(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(TAG_NET_V4.to_bits() | self.0)
    }

    /// Generation of the port's assignment.
    #[inline(always)]
    pub const fn generation(self) -> u8 {
        (self.0 >> GENERATION_SHIFT) as u8
    }

    /// Index of the port in the `SOURCES` map.
    #[inline(always)]
    pub const fn index(self) -> u32 {
        (self.0 >> SOURCE_BITS) & (MAX_PORTS - 1)
    }

    /// Number of the source among the port's.
    #[inline(always)]
    pub const fn source(self) -> usize {
        (self.0 & (SOURCES_PER_PORT as u32 - 1)) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tag_survives_the_address() {
        for generation in [1u8, 2, 127, 255] {
            for index in [0, 1, 77, MAX_PORTS - 1] {
                for source in [0, 1, 15] {
                    let tag = Tag::new(generation, index, source);
                    let back = Tag::from_v4(tag.to_v4()).unwrap();
                    assert_eq!(
                        (back.generation(), back.index(), back.source()),
                        (generation, index, source as usize)
                    );
                    assert_eq!(tag.to_v4().octets()[0], 240);
                    assert_eq!(Tag::from_ip(tag.to_v6().into()), Some(tag));
                }
            }
        }
    }

    #[test]
    fn every_tag_is_another_address() {
        assert_ne!(Tag::new(1, 5, 0).to_v4(), Tag::new(2, 5, 0).to_v4());
        assert_ne!(Tag::new(1, 5, 0).to_v4(), Tag::new(1, 6, 0).to_v4());
        assert_ne!(Tag::new(1, 5, 0).to_v4(), Tag::new(1, 5, 1).to_v4());
    }

    #[test]
    fn other_addresses_carry_no_tag() {
        for address in ["239.255.255.255", "241.0.0.0", "10.0.0.1", "255.255.255.255"] {
            assert_eq!(Tag::from_v4(address.parse().unwrap()), None, "{address}");
        }
        for address in ["fe80::1", "fd00:a9fe:a9fe::1:0:1", "fd00:a9fe:a9fe::100:1", "::"] {
            assert_eq!(Tag::from_v6(address.parse().unwrap()), None, "{address}");
        }
    }
}
