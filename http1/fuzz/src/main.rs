//! Messages, broken by a fuzzer that sees what its inputs reach.
#![no_main]
#![allow(unsafe_code, reason = "the engine calls a function by its name")]
#[path = "../../tests/oracles/mod.rs"]
mod oracles;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    // Neither begins like the other: one input is about one of them.
    oracles::requests(bytes);
    oracles::responses(bytes);
});
