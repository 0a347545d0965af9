//! The filter is run by an interpreter of the kernel's rules, and judged by what Docker says, by
//! the kernel's headers and, in [`super::oracle`], by libseccomp.

use std::collections::BTreeMap;

use super::profile::{Abi, X32_BIT};
use super::*;

pub(super) const EVERY_ARCH: [Arch; 2] = [Arch::X86_64, Arch::Aarch64];
pub(super) const DOCKER: u64 = crate::process::DEFAULT_CAPABILITIES;
pub(super) const SYS_ADMIN: u64 = 1 << 21;
pub(super) const ALL: u64 = (1 << 41) - 1;

const ALLOW: u32 = 0x7fff_0000;
const fn errno(errno: Errno) -> u32 {
    0x0005_0000 | errno.raw_os_error().cast_unsigned()
}
const REFUSED: u32 = errno(Errno::PERM);
pub(super) const UNKNOWN: u32 = errno(Errno::NOSYS);

/// What a filter is asked (struct seccomp_data of linux/seccomp.h).
#[derive(Clone, Copy, Debug)]
pub(super) struct Call {
    architecture: u32,
    number: u32,
    arguments: [u64; 6],
}

impl Call {
    pub(super) const fn new(architecture: u32, number: u32, first: u64) -> Self {
        Self {
            architecture,
            number,
            arguments: [first, 0, 0, 0, 0, 0],
        }
    }

    pub(super) fn second(&mut self, argument: u64) {
        self.arguments[1] = argument;
    }

    fn word(&self, offset: u32) -> u32 {
        let argument = |index: u32| self.arguments[usize::try_from(index).unwrap()];
        match offset {
            0 => self.number,
            4 => self.architecture,
            16..64 if offset.is_multiple_of(8) => {
                u32::try_from(argument((offset - 16) / 8) & 0xffff_ffff).unwrap()
            }
            16..64 if offset.is_multiple_of(4) => {
                u32::try_from(argument((offset - 16) / 8) >> 32).unwrap()
            }
            other => panic!("load from {other}"),
        }
    }
}

/// Runs a program as the kernel does: `seccomp_check_filter` says what is in one. Gives the answer
/// and the number of instructions it took.
pub(super) fn run(program: &[libc::sock_filter], call: &Call) -> (u32, usize) {
    let (mut accumulator, mut at, mut taken) = (0_u32, 0_usize, 0_usize);
    loop {
        let libc::sock_filter { code, jt, jf, k } = program[at];
        at += 1;
        taken += 1;
        let jump = |holds: bool| usize::from(if holds { jt } else { jf });
        match code {
            0x20 => accumulator = call.word(k),
            0x05 => at += usize::try_from(k).unwrap(),
            0x15 => at += jump(accumulator == k),
            0x25 => at += jump(accumulator > k),
            0x35 => at += jump(accumulator >= k),
            0x45 => at += jump(accumulator & k != 0),
            0x54 => accumulator &= k,
            0x06 => return (k, taken),
            other => panic!("instruction {other:#x}"),
        }
    }
}

pub(super) fn answer(program: &Filter, call: Call) -> u32 {
    run(program.instructions(), &call).0
}

fn number(name: &str, abi: Abi) -> u32 {
    table::ROWS
        .iter()
        .find(|row| row.name == name)
        .and_then(|row| row.number(abi))
        .unwrap()
}

pub(super) fn abis() -> impl Iterator<Item = (Arch, u32, Abi, u32)> {
    EVERY_ARCH.into_iter().flat_map(|arch| {
        arch.numberings()
            .iter()
            .flat_map(move |(architecture, abis)| {
                abis.iter()
                    .map(move |(abi, bit)| (arch, *architecture, *abi, *bit))
            })
    })
}

