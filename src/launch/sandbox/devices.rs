//! Device nodes of a container, and what it may do with devices.

use bincode::{Decode, Encode};

/// A device node.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Device {
    /// Where: a path below /dev.
    pub path: Vec<u8>,
    /// The host's node, which is bound where none can be created (a user namespace).
    pub host: Vec<u8>,
    /// A block device, else a character device.
    pub block: bool,
    /// Of the device number.
    pub major: u32,
    /// Of the device number.
    pub minor: u32,
    /// Permissions.
    pub mode: u32,
    /// Owner and group.
    pub owner: (u32, u32),
}

/// Devices that a container may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct DeviceRule {
    /// Block devices (true) or character devices; none is both.
    pub block: Option<bool>,
    /// None is all.
    pub major: Option<u32>,
    /// None is all.
    pub minor: Option<u32>,
    /// They may be opened for reading.
    pub read: bool,
    /// They may be opened for writing.
    pub write: bool,
    /// Their nodes may be created.
    pub create: bool,
}

impl DeviceRule {
    /// All devices of the host.
    pub const ALL: Self = Self {
        block: None,
        major: None,
        minor: None,
        read: true,
        write: true,
        create: true,
    };
}
