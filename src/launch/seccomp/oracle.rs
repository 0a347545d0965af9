//! libseccomp as the judge: it makes a filter of the same names, and both are asked about every number.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::{Command, Stdio};

use super::tests::{ALL, Call, DOCKER, EVERY_ARCH, SYS_ADMIN, UNKNOWN, abis, answer, run};
use super::*;

/// What the oracle is to make a filter of: the rules by name, as they are for these capabilities.
fn policy(arch: Arch, capabilities: u64) -> String {
    let architectures = match arch {
        Arch::X86_64 => "x86_64 x32 x86",
        Arch::Aarch64 => "aarch64 arm",
    };
    let rules = table::ROWS.iter().flat_map(|row| {
        let name = row.name;
        match row.rule.verdict(capabilities) {
            Verdict::Allow => vec![format!("{name} allow")],
            Verdict::Errno(Errno::PERM) => vec![],
            Verdict::Errno(errno) => vec![format!("{name} errno {}", errno.raw_os_error())],
            Verdict::If(Condition::NoBits { argument, bits }) => {
                vec![format!("{name} nobits {argument} {bits}")]
            }
            Verdict::If(Condition::In { argument, allowed }) => allowed
                .iter()
                .map(|range| format!("{name} in {argument} {} {}", range.start(), range.end()))
                .collect(),
        }
    });
    std::iter::once(architectures.to_owned())
        .chain(rules)
        .collect::<Vec<_>>()
        .join("\n")
}

/// libseccomp's filter for a policy, and the names that it doesn't know; `None` if it isn't installed.
fn oracle(policy: &str) -> Option<(Vec<libc::sock_filter>, Vec<String>)> {
    let script = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../fixtures/seccomp-oracle.py"
    );
    // Debian's python3-seccomp belongs to Debian's Python, which need not be the first in PATH.
    let mut child = Command::new("/usr/bin/python3")
        .arg(script)
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

/// First arguments around every value that a condition names, and each single bit.
fn edges() -> Vec<u64> {
    let around = [
        0_u64,
        8,
        38,
        39,
        40,
        0x2_0000,
        0x2_0008,
        0x7e02_0000,
        0xffff_ffff,
    ];
    let near = around
        .into_iter()
        .flat_map(|value| [value.saturating_sub(1), value, (value + 1) & 0xffff_ffff]);
    near.chain((0..32).map(|bit| 1 << bit)).collect()
}

/// Every number and argument is answered as by the filter that libseccomp makes of the same names, conditions and errnos.
#[test]
fn libseccomp_makes_the_same_of_it() {
    let each = (0..41).map(|bit| 1 << bit);
    for capabilities in [0, DOCKER, ALL, ALL & !SYS_ADMIN].into_iter().chain(each) {
        for arch in EVERY_ARCH {
            let Some((theirs, unknown)) = oracle(&policy(arch, capabilities)) else {
                println!(
                    "python3-seccomp is not installed (fixtures/install-deps.sh test): nothing compared"
                );
                return;
            };
            // Those of Linux 6.8 and later, for the libseccomp of Debian 12.
            assert!(unknown.len() <= 12, "{unknown:?}");
            compare(arch, capabilities, &theirs, &unknown);
        }
    }
}

fn compare(arch: Arch, capabilities: u64, theirs: &[libc::sock_filter], unknown: &[String]) {
    let ours = default_filter(capabilities, arch);
    let edges = edges();
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
