//! libseccomp as the judge: it makes a filter of the published profile, and both are asked about
//! every number.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::{Command, Stdio};

use cowl_tests::random::Random;
use cowl_tests::sample;
use cowl_tests::skip::skip;

use super::custom::{Action, Operator, Profile, Rule, Test as Compared};
use super::published::Test;
use super::tests::{ALL, Call, DOCKER, EVERY_ARCH, SYS_ADMIN, UNKNOWN, abis, answer, run};
use super::*;

/// What libseccomp is to make a filter of: the published rules that hold for these capabilities.
fn policy(arch: Arch, capabilities: u64) -> String {
    let architectures = match arch {
        Arch::X86_64 => "x86_64 x32 x86",
        Arch::Aarch64 => "aarch64 arm",
    };
    let rules = published::rules(arch, capabilities)
        .into_iter()
        .map(|rule| {
            let name = rule.name;
            match (rule.errno, rule.argument) {
                (Some(errno), _) => format!("{name} errno {errno}"),
                (None, None) => format!("{name} allow"),
                (None, Some(Test::Equal(value))) => format!("{name} in 0 {value} {value}"),
                (None, Some(Test::Below(value))) => format!("{name} in 0 0 {}", value - 1),
                (None, Some(Test::Above(value))) => {
                    format!("{name} in 0 {} {}", value + 1, u32::MAX)
                }
                (None, Some(Test::NoBits(bits))) => format!("{name} nobits 0 {bits}"),
            }
        });
    std::iter::once(architectures.to_owned())
        .chain(rules)
        .collect::<Vec<_>>()
        .join("\n")
}

const SCRIPT: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../fixtures/seccomp-oracle.py"
);

