//! Safe wrappers for what the system-call crates lack: one small file each, the only `unsafe` of
//! this crate.

pub mod copy;
pub mod lock;
pub mod mmap;
pub mod writeback;
