//! Compiles ranges of system-call numbers to BPF: a binary search with verdicts as leaves.
//!
//! BPF jumps only lead forward, and a conditional jump at most 255 instructions far. So the program
//! is emitted from its end to its start: the target of a jump is always there already, and a target
//! out of reach gets an unconditional jump or a return of its own in between. Caller:
//! [`super::default_filter`].

use libc::sock_filter;

use super::{Condition, Verdict};

/// linux/bpf_common.h: class | size or operation | mode or operand.
mod code {
    pub(super) const LOAD: u16 = 0x20; // LD | W | ABS
    pub(super) const JUMP: u16 = 0x05; // JMP | JA
    pub(super) const IF_EQUAL: u16 = 0x15; // JMP | JEQ | K
    pub(super) const IF_AT_LEAST: u16 = 0x35; // JMP | JGE | K
    pub(super) const IF_ANY_BIT: u16 = 0x45; // JMP | JSET | K
    pub(super) const RETURN: u16 = 0x06; // RET | K
}

// struct seccomp_data of linux/seccomp.h.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;

/// Low half of an argument, on a little-endian machine.
const fn argument_low(argument: u8) -> u32 {
    16 + 8 * argument as u32
}

const REFUSED: Verdict = Verdict::Errno(rustix::io::Errno::PERM);

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
pub(super) fn program(architectures: Vec<(u32, Vec<(u32, Verdict)>)>) -> Vec<sock_filter> {
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
    fn tree(&mut self, ranges: &[(u32, Verdict)]) -> Target {
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

    fn verdict(&mut self, verdict: Verdict) -> Target {
        match verdict {
            Verdict::Allow => Target::Return(libc::SECCOMP_RET_ALLOW),
            Verdict::Errno(errno) => {
                Target::Return(libc::SECCOMP_RET_ERRNO | errno.raw_os_error().cast_unsigned())
            }
            Verdict::If(condition) => self.condition(condition),
        }
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
        if self.distance(then) != Some(0) {
            self.step(then);
        }
        self.push(code::LOAD, offset, 0, 0)
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
