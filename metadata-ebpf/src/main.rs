//! The TC programs of the datapath: `from_guest` on each tap, `from_network` on the device of each network that has ports
//! without a tap, `to_guest` on the host end of the service device.
//!
//! Each is one match from what the frame is to what is done with it. Once a frame is ours it never falls through half
//! rewritten: it is redirected, answered, or dropped and counted.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

#[cfg(target_arch = "bpf")]
mod branchless;
#[cfg(target_arch = "bpf")]
mod from_guest;
#[cfg(target_arch = "bpf")]
mod from_network;
#[cfg(target_arch = "bpf")]
mod limits;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod records;
#[cfg(target_arch = "bpf")]
mod skb;
#[cfg(target_arch = "bpf")]
mod sources;
#[cfg(target_arch = "bpf")]
mod to_guest;

/// On the host there is nothing to run: this target exists so that `cargo check` and clippy see the whole workspace.
#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
mod program {
    use aya_ebpf::{
        bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC},
        macros::classifier,
        programs::TcContext,
    };
    use metadata_ebpf::counter::Counter;

    use crate::{
        from_guest, from_network, maps, records,
        skb::{self, Skb},
        to_guest,
    };

    /// Outcome of a program for a frame: the action, what to count, and for which port.
    ///
    /// Words that always have a value, not an enum: the compiler packs an enum's fields into one register, the
    /// unused ones as they happen to be, and the verifier rejects reading what was never written.
    #[derive(Clone, Copy)]
    pub(crate) struct Outcome {
        action: i32,
        counter: u32,
        /// Index of the port, [`maps::NOBODY`] where that is not known.
        port: u32,
    }

    impl Outcome {
        /// Stands for no counter.
        const NOTHING: u32 = u32::MAX;
        /// Not ours: the next program or the switch gets it. Not counted.
        pub(crate) const PASS: Self =
            Self { action: TC_ACT_UNSPEC, counter: Self::NOTHING, port: maps::NOBODY };

        /// Ours, and given to the next program or the switch all the same. Counted here: an outcome that passes and is
        /// counted would cost each foreign frame an instruction.
        #[inline(always)]
        pub(crate) fn passed(skb: Skb<'_>, port: u32, counter: Counter) -> Self {
            maps::count(skb.ifindex(), port, counter as u32);
            records::record(skb, skb.ifindex(), port, counter as u32, TC_ACT_UNSPEC);
            Self::PASS
        }

        /// Ours, goes where the redirect helper said it would, and was counted already.
        #[inline(always)]
        pub(crate) fn counted(action: i32) -> Self {
            Self { action, counter: Self::NOTHING, port: maps::NOBODY }
        }

        /// Ours, and goes where the redirect helper said it would.
        #[inline(always)]
        pub(crate) fn redirect(action: i32, counter: Counter) -> Self {
            Self { action, counter: counter as u32, port: maps::NOBODY }
        }
    }

    /// Ours, and dropped.
    impl From<Counter> for Outcome {
        #[inline(always)]
        fn from(counter: Counter) -> Self {
            Self { action: TC_ACT_SHOT as i32, counter: counter as u32, port: maps::NOBODY }
        }
    }

    /// An outcome; as an error, one that ends the work on a frame early.
    pub(crate) type Result = core::result::Result<Outcome, Outcome>;

    /// The outcome of a frame of the port with that index. One whose assignment has ended is nobody's: the index may be
    /// another port's by now.
    #[inline(always)]
    pub(crate) fn of_port(index: u32, result: Result) -> Result {
        let of = |outcome: Outcome| {
            let is_its_own = outcome.counter != Counter::UnknownPort as u32;
            Outcome { port: if is_its_own { index } else { maps::NOBODY }, ..outcome }
        };
        match result {
            Ok(outcome) => Ok(of(outcome)),
            Err(outcome) => Err(of(outcome)),
        }
    }

    #[inline(always)]
    fn conclude(skb: Skb<'_>, result: Result) -> i32 {
        let (Ok(outcome) | Err(outcome)) = result;
        let Outcome { action, counter, port } = outcome;
        if counter != Outcome::NOTHING {
            maps::count(skb.ifindex(), port, counter);
            if action == TC_ACT_SHOT as i32 {
                maps::note_dropped(port, counter, skb::now());
            }
            records::record(skb, skb.ifindex(), port, counter, action);
            if action != TC_ACT_UNSPEC {
                skb::end(action);
            }
        }
        action
    }

    /// TC ingress of a tap: frames of the guest.
    #[classifier]
    #[inline(always)]
    pub(crate) fn from_guest(mut ctx: TcContext) -> i32 {
        let (skb, packet) = skb::of(&mut ctx);
        conclude(skb, from_guest::handle(skb, packet))
    }

    /// TC ingress of a network's device: frames that the switch delivers to its metadata port. Nothing passes: behind the
    /// device is the host's own stack, which no guest is to reach.
    #[classifier]
    #[inline(always)]
    pub(crate) fn from_network(mut ctx: TcContext) -> i32 {
        let (skb, packet) = skb::of(&mut ctx);
        match conclude(skb, from_network::handle(skb, packet)) {
            TC_ACT_UNSPEC => TC_ACT_SHOT as i32,
            action => action,
        }
    }

    /// TC ingress of the service device's host end: frames of the service.
    #[classifier]
    #[inline(always)]
    pub(crate) fn to_guest(mut ctx: TcContext) -> i32 {
        let (skb, packet) = skb::of(&mut ctx);
        conclude(skb, to_guest::handle(skb, packet))
    }
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    // The programs have no panicking path; the linker would keep one as a call that the verifier rejects.
    loop {}
}

/// The licence as the kernel reads it: some helpers are there for GPL-compatible programs only.
#[cfg(target_arch = "bpf")]
#[allow(unsafe_code, reason = "a section that the kernel looks for")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
