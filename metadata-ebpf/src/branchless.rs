//! Comparing without branches, each of which the verifier would follow.
#![allow(unsafe_code, reason = "an instruction that the compiler does not choose")]
use core::arch::asm;

/// 1 if `a` is less than `b`, which are both below 2^63, and 0 otherwise.
#[inline(always)]
pub(crate) fn is_less(a: u64, b: u64) -> u64 {
    let mut sign = a.wrapping_sub(b);
    // SAFETY: arithmetic on a register, which the compiler would make a branch of.
    unsafe { asm!("{sign} >>= 63", sign = inout(reg) sign, options(pure, nomem, nostack)) };
    sign
}

/// The lesser of two numbers below 2^63.
#[inline(always)]
pub(crate) fn least(a: u64, b: u64) -> u64 {
    b ^ ((a ^ b) & is_less(a, b).wrapping_neg())
}
