//! A profile of a client's: rules for calls by name, compiled as libseccomp compiles what runc
//! makes of them.
//!
//! The rules of one call: one without tests goes before those with, and the first of those whose
//! tests hold decides; where none does, it is the default. Names that no kernel of ours has are
//! passed over, as runc does. Caller: the engine, for `--security-opt seccomp=`.

use rustix::io::Errno;

use super::profile::{Abi, X32_BIT};
use super::{
    Arch, CompiledFilter, DEFAULT_FLAGS, Filter, NATIVE, Verdict, audit, compile, table,
    unmentioned,
};

/// What happens to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It is made.
    Allow,
    /// It is made, and written to the kernel's audit log.
    Log,
    /// It fails with this error, at most 4095.
    Errno(u16),
    /// A tracer gets this number; without one the call fails with ENOSYS.
    Trace(u16),
    /// SIGSYS.
    Trap,
    /// The thread is killed.
    KillThread,
    /// The process is killed.
    KillProcess,
}

impl Action {
    /// linux/seccomp.h.
    fn answer(self) -> u32 {
        match self {
            Self::Allow => libc::SECCOMP_RET_ALLOW,
            Self::Log => libc::SECCOMP_RET_LOG,
            Self::Errno(errno) => libc::SECCOMP_RET_ERRNO | u32::from(errno),
            Self::Trace(number) => libc::SECCOMP_RET_TRACE | u32::from(number),
            Self::Trap => libc::SECCOMP_RET_TRAP,
            Self::KillThread => libc::SECCOMP_RET_KILL_THREAD,
            Self::KillProcess => libc::SECCOMP_RET_KILL_PROCESS,
        }
    }

    /// Whether a call that the profile can't know is best told that it does not exist (runc,
    /// `patchbpf`).
    fn hides_new_calls(self) -> bool {
        match self {
            Self::Allow | Self::Log | Self::Trace(_) => false,
            Self::Errno(errno) => i32::from(errno) != Errno::NOSYS.raw_os_error(),
            Self::Trap | Self::KillThread | Self::KillProcess => true,
        }
    }
}

/// How an argument is compared with [`Test::value`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    /// It is another.
    NotEqual,
    /// It is less.
    Less,
    /// It is less or the same.
    LessOrEqual,
    /// It is the same.
    Equal,
    /// It is more or the same.
    GreaterOrEqual,
    /// It is more.
    Greater,
    /// Its bits in `value` are [`Test::value_two`].
    MaskedEqual,
}

/// A test of one argument, all of whose bits count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Test {
    /// 0 to 5.
    pub argument: u8,
    /// How.
    pub operator: Operator,
    /// With what.
    pub value: u64,
    /// Of [`Operator::MaskedEqual`] alone.
    pub value_two: u64,
}

/// A [`Test`] by what BPF can compare.
pub(super) struct Comparison {
    pub(super) operation: u16,
    pub(super) mask: u64,
    pub(super) value: u64,
    pub(super) negated: bool,
}

impl Test {
    pub(super) fn comparison(self) -> Comparison {
        use compile::code::{IF_ABOVE, IF_AT_LEAST, IF_EQUAL};
        let (operation, negated) = match self.operator {
            Operator::Equal | Operator::MaskedEqual => (IF_EQUAL, false),
            Operator::NotEqual => (IF_EQUAL, true),
            Operator::GreaterOrEqual => (IF_AT_LEAST, false),
            Operator::Less => (IF_AT_LEAST, true),
            Operator::Greater => (IF_ABOVE, false),
            Operator::LessOrEqual => (IF_ABOVE, true),
        };
        let (mask, value) = match self.operator {
            Operator::MaskedEqual => (self.value, self.value_two),
            _ => (u64::MAX, self.value),
        };
        Comparison {
            operation,
            mask,
            value,
            negated,
        }
    }
}

/// What becomes of calls with these names whose arguments pass all tests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// As in the kernel's tables.
    pub names: Vec<String>,
    /// What becomes of them.
    pub action: Action,
    /// None for every call.
    pub tests: Vec<Test>,
}

/// Which system calls a container may make, by names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    /// Of calls without a rule.
    pub default: Action,
    /// libseccomp's names (`SCMP_ARCH_X86`) of those whose programs may run beside native ones.
    pub architectures: Vec<String>,
    /// `SECCOMP_FILTER_FLAG_*`; none for the usual.
    pub flags: Option<Vec<String>>,
    /// In any order.
    pub rules: Vec<Rule>,
}

