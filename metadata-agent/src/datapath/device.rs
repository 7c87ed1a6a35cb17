//! Network devices that have a program.

/// A network device as the attachment needs it: aya attaches by name, identity is by index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Interface index.
    pub ifindex: u32,
    /// Name at the time of the last netlink message.
    pub name: String,
    /// Kind of the device, by whose frames come in.
    pub kind: DeviceKind,
}

/// Kind of a device that has a program, by whose frames come in there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceKind {
    /// One guest's.
    Tap,
    /// Those that the switch delivers to a network's metadata port.
    Network,
}

impl DeviceKind {
    /// Name of the program that such a device has.
    pub(super) fn program(self) -> &'static str {
        match self {
            Self::Tap => "from_guest",
            Self::Network => "from_network",
        }
    }
}

impl Device {
    /// A guest's, or another one that is alone behind it.
    pub fn tap(ifindex: u32, name: impl Into<String>) -> Self {
        Self { ifindex, name: name.into(), kind: DeviceKind::Tap }
    }

    /// A network's.
    pub fn network(ifindex: u32, name: impl Into<String>) -> Self {
        Self { ifindex, name: name.into(), kind: DeviceKind::Network }
    }
}

/// Name of a device, or its index in words once it is gone. To look for an index has no module loaded.
pub fn device_name(ifindex: u32) -> String {
    let name = nix::net::if_::if_indextoname(ifindex).ok();
    let name = name.and_then(|name| name.into_string().ok());
    name.unwrap_or_else(|| format!("ifindex {ifindex}"))
}
