//! The two atomic operations the programs need, as instructions: rustc offers no compare-and-swap for this target,
//! although the kernel's instruction set has it since Linux 5.12 (commit 5ffa25502b5a). Both are full barriers.
use core::arch::asm;

/// Writes `new` to `*at` if it holds `old`; returns what it held.
///
/// # Safety
/// `at` points to an aligned word in a map value.
#[inline(always)]
pub(crate) unsafe fn compare_exchange(at: *mut u64, old: u64, new: u64) -> u64 {
    let held: u64;
    // SAFETY: the caller's promise; the instruction compares with, and leaves what it found in, w0.
    unsafe {
        asm!(
            "r0 = cmpxchg_64({at} + 0, r0, {new})",
            at = in(reg) at,
            new = in(reg) new,
            inlateout("r0") old => held,
            options(nostack),
        );
    }
    held
}

/// Writes `new` to `*at`; returns what it held.
///
/// # Safety
/// `at` points to an aligned word in a map value.
#[inline(always)]
pub(crate) unsafe fn exchange(at: *mut u64, new: u64) -> u64 {
    let held: u64;
    // SAFETY: the caller's promise.
    unsafe {
        asm!("{new} = xchg_64({at} + 0, {new})", at = in(reg) at, new = inlateout(reg) new => held, options(nostack));
    }
    held
}
