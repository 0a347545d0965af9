//! The host's features. Tests check here for what depends on the kernel, instead of assuming that
//! root implies a recent one.

use std::fs;

use crate::command::{program, run};
use crate::profile::{Privilege, current};

/// Major and minor number of the kernel's version.
pub fn kernel() -> (u32, u32) {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy().into_owned();
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|number| number.parse().expect("a version of numbers"));
    (numbers.next().unwrap(), numbers.next().unwrap())
}

/// The I/O modes that a mount of the running test can have.
pub fn io_modes() -> Vec<&'static str> {
    let passthrough = has_passthrough().then_some("passthrough");
    passthrough
        .into_iter()
        .chain(["cached", "writeback"])
        .collect()
}

/// Whether a mount of the running test can have passthrough: Linux 6.9, and root of the host.
pub fn has_passthrough() -> bool {
    current() == Privilege::Root && kernel_has_passthrough()
}

/// Whether this kernel's FUSE knows passthrough at all.
pub fn kernel_has_passthrough() -> bool {
    kernel() >= (6, 9)
}

/// Whether this kernel has overlayfs, as a module that its first mount loads, or built in.
pub fn has_overlayfs() -> bool {
    let loaded = program("modprobe", ["overlay"]).output();
    let known = fs::read_to_string("/proc/filesystems").unwrap();
    loaded.is_ok_and(|modprobe| modprobe.status.success()) || known.contains("\toverlay\n")
}

/// Whether `docker` is 28 or later, whose own words cowl has, too. Debian 12's is 20.10, with other
/// words and fewer options.
pub fn has_docker_28() -> bool {
    let version = run(&mut program("docker", ["--version"])).ok();
    let number = version.strip_prefix("Docker version ");
    let major = number.and_then(|number| number.split('.').next());
    major.unwrap().parse::<u32>().unwrap() >= 28
}