#[test]
fn the_default_profile_gives_dockers_answers() {
    let filter = default_filter(DOCKER, Arch::X86_64);
    let ask = |name, first| {
        answer(
            &filter,
            Call::new(audit::X86_64, number(name, Abi::X86_64), first),
        )
    };
    let new_user_namespace = 0x1000_0000;
    let thread = 0x003d_0f00;
    for (name, argument, expected) in [
        ("read", 0, ALLOW),
        ("ptrace", 0, ALLOW),
        ("chroot", 0, ALLOW),
        ("mount", 0, REFUSED),
        ("unshare", 0, REFUSED),
        ("setns", 0, REFUSED),
        ("bpf", 0, REFUSED),
        ("clone", thread, ALLOW),
        ("clone", thread | new_user_namespace, REFUSED),
        ("clone3", 0, UNKNOWN),
        ("socket", 2, ALLOW),
        ("socket", 38, REFUSED),
        ("socket", 39, ALLOW),
        ("socket", 40, REFUSED),
        ("socket", 41, ALLOW),
        ("personality", 0xffff_ffff, ALLOW),
        ("personality", 0x0004_0000, REFUSED),
    ] {
        assert_eq!(ask(name, argument), expected, "{name}({argument:#x})");
    }
    // No row of their own: keyctl and add_key are refused, what is younger than the profile is
    // unknown.
    assert_eq!(answer(&filter, Call::new(audit::X86_64, 250, 0)), REFUSED);
    assert_eq!(answer(&filter, Call::new(audit::X86_64, 248, 0)), REFUSED);
    assert_eq!(answer(&filter, Call::new(audit::X86_64, 467, 0)), UNKNOWN);
    assert_eq!(
        answer(&filter, Call::new(audit::X86_64, u32::MAX, 0)),
        UNKNOWN
    );
    assert_eq!(
        answer(&filter, Call::new(audit::ARM, 3, 0)),
        libc::SECCOMP_RET_KILL_THREAD
    );
}

#[test]
fn capabilities_allow_their_calls() {
    for (name, bit) in [
        ("mount", 21),
        ("clone3", 21),
        ("bpf", 39),
        ("bpf", 21),
        ("kcmp", 19),
        ("reboot", 22),
        ("syslog", 34),
        ("mbind", 23),
    ] {
        for (arch, architecture, abi, x32) in abis() {
            let call = Call::new(architecture, number(name, abi) | x32, 0);
            assert_eq!(
                answer(&default_filter(1 << bit, arch), call),
                ALLOW,
                "{name} {abi:?}"
            );
            assert_ne!(
                answer(
                    &default_filter(ALL & !(1 << bit) & !SYS_ADMIN & !(1 << 39), arch),
                    call
                ),
                ALLOW,
                "{name} {abi:?}"
            );
        }
    }
    let namespaces = Call::new(audit::X86_64, number("clone", Abi::X86_64), 0x7e02_0000);
    assert_eq!(
        answer(&default_filter(SYS_ADMIN, Arch::X86_64), namespaces),
        ALLOW
    );
}

/// The kernel takes family and personality as 32 bits; the rest of the register is no way around
/// the filter.
#[test]
fn the_high_half_of_an_argument_is_ignored() {
    let filter = default_filter(DOCKER, Arch::X86_64);
    for (name, argument, expected) in [
        ("socket", 38, REFUSED),
        ("socket", 40, REFUSED),
        ("socket", 2, ALLOW),
        ("personality", 8, ALLOW),
        ("personality", 9, REFUSED),
    ] {
        for high in [0, 1, 0x8000_0000, 0xffff_ffff] {
            let call = Call::new(
                audit::X86_64,
                number(name, Abi::X86_64),
                high << 32 | argument,
            );
            assert_eq!(answer(&filter, call), expected, "{name} {high:#x}");
        }
    }
}

/// [`crate::init`] loads the filter while it still may, and has these calls to make after it.
#[test]
fn the_filter_allows_the_calls_after_loading() {
    for capabilities in [0, DOCKER, ALL] {
        for (arch, abi) in [(Arch::X86_64, Abi::X86_64), (Arch::Aarch64, Abi::Aarch64)] {
            let filter = default_filter(capabilities, arch);
            let architecture = arch.numberings()[0].0;
            for name in [
                "setresgid",
                "setresuid",
                "capset",
                "prctl",
                "sendto",
                "rt_sigaction",
                "rt_sigprocmask",
                "close_range",
                "execve",
                "exit_group",
                "close",
                "munmap",
                "brk",
                "write",
            ] {
                assert_eq!(
                    answer(&filter, Call::new(architecture, number(name, abi), 0)),
                    ALLOW,
                    "{name}"
                );
            }
        }
    }
}

