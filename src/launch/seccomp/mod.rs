//! The system calls that a container may make: Docker's default profile, or a [`Profile`] that a
//! client brings, compiled to a seccomp filter (seccomp(2)).
//!
//! A filter is a search tree over ranges of system-call numbers, not a list: the kernel runs it
//! once for every number when it is loaded, and once for every call that is not allowed
//! unconditionally. Its verdicts are Docker's, with two differences. Both are arguments of which
//! libseccomp compares 64 bits and the kernel reads 32: `socket(1 << 32 | AF_ALG)` is refused here
//! and allowed there, and `personality` is judged by the value that the kernel reads. Pure
//! functions: [`crate::setup`] compiles the default [`Filter`] before the clone, the engine that of
//! a profile, and [`crate::init`] loads it.

mod compile;
mod custom;
#[cfg(test)]
mod oracle;
mod profile;
#[cfg(test)]
mod published;
mod table;
#[cfg(test)]
mod tests;
mod unmentioned;

use std::ops::RangeInclusive;

use bincode::{Decode, Encode};
use rustix::io::Errno;

pub use custom::{Action, Operator, Profile, ProfileError, Rule, Test};

use profile::{Abi, FIRST_PRIVATE, X32_BIT};

/// A processor architecture, with the older ones whose programs it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arch {
    /// And x32, and 32-bit x86.
    X86_64,
    /// And 32-bit Arm.
    Aarch64,
}

/// The architecture that this program is built for.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(crate) const NATIVE: Arch = if cfg!(target_arch = "x86_64") {
    Arch::X86_64
} else {
    Arch::Aarch64
};

/// `AUDIT_ARCH_*` of linux/audit.h: ELF machine, 64-bit and little-endian bits.
mod audit {
    pub(super) const X86_64: u32 = 0xc000_003e;
    pub(super) const I386: u32 = 0x4000_0003;
    pub(super) const AARCH64: u32 = 0xc000_00b7;
    pub(super) const ARM: u32 = 0x4000_0028;
}

impl Arch {
    /// Each `AUDIT_ARCH_*` that a call may come from, with its numberings and the bit that is set
    /// in all numbers of each.
    const fn numberings(self) -> &'static [(u32, &'static [(Abi, u32)])] {
        match self {
            Self::X86_64 => &[
                (audit::X86_64, &[(Abi::X86_64, 0), (Abi::X32, X32_BIT)]),
                (audit::I386, &[(Abi::I386, 0)]),
            ],
            Self::Aarch64 => &[
                (audit::AARCH64, &[(Abi::Aarch64, 0)]),
                (audit::ARM, &[(Abi::Arm, 0)]),
            ],
        }
    }
}

/// What the filter does with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict<'a> {
    Allow,
    Errno(Errno),
    /// Allowed if the condition holds, else EPERM.
    If(&'static Condition),
    /// A return value of the kernel's (`SECCOMP_RET_*`).
    Return(u32),
    /// See [`custom::Rules`].
    First(&'a custom::Rules),
}

/// A condition on an argument. It tests the low 32 bits: the kernel reads no more in any call that
/// has a condition.
#[derive(Debug, PartialEq, Eq)]
enum Condition {
    /// The argument is one of these: ascending, no two adjacent.
    In {
        argument: u8,
        allowed: &'static [RangeInclusive<u32>],
    },
    /// The argument has none of these bits.
    NoBits { argument: u8, bits: u32 },
}

/// A filter as the kernel takes it (linux/filter.h).
#[derive(Clone, Debug)]
pub(crate) struct Filter {
    instructions: Vec<libc::sock_filter>,
    flags: u32,
}

impl Filter {
    /// The instructions, first to last.
    pub(crate) fn instructions(&self) -> &[libc::sock_filter] {
        &self.instructions
    }

    /// `SECCOMP_FILTER_FLAG_*`.
    pub(crate) fn flags(&self) -> u32 {
        self.flags
    }
}

/// The filter of a [`Profile`], as it goes to a monitor.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct CompiledFilter {
    /// Code, jumps and operand of each instruction.
    instructions: Vec<(u16, u8, u8, u32)>,
    flags: u32,
}

