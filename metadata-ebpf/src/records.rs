//! Records of frames that are ours, for an operator who wants to see them.
#![allow(unsafe_code, reason = "a record is memory of a map, and a frame a pointer of the kernel's")]
use core::ptr::addr_of_mut;

use aya_ebpf::{
    bindings::{__sk_buff, TC_ACT_SHOT},
    helpers::bpf_skb_load_bytes,
};
use metadata_ebpf::{
    map::RECORDED_HEAD,
    packet::{arp, ipv4, ipv6},
};

use crate::{
    maps,
    skb::{self, Skb},
};

/// Records a frame from or to the guest of that device, if it is wanted, as it is now.
#[inline(always)]
pub(crate) fn record(skb: Skb<'_>, ifindex: u32, port: u32, counter: u32, action: i32) {
    if maps::is_recorded(ifindex, port, action == TC_ACT_SHOT as i32) {
        write(skb.as_raw(), ifindex, port, counter, action);
    }
}

/// A function of its own in the kernel as well (Linux 4.16): it is called from many places, and seldom. Its caller has left it
/// 32 bytes of the stack, so that each word is put where it belongs before the next one is asked for.
#[inline(never)]
fn write(skb: *mut __sk_buff, ifindex: u32, port: u32, counter: u32, action: i32) {
    // Before there is room for one: what is discarded takes room until somebody is woken to read it.
    let Some(left_out) = maps::may_record(skb::now()) else { return };
    let Some(mut entry) = maps::new_record() else {
        // Nobody reads as fast as that.
        *left_out += 1;
        return;
    };
    let record = entry.as_mut_ptr();
    // SAFETY: fields of the entry, and those of the context that are readable ones.
    unsafe {
        (*record).ifindex = ifindex;
        (*record).port = port;
        (*record).counter = counter;
        (*record).action = action;
        (*record).len = (*skb).len;
        (*record).vlan = if (*skb).vlan_present != 0 { (*skb).vlan_tci & 0xfff } else { 0 };
        // Word by word: the compiler's way is another function, with 32 bytes of its own.
        let words: *mut u64 = addr_of_mut!((*record).head).cast();
        for word in 0..RECORDED_HEAD / size_of::<u64>() {
            words.add(word).write_volatile(0);
        }
        (*record).left_out = core::mem::take(left_out);
        (*record).at = skb::now();
    }
    // SAFETY: as above.
    let head = unsafe { addr_of_mut!((*record).head) };
    // SAFETY: there is room for as many bytes, which the verifier checks.
    let copied = |length| unsafe { bpf_skb_load_bytes(skb.cast(), 0, head.cast(), length as u32) } == 0;
    // As many bytes as headers may have: the helper takes no length that is not there.
    let _ = copied(RECORDED_HEAD) || copied(ipv6::TCP_LEN) || copied(ipv4::TCP_LEN) || copied(arp::LEN);
    entry.submit(0);
}