/// Why there is no filter of a profile.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProfileError {
    /// A name that libseccomp does not have.
    #[error("string {0} is not a valid arch for seccomp")]
    Architecture(String),
    /// A flag that no launcher sets.
    #[error("seccomp flag {0} is not known to be supported")]
    Flag(String),
    /// The kernel takes 4096 instructions.
    #[error("its filter has {0} instructions, and the kernel takes no more than 4096")]
    TooLong(usize),
}

/// `BPF_MAXINSNS` of linux/bpf_common.h.
const MAX_INSTRUCTIONS: usize = 4096;

/// The rules of one call.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Rules {
    pub(super) list: Vec<Tested>,
    pub(super) otherwise: u32,
    /// Arguments have 64 bits.
    pub(super) wide: bool,
}

/// An answer, if tests hold.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Tested {
    pub(super) tests: Vec<Test>,
    pub(super) answer: u32,
}

impl Profile {
    /// Compiles it for the architecture that this program is built for.
    pub fn compile(&self) -> Result<CompiledFilter, ProfileError> {
        self.filter(NATIVE)
            .map(|filter| CompiledFilter::new(&filter))
    }

    pub(super) fn filter(&self, arch: Arch) -> Result<Filter, ProfileError> {
        let flags = self.flags()?;
        let abis = self.abis(arch)?;
        // First the rules, which the verdicts borrow.
        let mut calls = Vec::new();
        for (architecture, numberings) in arch.numberings() {
            let known: Vec<_> = numberings
                .iter()
                .filter(|(abi, _)| abis.contains(abi))
                .map(|(abi, bit)| (*abi, *bit, self.calls(*abi)))
                .collect();
            if !known.is_empty() {
                calls.push((*architecture, known));
            }
        }
        let ranges = calls.iter().map(|(architecture, known)| {
            let ranges = known
                .iter()
                .flat_map(|(abi, bit, calls)| self.ranges(*abi, *bit, calls));
            let ranges = ranges.collect();
            let is_closed = *architecture == audit::X86_64 && !abis.contains(&Abi::X32);
            let ranges = if is_closed {
                without_x32(ranges, self.new_call())
            } else {
                ranges
            };
            (*architecture, ranges)
        });
        let instructions = compile::program(ranges.collect());
        if instructions.len() > MAX_INSTRUCTIONS {
            return Err(ProfileError::TooLong(instructions.len()));
        }
        Ok(Filter {
            instructions,
            flags,
        })
    }

    fn flags(&self) -> Result<u32, ProfileError> {
        let Some(flags) = &self.flags else {
            return Ok(DEFAULT_FLAGS);
        };
        let bit = |flag: &String| match flag.as_str() {
            // The one thread that there is has it anyway.
            "SECCOMP_FILTER_FLAG_TSYNC" => Ok(0),
            "SECCOMP_FILTER_FLAG_LOG" => Ok(1 << 1),
            "SECCOMP_FILTER_FLAG_SPEC_ALLOW" => Ok(DEFAULT_FLAGS),
            other => Err(ProfileError::Flag(other.to_owned())),
        };
        flags.iter().try_fold(0, |all, flag| Ok(all | bit(flag)?))
    }

    /// The numberings that calls may come in: the machine's own always.
    fn abis(&self, arch: Arch) -> Result<Vec<Abi>, ProfileError> {
        let mut abis = vec![match arch {
            Arch::X86_64 => Abi::X86_64,
            Arch::Aarch64 => Abi::Aarch64,
        }];
        for name in &self.architectures {
            match name.strip_prefix("SCMP_ARCH_") {
                Some("X86") => abis.push(Abi::I386),
                Some("X32") => abis.push(Abi::X32),
                Some("ARM") => abis.push(Abi::Arm),
                // The machine's own, and those whose programs don't run on it.
                Some(
                    "X86_64" | "AARCH64" | "MIPS" | "MIPS64" | "MIPS64N32" | "MIPSEL" | "MIPSEL64"
                    | "MIPSEL64N32" | "PPC" | "PPC64" | "PPC64LE" | "S390" | "S390X" | "RISCV64"
                    | "LOONGARCH64" | "M68K" | "SH" | "SHEB" | "PARISC" | "PARISC64",
                ) => {}
                _ => return Err(ProfileError::Architecture(name.clone())),
            }
        }
        Ok(abis)
    }

    /// Each call of a numbering that a rule names, by its number, ascending.
    fn calls(&self, abi: Abi) -> Vec<(u32, Rules)> {
        let mut calls = std::collections::BTreeMap::<u32, Rules>::new();
        for rule in &self.rules {
            for name in &rule.names {
                for (number, operation) in numbers(name, abi) {
                    let rules = calls.entry(number).or_insert_with(|| Rules {
                        list: Vec::new(),
                        otherwise: self.default.answer(),
                        wide: matches!(abi, Abi::X86_64 | Abi::Aarch64),
                    });
                    // libseccomp leaves out what changes nothing.
                    if rule.action != self.default {
                        add(rule, operation, rules);
                    }
                }
            }
        }
        calls.into_iter().collect()
    }

