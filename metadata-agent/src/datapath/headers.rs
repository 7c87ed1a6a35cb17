//! Headers of a frame in words, for who reads a record of it. Pure; whatever a guest sends has some words.
#![forbid(unsafe_code)]
use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use metadata_ebpf::packet::{ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6};

/// Bits of a TCP header, in the order in which they are told.
const FLAGS: [(u8, &str); 6] =
    [(0x02, "SYN"), (0x10, "ACK"), (0x01, "FIN"), (0x04, "RST"), (0x08, "PSH"), (0x20, "URG")];

/// Headers of a frame, as far as its first bytes tell.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Headers {
    /// Source address, as the frame has it.
    pub source: Option<IpAddr>,
    /// Destination address.
    pub destination: Option<IpAddr>,
    /// Ports of TCP.
    pub ports: Option<(u16, u16)>,
    /// Kind of packet in words, with the flags of TCP.
    pub what: String,
}

impl Headers {
    /// Those of a frame without a VLAN tag, or as many as there are.
    pub fn read(frame: &[u8]) -> Self {
        Self::try_read(frame)
            .unwrap_or_else(|| Self { what: "an incomplete frame".to_owned(), ..Self::default() })
    }

    fn try_read(frame: &[u8]) -> Option<Self> {
        let payload = frame.get(14..)?;
        match u16::from_be_bytes(*frame.get(12..)?.first_chunk()?) {
            ETHERTYPE_ARP => {
                let operation = payload.get(7)?;
                let (sender, target) = (v4(payload.get(14..)?)?, v4(payload.get(24..)?)?);
                let what = match operation {
                    1 => "ARP request".to_owned(),
                    2 => "ARP reply".to_owned(),
                    other => format!("ARP operation {other}"),
                };
                Some(Self {
                    source: Some(sender.into()),
                    destination: Some(target.into()),
                    ports: None,
                    what,
                })
            }
            ETHERTYPE_IPV4 => {
                let (source, destination) = (v4(payload.get(12..)?)?, v4(payload.get(16..)?)?);
                let length = usize::from(payload.first()? & 0xf) * 4;
                let is_fragment = u16::from_be_bytes(*payload.get(6..)?.first_chunk()?) & 0x3fff != 0;
                let found = Self::of(source.into(), destination.into());
                Some(found.with_payload(
                    *payload.get(9)?,
                    payload.get(length..).filter(|_| !is_fragment),
                    is_fragment,
                ))
            }
            ETHERTYPE_IPV6 => {
                let (source, destination) = (v6(payload.get(8..)?)?, v6(payload.get(24..)?)?);
                let found = Self::of(source.into(), destination.into());
                Some(found.with_payload(*payload.get(6)?, payload.get(40..), false))
            }
            other => Some(Self { what: format!("EtherType {other:#06x}"), ..Self::default() }),
        }
    }

    fn of(source: IpAddr, destination: IpAddr) -> Self {
        Self { source: Some(source), destination: Some(destination), ..Self::default() }
    }

    fn with_payload(mut self, protocol: u8, payload: Option<&[u8]>, is_fragment: bool) -> Self {
        let payload = payload.unwrap_or_default();
        self.what = match (protocol, payload.first()) {
            _ if is_fragment => format!("fragment of protocol {protocol}"),
            (6, Some(_)) => match (payload.first_chunk::<4>(), payload.get(13)) {
                (Some([a, b, c, d]), Some(bits)) => {
                    self.ports = Some((u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d])));
                    let flags = FLAGS.iter().filter(|(bit, _)| bits & bit != 0).map(|(_, name)| *name);
                    format!("TCP {}", flags.collect::<Vec<_>>().join(" ")).trim_end().to_owned()
                }
                _ => "TCP, cut off".to_owned(),
            },
            (1, Some(8)) | (58, Some(128)) => "echo request".to_owned(),
            (1, Some(0)) | (58, Some(129)) => "echo reply".to_owned(),
            (58, Some(135)) => "neighbour solicitation".to_owned(),
            (58, Some(136)) => "neighbour advertisement".to_owned(),
            (1 | 58, Some(kind)) => format!("ICMP type {kind}"),
            (protocol, _) => format!("protocol {protocol}"),
        };
        self
    }
}

impl fmt::Display for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { source: Some(source), destination: Some(destination), .. } = self else {
            return f.write_str(&self.what);
        };
        match self.ports {
            Some((from, to)) => {
                let end = |address: &IpAddr, port| std::net::SocketAddr::new(*address, port);
                write!(f, "{} > {}, {}", end(source, from), end(destination, to), self.what)
            }
            None => write!(f, "{source} > {destination}, {}", self.what),
        }
    }
}

fn v4(bytes: &[u8]) -> Option<Ipv4Addr> {
    bytes.first_chunk::<4>().map(|octets| Ipv4Addr::from(*octets))
}

fn v6(bytes: &[u8]) -> Option<Ipv6Addr> {
    bytes.first_chunk::<16>().map(|octets| Ipv6Addr::from(*octets))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ethernet(ethertype: u16, payload: &[u8]) -> Vec<u8> {
        [&[0xff; 12][..], &ethertype.to_be_bytes(), payload].concat()
    }

    #[test]
    fn frames_are_told_in_words() {
        let ipv4 = |protocol: u8, payload: &[u8]| {
            let head = [0x45, 0, 0, 40, 0, 1, 0x40, 0, 64, protocol, 0, 0, 10, 0, 0, 5, 169, 254, 169, 254];
            ethernet(0x0800, &[&head[..], payload].concat())
        };
        let mut tcp = [0; 20];
        (tcp[0], tcp[1], tcp[3], tcp[13]) = (0x9c, 0x40, 80, 0x12);
        assert_eq!(
            Headers::read(&ipv4(6, &tcp)).to_string(),
            "10.0.0.5:40000 > 169.254.169.254:80, TCP SYN ACK"
        );
        assert_eq!(Headers::read(&ipv4(1, &[8, 0])).to_string(), "10.0.0.5 > 169.254.169.254, echo request");
        let mut fragment = ipv4(6, &tcp);
        fragment[20] = 0x20;
        assert_eq!(
            Headers::read(&fragment).to_string(),
            "10.0.0.5 > 169.254.169.254, fragment of protocol 6"
        );
        let arp =
            [&[0, 1, 8, 0, 6, 4, 0, 1][..], &[2; 6], &[10, 0, 0, 5], &[0; 6], &[169, 254, 169, 254]].concat();
        let arp = Headers::read(&ethernet(0x0806, &arp));
        assert_eq!(arp.to_string(), "10.0.0.5 > 169.254.169.254, ARP request");
        let mut ipv6 = [0; 60];
        (ipv6[0], ipv6[6], ipv6[8], ipv6[23], ipv6[24], ipv6[39], ipv6[40]) =
            (0x60, 58, 0xfe, 1, 0xff, 2, 135);
        let ipv6 = Headers::read(&ethernet(0x86dd, &ipv6));
        assert_eq!(ipv6.to_string(), "fe00::1 > ff00::2, neighbour solicitation");
    }

    #[test]
    fn whatever_is_cut_off_has_some_words() {
        let whole = ethernet(0x0800, &[0x4f; 60]);
        for length in 0..whole.len() {
            assert!(!Headers::read(&whole[..length]).what.is_empty());
        }
        for ethertype in 0..=u8::MAX {
            Headers::read(&ethernet(0x0800 | u16::from(ethertype), &[0xff; 80]));
        }
    }
}