impl CompiledFilter {
    fn new(filter: &Filter) -> Self {
        let parts = |one: &libc::sock_filter| (one.code, one.jt, one.jf, one.k);
        Self {
            instructions: filter.instructions.iter().map(parts).collect(),
            flags: filter.flags,
        }
    }

    /// The kernel checks the instructions when it loads them.
    pub(crate) fn filter(&self) -> Filter {
        let whole = |&(code, jt, jf, k): &(u16, u8, u8, u32)| libc::sock_filter { code, jt, jf, k };
        Filter {
            instructions: self.instructions.iter().map(whole).collect(),
            flags: self.flags,
        }
    }
}

/// Without the mitigation of speculative store bypass, which kernels before 5.16 turn on for every
/// filtered process, at a cost for all of its code. As runc.
const DEFAULT_FLAGS: u32 = 1 << 2; // SECCOMP_FILTER_FLAG_SPEC_ALLOW

/// Docker's default profile for a container with these capabilities (bit n is capability n).
pub(crate) fn default_filter(capabilities: u64, arch: Arch) -> Filter {
    let architectures = arch.numberings().iter().map(|(architecture, abis)| {
        let ranges = abis
            .iter()
            .flat_map(|(abi, bit)| ranges(*abi, *bit, capabilities))
            .collect();
        (*architecture, ranges)
    });
    Filter {
        instructions: compile::program(architectures.collect()),
        flags: DEFAULT_FLAGS,
    }
}

/// The verdicts of a numbering as ranges: the first number of each, ascending.
fn ranges(abi: Abi, bit: u32, capabilities: u64) -> Vec<(u32, Verdict<'static>)> {
    let named = table::ROWS
        .iter()
        .filter_map(|row| {
            row.number(abi)
                .map(|number| (number, row.rule.verdict(capabilities)))
        })
        .collect();
    // A call newer than the profile gets ENOSYS, so that a program falls back to an older one.
    let (old, new) = (Verdict::Errno(Errno::PERM), Verdict::Errno(Errno::NOSYS));
    cover(abi, bit, named, old, new)
}

/// Fills the ranges between calls with verdicts: `new` above the last number that has one, `old`
/// elsewhere.
fn cover<'a>(
    abi: Abi,
    bit: u32,
    mut named: Vec<(u32, Verdict<'a>)>,
    old: Verdict<'a>,
    new: Verdict<'a>,
) -> Vec<(u32, Verdict<'a>)> {
    named.sort_unstable_by_key(|(number, _)| *number);

    let newest = named
        .iter()
        .map(|(number, _)| *number)
        .filter(|number| *number < FIRST_PRIVATE)
        .max()
        .unwrap_or(0);
    let private = abi.private();
    let unnamed = |number: u32| {
        let is_private = private
            .as_ref()
            .is_some_and(|private| private.contains(&number));
        if is_private || number <= newest {
            old
        } else {
            new
        }
    };

    let mut starts = vec![0, newest + 1];
    starts.extend(
        private
            .iter()
            .flat_map(|private| [*private.start(), private.end() + 1]),
    );
    starts.extend(named.iter().flat_map(|(number, _)| [*number, number + 1]));
    starts.sort_unstable();
    starts.dedup();

    let mut named = named.into_iter().peekable();
    let mut ranges: Vec<(u32, Verdict<'a>)> = Vec::new();
    for start in starts {
        let mut verdict = unnamed(start);
        // Two calls may share a number.
        while let Some((_, rule)) = named.next_if(|(number, _)| *number == start) {
            verdict = rule;
        }
        if ranges.last().is_none_or(|(_, last)| *last != verdict) {
            ranges.push((start | bit, verdict));
        }
    }
    ranges
}
