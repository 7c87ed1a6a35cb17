//! Every outcome of the datapath has a number here: the index into the `COUNTERS` map and the name operators see.
#![forbid(unsafe_code)]

/// Entries of the `COUNTERS` map, and counters of each port: room for those of later versions, which adopt the maps as they
/// are.
pub const CAPACITY: u32 = 64;

const _: () = assert!(Counter::ALL.len() <= CAPACITY as usize);
// Numbers are kept within it by a mask.
const _: () = assert!(CAPACITY.is_power_of_two());

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $variant:ident => $name:literal,)+) => {
        /// Reason for which a frame was redirected, answered or dropped. Frames that are not ours are not counted.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(u32)]
        pub enum Counter {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl Counter {
            /// All counters, in the order of their indexes in the map.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The stable name that metrics and the admin interface show.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }

            /// True if it counts frames that are dropped.
            pub fn is_drop(self) -> bool {
                self.help().trim_start().starts_with("Dropped: ")
            }

            /// Meaning of the counter, in a sentence.
            pub const fn help(self) -> &'static str {
                match self {
                    $(Self::$variant => concat!($($doc,)+),)+
                }
            }
        }
    };
}

counters! {
    /// Frames of guests redirected to the service.
    Redirected => "redirected",
    /// Frames of the service sent back to a guest.
    Replied => "replied",
    /// ARP requests for the metadata address answered.
    ArpAnswered => "arp_answered",
    /// Neighbour solicitations for the IPv6 metadata address answered.
    NdAnswered => "nd_answered",
    /// Echo requests to the metadata addresses answered.
    EchoAnswered => "echo_answered",
    /// Sources (address and MAC) seen behind a port for the first time.
    SourceLearned => "source_learned",
    /// Sources that made room for a new one: idle, or in the way of the port's own addresses.
    SourceReclaimed => "source_reclaimed",
    /// Dropped: the tap has the program but no port is assigned to it.
    UnknownPort => "unknown_port",
    /// Dropped: a new source behind a port whose sources all have open connections.
    SourcesExhausted => "sources_exhausted",
    /// Dropped: a reset from a source that has opened no connection.
    UnknownSource => "unknown_source",
    /// Segments from a source that has opened no connection, which the service answers with a reset.
    UnknownConnection => "unknown_connection",
    /// Passed: segments of connections that are not ours, while those of a former agent may last.
    ForeignConnection => "foreign_connection",
    /// Passed: new connections while this agent leaves for good.
    Leaving => "leaving",
    /// Dropped: a reply for a port or source that is gone.
    StaleTag => "stale_tag",
    /// Dropped: a reset that would have told a guest that nothing listens (while the agent restarts).
    RefusalHidden => "refusal_hidden",
    /// Dropped: an ARP packet by which a guest claims the metadata address.
    ArpClaim => "arp_claim",
    /// Dropped: a neighbour advertisement by which a guest claims the IPv6 metadata address.
    NdClaim => "nd_claim",
    /// Dropped: a neighbour solicitation for the metadata address that RFC 4861 does not allow.
    NdInvalid => "nd_invalid",
    /// Dropped: more new connections than the port's limit.
    ConnectionsLimited => "connections_limited",
    /// Dropped: more ARP, neighbour discovery and echo requests than the port's limit.
    AnswersLimited => "answers_limited",
    /// Dropped: a fragment addressed to the service.
    Fragment => "fragment",
    /// Dropped: an IPv4 packet with options, or with a wrong header length, addressed to the service.
    IpHeader => "ip_header",
    /// Dropped: an IPv6 packet with extension headers addressed to the service.
    Ipv6Extension => "ipv6_extension",
    /// Dropped: a TCP segment to the service without a whole TCP header.
    TcpTruncated => "tcp_truncated",
    /// Dropped: a frame to the service sent from or to a group MAC address.
    GroupMac => "group_mac",
    /// Dropped: the source address of a request is no unicast address, or the service's own.
    BadSource => "bad_source",
    /// Dropped: the kernel refused to rewrite the frame.
    RewriteFailed => "rewrite_failed",
    /// Dropped: the service namespace sent something that is no reply to a guest.
    ServiceOther => "service_other",
    /// Dropped: a frame to the service on a network's device, from a MAC address that no port served there has.
    OtherStation => "other_station",
    /// Dropped: a frame to the service on a network's device, from an address that is not its port's.
    ForeignSource => "foreign_source",
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_is_in_the_order_of_the_indexes_and_names_are_unique() {
        assert!(Counter::Fragment.is_drop() && !Counter::Redirected.is_drop() && !Counter::Leaving.is_drop());
        for (index, counter) in Counter::ALL.iter().enumerate() {
            assert_eq!(*counter as usize, index);
            assert!(Counter::ALL.iter().filter(|other| other.name() == counter.name()).count() == 1);
        }
    }
}
