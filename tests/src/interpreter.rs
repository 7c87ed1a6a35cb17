//! An interpreter of eBPF that counts: how many instructions a program runs for a frame that it leaves alone.
//!
//! It knows what such a path consists of (arithmetic, jumps, loads and stores) and no helper: a call is an error.
//! Instructions are counted as they stand in the object; the kernel adds a few where the context is read.

use anyhow::{Context as _, Result, bail};
use aya_obj::generated::bpf_insn;
use metadata_agent::datapath::OBJECT;

use crate::programs::{IFINDEX, Which};

/// Addresses of the interpreter's memory. The packet's addresses are 32-bit fields of the context.
const PACKET: u64 = 0x1000_0000;
const CONTEXT: u64 = 0x1_0000_0000;
const STACK: u64 = 0x2_0000_0000;
const STACK_SIZE: usize = 512;
/// Fields of `__sk_buff` (linux/bpf.h) that are not zero.
const CONTEXT_SIZE: usize = 192;
const PROTOCOL: usize = 16;
const INGRESS_DEVICE: usize = 40;
const DATA: usize = 76;
const DATA_END: usize = 80;
/// More than any path without a loop has.
const LIMIT: usize = 10_000;

/// A finished run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// The program's return value.
    pub action: i32,
    pub instructions: usize,
}

/// Runs a program on a frame, which is not changed.
pub fn run(which: Which, frame: &[u8]) -> Result<Run> {
    let object = aya_obj::Object::parse(OBJECT)?;
    let program = object.programs.get(which.name()).context("the object has no such program")?;
    let function = object.functions.get(&program.function_key()).context("the program has no code")?;
    Machine::new(frame).run(&function.instructions)
}

struct Machine<'a> {
    registers: [u64; 11],
    context: [u8; CONTEXT_SIZE],
    stack: [u8; STACK_SIZE],
    packet: &'a [u8],
}