/// Load time is the sum of the paths of all numbers, so both are promises.
#[test]
fn a_filter_has_few_instructions_and_short_paths() {
    for capabilities in [0, DOCKER, ALL] {
        for arch in EVERY_ARCH {
            let filter = default_filter(capabilities, arch);
            assert!(
                filter.instructions().len() <= 360,
                "{arch:?} {capabilities:#x}: {}",
                filter.instructions().len()
            );
            let numbers = (0..1000).chain(X32_BIT..X32_BIT + 1000);
            let calls = arch.numberings().iter().flat_map(|(architecture, _)| {
                numbers
                    .clone()
                    .map(|number| Call::new(*architecture, number, 41))
            });
            let longest = calls
                .map(|call| run(filter.instructions(), &call).1)
                .max()
                .unwrap();
            assert!(longest <= 16, "{arch:?} {capabilities:#x}: {longest}");
        }
    }
}

/// More ranges than a condition can jump over.
#[test]
fn jumps_beyond_255_instructions_reach_their_target() {
    let verdict = |number: u32| match number.wrapping_mul(0x9e37_79b9) >> 30 {
        0 => Verdict::Allow,
        1 => Verdict::Errno(Errno::PERM),
        2 => Verdict::Errno(Errno::NOSYS),
        _ => Verdict::Errno(Errno::INVAL),
    };
    for count in [0, 1, 2, 3, 255, 256, 257, 511, 1000, 1301] {
        let ranges: Vec<_> = (0..count)
            .map(|number| (number * 3, verdict(number)))
            .collect();
        let program =
            compile::program(vec![(audit::X86_64, ranges.clone()), (audit::I386, ranges)]);
        for number in 0..count {
            let expected = match verdict(number) {
                Verdict::Errno(number) => errno(number),
                _ => ALLOW,
            };
            for (architecture, offset) in [(audit::X86_64, 0), (audit::I386, 2)] {
                assert_eq!(
                    run(&program, &Call::new(architecture, number * 3 + offset, 0)).0,
                    expected
                );
            }
        }
    }
}

/// `#define __NR_name number` of a kernel header; x32's bit is left out.
fn header(path: &str) -> BTreeMap<String, u32> {
    let text = std::fs::read_to_string(path).unwrap();
    let mut numbers = BTreeMap::new();
    for line in text
        .lines()
        .filter_map(|line| line.strip_prefix("#define __NR"))
    {
        let mut words = line.split_whitespace();
        let (Some(name), Some(value)) = (words.next(), words.next_back()) else {
            continue;
        };
        let value = value.trim_end_matches(')');
        // asm-generic gives some calls a number by a name that says that 32 and 64 bits differ.
        let known = value
            .strip_prefix("__NR")
            .and_then(|name| numbers.get(name).copied());
        if let Some(number) = known.or_else(|| value.parse().ok()) {
            numbers.insert(name.to_owned(), number);
        }
    }
    numbers
        .into_iter()
        .filter_map(|(name, number)| Some((name.strip_prefix('_')?.to_owned(), number)))
        .collect()
}

#[test]
#[cfg(target_arch = "x86_64")]
fn system_call_numbers_match_the_kernel_headers() {
    let asm = "/usr/include/x86_64-linux-gnu/asm";
    for (abi, path) in [
        (Abi::X86_64, format!("{asm}/unistd_64.h")),
        (Abi::X32, format!("{asm}/unistd_x32.h")),
        (Abi::I386, format!("{asm}/unistd_32.h")),
        (Abi::Aarch64, "/usr/include/asm-generic/unistd.h".to_owned()),
    ] {
        let header = header(&path);
        // Calls that are younger than the installed headers have numbers above theirs, but for one
        // that took a gap.
        let calls = header
            .iter()
            .filter(|(name, number)| *name != "syscalls" && **number < 512);
        let newest = calls.map(|(_, number)| *number).max().unwrap();
        let mut compared = 0;
        for row in table::ROWS.iter().chain(unmentioned::ROWS) {
            let Some(number) = row.number(abi) else {
                // The generic header also has what only 32-bit machines have.
                assert!(
                    abi == Abi::Aarch64 || !header.contains_key(row.name),
                    "{abi:?} has {}",
                    row.name
                );
                continue;
            };
            match header.get(row.name) {
                Some(expected) => assert_eq!(number, *expected, "{abi:?} {}", row.name),
                None => assert!(
                    number > newest || row.name == "uretprobe",
                    "{abi:?} has no {}",
                    row.name
                ),
            }
            compared += u32::from(header.contains_key(row.name));
        }
        assert!(compared > 250, "{path}: {compared}");
    }
}
