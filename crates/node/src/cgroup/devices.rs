//! Which devices a container may use, as each version of cgroups is told.

use std::os::fd::AsFd;
use std::path::Path;

use super::{CgroupError, write};
use crate::sys::{self, DeviceInstruction};

/// What may be done with a device, as bits of struct bpf_cgroup_dev_ctx in linux/bpf.h.
const MAKE: u8 = 1;
const ALL: u8 = 7;

/// Something that a container may do.
#[derive(Debug)]
struct Rule {
    block: bool,
    major: Option<u32>,
    minor: Option<u32>,
    access: u8,
}

const fn terminal_or_memory(major: u32, minor: Option<u32>) -> Rule {
    Rule { block: false, major: Some(major), minor, access: ALL }
}

/// Devices that every container may use: null, zero, full, random, urandom, tty, ptmx and terminals.
/// Nodes of any other may be made but not opened.
const RULES: [Rule; 10] = [
    Rule { block: false, major: None, minor: None, access: MAKE },
    Rule { block: true, major: None, minor: None, access: MAKE },
    terminal_or_memory(1, Some(3)),
    terminal_or_memory(1, Some(5)),
    terminal_or_memory(1, Some(7)),
    terminal_or_memory(1, Some(8)),
    terminal_or_memory(1, Some(9)),
    terminal_or_memory(5, Some(0)),
    terminal_or_memory(5, Some(2)),
    terminal_or_memory(136, None),
];

impl Rule {
    /// As version 1 writes it.
    fn text(&self) -> String {
        let number = |number: Option<u32>| number.map_or("*".to_owned(), |number| number.to_string());
        let kind = if self.block { 'b' } else { 'c' };
        let access = if self.access == ALL { "rwm" } else { "m" };
        format!("{kind} {}:{} {access}", number(self.major), number(self.minor))
    }

    /// Instructions that permit what the rule permits, and go on behind it otherwise.
    fn instructions(&self) -> Vec<DeviceInstruction> {
        let unless = |register, value: u32| step(JUMP_UNLESS_EQUAL, register, 0, value);
        let mut out = vec![unless(KIND, if self.block { 1 } else { 2 })];
        if self.access != ALL {
            // Nothing is asked for beyond what is permitted.
            let beyond = u32::from(!self.access & ALL);
            out.extend([step(COPY, SCRATCH, ACCESS, 0), step(AND, SCRATCH, 0, beyond), unless(SCRATCH, 0)]);
        }
        out.extend(self.major.map(|major| unless(MAJOR, major)));
        out.extend(self.minor.map(|minor| unless(MINOR, minor)));
        out.extend([step(SET, RESULT, 0, 1), step(EXIT, 0, 0, 0)]);
        let end = out.len();
        for (index, instruction) in out.iter_mut().enumerate() {
            if instruction.code == JUMP_UNLESS_EQUAL {
                instruction.offset = i16::try_from(end - index - 1).expect("a rule is a few instructions");
            }
        }
        out
    }
}

/// Forbids everything else in a v1 group.
pub(super) fn restrict_v1(folder: &Path) -> Result<(), CgroupError> {
    write(&folder.join("devices.deny"), "a")?;
    RULES.iter().try_for_each(|rule| write(&folder.join("devices.allow"), &rule.text()))
}

/// Forbids everything else in a v2 group, where that is not done yet.
pub(super) fn restrict_v2(folder: &Path) -> std::io::Result<()> {
    let group = std::fs::File::open(folder)?;
    if sys::device_filters(group.as_fd())? > 0 {
        return Ok(());
    }
    sys::attach_device_filter(group.as_fd(), &program())
}

// Opcodes of linux/bpf.h and linux/bpf_common.h.
const LOAD_WORD: u8 = 0x61;
const COPY: u8 = 0xbf;
const AND: u8 = 0x57;
const SHIFT_RIGHT: u8 = 0x77;
const SET: u8 = 0xb7;
const JUMP_UNLESS_EQUAL: u8 = 0x55;
const EXIT: u8 = 0x95;

// Registers: the verdict, what is looked at, and what it holds.
const RESULT: u8 = 0;
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;
const SCRATCH: u8 = 6;

/// What the kernel runs whenever a process of the group makes or opens a device.
fn program() -> Vec<DeviceInstruction> {
    let load = |register, offset| DeviceInstruction { offset, ..step(LOAD_WORD, register, CONTEXT, 0) };
    let mut out = vec![
        // The first word: what is asked for above, the kind of device below.
        load(KIND, 0),
        step(COPY, ACCESS, KIND, 0),
        step(AND, KIND, 0, 0xffff),
        step(SHIFT_RIGHT, ACCESS, 0, 16),
        load(MAJOR, 4),
        load(MINOR, 8),
    ];
    out.extend(RULES.iter().flat_map(Rule::instructions));
    out.extend([step(SET, RESULT, 0, 0), step(EXIT, 0, 0, 0)]);
    out
}

fn step(code: u8, to: u8, from: u8, value: u32) -> DeviceInstruction {
    DeviceInstruction { code, registers: to | from << 4, offset: 0, value: value.cast_signed() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel would say: the instructions, carried out.
    fn permits(block: bool, access: u8, major: u32, minor: u32) -> bool {
        let context = [u32::from(access) << 16 | if block { 1 } else { 2 }, major, minor];
        let (program, mut held, mut at) = (program(), [0u64; 16], 0usize);
        loop {
            let step = &program[at];
            at += 1;
            let (to, from) = (usize::from(step.registers & 15), usize::from(step.registers >> 4));
            let value = i64::from(step.value).cast_unsigned();
            match step.code {
                LOAD_WORD => held[to] = u64::from(context[usize::try_from(step.offset).unwrap() / 4]),
                COPY => held[to] = held[from],
                AND => held[to] &= value,
                SHIFT_RIGHT => held[to] >>= value,
                SET => held[to] = value,
                JUMP_UNLESS_EQUAL if held[to] != value => at += usize::try_from(step.offset).unwrap(),
                JUMP_UNLESS_EQUAL => {}
                EXIT => return held[0] == 1,
                other => panic!("no instruction {other:#x}"),
            }
        }
    }

    #[test]
    fn harmless_devices_are_used_and_others_only_made() {
        for (major, minor) in [(1, 3), (1, 9), (5, 0), (5, 2), (136, 0), (136, 77)] {
            assert!(permits(false, ALL, major, minor), "{major}:{minor}");
        }
        for (block, major, minor) in [(true, 1, 3), (false, 1, 1), (false, 1, 11), (true, 254, 0), (false, 5, 1)] {
            assert!(permits(block, MAKE, major, minor), "{major}:{minor}");
            for access in [2, 4, 3, 6, ALL] {
                assert!(!permits(block, access, major, minor), "{major}:{minor} {access}");
            }
        }
    }

    #[test]
    fn rules_are_written_as_version_1_reads_them() {
        let texts: Vec<String> = RULES.iter().map(Rule::text).collect();
        assert_eq!(texts[..3], ["c *:* m", "b *:* m", "c 1:3 rwm"]);
        assert_eq!(texts[9], "c 136:* rwm");
    }
}
