//! From rules to the program that the kernel runs at every system call.
//!
//! ```text
//!  load architecture
//!  the machine's own? ── no ──▶ another one with rules? ── no ──▶ ENOSYS
//!   │ load number
//!   │ number or run of numbers with one verdict? ── yes ──▶ verdict
//!   │ number with conditions? ── yes ──▶ conditions in order ──▶ verdict of the first that holds, else the default
//!   └─ newer than everything that the rules name ──▶ ENOSYS; else the default
//! ```

use std::collections::BTreeMap;

use super::profile::{Arg, Op, Profile, errno_verdict};
use super::table::Arch;

/// One instruction, as struct sock_filter of linux/filter.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    pub(crate) code: u16,
    pub(crate) jt: u8,
    pub(crate) jf: u8,
    pub(crate) k: u32,
}

/// Most instructions that the kernel takes.
const MAX: usize = 4096;

const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const IF_EQUAL: u16 = 0x15;
const IF_GREATER: u16 = 0x25;
const IF_NOT_LESS: u16 = 0x35;
const RETURN: u16 = 0x06;

/// Where struct seccomp_data of linux/seccomp.h holds the number, the architecture and the first argument.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

/// Numbers from here on are those of the x32 ABI, which nothing here has rules for.
const X32: u32 = 0x4000_0000;

const ENOSYS: u16 = 38;

/// What is known of one number.
#[derive(Debug, Default)]
struct Call {
    /// Conditions and the verdict where they all hold, in order.
    conditional: Vec<(Vec<Arg>, u32)>,
    /// The verdict where none does.
    plain: Option<u32>,
}

/// The program for a profile.
pub(super) fn compile(profile: &Profile, native: Arch) -> Result<Vec<Instruction>, String> {
    let mut all = vec![native];
    let named = profile.architectures.iter().filter_map(|name| Arch::named(name));
    // Programs of another architecture than the machine's own, or its 32-bit one, cannot run there.
    all.extend(named.filter(|arch| native == Arch::X86_64 && *arch == Arch::X86).take(1));
    let mut program = vec![op(LOAD, ARCHITECTURE)];
    for arch in all {
        let block = block(profile, arch);
        program.push(branch(IF_EQUAL, arch.audit(), 1, 0));
        program.push(op(JUMP, length(&block)));
        program.extend(block);
    }
    program.push(op(RETURN, errno_verdict(ENOSYS)));
    if program.len() > MAX {
        return Err(format!("the profile is too long: {} instructions, {MAX} are the limit", program.len()));
    }
    Ok(program)
}

/// The part for one architecture; every way through it ends in a verdict.
fn block(profile: &Profile, arch: Arch) -> Vec<Instruction> {
    let calls = calls(profile, arch);
    let default = profile.default_verdict();
    let mut out = vec![op(LOAD, NUMBER)];
    if arch == Arch::X86_64 {
        out.extend([branch(IF_NOT_LESS, X32, 0, 1), op(RETURN, errno_verdict(ENOSYS))]);
    }
    let mut runs: Vec<(u32, u32, u32)> = Vec::new();
    for (number, call) in &calls {
        match call.plain {
            Some(verdict) if call.conditional.is_empty() => match runs.last_mut() {
                Some((_, last, same)) if *last + 1 == *number && *same == verdict => *last = *number,
                _ => runs.push((*number, *number, verdict)),
            },
            _ => {}
        }
    }
    for (first, last, verdict) in runs {
        if first == last {
            out.push(branch(IF_EQUAL, first, 0, 1));
        } else {
            out.extend([branch(IF_NOT_LESS, first, 0, 2), branch(IF_GREATER, last, 1, 0)]);
        }
        out.push(op(RETURN, verdict));
    }
    for (number, call) in calls.iter().filter(|(_, call)| !call.conditional.is_empty()) {
        let mut body: Vec<Instruction> = call.conditional.iter().flat_map(|(args, v)| conditions(args, *v)).collect();
        body.push(op(RETURN, call.plain.unwrap_or(default)));
        out.extend([branch(IF_EQUAL, *number, 1, 0), op(JUMP, length(&body))]);
        out.extend(body);
    }
    // Programs try what is new and fall back where it is missing; "not permitted" they take for the last word.
    if let (true, Some((newest, _))) = (refuses(default), calls.last_key_value()) {
        out.extend([branch(IF_GREATER, *newest, 0, 1), op(RETURN, errno_verdict(ENOSYS))]);
    }
    out.push(op(RETURN, default));
    out
}

