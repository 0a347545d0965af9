//! Compiles ranges of system-call numbers to BPF: a binary search with verdicts as leaves.
//!
//! BPF jumps only lead forward, and a conditional jump at most 255 instructions far. So the program
//! is emitted from its end to its start: the target of a jump is always there already, and a target
//! out of reach gets an unconditional jump or a return of its own in between. Caller:
//! [`super::default_filter`].

use libc::sock_filter;

use super::custom::{Comparison, Test};
use super::{Condition, Verdict};

/// linux/bpf_common.h: class | size or operation | mode or operand.
pub(super) mod code {
    pub(super) const LOAD: u16 = 0x20; // LD | W | ABS
    pub(super) const JUMP: u16 = 0x05; // JMP | JA
    pub(in crate::seccomp) const IF_EQUAL: u16 = 0x15; // JMP | JEQ | K
    pub(in crate::seccomp) const IF_AT_LEAST: u16 = 0x35; // JMP | JGE | K
    pub(in crate::seccomp) const IF_ABOVE: u16 = 0x25; // JMP | JGT | K
    pub(super) const IF_ANY_BIT: u16 = 0x45; // JMP | JSET | K
    pub(super) const AND: u16 = 0x54; // ALU | AND | K
    pub(super) const RETURN: u16 = 0x06; // RET | K
}

// struct seccomp_data of linux/seccomp.h.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;

/// Low half of an argument, on a little-endian machine.
const fn argument_low(argument: u8) -> u32 {
    16 + 8 * argument as u32
}

/// Low and high half.
const fn halves(value: u64) -> [u32; 2] {
    #[expect(clippy::cast_possible_truncation, reason = "each half has 32 bits")]
    [value as u32, (value >> 32) as u32]
}

const REFUSED: Verdict<'static> = Verdict::Errno(rustix::io::Errno::PERM);

/// The target of a jump.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Target {
    /// A return of this value (`SECCOMP_RET_*`), wherever it is.
    Return(u32),
    /// The instruction at this position, counted from the end.
    At(u32),
}

#[derive(Default)]
struct ReverseEmitter {
    /// Last instruction first.
    code: Vec<sock_filter>,
    length: u32,
    /// Position of the latest return of each value.
    returns: Vec<(u32, u32)>,
}

