//! Safe wrappers for what the system-call crates lack: one small file each, the only `unsafe` of
//! this crate.

pub(crate) mod backing;
pub(crate) mod command_line;
pub(crate) mod fork;
pub(crate) mod identity;
pub(crate) mod lease;
pub(crate) mod mount;
pub(crate) mod namespace;
pub(crate) mod shared;