/// What the rules say about each number. Of two rules without conditions the later one counts.
fn calls(profile: &Profile, arch: Arch) -> BTreeMap<u32, Call> {
    let mut calls: BTreeMap<u32, Call> = BTreeMap::new();
    for rule in &profile.syscalls {
        for number in rule.names.iter().filter_map(|name| arch.number(name)) {
            let call = calls.entry(number).or_default();
            if rule.args.is_empty() {
                call.plain = Some(rule.verdict());
            } else {
                call.conditional.push((rule.args.clone(), rule.verdict()));
            }
        }
    }
    calls
}

/// Whether calls with that verdict fail, rather than being made or ending the program.
fn refuses(verdict: u32) -> bool {
    verdict & 0xffff_0000 == errno_verdict(0)
}

/// Where a comparison goes on.
#[derive(Clone, Copy)]
enum To {
    /// The next instruction.
    Next,
    /// The condition holds.
    Holds,
    /// It does not.
    Fails,
}

/// All conditions, then the verdict; behind it where one does not hold.
fn conditions(args: &[Arg], verdict: u32) -> Vec<Instruction> {
    let mut out: Vec<Instruction> = Vec::new();
    // From the last to the first, so that the distance to the end is known.
    out.push(op(RETURN, verdict));
    for arg in args.iter().rev() {
        let steps = steps(arg);
        let count = steps.len();
        let behind = out.len();
        let resolve = |(index, (code, k, yes, no)): (usize, (u16, u32, To, To))| {
            let distance = |to| match to {
                To::Next => 0,
                To::Holds => count - index - 1,
                To::Fails => count - index - 1 + behind,
            };
            // Six arguments of five steps each: never more than 31.
            let short = |to| u8::try_from(distance(to)).expect("conditions are short");
            branch(code, k, short(yes), short(no))
        };
        let resolved: Vec<Instruction> = steps.into_iter().enumerate().map(resolve).collect();
        out.splice(0..0, resolved);
    }
    out
}

/// The comparison of one argument: both halves of it, the upper first.
fn steps(arg: &Arg) -> Vec<(u16, u32, To, To)> {
    use To::{Fails, Holds, Next};
    let at = ARGUMENTS + 8 * u32::from(arg.index);
    let load = |at| (LOAD, at, Next, Next);
    // Both architectures with a table are little-endian.
    let (low, high) = (load(at), load(at + 4));
    let half = |value: u64| (value as u32, (value >> 32) as u32);
    let (value, upper) = half(arg.value);
    let ordered = |code, greater, less, equal: (To, To)| {
        vec![
            high,
            (IF_GREATER, upper, greater, Next),
            (IF_EQUAL, upper, Next, less),
            low,
            (code, value, equal.0, equal.1),
        ]
    };
    match arg.op {
        Op::Eq => vec![high, (IF_EQUAL, upper, Next, Fails), low, (IF_EQUAL, value, Holds, Fails)],
        Op::Ne => vec![high, (IF_EQUAL, upper, Next, Holds), low, (IF_EQUAL, value, Fails, Holds)],
        Op::Ge => ordered(IF_NOT_LESS, Holds, Fails, (Holds, Fails)),
        Op::Gt => ordered(IF_GREATER, Holds, Fails, (Holds, Fails)),
        Op::Lt => ordered(IF_NOT_LESS, Fails, Holds, (Fails, Holds)),
        Op::Le => ordered(IF_GREATER, Fails, Holds, (Fails, Holds)),
        Op::MaskedEq => {
            let (wanted, wanted_upper) = half(arg.value_two);
            let mask = |k| (AND, k, Next, Next);
            vec![
                high,
                mask(upper),
                (IF_EQUAL, wanted_upper, Next, Fails),
                low,
                mask(value),
                (IF_EQUAL, wanted, Holds, Fails),
            ]
        }
    }
}

fn op(code: u16, k: u32) -> Instruction {
    branch(code, k, 0, 0)
}

fn branch(code: u16, k: u32, jt: u8, jf: u8) -> Instruction {
    Instruction { code, jt, jf, k }
}