/// libseccomp's filter for a policy, and the names that it doesn't know; `None` if it isn't
/// installed.
fn oracle(policy: &str) -> Option<(Vec<libc::sock_filter>, Vec<String>)> {
    // Debian's python3-seccomp belongs to Debian's Python, which need not be the first in PATH.
    let mut child = Command::new("/usr/bin/python3")
        .arg(SCRIPT)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .ok()?;
    child
        .stdin
        .take()
        .unwrap()
        .write_all(policy.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    if output.status.code() == Some(77) {
        return None;
    }
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    let (unknown, instructions) = text.split_once('\n').unwrap();
    let parse = |line: &str| {
        let [code, jt, jf, k] = <[u32; 4]>::try_from(
            line.split(' ')
                .map(|word| word.parse().unwrap())
                .collect::<Vec<_>>(),
        )
        .unwrap();
        libc::sock_filter {
            code: code.try_into().unwrap(),
            jt: jt.try_into().unwrap(),
            jf: jf.try_into().unwrap(),
            k,
        }
    };
    Some((
        instructions.lines().map(parse).collect(),
        unknown.split_whitespace().map(str::to_owned).collect(),
    ))
}

/// Every number and argument is answered as by the filter that libseccomp makes of the published
/// names, conditions and errnos.
#[test]
fn default_filter_answers_as_libseccomps_of_the_published_profile() {
    let each = (0..41).map(|bit| 1 << bit);
    for capabilities in [0, DOCKER, ALL, ALL & !SYS_ADMIN].into_iter().chain(each) {
        for arch in EVERY_ARCH {
            let Some((theirs, unknown)) = oracle(&policy(arch, capabilities)) else {
                return skip("python3-seccomp is not installed (fixtures/install-deps.sh test)");
            };
            // Those of Linux 6.8 and later, for the libseccomp of Debian 12.
            assert!(unknown.len() <= 12, "{unknown:?}");
            compare(arch, capabilities, &theirs, &unknown);
        }
    }
}

fn compare(arch: Arch, capabilities: u64, theirs: &[libc::sock_filter], unknown: &[String]) {
    let ours = default_filter(capabilities, arch);
    let edges = published::edges(arch);
    for (_, architecture, abi, bit) in abis().filter(|(of, ..)| *of == arch) {
        let named: BTreeMap<u32, &str> = table::ROWS
            .iter()
            .filter_map(|row| Some((row.number(abi)?, row.name)))
            .collect();
        let newest = *named
            .keys()
            .rfind(|number| **number < FIRST_PRIVATE)
            .unwrap();
        let extremes = [
            0xf_0000,
            0xf_0001,
            0xf_0002,
            0xf_0003,
            0xf_0004,
            0xf_0005,
            0xf_0006,
            0xf_ffff,
            0x10_0000,
            0x3fff_ffff,
        ];
        for number in (0..1100).chain(extremes) {
            let name = named.get(&number).copied();
            if name.is_some_and(|name| unknown.iter().any(|unknown| unknown == name)) {
                continue;
            }
            // libseccomp has no notion of a call that is younger than its rules.
            let private = abi
                .private()
                .is_some_and(|private| private.contains(&number));
            let arguments = if matches!(name, Some("socket" | "clone" | "personality")) {
                edges.as_slice()
            } else {
                &[0, 38]
            };
            for argument in arguments {
                let call = Call::new(architecture, number | bit, *argument);
                let expected = if number > newest && !private {
                    UNKNOWN
                } else {
                    run(theirs, &call).0
                };
                assert_eq!(
                    answer(&ours, call),
                    expected,
                    "{abi:?} {number} {name:?}({argument:#x}) with {capabilities:#x}"
                );
            }
        }
    }
}

/// With their names in the script.
const ACTIONS: [(Action, &str); 9] = [
    (Action::Allow, "allow"),
    (Action::Log, "log"),
    (Action::Errno(1), "errno1"),
    (Action::Errno(5), "errno5"),
    (Action::Errno(38), "errno38"),
    (Action::Trace(7), "trace7"),
    (Action::Trap, "trap"),
    (Action::KillThread, "kill"),
    (Action::KillProcess, "kill_process"),
];

const OPERATORS: [(Operator, &str); 7] = [
    (Operator::NotEqual, "NE"),
    (Operator::Less, "LT"),
    (Operator::LessOrEqual, "LE"),
    (Operator::Equal, "EQ"),
    (Operator::GreaterOrEqual, "GE"),
    (Operator::Greater, "GT"),
    (Operator::MaskedEqual, "MASKED_EQ"),
];

/// Arguments with a difference in each half.
const VALUES: [u64; 9] = [
    0,
    1,
    38,
    0x7fff_ffff,
    0xffff_ffff,
    0x1_0000_0000,
    0x26_0000_0026,
    0x7e02_0000_0000_0001,
    u64::MAX,
];

/// A profile, and what libseccomp is to make of it.
fn random_profile(random: &mut Random, arch: Arch) -> (Profile, String) {
    let (default, default_name) = random.pick(&ACTIONS);
    let others: &[(&str, &str)] = match arch {
        Arch::X86_64 => &[("X32", "x32"), ("X86", "x86")],
        Arch::Aarch64 => &[("ARM", "arm")],
    };
    let mut lines = vec![format!("default {default_name}")];
    let mut architectures = Vec::new();
    let mut words = vec![match arch {
        Arch::X86_64 => "x86_64",
        Arch::Aarch64 => "aarch64",
    }];
    for (name, word) in others {
        if random.below(2) == 0 {
            architectures.push(format!("SCMP_ARCH_{name}"));
            words.push(word);
        }
    }
    lines.push(words.join(" "));
    // The second name of a number of Arm's, which Debian 12's libseccomp does not know, and calls
    // that others are operations of: for rules that overlap it has an order of its own.
    let is_one = |name: &&str| !matches!(*name, "sync_file_range2" | "socketcall" | "ipc");
    let names: Vec<&str> = table::ROWS
        .iter()
        .chain(unmentioned::ROWS)
        .map(|row| row.name)
        .filter(is_one)
        .filter(|_| random.below(8) == 0)
        .collect();
    let rules = names.iter().map(|name| {
        let (action, word) = random.pick(&ACTIONS);
        let mut line = vec![format!("{name} when {word}")];
        let mut tests = Vec::new();
        for argument in 0..random.below(3) {
            let (operator, word) = random.pick(&OPERATORS);
            let value = random.pick(&VALUES);
            let value_two = random.pick(&VALUES) & value;
            line.push(format!("{argument} {word} {value} {value_two}"));
            tests.push(Compared {
                argument: argument.try_into().unwrap(),
                operator,
                value,
                value_two,
            });
        }
        // runc leaves it out, and libseccomp refuses it.
        if action != default {
            lines.push(line.join(" "));
        }
        Rule {
            names: vec![(*name).to_owned()],
            action,
            tests,
        }
    });
    let profile = Profile {
        default,
        rules: rules.collect(),
        architectures,
        flags: None,
    };
    (profile, lines.join("\n"))
}

/// `-S` is a Python without Debian's packages. The data in `fixtures/seccomp`, beside the script,
/// is not taken for one.
#[test]
fn status_77_says_that_python3_seccomp_is_missing() {
    let status = Command::new("/usr/bin/python3")
        .args(["-S", SCRIPT])
        .stdin(Stdio::null())
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(77));
}

