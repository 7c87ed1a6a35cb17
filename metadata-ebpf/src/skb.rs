//! The frame as the kernel hands it over: bounds-checked access and the few helper calls, all of the unsafe code of it.
#![allow(
    unsafe_code,
    reason = "frames are pointers of the kernel, and what is done with them are its helpers"
)]
use core::{arch::asm, mem::offset_of, net::Ipv4Addr};

use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_F_PSEUDO_HDR, BPF_TCP_LISTEN, TC_ACT_UNSPEC,
        bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1,
    },
    helpers::{
        bpf_ktime_get_ns, bpf_redirect, bpf_redirect_peer, bpf_sk_release, bpf_skb_change_tail,
        bpf_skb_change_type, bpf_skb_pull_data, bpf_skb_vlan_pop, bpf_skb_vlan_push, bpf_skc_lookup_tcp,
    },
    programs::TcContext,
};
use metadata_ebpf::{
    address::{METADATA_PORT, METADATA_V4},
    packet::{checksum_difference, ipv4, ipv6},
};

use crate::maps;

/// The packet is for this host (`PACKET_HOST` of linux/if_packet.h).
const PACKET_HOST: u32 = 0;

/// EtherType of an 802.1Q tag.
const ETHERTYPE_VLAN: u16 = 0x8100;

/// Socket buffer: the kernel's knowledge of a frame, and what becomes of it.
#[derive(Clone, Copy)]
pub(crate) struct Skb<'a> {
    ctx: &'a TcContext,
}

/// The bytes of a frame. There is one of these for each, so that what was taken of them is used no longer than they stay
/// where they are.
pub(crate) struct Packet<'a> {
    ctx: &'a TcContext,
}

/// The frame that a program was given.
#[inline(always)]
pub(crate) fn of<'a>(ctx: &'a mut TcContext) -> (Skb<'a>, Packet<'a>) {
    (Skb { ctx }, Packet { ctx })
}

#[inline(always)]
fn raw(ctx: &TcContext) -> *mut __sk_buff {
    ctx.skb.skb
}

impl<'a> Skb<'a> {
    #[inline(always)]
    fn raw(self) -> *mut __sk_buff {
        raw(self.ctx)
    }

    /// EtherType, of the packet inside an offloaded VLAN tag if there is one.
    #[inline(always)]
    pub(crate) fn ethertype(self) -> u16 {
        // SAFETY: the context is valid for the program's run; this and the fields below are readable ones.
        u16::from_be(unsafe { (*self.raw()).protocol } as u16)
    }

    /// For a function of its own, which takes no more than words.
    #[inline(always)]
    pub(crate) fn as_raw(self) -> *mut __sk_buff {
        self.raw()
    }

    /// Interface index of the device the frame came in on.
    #[inline(always)]
    pub(crate) fn ifindex(self) -> u32 {
        // SAFETY: as in `ethertype`.
        unsafe { (*self.raw()).ifindex }
    }

    /// VLAN id of the frame, 0 without a tag.
    ///
    /// The kernel has taken a tag out of the packet's bytes before TC ingress runs (skb_vlan_untag in
    /// __netif_receive_skb_core), so it does not matter whether the guest's driver offloads tagging.
    #[inline(always)]
    pub(crate) fn vlan(self) -> u32 {
        // SAFETY: as in `ethertype`.
        if self.has_vlan() { unsafe { (*self.raw()).vlan_tci & 0xfff } } else { 0 }
    }

    /// True if the frame carries an offloaded VLAN tag.
    #[inline(always)]
    pub(crate) fn has_vlan(self) -> bool {
        // SAFETY: as in `ethertype`.
        unsafe { (*self.raw()).vlan_present != 0 }
    }

    /// True if the service has this connection, or one in the making. Only asked of segments that may be another
    /// agent's; where the service namespace cannot be named, each is ours.
    #[inline(always)]
    pub(crate) fn is_connected(self, tag: Ipv4Addr, port: u16) -> bool {
        let namespace = maps::service_namespace();
        if namespace < 0 {
            return true;
        }
        let ipv4 = bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 {
            saddr: tag.to_bits().to_be(),
            daddr: METADATA_V4.to_bits().to_be(),
            sport: port,
            dport: METADATA_PORT.to_be(),
        };
        let mut tuple = ipv4;
        let size = size_of_val(&tuple) as u32;
        // SAFETY: a tuple of that size. What is found is let go again, as the verifier insists.
        unsafe {
            let socket = bpf_skc_lookup_tcp(
                self.raw().cast(),
                (&raw mut tuple).cast(),
                size,
                namespace.cast_unsigned().into(),
                0,
            );
            if socket.is_null() {
                return false;
            }
            // Without a connection it is the listener that is found.
            let is_connection = (*socket).state != BPF_TCP_LISTEN;
            bpf_sk_release(socket.cast());
            is_connection
        }
    }

    /// Into the peer of the service device, in the service namespace, without a detour over a queue.
    ///
    /// Frames to a gateway's MAC were classified as somebody else's when they arrived, which the IP layer drops.
    #[inline(always)]
    pub(crate) fn redirect_to_service(self, host_end: u32) -> i32 {
        // SAFETY: both helpers take any value; a device that is gone drops the frame.
        unsafe {
            bpf_skb_change_type(self.raw(), PACKET_HOST);
            bpf_redirect_peer(host_end, 0) as i32
        }
    }

    /// Out of a device, towards the guest.
    #[inline(always)]
    pub(crate) fn redirect_to_tap(self, ifindex: u32) -> i32 {
        // SAFETY: takes any value; a device that is gone drops the frame.
        unsafe { bpf_redirect(ifindex, 0) as i32 }
    }
}