fn length(block: &[Instruction]) -> u32 {
    u32::try_from(block.len()).expect("a block is checked against the kernel's limit")
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What the kernel would say: the instructions, carried out.
    pub(in super::super) fn verdict(program: &[Instruction], arch: u32, number: u32, args: [u64; 6]) -> u32 {
        let word = |at: u32| match at {
            NUMBER => number,
            ARCHITECTURE => arch,
            at => {
                let arg = args[((at - ARGUMENTS) / 8) as usize];
                if (at - ARGUMENTS).is_multiple_of(8) { arg as u32 } else { (arg >> 32) as u32 }
            }
        };
        let (mut at, mut held) = (0, 0u32);
        loop {
            let step = program[at];
            at += 1;
            let holds = match step.code {
                LOAD => {
                    held = word(step.k);
                    continue;
                }
                AND => {
                    held &= step.k;
                    continue;
                }
                JUMP => {
                    at += step.k as usize;
                    continue;
                }
                RETURN => return step.k,
                IF_EQUAL => held == step.k,
                IF_GREATER => held > step.k,
                IF_NOT_LESS => held >= step.k,
                other => panic!("no instruction {other:#x}"),
            };
            at += usize::from(if holds { step.jt } else { step.jf });
        }
    }

    fn any_op() -> impl Strategy<Value = Op> {
        prop_oneof![
            Just(Op::Ne),
            Just(Op::Lt),
            Just(Op::Le),
            Just(Op::Eq),
            Just(Op::Ge),
            Just(Op::Gt),
            Just(Op::MaskedEq)
        ]
    }

    fn holds(arg: &Arg, args: [u64; 6]) -> bool {
        let have = args[usize::from(arg.index)];
        match arg.op {
            Op::Ne => have != arg.value,
            Op::Lt => have < arg.value,
            Op::Le => have <= arg.value,
            Op::Eq => have == arg.value,
            Op::Ge => have >= arg.value,
            Op::Gt => have > arg.value,
            Op::MaskedEq => have & arg.value == arg.value_two,
        }
    }

    /// Near the borders of both halves.
    fn near() -> impl Strategy<Value = u64> {
        prop_oneof![Just(0), Just(1), Just(u64::from(u32::MAX)), Just(1 << 32), Just(u64::MAX), any::<u64>()]
    }

    proptest! {
        #[test]
        fn conditions_mean_what_they_say(
            conditions in proptest::collection::vec((0u8..6, near(), near(), any_op()), 1..7),
            args in proptest::array::uniform6(near()),
        ) {
            let conditions: Vec<Arg> =
                conditions.into_iter().map(|(index, value, value_two, op)| Arg { index, value, value_two, op }).collect();
            let mut rule = super::super::profile::Rule::of("openat", super::super::profile::Action::Allow);
            rule.args.clone_from(&conditions);
            let profile = Profile { syscalls: vec![rule], ..profile("SCMP_ACT_ERRNO") };
            let program = compile(&profile, Arch::X86_64).expect("a program");
            let expected = if conditions.iter().all(|c| holds(c, args)) { 0x7fff_0000 } else { errno_verdict(1) };
            prop_assert_eq!(verdict(&program, Arch::X86_64.audit(), 257, args), expected);
        }
    }

    fn profile(default: &str) -> Profile {
        Profile::parse(&format!(r#"{{"defaultAction": "{default}"}}"#)).expect("a profile")
    }

    #[test]
    fn each_call_gets_its_verdict_and_others_the_default() {
        let text = r#"{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86"], "syscalls": [
            {"names": ["read", "write", "open", "no_such_call"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5},
            {"names": ["mount"], "action": "SCMP_ACT_KILL_PROCESS"}]}"#;
        let program = compile(&Profile::parse(text).expect("a profile"), Arch::X86_64).expect("a program");
        let own = |number| verdict(&program, Arch::X86_64.audit(), number, [0; 6]);
        assert_eq!([0, 1, 2].map(own), [errno_verdict(5); 3]);
        assert_eq!((own(3), own(165), own(10_000)), (0x7fff_0000, 0x8000_0000, 0x7fff_0000));
        // The x32 variant of read is another number, and no way round the rules.
        assert_eq!(own(X32), errno_verdict(ENOSYS));
        let x86 = |number| verdict(&program, Arch::X86.audit(), number, [0; 6]);
        assert_eq!((x86(3), x86(0)), (errno_verdict(5), 0x7fff_0000));
        assert_eq!(verdict(&program, Arch::Aarch64.audit(), 63, [0; 6]), errno_verdict(ENOSYS));
    }

    #[test]
    fn what_is_newer_than_the_rules_is_missing_rather_than_forbidden() {
        let text = r#"{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
            {"names": ["read", "mseal"], "action": "SCMP_ACT_ALLOW"}]}"#;
        let program = compile(&Profile::parse(text).expect("a profile"), Arch::X86_64).expect("a program");
        let own = |number| verdict(&program, Arch::X86_64.audit(), number, [0; 6]);
        assert_eq!((own(462), own(463), own(461)), (0x7fff_0000, errno_verdict(ENOSYS), errno_verdict(1)));
    }

    #[test]
    fn a_profile_beyond_the_kernels_limit_is_refused() {
        let arg = Arg { index: 0, value: 1, value_two: 0, op: Op::Eq };
        let mut rule = super::super::profile::Rule::of("read", super::super::profile::Action::Allow);
        rule.args = vec![arg; 6];
        let profile = Profile { syscalls: vec![rule; 200], ..profile("SCMP_ACT_ERRNO") };
        assert!(compile(&profile, Arch::X86_64).expect_err("too long").contains("too long"));
    }
}
