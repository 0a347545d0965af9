//! The parts of a row of the [table](super::table): the profile's rules and the kernel's
//! numberings.
//!
//! A rule depends on the container's capabilities only. Callers: the table and
//! [`super::default_filter`].

use std::ops::RangeInclusive;

use rustix::io::Errno;

use super::{Condition, Verdict};

/// The rule for a call: allowed if the container has any of the capabilities, else the verdict.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rule {
    /// Bit n is capability n.
    capabilities: u64,
    otherwise: Verdict<'static>,
}

impl Rule {
    /// The verdict for a container with these capabilities.
    pub(super) const fn verdict(self, capabilities: u64) -> Verdict<'static> {
        if self.capabilities & capabilities == 0 {
            self.otherwise
        } else {
            Verdict::Allow
        }
    }
}

pub(super) const fn with(capabilities: u64) -> Rule {
    Rule {
        capabilities,
        otherwise: Verdict::Errno(Errno::PERM),
    }
}

pub(super) const ALWAYS: Rule = Rule {
    capabilities: 0,
    otherwise: Verdict::Allow,
};

/// What has no rule in the profile.
pub(super) const REFUSED: Rule = with(0);

/// Bits of linux/capability.h.
pub(super) mod capability {
    pub(in super::super) const DAC_READ_SEARCH: u64 = 1 << 2;
    pub(in super::super) const SYS_MODULE: u64 = 1 << 16;
    pub(in super::super) const SYS_RAWIO: u64 = 1 << 17;
    pub(in super::super) const SYS_CHROOT: u64 = 1 << 18;
    pub(in super::super) const SYS_PTRACE: u64 = 1 << 19;
    pub(in super::super) const SYS_PACCT: u64 = 1 << 20;
    pub(in super::super) const SYS_ADMIN: u64 = 1 << 21;
    pub(in super::super) const SYS_BOOT: u64 = 1 << 22;
    pub(in super::super) const SYS_NICE: u64 = 1 << 23;
    pub(in super::super) const SYS_TIME: u64 = 1 << 25;
    pub(in super::super) const SYS_TTY_CONFIG: u64 = 1 << 26;
    pub(in super::super) const SYSLOG: u64 = 1 << 34;
    pub(in super::super) const PERFMON: u64 = 1 << 38;
    pub(in super::super) const BPF: u64 = 1 << 39;
}
use capability::SYS_ADMIN;

/// No new namespaces: flags are CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET
/// (linux/sched.h).
pub(super) const CLONE: Rule = Rule {
    capabilities: SYS_ADMIN,
    otherwise: Verdict::If(&Condition::NoBits {
        argument: 0,
        bits: 0x7e02_0000,
    }),
};

/// clone3's flags are in memory, which no filter reads. libc falls back to clone on ENOSYS.
pub(super) const CLONE3: Rule = Rule {
    capabilities: SYS_ADMIN,
    otherwise: Verdict::Errno(Errno::NOSYS),
};

/// Any address family but AF_ALG (38) and AF_VSOCK (40), which no network namespace confines.
pub(super) const SOCKET: Rule = Rule {
    capabilities: 0,
    otherwise: Verdict::If(&Condition::In {
        argument: 0,
        allowed: &[0..=37, 39..=39, 41..=u32::MAX],
    }),
};

/// Harmless execution domains: PER_LINUX and PER_LINUX32, each also with UNAME26, and the query of
/// the current one.
pub(super) const PERSONALITY: Rule = Rule {
    capabilities: 0,
    otherwise: Verdict::If(&Condition::In {
        argument: 0,
        allowed: &[
            0..=0,
            8..=8,
            0x2_0000..=0x2_0000,
            0x2_0008..=0x2_0008,
            u32::MAX..=u32::MAX,
        ],
    }),
};

/// A system-call numbering of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Abi {
    /// Its x86_64.
    X86_64,
    /// x86_64 with 32-bit pointers: numbers have [`X32_BIT`].
    X32,
    /// 32-bit x86.
    I386,
    /// 64-bit Arm.
    Aarch64,
    /// 32-bit Arm (EABI).
    Arm,
}

/// `__X32_SYSCALL_BIT` of asm/unistd.h.
pub(super) const X32_BIT: u32 = 0x4000_0000;

/// New calls have one number in all numberings, below this. Numbers above are private to one.
pub(super) const FIRST_PRIVATE: u32 = 512;

impl Abi {
    /// Private numbers (syscall_64.tbl, arch/arm/include/uapi/asm/unistd.h).
    pub(super) const fn private(self) -> Option<RangeInclusive<u32>> {
        match self {
            Self::X32 => Some(512..=547),
            Self::Arm => Some(0xf_0000..=0xf_ffff),
            Self::X86_64 | Self::I386 | Self::Aarch64 => None,
        }
    }
}

/// Marks a call that a numbering lacks.
pub(super) const NONE: u32 = u32::MAX;

/// One system call.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) name: &'static str,
    pub(super) rule: Rule,
    numbers: [u32; 5],
}

impl Row {
    /// Without [`X32_BIT`].
    pub(super) const fn number(&self, abi: Abi) -> Option<u32> {
        let [x86_64, x32, i386, aarch64, arm] = self.numbers;
        let number = match abi {
            Abi::X86_64 => x86_64,
            Abi::X32 => x32,
            Abi::I386 => i386,
            Abi::Aarch64 => aarch64,
            Abi::Arm => arm,
        };
        if number == NONE { None } else { Some(number) }
    }
}

pub(super) const fn row(name: &'static str, rule: Rule, numbers: [u32; 5]) -> Row {
    Row {
        name,
        rule,
        numbers,
    }
}
