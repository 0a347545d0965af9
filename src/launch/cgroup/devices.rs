//! The devices that a container may open: Docker's list, for version 1 and version 2.
//!
//! A container may create any node (`mknod`), since images and package managers do, but open only
//! devices that hold nothing of the host.

use crate::sandbox::DeviceRule;
use crate::sys::bpf::Instruction;

const fn creatable(block: bool) -> DeviceRule {
    DeviceRule {
        block: Some(block),
        read: false,
        write: false,
        ..DeviceRule::ALL
    }
}

const fn character(major: u32, minor: Option<u32>) -> DeviceRule {
    DeviceRule {
        block: Some(false),
        major: Some(major),
        minor,
        ..DeviceRule::ALL
    }
}

/// moby, `oci/defaults.go`, and runc's own for terminals (numbers: admin-guide/devices.txt).
const RULES: [DeviceRule; 11] = [
    creatable(false),
    creatable(true),
    character(1, Some(3)), // null
    character(1, Some(5)), // zero
    character(1, Some(7)), // full
    character(1, Some(8)), // random
    character(1, Some(9)), // urandom
    character(5, Some(0)), // tty
    character(5, Some(1)), // console
    character(5, Some(2)), // ptmx
    character(136, None),  // terminals of devpts
];

fn rules(further: &[DeviceRule]) -> impl Iterator<Item = &DeviceRule> {
    RULES.iter().chain(further)
}

/// Lines for `devices.allow` of version 1, after `devices.deny` got `a`.
pub(super) fn legacy_lines(further: &[DeviceRule]) -> impl Iterator<Item = String> {
    let number =
        |number: Option<u32>| number.map_or_else(|| "*".to_owned(), |number| number.to_string());
    rules(further).flat_map(move |rule| {
        let access: String = [(rule.read, 'r'), (rule.write, 'w'), (rule.create, 'm')]
            .into_iter()
            .filter_map(|(allowed, letter)| allowed.then_some(letter))
            .collect();
        let kinds = match rule.block {
            Some(true) => "b",
            Some(false) => "c",
            None => "cb",
        };
        let numbers = format!("{}:{}", number(rule.major), number(rule.minor));
        let line = move |kind| format!("{kind} {numbers} {access}");
        kinds.chars().map(line).collect::<Vec<_>>()
    })
}

// linux/bpf.h and linux/bpf_common.h: class | size or operation | source.
const LOAD_WORD: u8 = 0x61; // LDX | W | MEM
const AND: u8 = 0x54; // ALU | AND | K
const SHIFT_RIGHT: u8 = 0x74; // ALU | RSH | K
const COPY: u8 = 0xbc; // ALU | MOV | X
const SET: u8 = 0xb4; // ALU | MOV | K
const JUMP_IF_NOT: u8 = 0x55; // JMP | JNE | K
const RETURN: u8 = 0x95; // JMP | EXIT

// struct bpf_cgroup_dev_ctx: access in the upper and type in the lower half of the first word, then
// major and minor.
const TYPE_BLOCK: i32 = 1;
const TYPE_CHARACTER: i32 = 2;
const ACCESS_MKNOD: i32 = 1;
const ACCESS_READ: i32 = 2;
const ACCESS_WRITE: i32 = 4;

const fn instruction(code: u8, registers: u8, offset: i16, constant: i32) -> Instruction {
    Instruction {
        code,
        registers,
        offset,
        constant,
    }
}

