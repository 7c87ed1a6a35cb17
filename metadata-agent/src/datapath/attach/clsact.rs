//! Filters of a clsact qdisc, for kernels without TCX.
//!
//! Priority and handle are fixed, so that a restarted agent replaces its own filter and nobody else's. Never the
//! `ingress` qdisc, which looks similar: Open vSwitch removes it whenever it sets up policing
//! (netdev_linux_set_policing), and takes a clsact for a reason to fail instead.
use aya::programs::{
    ProgramError, SchedClassifier, TcAttachType,
    tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle, qdisc_add_clsact},
};
use nix::{libc, net::if_::if_indextoname};

use super::{check_name, explain};
use crate::datapath::{Device, Error};

/// Before everybody else's.
const PRIORITY: u16 = 1;
/// Filters of one priority are told apart by their handles.
const HANDLE: TcHandle = TcHandle::new(0, 0xa9fe);

/// Puts the program on a device's ingress, in place of the one that is there from before.
pub(super) fn attach(program: &mut SchedClassifier, device: &Device) -> Result<(), Error> {
    check_name(device)?;
    match qdisc_add_clsact(&device.name) {
        Ok(()) => {}
        Err(TcError::NetlinkError(error)) if error.raw_os_error() == Some(libc::EEXIST) => {}
        Err(error) => return Err(explain(device, &error)),
    }
    let options = NlOptions { priority: PRIORITY, handle: HANDLE, classid: None };
    let result =
        program.attach_with_options(&device.name, TcAttachType::Ingress, TcAttachOptions::Netlink(options));
    let id = match result {
        Err(ProgramError::TcError(TcError::NetlinkError(error)))
            if error.raw_os_error() == Some(libc::EEXIST) =>
        {
            let link = former(&device.name).map_err(|error| explain(device, &error))?;
            program.attach_to_link(link)
        }
        result => result,
    }
    .map_err(|error| explain(device, &error))?;
    let link = program.take_link(id).map_err(|error| explain(device, &error))?;
    // A filter stays when nobody holds it, and aya's link would remove it.
    std::mem::forget(link);
    check_name(device)
}

/// Removes the filter of a device, which may be gone already. The qdisc stays: others may use it.
pub(super) fn detach(ifindex: u32) -> Result<(), Error> {
    let Ok(name) = if_indextoname(ifindex) else { return Ok(()) };
    // Dropping the link detaches it; a filter that is not there is no fault.
    drop(former(&name.to_string_lossy()));
    Ok(())
}

fn former(device: &str) -> std::io::Result<SchedClassifierLink> {
    SchedClassifierLink::attached(device, TcAttachType::Ingress, PRIORITY, HANDLE, None)
}
