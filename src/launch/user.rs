//! Resolves an image's user string with the container's passwd and group files.
//!
//! The rules are Docker's (moby/sys `user.GetExecUser`). The files come from an image and may be
//! hostile: their size is limited, malformed lines are skipped, numbers are decimal and at most
//! 2^31 - 1. Nothing here allocates or makes a system call, since it runs between clone and exec,
//! on buffers reserved before. Caller: [`crate::init`].

use rustix::fs::Gid;

/// Largest user or group id that Docker accepts.
const MAX_ID: u32 = i32::MAX.cast_unsigned();

/// The ids and the home directory that the program gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct User<'f> {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Home directory; `/` if the passwd file has none.
    pub(crate) home: &'f [u8],
}

/// Why a user string can't be resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UserError {
    /// A name that isn't in the passwd file.
    NoSuchUser,
    /// A name that isn't in the group file.
    NoSuchGroup,
    /// A number out of range.
    BadNumber,
    /// More groups than the buffer holds.
    TooManyGroups,
}

/// Finds the user and pushes its groups, primary first, into `groups`, within its capacity.
pub(crate) fn resolve<'f>(
    spec: &[u8],
    passwd: &'f [u8],
    group: &[u8],
    groups: &mut Vec<Gid>,
) -> Result<User<'f>, UserError> {
    let (user_part, group_part) = split_once(spec, b':');
    let user_part = if user_part.is_empty() {
        b"0"
    } else {
        user_part
    };
    let wanted = NameOrId::parse(user_part)?;
    let found = lines(passwd).find_map(|line| {
        PasswdLine::parse(line).filter(|entry| wanted.matches(entry.name, entry.uid))
    });
    let mut user = match (found, wanted) {
        (Some(entry), _) => User {
            uid: entry.uid,
            gid: entry.gid,
            home: entry.home,
        },
        (None, NameOrId::Number(uid)) => User {
            uid,
            gid: 0,
            home: b"/",
        },
        (None, NameOrId::Name(_)) => return Err(UserError::NoSuchUser),
    };
    if !group_part.is_empty() {
        let wanted = NameOrId::parse(group_part)?;
        let found = lines(group).find_map(|line| {
            GroupLine::parse(line).filter(|entry| wanted.matches(entry.name, entry.gid))
        });
        user.gid = match (found, wanted) {
            (Some(entry), _) => entry.gid,
            (None, NameOrId::Number(gid)) => gid,
            (None, NameOrId::Name(_)) => return Err(UserError::NoSuchGroup),
        };
    }
    push(groups, user.gid)?;
    // An explicit group replaces the user's memberships.
    if let (Some(entry), true) = (found, group_part.is_empty()) {
        for line in lines(group)
            .filter_map(GroupLine::parse)
            .filter(|line| line.has_member(entry.name))
        {
            push(groups, line.gid)?;
        }
    }
    Ok(user)
}

/// Finds a further group, by name or number, and pushes it into `groups`, within its capacity.
pub(crate) fn add_group(name: &[u8], group: &[u8], groups: &mut Vec<Gid>) -> Result<(), UserError> {
    let wanted = NameOrId::parse(name)?;
    let found = lines(group).find_map(|line| {
        GroupLine::parse(line).filter(|entry| wanted.matches(entry.name, entry.gid))
    });
    match (found, wanted) {
        (Some(entry), _) => push(groups, entry.gid),
        (None, NameOrId::Number(gid)) => push(groups, gid),
        (None, NameOrId::Name(_)) => Err(UserError::NoSuchGroup),
    }
}

fn push(groups: &mut Vec<Gid>, gid: u32) -> Result<(), UserError> {
    let gid = Gid::from_raw(gid);
    if groups.contains(&gid) {
        return Ok(());
    }
    if groups.len() == groups.capacity() {
        return Err(UserError::TooManyGroups);
    }
    groups.push(gid);
    Ok(())
}

#[derive(Clone, Copy)]
enum NameOrId<'s> {
    Number(u32),
    Name(&'s [u8]),
}

impl<'s> NameOrId<'s> {
    fn parse(text: &'s [u8]) -> Result<Self, UserError> {
        if !text.iter().all(u8::is_ascii_digit) {
            return Ok(Self::Name(text));
        }
        number(text).map(Self::Number).ok_or(UserError::BadNumber)
    }

    fn matches(&self, name: &[u8], id: u32) -> bool {
        match self {
            Self::Number(number) => *number == id,
            Self::Name(wanted) => *wanted == name,
        }
    }
}

#[derive(Clone, Copy)]
struct PasswdLine<'f> {
    name: &'f [u8],
    uid: u32,
    gid: u32,
    home: &'f [u8],
}

impl<'f> PasswdLine<'f> {
    /// `name:password:uid:gid:comment:home:shell` (passwd(5)).
    fn parse(line: &'f [u8]) -> Option<Self> {
        let mut fields = line.split(|byte| *byte == b':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let uid = fields.nth(1).and_then(number)?;
        let gid = fields.next().and_then(number)?;
        let home = fields
            .nth(1)
            .filter(|home| !home.is_empty())
            .unwrap_or(b"/");
        Some(Self {
            name,
            uid,
            gid,
            home,
        })
    }
}

#[derive(Clone, Copy)]
struct GroupLine<'f> {
    name: &'f [u8],
    gid: u32,
    members: &'f [u8],
}

