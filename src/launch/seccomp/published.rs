//! Docker's default profile as its authors publish it: names and conditions, as data in
//! `fixtures/seccomp`. The table of this module was written by hand, so it is compared with these
//! and never with itself.

use std::collections::BTreeMap;

use super::tests::{ALL, Call, DOCKER, EVERY_ARCH, abis, answer};
use super::*;

/// How a rule looks at an argument.
#[derive(Clone, Copy, Debug)]
pub(super) enum Test {
    Equal(u32),
    Below(u32),
    Above(u32),
    NoBits(u32),
}

impl Test {
    fn holds(self, argument: u64) -> bool {
        let argument = u32::try_from(argument & 0xffff_ffff).unwrap();
        match self {
            Self::Equal(value) => argument == value,
            Self::Below(value) => argument < value,
            Self::Above(value) => argument > value,
            Self::NoBits(bits) => argument & bits == 0,
        }
    }
}

/// One rule that holds for an architecture and a set of capabilities.
#[derive(Debug)]
pub(super) struct Rule {
    pub(super) name: &'static str,
    /// `None` allows the call.
    pub(super) errno: Option<u32>,
    /// What the first argument must be.
    pub(super) argument: Option<Test>,
}

/// Bits of linux/capability.h, by their names in the profile.
const CAPABILITIES: [(&str, u32); 14] = [
    ("dac_read_search", 2),
    ("sys_module", 16),
    ("sys_rawio", 17),
    ("sys_chroot", 18),
    ("sys_ptrace", 19),
    ("sys_pacct", 20),
    ("sys_admin", 21),
    ("sys_boot", 22),
    ("sys_nice", 23),
    ("sys_time", 25),
    ("sys_tty_config", 26),
    ("syslog", 34),
    ("perfmon", 38),
    ("bpf", 39),
];

fn has(capabilities: u64, name: &str) -> bool {
    let (_, bit) = CAPABILITIES
        .iter()
        .find(|(known, _)| *known == name)
        .unwrap_or_else(|| panic!("capability {name}"));
    capabilities & (1 << bit) != 0
}

/// The rules that hold there, in the profile's order.
pub(super) fn rules(arch: Arch, capabilities: u64) -> Vec<Rule> {
    let text = include_str!("../../../fixtures/seccomp/moby-default.txt");
    let rules = text
        .lines()
        .filter(|line| line.starts_with("allow ") || line.starts_with("errno "));
    rules
        .filter_map(|line| parse(line, arch, capabilities))
        .collect()
}

fn parse(line: &'static str, arch: Arch, capabilities: u64) -> Option<Rule> {
    let arch = match arch {
        Arch::X86_64 => "amd64",
        Arch::Aarch64 => "arm64",
    };
    let mut words = line.split(' ');
    let errno = match words.next() {
        Some("errno") => Some(words.next().unwrap().parse().unwrap()),
        _ => None,
    };
    let mut rule = Rule {
        name: words.next().unwrap(),
        errno,
        argument: None,
    };
    while let Some(word) = words.next() {
        let value = words.next().unwrap();
        match word {
            "arg" => {
                let (operator, number) = (words.next().unwrap(), words.next().unwrap());
                let number = number.parse().unwrap();
                rule.argument = Some(match (value, operator) {
                    ("0", "eq") => Test::Equal(number),
                    ("0", "lt") => Test::Below(number),
                    ("0", "gt") => Test::Above(number),
                    ("0", "clear") => Test::NoBits(number),
                    // The order of clone's arguments on s390, where this is no rule of ours.
                    ("1", "clear") => continue,
                    _ => panic!("{line}"),
                });
            }
            "caps" if !has(capabilities, value) => return None,
            "without" if has(capabilities, value) => return None,
            "arches" if !value.split(',').any(|one| one == arch) => return None,
            "not-arches" if value.split(',').any(|one| one == arch) => return None,
            // The launcher needs a later kernel than any that a rule asks for.
            "kernel" => assert_eq!(value, "4.8"),
            "caps" | "without" | "arches" | "not-arches" => {}
            _ => panic!("{line}"),
        }
    }
    Some(rule)
}

/// What the rules of one name answer to a call, as the return value of a filter.
fn published(rules: &[Rule], argument: u64) -> u32 {
    let mut answer = 0x0005_0000 | 1;
    for rule in rules {
        if rule.argument.is_none_or(|test| test.holds(argument)) {
            match rule.errno {
                None => return 0x7fff_0000,
                Some(errno) => answer = 0x0005_0000 | errno,
            }
        }
    }
    answer
}

/// Values around every one that a rule compares with, and each single bit.
pub(super) fn edges(arch: Arch) -> Vec<u64> {
    let rules = rules(arch, 0);
    let values = rules.iter().filter_map(|rule| match rule.argument? {
        Test::Equal(value) | Test::Below(value) | Test::Above(value) | Test::NoBits(value) => {
            Some(u64::from(value))
        }
    });
    let near = values.flat_map(|value| [value.saturating_sub(1), value, (value + 1) & 0xffff_ffff]);
    let bits = (0..32).map(|bit| 1 << bit);
    near.chain(bits).collect()
}

/// Nothing, everything, Docker's, each one alone and each one missing.
pub(super) fn capability_sets() -> impl Iterator<Item = u64> {
    let each = (0..41).map(|bit| 1 << bit);
    [0, DOCKER, ALL]
        .into_iter()
        .chain(each.clone())
        .chain(each.map(|bit| ALL & !bit))
}

#[test]
fn default_filter_answers_as_the_published_profile() {
    for capabilities in capability_sets() {
        for arch in EVERY_ARCH {
            let filter = default_filter(capabilities, arch);
            let mut by_name = BTreeMap::<&str, Vec<Rule>>::new();
            for rule in rules(arch, capabilities) {
                by_name.entry(rule.name).or_default().push(rule);
            }
            let edges = edges(arch);
            for row in table::ROWS {
                let rules = by_name.get(row.name).map_or(&[][..], Vec::as_slice);
                let conditional = rules.iter().any(|rule| rule.argument.is_some());
                let numbers = abis().filter(|(of, ..)| *of == arch);
                for (_, architecture, abi, bit) in numbers {
                    let Some(number) = row.number(abi) else {
                        continue;
                    };
                    for &argument in if conditional { &edges } else { &edges[..1] } {
                        let call = Call::new(architecture, number | bit, argument);
                        assert_eq!(
                            answer(&filter, call),
                            published(rules, argument),
                            "{abi:?} {}({argument:#x}) with {capabilities:#x}",
                            row.name
                        );
                    }
                }
            }
        }
    }
}

/// Calls of the profile that no machine of ours has; any other name must have a row.
const ELSEWHERE: [&str; 1] = ["riscv_hwprobe"];

#[test]
fn table_has_a_row_for_every_published_name() {
    for arch in EVERY_ARCH {
        let missing: Vec<_> = rules(arch, ALL)
            .iter()
            .map(|rule| rule.name)
            .filter(|name| !table::ROWS.iter().any(|row| row.name == *name))
            .collect();
        assert_eq!(missing, ELSEWHERE, "{arch:?}");
    }
}