impl Packet<'_> {
    #[inline(always)]
    fn raw(&self) -> *mut __sk_buff {
        raw(self.ctx)
    }

    /// Address of the first byte. The field is a 32-bit one that the verifier turns into a pointer as it is loaded;
    /// loaded by the compiler it may be widened once more, which makes a number of it that is no pointer.
    #[inline(always)]
    fn data(&self) -> usize {
        let address: usize;
        // SAFETY: a readable field of the context.
        unsafe {
            asm!("{address} = *(u32 *)({ctx} + {offset})", address = out(reg) address, ctx = in(reg) self.raw(),
                offset = const offset_of!(__sk_buff, data), options(nostack, readonly));
        }
        address
    }

    /// Address behind the last byte that is accessible.
    #[inline(always)]
    fn data_end(&self) -> usize {
        let address: usize;
        // SAFETY: a readable field of the context.
        unsafe {
            asm!("{address} = *(u32 *)({ctx} + {offset})", address = out(reg) address, ctx = in(reg) self.raw(),
                offset = const offset_of!(__sk_buff, data_end), options(nostack, readonly));
        }
        address
    }

    /// The first `N` bytes, if the frame has that many; makes them accessible first when they are not.
    #[inline(always)]
    pub(crate) fn head<const N: usize>(&mut self) -> Option<&[u8; N]> {
        let head = match self.accessible() {
            None => {
                self.pull::<N>()?;
                self.accessible()?
            }
            Some(head) => head,
        };
        // SAFETY: as many bytes are there, until something is done with the packet; a byte array needs no alignment.
        Some(unsafe { &*head })
    }

    /// Makes the first `N` bytes private to this frame before they are written: a clone may share them.
    #[inline(always)]
    pub(crate) fn head_for_writing<const N: usize>(&mut self) -> Option<&mut [u8; N]> {
        self.pull::<N>()?;
        let head = self.accessible()?;
        // SAFETY: as in `head`; there is one owner of the bytes, who lends them.
        Some(unsafe { &mut *head })
    }

    /// Pointer to the first `N` bytes, if they are accessible as the frame is: in the linear part, as headers of most
    /// frames are.
    #[inline(always)]
    fn accessible<const N: usize>(&self) -> Option<*mut [u8; N]> {
        let data = self.data();
        (data + N <= self.data_end()).then_some(data as *mut [u8; N])
    }

    /// Has the kernel make the first `N` bytes linear, for the odd frame: guests' frames have their headers in the
    /// linear part.
    #[inline(always)]
    fn pull<const N: usize>(&mut self) -> Option<()> {
        // SAFETY: any length is allowed; the helper fails when the frame is shorter.
        if unsafe { bpf_skb_pull_data(self.raw(), N as u32) } == 0 { Some(()) } else { None }
    }

    /// Corrects the TCP checksum after an address changed.
    ///
    /// By the kernel's helper, because only the kernel knows whether the field holds a whole checksum or, as virtio
    /// guests send it, the sum of the pseudo-header alone (CHECKSUM_PARTIAL).
    #[inline(always)]
    pub(crate) fn replace_tcp4_checksum(&mut self, old: Ipv4Addr, new: Ipv4Addr) -> Option<()> {
        let (old, new) = (old.to_bits().to_be(), new.to_bits().to_be());
        let flags = u64::from(BPF_F_PSEUDO_HDR) | size_of::<u32>() as u64;
        self.ctx.l4_csum_replace(ipv4::TCP_CHECKSUM, old.into(), new.into(), flags).ok()
    }

    /// The same for IPv6.
    #[inline(always)]
    pub(crate) fn replace_tcp6_checksum(&mut self, old: [u32; 4], new: [u32; 4]) -> Option<()> {
        let difference = checksum_difference(old, new);
        // A size of zero tells the helper that `to` is a difference already.
        self.ctx.l4_csum_replace(ipv6::TCP_CHECKSUM, 0, difference.into(), u64::from(BPF_F_PSEUDO_HDR)).ok()
    }

    /// Cuts or pads the frame.
    #[inline(always)]
    pub(crate) fn set_len(&mut self, len: u32) -> Option<()> {
        // SAFETY: any length is allowed; the helper fails for one that is not possible.
        if unsafe { bpf_skb_change_tail(self.raw(), len, 0) } == 0 { Some(()) } else { None }
    }

    /// Takes the VLAN tag off.
    #[inline(always)]
    pub(crate) fn pop_vlan(&mut self) -> Option<()> {
        // SAFETY: no preconditions; a frame without a tag stays as it is.
        if unsafe { bpf_skb_vlan_pop(self.raw()) } == 0 { Some(()) } else { None }
    }

    /// Puts a VLAN tag on.
    #[inline(always)]
    pub(crate) fn push_vlan(&mut self, vlan: u16) -> Option<()> {
        // SAFETY: no preconditions.
        if unsafe { bpf_skb_vlan_push(self.raw(), ETHERTYPE_VLAN.to_be(), vlan) } == 0 {
            Some(())
        } else {
            None
        }
    }
}

/// Ends the program with that action. Where all ways to the end are one, frames to others prepare a register for what the
/// action of a frame of ours is, and pay an instruction for it.
#[inline(always)]
pub(crate) fn end(action: i32) -> ! {
    // SAFETY: what a program returns is in the register r0, and nothing has to be given back before.
    unsafe { asm!("r0 = {action}", "exit", action = in(reg) i64::from(action), options(noreturn, nostack)) }
}

/// The kernel's monotonic clock, in nanoseconds; never zero.
#[inline(always)]
pub(crate) fn now() -> u64 {
    // SAFETY: no arguments, no preconditions.
    unsafe { bpf_ktime_get_ns() }
}