/// The same rules as a BPF program for version 2, which returns 1 to allow.
pub(super) fn filter(further: &[DeviceRule]) -> Vec<Instruction> {
    // r2 = type, r3 = access, r4 = major, r5 = minor
    let mut program = vec![
        instruction(LOAD_WORD, 0x12, 0, 0),
        instruction(COPY, 0x23, 0, 0),
        instruction(AND, 0x02, 0, 0xffff),
        instruction(SHIFT_RIGHT, 0x03, 0, 16),
        instruction(LOAD_WORD, 0x14, 4, 0),
        instruction(LOAD_WORD, 0x15, 8, 0),
    ];
    for rule in rules(further) {
        let granted = [
            (rule.create, ACCESS_MKNOD),
            (rule.read, ACCESS_READ),
            (rule.write, ACCESS_WRITE),
        ]
        .into_iter()
        .filter(|(granted, _)| *granted)
        .fold(0, |mask, (_, bit)| mask | bit);
        // r1 = what is asked for and not granted
        program.extend([
            instruction(COPY, 0x31, 0, 0),
            instruction(AND, 0x01, 0, !granted),
        ]);
        let mut tests = vec![(0x01, 0)];
        tests.extend(rule.block.map(|block| {
            let kind = if block { TYPE_BLOCK } else { TYPE_CHARACTER };
            (0x02, kind)
        }));
        tests.extend(rule.major.map(|major| (0x04, major.cast_signed())));
        tests.extend(rule.minor.map(|minor| (0x05, minor.cast_signed())));
        // A failed test jumps over the other tests and the two instructions that allow.
        let after = (2..).take(tests.len()).collect::<Vec<i16>>();
        for ((register, value), offset) in tests.iter().zip(after.iter().rev()) {
            program.push(instruction(JUMP_IF_NOT, *register, *offset, *value));
        }
        program.extend([instruction(SET, 0, 0, 1), instruction(RETURN, 0, 0, 0)]);
    }
    program.extend([instruction(SET, 0, 0, 0), instruction(RETURN, 0, 0, 0)]);
    program
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Interprets the few instructions that the filter uses, as the kernel does.
    fn allows(access: u32, kind: u32, major: u32, minor: u32) -> bool {
        allows_with(&[], access, [kind, major, minor])
    }

    fn allows_with(further: &[DeviceRule], access: u32, device: [u32; 3]) -> bool {
        let [kind, major, minor] = device;
        let program = filter(further);
        let context = [(access << 16) | kind, major, minor];
        let mut registers = [0_u32; 11];
        let mut at = 0;
        loop {
            let step = program[at];
            let (to, from) = (
                usize::from(step.registers & 15),
                usize::from(step.registers >> 4),
            );
            let constant = step.constant.cast_unsigned();
            at += 1;
            match step.code {
                LOAD_WORD => registers[to] = context[usize::try_from(step.offset).unwrap() / 4],
                COPY => registers[to] = registers[from],
                SET => registers[to] = constant,
                AND => registers[to] &= constant,
                SHIFT_RIGHT => registers[to] >>= constant,
                JUMP_IF_NOT if registers[to] != constant => {
                    at += usize::try_from(step.offset).unwrap();
                }
                JUMP_IF_NOT => {}
                RETURN => return registers[0] == 1,
                other => panic!("{other:#x}"),
            }
        }
    }

    #[test]
    fn the_version_2_filter_allows_what_the_version_1_lines_allow() {
        let (mknod, read, write) = (1, 2, 4);
        let (block, character) = (1, 2);
        assert!(allows(read | write, character, 1, 3));
        assert!(allows(read, character, 136, 77));
        assert!(allows(mknod, block, 8, 0));
        assert!(allows(mknod, character, 10, 229));
        assert!(!allows(read, block, 8, 0));
        assert!(!allows(mknod | read, block, 8, 0));
        assert!(!allows(write, character, 1, 1));
        assert!(!allows(read, character, 10, 229));
        assert!(!allows(read, block, 1, 3));
        assert_eq!(
            legacy_lines(&[]).collect::<Vec<_>>(),
            [
                "c *:* m",
                "b *:* m",
                "c 1:3 rwm",
                "c 1:5 rwm",
                "c 1:7 rwm",
                "c 1:8 rwm",
                "c 1:9 rwm",
                "c 5:0 rwm",
                "c 5:1 rwm",
                "c 5:2 rwm",
                "c 136:* rwm"
            ]
        );
    }

    #[test]
    fn further_rules_allow_what_they_name() {
        let (mknod, read, write) = (1, 2, 4);
        let fuse = DeviceRule {
            block: Some(false),
            major: Some(10),
            minor: Some(229),
            write: false,
            ..DeviceRule::ALL
        };
        assert!(allows_with(&[fuse], read | mknod, [2, 10, 229]));
        assert!(!allows_with(&[fuse], write, [2, 10, 229]));
        assert!(!allows_with(&[fuse], read, [2, 10, 228]));
        assert!(!allows_with(&[fuse], read, [1, 10, 229]));
        assert!(allows_with(
            &[DeviceRule::ALL],
            read | write | mknod,
            [1, 8, 0]
        ));
        let lines = |rules: &[DeviceRule]| legacy_lines(rules).skip(11).collect::<Vec<_>>();
        assert_eq!(lines(&[fuse]), ["c 10:229 rm"]);
        assert_eq!(lines(&[DeviceRule::ALL]), ["c *:* rwm", "b *:* rwm"]);
    }
}
