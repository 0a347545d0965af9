//! Descriptors that a careless parent left open.
#![expect(unsafe_code, reason = "this closes what it does not own")]

use std::io;

/// Closes every descriptor from 3 on. Only for the very start of a process, where whatever is open there was not meant for it.
pub(crate) fn close_inherited() -> io::Result<()> {
    // SAFETY: called before this process has opened or wrapped any descriptor but the standard three.
    let done = unsafe { libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, 0_u32) };
    if done == 0 {
        return Ok(());
    }
    match io::Error::last_os_error() {
        error if error.raw_os_error() == Some(libc::ENOSYS) => close_one_by_one(),
        error => Err(error),
    }
}

/// Before Linux 5.9.
fn close_one_by_one() -> io::Result<()> {
    let mut open: Vec<libc::c_int> = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd")? {
        open.extend(
            entry?
                .file_name()
                .to_str()
                .and_then(|name| name.parse::<libc::c_int>().ok()),
        );
    }
    // The listing's own descriptor is closed already, so the number says nothing any more.
    for descriptor in open.into_iter().filter(|number| *number > 2) {
        // SAFETY: as above. The only error there can be is of a number that is not open.
        unsafe { libc::close(descriptor) };
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::process::Command;

    /// In a process of its own, since it closes what the other tests have open.
    #[test]
    fn both_ways_close_all_but_the_standard_three() {
        if std::env::var_os("COWL_TEST_CLOSE").is_none() {
            let own = std::env::current_exe().unwrap();
            let test = "sys::descriptors::tests::both_ways_close_all_but_the_standard_three";
            let mut command = Command::new(own);
            command.args(["--exact", test, "--test-threads=1"]);
            let status = command.env("COWL_TEST_CLOSE", "1").status().unwrap();
            assert!(status.success());
            return;
        }
        for close in [super::close_one_by_one, super::close_inherited] {
            let file = std::mem::ManuallyDrop::new(File::open("/dev/null").unwrap());
            close().unwrap();
            assert_eq!(
                rustix::io::fcntl_getfd(&*file),
                Err(rustix::io::Errno::BADF)
            );
        }
    }
}
