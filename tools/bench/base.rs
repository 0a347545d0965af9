//! The lower of all systems: small files for each row that changes them or needs names new to the
//! kernel, and a tree like /usr to read. Contents are pseudo-random and the same in each run.

use std::fs::{File, create_dir, create_dir_all};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::command::{find, program, run};

/// Files that are opened, read and looked up repeatedly.
pub(crate) const OPENED: u32 = 200;
const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// Number and size of the files.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Scale {
    pub(crate) names: u32,
    pub(crate) tree: u32,
    pub(crate) victims: u32,
    pub(crate) calls: u32,
    /// MiB.
    pub(crate) large: u32,
    pub(crate) writes: u32,
}

impl Scale {
    pub(crate) fn new(factor: f64) -> Self {
        let of = |count: u32| scaled(count, factor).max(40);
        Self {
            names: of(10_000),
            tree: of(10_000),
            victims: of(4_000),
            calls: of(40_000),
            large: of(128),
            writes: of(8_192),
        }
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the command line has factors from 0 to 100, and a cast saturates"
)]
fn scaled(count: u32, factor: f64) -> u32 {
    (f64::from(count) * factor) as u32
}

/// Pseudo-random numbers, the same in each run (SplitMix64).
#[derive(Debug)]
pub(crate) struct Noise(u64);

impl Noise {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    fn bytes(&mut self, size: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(size + 8);
        while bytes.len() < size {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(size);
        bytes
    }

    /// Sizes distributed as in /usr: half below 3 KiB, a few of some hundred. Draws a limit that
    /// doubles with some probability, then a size below it.
    fn size(&mut self) -> usize {
        let mut limit: u64 = 4096;
        while limit < 512 * 1024 && self.next() % 100 < 45 {
            limit *= 2;
        }
        usize::try_from(self.next() % limit).unwrap_or_default()
    }
}

pub(crate) fn write(path: &Path, content: &[u8]) -> Result<()> {
    let mut file = File::create_new(path).with_context(|| path.display().to_string())?;
    file.write_all(content)
        .with_context(|| path.display().to_string())
}

/// Files `0`, `1`, ... in a new directory.
fn numbered(directory: &Path, count: u32, size: usize) -> Result<()> {
    create_dir(directory).with_context(|| directory.display().to_string())?;
    for number in 0..count {
        let content = Noise::new(number.into()).bytes(size);
        write(&directory.join(number.to_string()), &content)?;
    }
    Ok(())
}

/// Creates the lower of the timed rows.
pub(crate) fn make(base: &Path, scale: Scale, python: Option<&Python>) -> Result<()> {
    create_dir(base).context("the lower")?;
    numbered(&base.join("names"), scale.names, 0)?;
    numbered(&base.join("opened"), OPENED, 4 * KIB)?;
    for victims in ["unlinked", "changed"] {
        numbered(&base.join(victims), scale.victims, KIB)?;
    }
    numbered(&base.join("appended"), scale.victims / 4, 4 * KIB)?;
    let mebibyte = Noise::new(0).bytes(MIB);
    let path = base.join("large");
    let mut large = File::create_new(&path).context("the large file")?;
    for _ in 0..scale.large {
        large.write_all(&mebibyte).context("the large file")?;
    }
    make_tree(&base.join("tree"), scale.tree)?;
    create_dir(base.join("bin")).context("the lower")?;
    if let Ok(busybox) = find(Path::new("busybox")) {
        run(program("cp", ["-L"])
            .arg(busybox)
            .arg(base.join("bin/busybox")))?;
    }
    python.map_or(Ok(()), |python| python.copy_to(base))
}

fn make_tree(tree: &Path, count: u32) -> Result<()> {
    let mut sizes = Noise::new(1);
    for number in 0..count {
        let directory = tree.join(format!("{}/{}", number % 20, number / 20 % 25));
        create_dir_all(&directory).context("the tree")?;
        let content = Noise::new(number.into()).bytes(sizes.size());
        write(&directory.join(format!("file-{number}")), &content)?;
    }
    Ok(())
}

/// The host's Python.
#[derive(Debug)]
pub(crate) struct Python {
    program: PathBuf,
    library: PathBuf,
}

impl Python {
    /// None if it is not installed.
    pub(crate) fn of_the_host() -> Option<Self> {
        let ask = "import os, sys, sysconfig
print(os.path.realpath(sys.executable))
print(sysconfig.get_path('stdlib'))";
        let said = run(&mut program("python3", ["-c", ask])).ok()?;
        let mut lines = said.lines().map(PathBuf::from);
        Some(Self {
            program: lines.next()?,
            library: lines.next()?,
        })
    }

    fn copy_to(&self, base: &Path) -> Result<()> {
        run(program("cp", [&self.program]).arg(base.join("bin/python")))?;
        let library = base.join("lib");
        create_dir(&library).context("Python's library")?;
        let (Some(parent), Some(name)) = (self.library.parent(), self.library.file_name()) else {
            bail!("Python's library is {}", self.library.display());
        };
        // Packages installed beside the standard library may have any size.
        let excluded = [
            "site-packages",
            "dist-packages",
            "test",
            "idlelib",
            "ensurepip",
        ];
        let archive = base.join("python.tar");
        let mut pack = program("tar", ["-cf"]);
        pack.arg(&archive);
        pack.args(excluded.map(|name| format!("--exclude={name}")));
        run(pack.arg("-C").arg(parent).arg(name))?;
        let mut unpack = program("tar", ["--no-same-owner", "-xf"]);
        run(unpack.arg(&archive).arg("-C").arg(&library))?;
        std::fs::remove_file(&archive).context("Python's library")
    }
}

#[cfg(test)]
mod tests {
    use super::{Noise, Scale};

    #[test]
    fn scales_have_a_minimum() {
        assert_eq!(Scale::new(0.5).names, 5_000);
        assert_eq!(Scale::new(0.0001).names, 40);
    }

    #[test]
    fn noise_is_the_same_each_time() {
        let of = |seed| Noise::new(seed).bytes(20);
        assert_eq!(of(3), of(3));
        assert_ne!(of(3), of(4));
        assert_eq!(of(3).len(), 20);
    }

    /// Half of the files are small, one in a hundred is large, and none is above 512 KiB.
    #[test]
    fn sizes_are_distributed_as_in_usr() {
        let mut noise = Noise::new(1);
        let mut sizes: Vec<usize> = (0..10_000).map(|_| noise.size()).collect();
        sizes.sort_unstable();
        assert!((1_500..4_000).contains(&sizes[5_000]), "{}", sizes[5_000]);
        assert!(
            (20_000..200_000).contains(&sizes[9_900]),
            "{}",
            sizes[9_900]
        );
        assert!(sizes[9_999] < 512 * 1024);
    }
}
