//! Records of frames: which are wanted, and the layout of each.
use super::FrameLimit;

/// In [`Control::logging`](super::Control::logging): all frames that are ours are recorded.
pub const RECORD_ALL: u32 = 1 << 16;
/// In [`Control::logging`](super::Control::logging): those that are dropped are recorded.
pub const RECORD_DROPPED: u32 = 1 << 17;
/// In [`Control::logging`](super::Control::logging): index of the only port whose frames are recorded, plus 1; 0 for
/// frames of all ports and of none.
pub const RECORD_PORT: u32 = 0xffff;

/// True if a frame is recorded.
#[inline(always)]
pub const fn is_recorded(logging: u32, port: u32, is_dropped: bool) -> bool {
    let of = logging & RECORD_PORT;
    let is_of_port = of == 0 || of == port.wrapping_add(1);
    is_of_port && (logging & RECORD_ALL != 0 || (is_dropped && logging & RECORD_DROPPED != 0))
}

/// Bytes of a frame that are recorded: its headers.
pub const RECORDED_HEAD: usize = 80;

/// Most records of one processor, for each second: what somebody can read, and no load to whoever reads it.
pub const RECORD_LIMIT: FrameLimit = FrameLimit::new(200, 200);

/// A record of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct FrameRecord {
    /// Time, in nanoseconds of the kernel's monotonic clock.
    pub at: u64,
    /// Frames that were left out before it, on the same processor: there were too many.
    pub left_out: u64,
    /// Interface index of the guest's device; of the service device for what the service sends and nobody gets.
    pub ifindex: u32,
    /// Index of the port, `u32::MAX` if it is not known.
    pub port: u32,
    /// Its outcome, by the number of the counter.
    pub counter: u32,
    /// VLAN id, 0 for none, as the frame has left the program.
    pub vlan: u32,
    /// Length of the frame.
    pub len: u32,
    /// The program's action.
    pub action: i32,
    /// The first bytes of the frame as it has left the program, zeros where there are no more.
    pub head: [u8; RECORDED_HEAD],
}

/// State of one processor's recording.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Recorded {
    /// State of [`RECORD_LIMIT`].
    pub state: u64,
    /// Frames that were left out since the last record.
    pub left_out: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_recorded_is_what_is_wanted() {
        let (all, dropped) = (RECORD_ALL, RECORD_DROPPED);
        assert!(!is_recorded(0, 7, true) && !is_recorded(8, 7, true), "nothing is wanted");
        assert!(is_recorded(all, 7, false) && is_recorded(all, u32::MAX, true));
        assert!(is_recorded(dropped, 7, true) && !is_recorded(dropped, 7, false));
        assert!(is_recorded(all | 8, 7, false) && !is_recorded(all | 8, 8, true));
        assert!(!is_recorded(dropped | 8, u32::MAX, true), "nobody is not that port");
    }
}