    /// What becomes of a call that is younger than all that the profile names.
    fn new_call(&self) -> Verdict<'static> {
        if self.default.hides_new_calls() && !self.rules.is_empty() {
            Verdict::Errno(Errno::NOSYS)
        } else {
            Verdict::Return(self.default.answer())
        }
    }

    fn ranges<'a>(&self, abi: Abi, bit: u32, calls: &'a [(u32, Rules)]) -> Vec<(u32, Verdict<'a>)> {
        let default = Verdict::Return(self.default.answer());
        let named = calls.iter().map(|(number, rules)| {
            let verdict = match rules.list.first() {
                None => default,
                Some(only) if only.tests.is_empty() => Verdict::Return(only.answer),
                Some(_) => Verdict::First(rules),
            };
            (*number, verdict)
        });
        super::cover(abi, bit, named.collect(), default, self.new_call())
    }
}

/// Kills what comes as x32, where the profile leaves that out. What a tracer has taken the number
/// from is no such call.
fn without_x32<'a>(
    mut ranges: Vec<(u32, Verdict<'a>)>,
    none: Verdict<'a>,
) -> Vec<(u32, Verdict<'a>)> {
    ranges.push((X32_BIT, Verdict::Return(libc::SECCOMP_RET_KILL_THREAD)));
    ranges.push((u32::MAX, none));
    ranges
}

/// Adds a rule to those of a call, or of one operation of a call that has several.
fn add(rule: &Rule, operation: Option<u32>, rules: &mut Rules) {
    let mut tests = rule.tests.clone();
    if let Some(operation) = operation {
        tests.retain(|test| test.argument != 0);
        tests.push(Test {
            argument: 0,
            operator: Operator::Equal,
            value: operation.into(),
            value_two: 0,
        });
    }
    let answer = rule.action.answer();
    let is_unconditional = |known: &Tested| known.tests.is_empty();
    if rules.list.first().is_some_and(is_unconditional) {
        return;
    }
    if tests.is_empty() {
        rules.list = vec![Tested { tests, answer }];
        return;
    }
    let twice = |test: &Test| {
        let same = |other: &&Test| other.argument == test.argument;
        tests.iter().filter(same).count() > 1
    };
    // Tests of one argument are alternatives, and then all others are too (runc,
    // `libcontainer/seccomp`).
    let alternatives = if tests.iter().any(twice) && operation.is_none() {
        tests.iter().map(|test| vec![*test]).collect()
    } else {
        vec![tests]
    };
    let tested = |tests| Tested { tests, answer };
    rules.list.extend(alternatives.into_iter().map(tested));
}

/// The numbers of a call, each with the operation that it is of a call that has several.
fn numbers(name: &str, abi: Abi) -> impl Iterator<Item = (u32, Option<u32>)> {
    let rows = || table::ROWS.iter().chain(unmentioned::ROWS);
    let number = move |name: &str| rows().find(|row| row.name == name)?.number(abi);
    let direct = number(name).map(|number| (number, None));
    let through = |several, list: &[(&str, u32)]| {
        let (_, operation) = list.iter().find(|(one, _)| *one == name)?;
        Some((number(several)?, Some(*operation)))
    };
    let (socket, ipc) = if abi == Abi::I386 {
        (through("socketcall", &SOCKETCALL), through("ipc", &IPC))
    } else {
        (None, None)
    };
    [direct, socket, ipc].into_iter().flatten()
}

/// linux/net.h.
const SOCKETCALL: [(&str, u32); 20] = [
    ("socket", 1),
    ("bind", 2),
    ("connect", 3),
    ("listen", 4),
    ("accept", 5),
    ("getsockname", 6),
    ("getpeername", 7),
    ("socketpair", 8),
    ("send", 9),
    ("recv", 10),
    ("sendto", 11),
    ("recvfrom", 12),
    ("shutdown", 13),
    ("setsockopt", 14),
    ("getsockopt", 15),
    ("sendmsg", 16),
    ("recvmsg", 17),
    ("accept4", 18),
    ("recvmmsg", 19),
    ("sendmmsg", 20),
];

/// linux/ipc.h.
const IPC: [(&str, u32); 12] = [
    ("semop", 1),
    ("semget", 2),
    ("semctl", 3),
    ("semtimedop", 4),
    ("msgsnd", 11),
    ("msgrcv", 12),
    ("msgget", 13),
    ("msgctl", 14),
    ("shmat", 21),
    ("shmdt", 22),
    ("shmget", 23),
    ("shmctl", 24),
];
