//! libseccomp as the judge: it makes a filter of the published profile, and both are asked about
//! every number.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::{Command, Stdio};

use cowl_tests::skip::skip;

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

/// libseccomp's filter for a policy, and the names that it doesn't know; `None` if it isn't
/// installed.
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