impl<'a> Machine<'a> {
    fn new(packet: &'a [u8]) -> Self {
        let mut context = [0; CONTEXT_SIZE];
        let mut set = |at: usize, value: u32| context[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        set(PROTOCOL, u16::from_ne_bytes([packet[12], packet[13]]).into());
        set(INGRESS_DEVICE, IFINDEX);
        set(DATA, PACKET as u32);
        set(DATA_END, PACKET as u32 + packet.len() as u32);
        let mut registers = [0; 11];
        (registers[1], registers[10]) = (CONTEXT, STACK + STACK_SIZE as u64);
        Self { registers, context, stack: [0; STACK_SIZE], packet }
    }

    fn run(mut self, program: &[bpf_insn]) -> Result<Run> {
        let mut at = 0_i64;
        for instructions in 1..LIMIT {
            let instruction = program.get(usize::try_from(at)?).context("a jump out of the program")?;
            // Class, and what it is within its class.
            let (class, kind) = (instruction.code & 0x07, instruction.code & 0xf0);
            match class {
                0x05 | 0x06 if kind == 0x90 => {
                    return Ok(Run { action: self.registers[0] as i32, instructions });
                }
                0x05 | 0x06 => {
                    if self.jumps(instruction)? {
                        at += i64::from(instruction.off);
                    }
                }
                0x04 | 0x07 => self.compute(instruction)?,
                0x01..=0x03 => self.access(instruction)?,
                // A constant of 64 bits, which takes the place of two instructions; a map's address is no constant.
                0x00 if instruction.code == 0x18 && instruction.src_reg() == 0 => {
                    at += 1;
                    let high = program.get(usize::try_from(at)?).context("half a constant")?;
                    let value = u64::from(high.imm as u32) << 32 | u64::from(instruction.imm as u32);
                    self.registers[usize::from(instruction.dst_reg())] = value;
                }
                _ => bail!("an instruction of class {class:#x} at {at}"),
            }
            at += 1;
        }
        bail!("the program does not end")
    }

    fn operand(&self, instruction: &bpf_insn) -> u64 {
        if instruction.code & 0x08 != 0 {
            self.registers[usize::from(instruction.src_reg())]
        } else {
            i64::from(instruction.imm).cast_unsigned()
        }
    }

    fn jumps(&self, instruction: &bpf_insn) -> Result<bool> {
        let (mut left, mut right) =
            (self.registers[usize::from(instruction.dst_reg())], self.operand(instruction));
        let mut signed = (left.cast_signed(), right.cast_signed());
        if instruction.code & 0x07 == 0x06 {
            (left, right) = (left & 0xffff_ffff, right & 0xffff_ffff);
            signed = ((left as i32).into(), (right as i32).into());
        }
        Ok(match instruction.code & 0xf0 {
            0x00 => true,
            0x10 => left == right,
            0x20 => left > right,
            0x30 => left >= right,
            0x40 => left & right != 0,
            0x50 => left != right,
            0x60 => signed.0 > signed.1,
            0x70 => signed.0 >= signed.1,
            0xa0 => left < right,
            0xb0 => left <= right,
            0xc0 => signed.0 < signed.1,
            0xd0 => signed.0 <= signed.1,
            0x80 => bail!("the program calls a helper ({})", instruction.imm),
            kind => bail!("a jump of kind {kind:#x}"),
        })
    }

    fn compute(&mut self, instruction: &bpf_insn) -> Result<()> {
        let is_wide = instruction.code & 0x07 == 0x07;
        let register = usize::from(instruction.dst_reg());
        let (left, right) = (self.registers[register], self.operand(instruction));
        let (left, right) = if is_wide { (left, right) } else { (left & 0xffff_ffff, right & 0xffff_ffff) };
        let shift = right as u32 & if is_wide { 63 } else { 31 };
        let value = match instruction.code & 0xf0 {
            0x00 => left.wrapping_add(right),
            0x10 => left.wrapping_sub(right),
            0x20 => left.wrapping_mul(right),
            0x40 => left | right,
            0x50 => left & right,
            0x60 => left << shift,
            0x70 => left >> shift,
            0x80 => left.wrapping_neg(),
            0xa0 => left ^ right,
            0xb0 => right,
            // To big-endian or to little-endian, of a width.
            0xd0 => {
                let is_big = instruction.code & 0x08 != 0;
                match (is_big, instruction.imm) {
                    (true, 16) => u64::from((left as u16).to_be()),
                    (true, 32) => u64::from((left as u32).to_be()),
                    (true, 64) => left.to_be(),
                    (_, width) => left & (u64::MAX >> (64 - width)),
                }
            }
            kind => bail!("arithmetic of kind {kind:#x}"),
        };
        self.registers[register] = if is_wide { value } else { value & 0xffff_ffff };
        Ok(())
    }

    fn access(&mut self, instruction: &bpf_insn) -> Result<()> {
        let size = match instruction.code & 0x18 {
            0x00 => 4,
            0x08 => 2,
            0x10 => 1,
            _ => 8,
        };
        let (to, from) = (usize::from(instruction.dst_reg()), usize::from(instruction.src_reg()));
        let base = if instruction.code & 0x07 == 0x01 { from } else { to };
        let address = self.registers[base].wrapping_add_signed(instruction.off.into());
        let (region, start) = match address {
            STACK.. => (&mut self.stack[..], STACK),
            CONTEXT.. => (&mut self.context[..], CONTEXT),
            // Only read: a program makes a frame its own first, by a helper.
            _ if instruction.code & 0x07 == 0x01 => (&mut self.packet.to_vec()[..], PACKET),
            _ => bail!("the program writes at {address:#x}"),
        };
        let at = usize::try_from(address.checked_sub(start).context("an address of nothing")?)?;
        let bytes = region.get_mut(at..at + size).context("an access out of bounds")?;
        let mut word = [0; 8];
        match instruction.code & 0x07 {
            0x01 => {
                word[..size].copy_from_slice(bytes);
                self.registers[to] = u64::from_le_bytes(word);
            }
            0x02 => bytes.copy_from_slice(&i64::from(instruction.imm).to_le_bytes()[..size]),
            _ => bytes.copy_from_slice(&self.registers[from].to_le_bytes()[..size]),
        }
        Ok(())
    }
}