/// Compiles the [ranges](super::ranges) of each architecture (`AUDIT_ARCH_*`). A call from any
/// other is fatal, as with libseccomp.
pub(super) fn program(architectures: Vec<(u32, Vec<(u32, Verdict<'_>)>)>) -> Vec<sock_filter> {
    let mut code = ReverseEmitter::default();
    let mut next = Target::Return(libc::SECCOMP_RET_KILL_THREAD);
    for (architecture, ranges) in architectures.into_iter().rev() {
        let tree = code.tree(&ranges);
        let search = code.load(NUMBER, tree);
        next = code.branch(code::IF_EQUAL, architecture, search, next);
    }
    code.load(ARCHITECTURE, next);
    code.code.reverse();
    code.code
}

impl ReverseEmitter {
    /// Emits a search for the range that holds the loaded value. Values below the first range count
    /// to it.
    fn tree(&mut self, ranges: &[(u32, Verdict<'_>)]) -> Target {
        let (low, high) = ranges.split_at(ranges.len() / 2);
        match high.first() {
            None => self.verdict(REFUSED),
            Some((_, verdict)) if low.is_empty() => self.verdict(*verdict),
            Some((middle, _)) => {
                let above = self.tree(high);
                let below = self.tree(low);
                self.branch(code::IF_AT_LEAST, *middle, above, below)
            }
        }
    }

    fn verdict(&mut self, verdict: Verdict<'_>) -> Target {
        match verdict {
            Verdict::Allow => Target::Return(libc::SECCOMP_RET_ALLOW),
            Verdict::Errno(errno) => {
                Target::Return(libc::SECCOMP_RET_ERRNO | errno.raw_os_error().cast_unsigned())
            }
            Verdict::If(condition) => self.condition(condition),
            Verdict::Return(value) => Target::Return(value),
            Verdict::First(rules) => {
                let otherwise = Target::Return(rules.otherwise);
                rules.list.iter().rev().fold(otherwise, |next, rule| {
                    let answer = Target::Return(rule.answer);
                    let tests = rule.tests.iter().rev();
                    tests.fold(answer, |then, test| {
                        self.test(*test, rules.wide, then, next)
                    })
                })
            }
        }
    }

    /// Emits a test of all 64 bits of an argument, or of the lower half alone.
    fn test(&mut self, test: Test, wide: bool, yes: Target, no: Target) -> Target {
        let Comparison {
            operation,
            mask,
            value,
            negated,
        } = test.comparison();
        let (yes, no) = if negated { (no, yes) } else { (yes, no) };
        let [low_mask, high_mask] = halves(mask);
        let [low_value, high_value] = halves(value);
        let low = self.branch(operation, low_value, yes, no);
        let low = self.load_masked(argument_low(test.argument), low_mask, low);
        if !wide || (high_mask == 0 && high_value == 0) {
            return low;
        }
        // The high halves decide unless they are equal.
        let differ = if operation == code::IF_EQUAL {
            no
        } else {
            self.branch(code::IF_ABOVE, high_value, yes, no)
        };
        let equal = self.branch(code::IF_EQUAL, high_value, low, differ);
        self.load_masked(argument_low(test.argument) + 4, high_mask, equal)
    }

    fn load_masked(&mut self, offset: u32, mask: u32, then: Target) -> Target {
        if mask == u32::MAX {
            return self.load(offset, then);
        }
        self.continue_at(then);
        let and = self.push(code::AND, mask, 0, 0);
        self.load(offset, and)
    }

    fn condition(&mut self, condition: &Condition) -> Target {
        let (argument, test) = match condition {
            Condition::In { argument, allowed } => {
                let mut ranges = Vec::new();
                let mut next = Some(0);
                for range in *allowed {
                    ranges.extend(
                        next.filter(|next| next != range.start())
                            .map(|next| (next, REFUSED)),
                    );
                    ranges.push((*range.start(), Verdict::Allow));
                    next = range.end().checked_add(1);
                }
                ranges.extend(next.map(|next| (next, REFUSED)));
                (*argument, self.tree(&ranges))
            }
            Condition::NoBits { argument, bits } => {
                let (refused, allowed) = (self.verdict(REFUSED), self.verdict(Verdict::Allow));
                (
                    *argument,
                    self.branch(code::IF_ANY_BIT, *bits, refused, allowed),
                )
            }
        };
        self.load(argument_low(argument), test)
    }

    fn load(&mut self, offset: u32, then: Target) -> Target {
        self.continue_at(then);
        self.push(code::LOAD, offset, 0, 0)
    }

    /// Sees to it that the target follows the next instruction.
    fn continue_at(&mut self, target: Target) {
        if self.distance(target) != Some(0) {
            self.step(target);
        }
    }

    fn branch(&mut self, operation: u16, value: u32, yes: Target, no: Target) -> Target {
        if yes == no {
            return yes;
        }
        let (no, _) = self.reach(no, 1);
        let (yes, stepped) = self.reach(yes, 0);
        self.push(operation, value, yes, no + u8::from(stepped))
    }

    /// Offset to the target from the next instruction, with room for `spare` more; true if a jump
    /// had to be emitted in between.
    fn reach(&mut self, target: Target, spare: u8) -> (u8, bool) {
        let offset = self
            .distance(target)
            .and_then(|distance| u8::try_from(distance).ok());
        if let Some(offset) = offset.filter(|offset| offset.checked_add(spare).is_some()) {
            return (offset, false);
        }
        self.step(target);
        (0, true)
    }

    /// Instructions between the next one and the target.
    fn distance(&self, target: Target) -> Option<u32> {
        let position = match target {
            Target::At(position) => Some(position),
            Target::Return(value) => self
                .returns
                .iter()
                .find(|(returned, _)| *returned == value)
                .map(|(_, position)| *position),
        };
        position.map(|position| self.length - 1 - position)
    }

    /// Emits an unconditional jump, or a return, to the target.
    fn step(&mut self, target: Target) {
        match target {
            Target::At(position) => {
                self.push(code::JUMP, self.length - 1 - position, 0, 0);
            }
            Target::Return(value) => {
                self.returns.retain(|(returned, _)| *returned != value);
                self.returns.push((value, self.length));
                self.push(code::RETURN, value, 0, 0);
            }
        }
    }

    fn push(&mut self, code: u16, k: u32, jt: u8, jf: u8) -> Target {
        self.code.push(sock_filter { code, jt, jf, k });
        self.length += 1;
        Target::At(self.length - 1)
    }
}