impl<'f> GroupLine<'f> {
    /// `name:password:gid:member,member` (group(5)).
    fn parse(line: &'f [u8]) -> Option<Self> {
        let mut fields = line.split(|byte| *byte == b':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let gid = fields.nth(1).and_then(number)?;
        Some(Self {
            name,
            gid,
            members: fields.next().unwrap_or_default(),
        })
    }

    fn has_member(&self, name: &[u8]) -> bool {
        self.members
            .split(|byte| *byte == b',')
            .any(|member| member.trim_ascii() == name)
    }
}

fn lines(file: &[u8]) -> impl Iterator<Item = &[u8]> {
    file.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii)
}

/// A decimal number up to [`MAX_ID`]: no sign, no space, no other base.
fn number(text: &[u8]) -> Option<u32> {
    if text.is_empty() {
        return None;
    }
    let value = text.iter().try_fold(0_u32, |value, digit| {
        let digit = digit.is_ascii_digit().then(|| u32::from(digit - b'0'))?;
        value.checked_mul(10)?.checked_add(digit)
    })?;
    (value <= MAX_ID).then_some(value)
}

fn split_once(text: &[u8], at: u8) -> (&[u8], &[u8]) {
    let mut parts = text.splitn(2, |byte| *byte == at);
    (
        parts.next().unwrap_or_default(),
        parts.next().unwrap_or_default(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\n\
        broken\n\
        huge:x:4294967296:0::/:\n\
        app:x:1000:1001:App,,,:/home/app:/bin/sh\n\
        nohome:x:1002:1002\n\
        app:x:7:7::/second:/bin/sh";
    const GROUP: &[u8] =
        b"root:x:0:root\nwheel:x:10:root,app\nstaff:x:50: app \napp:x:1001:\nbad:x:x:app\n";

    fn resolved(spec: &str) -> Result<(u32, u32, String, Vec<u32>), UserError> {
        let mut groups = Vec::with_capacity(4);
        let user = resolve(spec.as_bytes(), PASSWD, GROUP, &mut groups)?;
        let home = String::from_utf8(user.home.to_vec()).unwrap();
        Ok((
            user.uid,
            user.gid,
            home,
            groups.iter().map(|gid| gid.as_raw()).collect(),
        ))
    }

    #[test]
    fn resolve_finds_users_as_docker_does() {
        assert_eq!(resolved(""), Ok((0, 0, "/root".to_owned(), vec![0, 10])));
        assert_eq!(
            resolved("app"),
            Ok((1000, 1001, "/home/app".to_owned(), vec![1001, 10, 50]))
        );
        assert_eq!(resolved("1000"), resolved("app"));
        assert_eq!(
            resolved("app:staff"),
            Ok((1000, 50, "/home/app".to_owned(), vec![50]))
        );
        assert_eq!(
            resolved("app:77"),
            Ok((1000, 77, "/home/app".to_owned(), vec![77]))
        );
        assert_eq!(resolved("4000:5"), Ok((4000, 5, "/".to_owned(), vec![5])));
        assert_eq!(resolved("4000"), Ok((4000, 0, "/".to_owned(), vec![0])));
        assert_eq!(
            resolved("nohome"),
            Ok((1002, 1002, "/".to_owned(), vec![1002]))
        );
    }

    #[test]
    fn resolve_refuses_unknown_names_and_bad_numbers() {
        assert_eq!(resolved("nobody"), Err(UserError::NoSuchUser));
        assert_eq!(resolved("app:nogroup"), Err(UserError::NoSuchGroup));
        assert_eq!(resolved("4294967296"), Err(UserError::BadNumber));
        assert_eq!(resolved("2147483648"), Err(UserError::BadNumber));
        assert_eq!(resolved("-1"), Err(UserError::NoSuchUser));
        assert_eq!(resolved("huge"), Err(UserError::NoSuchUser));
        assert_eq!(resolved("0x0"), Err(UserError::NoSuchUser));
    }

    #[test]
    fn resolve_refuses_more_groups_than_fit() {
        let group: Vec<u8> = (0..9)
            .flat_map(|gid| format!("g{gid}:x:{}:root\n", gid + 100).into_bytes())
            .collect();
        let mut groups = Vec::with_capacity(4);
        assert_eq!(
            resolve(b"root", PASSWD, &group, &mut groups),
            Err(UserError::TooManyGroups)
        );
    }

    #[test]
    fn resolve_with_empty_files_knows_numbers_only() {
        let mut groups = Vec::with_capacity(4);
        assert_eq!(
            resolve(b"", b"", b"", &mut groups),
            Ok(User {
                uid: 0,
                gid: 0,
                home: b"/"
            })
        );
        assert_eq!(
            resolve(b"\xff", b"\0\n::::\n", b"::\n", &mut Vec::with_capacity(4)),
            Err(UserError::NoSuchUser)
        );
    }
}