/// Random profiles, on every number and on arguments around those that they compare with.
#[test]
fn profile_compile_answers_as_libseccomp() {
    for point in sample::seeds(12) {
        let mut random = Random::new(point.number());
        for arch in EVERY_ARCH {
            let (profile, policy) = random_profile(&mut random, arch);
            let Some((theirs, unknown)) = oracle(&policy) else {
                return skip("python3-seccomp is not installed (fixtures/install-deps.sh test)");
            };
            let ours = profile.filter(arch).unwrap();
            for (_, architecture, abi, bit) in abis().filter(|(of, ..)| *of == arch) {
                compare_profile(&profile, &ours, &theirs, &unknown, (architecture, abi, bit));
            }
        }
    }
}

fn compare_profile(
    profile: &Profile,
    ours: &Filter,
    theirs: &[libc::sock_filter],
    unknown: &[String],
    (architecture, abi, bit): (u32, Abi, u32),
) {
    let is_open = match abi {
        Abi::X86_64 | Abi::Aarch64 => true,
        Abi::X32 => profile
            .architectures
            .iter()
            .any(|name| name == "SCMP_ARCH_X32"),
        Abi::I386 => profile
            .architectures
            .iter()
            .any(|name| name == "SCMP_ARCH_X86"),
        Abi::Arm => profile
            .architectures
            .iter()
            .any(|name| name == "SCMP_ARCH_ARM"),
    };
    let named: BTreeMap<u32, &str> = table::ROWS
        .iter()
        .chain(unmentioned::ROWS)
        .filter_map(|row| Some((row.number(abi)?, row.name)))
        .collect();
    let has_rule = |name: &str| {
        profile
            .rules
            .iter()
            .any(|rule| rule.names.iter().any(|one| one == name))
    };
    let newest = named
        .iter()
        .filter(|(number, name)| **number < FIRST_PRIVATE && has_rule(name))
        .map(|(number, _)| *number)
        .max()
        .unwrap();
    let hides = !matches!(
        profile.default,
        Action::Allow | Action::Log | Action::Trace(_) | Action::Errno(38)
    );
    for number in (0..600).chain([0xf_0001, 0xf_0005, 0x3fff_ffff]) {
        let name = named.get(&number).copied();
        if name.is_some_and(|name| unknown.iter().any(|unknown| unknown == name)) {
            continue;
        }
        let private = abi
            .private()
            .is_some_and(|private| private.contains(&number));
        for value in VALUES {
            for edge in [value.wrapping_sub(1), value, value.wrapping_add(1)] {
                let mut call = Call::new(architecture, number | bit, edge);
                call.second(edge.rotate_left(7));
                // libseccomp has no notion of a call that is younger than its rules.
                let expected = if is_open && hides && number > newest && !private {
                    UNKNOWN
                } else {
                    run(theirs, &call).0
                };
                assert_eq!(
                    answer(ours, call),
                    expected,
                    "{abi:?} {number} {name:?}({edge:#x})"
                );
            }
        }
    }
}
