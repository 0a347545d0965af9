//! What this process does on signals, as its caller left it.

use std::io;

/// The signals that this process ignores: after `nohup`, SIGHUP.
#[derive(Clone, Copy, Debug)]
pub struct Ignored(u64);

/// Reads which signals this process ignores (`SigIgn` in proc_pid_status(5)).
pub fn ignored() -> io::Result<Ignored> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    Ignored::parse(&status)
        .ok_or_else(|| io::Error::other("/proc/self/status does not say which signals are ignored"))
}

impl Ignored {
    /// Whether the signal of this number is ignored.
    pub fn contains(self, signal: i32) -> bool {
        // Bit 0 is signal 1.
        u32::try_from(signal - 1).is_ok_and(|bit| self.0.checked_shr(bit).unwrap_or(0) & 1 != 0)
    }

    fn parse(status: &str) -> Option<Self> {
        let mask = status
            .lines()
            .find_map(|line| line.strip_prefix("SigIgn:"))?;
        u64::from_str_radix(mask.trim(), 16).ok().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_signals_are_the_bits_of_the_mask() {
        let status = "SigBlk:\t0000000000000000\nSigIgn:\t8000000000001001\nSigCgt:\tffff\n";
        let ignored = Ignored::parse(status).unwrap();
        for signal in -1..=70 {
            assert_eq!(
                ignored.contains(signal),
                [1, 13, 64].contains(&signal),
                "{signal}"
            );
        }
        assert!(Ignored::parse("Name:\tcowl\n").is_none());
    }
}
