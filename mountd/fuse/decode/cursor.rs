//! Taking a request's body apart, from its front.
//!
//! Invariant: what is not there is [`Malformed`]; nothing is copied but the small structs of
//! `wire`.

use zerocopy::{FromBytes, Immutable, KnownLayout};

use super::super::wire;
use super::{Dialect, Forgets, Malformed, Operation};

/// What is left of a body.
#[derive(Copy, Clone)]
pub(super) struct Cursor<'r>(pub(super) &'r [u8]);

impl<'r> Cursor<'r> {
    pub(super) fn take<T: FromBytes + KnownLayout + Immutable>(&mut self) -> Result<T, Malformed> {
        let (it, rest) = T::read_from_prefix(self.0).map_err(|_short| Malformed)?;
        self.0 = rest;
        Ok(it)
    }

    /// A name, up to its NUL.
    pub(super) fn name(&mut self) -> Result<&'r [u8], Malformed> {
        let end = self.0.iter().position(|byte| *byte == 0).ok_or(Malformed)?;
        let (name, rest) = self.0.split_at_checked(end).ok_or(Malformed)?;
        self.0 = rest.get(1..).ok_or(Malformed)?;
        Ok(name)
    }

    pub(super) fn bytes(&mut self, count: u32) -> Result<&'r [u8], Malformed> {
        let count = usize::try_from(count).map_err(|_beyond_usize| Malformed)?;
        let (bytes, rest) = self.0.split_at_checked(count).ok_or(Malformed)?;
        self.0 = rest;
        Ok(bytes)
    }

    pub(super) fn forgets(&mut self) -> Result<Forgets<'r>, Malformed> {
        let count = usize::try_from(self.take::<wire::BatchForgetIn>()?.count)
            .map_err(|_beyond_usize| Malformed)?;
        let length = count
            .checked_mul(size_of::<wire::ForgetOne>())
            .ok_or(Malformed)?;
        Ok(Forgets(self.0.get(..length).ok_or(Malformed)?))
    }

    pub(super) fn setxattr(&mut self, dialect: Dialect) -> Result<Operation<'r>, Malformed> {
        let asked: wire::SetxattrIn = self.take()?;
        let more = if dialect.long_setxattr {
            self.take::<wire::SetxattrMore>()?.setxattr_flags
        } else {
            0
        };
        Ok(Operation::Setxattr {
            name: self.name()?,
            value: self.bytes(asked.size)?,
            flags: asked.flags,
            kill_sgid: more & wire::SETXATTR_ACL_KILL_SGID != 0,
        })
    }

    pub(super) fn readdir(&mut self, plus: bool) -> Result<Operation<'r>, Malformed> {
        let asked: wire::ReadIn = self.take()?;
        Ok(Operation::Readdir {
            cookie: asked.offset,
            size: asked.size,
            plus,
        })
    }
}
