//! Addresses of a row of Port_Binding: the MAC address by which a port is known, and the sources that it may have.
use std::net::IpAddr;

use metadata_ebpf::map::Mac;

use super::Station;
use crate::inventory::{Who, rows::PortBinding};

/// The MAC address that a port has itself: those of address pairs stand there as well, without an address.
pub(super) fn primary_mac(row: &PortBinding) -> Option<Mac> {
    let entries = || row.mac.iter().filter_map(|entry| parse(entry));
    let with_address = entries().find(|(_, addresses)| !addresses.is_empty());
    with_address.or_else(|| entries().next()).map(|(mac, _)| mac)
}

/// An entry `MAC ADDRESS ...`. Whole networks among the addresses are left out: they are no single source.
fn parse(entry: &str) -> Option<(Mac, Vec<IpAddr>)> {
    let mut words = entry.split_whitespace();
    let mac = words.next()?.parse().ok().filter(|mac| *mac != Mac::NONE)?;
    Some((mac, words.filter_map(|word| word.parse().ok()).collect()))
}

/// The addresses that a row has with a MAC address: fixed ones, and those that it may send as besides.
pub(super) fn addresses(row: &PortBinding, mac: Mac) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    for (of, some) in row.mac.iter().chain(&row.port_security).filter_map(|entry| parse(entry)) {
        for address in some.into_iter().filter(|_| of == mac) {
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
    }
    addresses
}

/// The addresses that a station may ask from.
pub(super) fn own(station: &Station<'_>, who: &Who) -> Vec<IpAddr> {
    let mut own = match who {
        Who::Known(identity) => identity.fixed_ips.clone(),
        Who::Pending(_) | Who::Conflict(_) => Vec::new(),
    };
    for address in addresses(station.row, station.mac) {
        if !own.contains(&address) {
            own.push(address);
        }
    }
    own
}
