//! User accounts of a BMC (sections 22.26 to 22.30).

use super::app::Privilege;
use super::message::{Ask, Fields, Request, netfn};

/// Longest name and password of IPMI 2.0.
pub const NAME_MAX: usize = 16;
pub const PASSWORD_MAX: usize = 20;
/// Longest password that is set without a check by a log-in: BMCs exist that take 20 bytes, say yes, and keep 16
/// (ipmi_sim 2.0.33 is one).
pub const PASSWORD_SET_MAX: usize = 16;

/// Get User Access (22.27).
pub struct GetUserAccess {
    pub channel: u8,
    /// From 1, which is the user without a name.
    pub user: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UserAccess {
    /// Highest user id of the BMC.
    pub slots: u8,
    /// `None` where the BMC does not tell.
    pub enabled: Option<bool>,
    pub may_message: bool,
    /// Limit on this channel (table 6-2): 4 administrator, 0xf no access.
    pub privilege: u8,
}

impl Ask for GetUserAccess {
    const NAME: &'static str = "Get User Access";
    type Answer = UserAccess;

    fn request(&self) -> Request {
        Request::new(netfn::APP, 0x44, [self.channel & 0xf, self.user & 0x3f])
    }

    fn parse(&self, data: &mut Fields<'_>) -> Option<UserAccess> {
        let [slots, status, _fixed, access] = data.array()?;
        let enabled = match status >> 6 {
            1 => Some(true),
            2 => Some(false),
            _ => None,
        };
        Some(UserAccess { slots: slots & 0x3f, enabled, may_message: access & 0x10 != 0, privilege: access & 0xf })
    }
}

/// Set User Access (22.26): IPMI messaging with this privilege on the channel.
pub struct SetUserAccess {
    pub channel: u8,
    pub user: u8,
    pub privilege: Privilege,
}

impl Ask for SetUserAccess {
    const NAME: &'static str = "Set User Access";
    type Answer = ();

    fn request(&self) -> Request {
        // Change the bits; link authentication and messaging on, not limited to call-back.
        let bits = 0x80 | 0x20 | 0x10 | self.channel & 0xf;
        Request::new(netfn::APP, 0x43, [bits, self.user & 0x3f, self.privilege as u8])
    }

    fn parse(&self, _: &mut Fields<'_>) -> Option<()> {
        Some(())
    }
}

/// Get User Name (22.29).
pub struct GetUserName(pub u8);

impl Ask for GetUserName {
    const NAME: &'static str = "Get User Name";
    /// Up to the first zero byte.
    type Answer = Vec<u8>;

    fn request(&self) -> Request {
        Request::new(netfn::APP, 0x46, [self.0 & 0x3f])
    }

    fn parse(&self, data: &mut Fields<'_>) -> Option<Vec<u8>> {
        let name = data.take(NAME_MAX)?;
        Some(name.iter().copied().take_while(|b| *b != 0).collect())
    }
}

/// Set User Name (22.28).
pub struct SetUserName<'a> {
    pub user: u8,
    /// At most [`NAME_MAX`] bytes; what is longer is not sent.
    pub name: &'a str,
}

impl Ask for SetUserName<'_> {
    const NAME: &'static str = "Set User Name";
    type Answer = ();

    fn request(&self) -> Request {
        let mut data = vec![self.user & 0x3f];
        data.extend(self.name.bytes().take(NAME_MAX));
        data.resize(1 + NAME_MAX, 0);
        Request::new(netfn::APP, 0x45, data)
    }

    fn parse(&self, _: &mut Fields<'_>) -> Option<()> {
        Some(())
    }
}

/// Set User Password (22.30), in its four operations.
pub struct SetUserPassword<'a> {
    pub user: u8,
    pub operation: Password<'a>,
}

pub enum Password<'a> {
    Disable,
    Enable,
    /// At most [`PASSWORD_MAX`] bytes; what is longer is not sent. Sent in the form of 20 bytes where it has more than
    /// [`PASSWORD_SET_MAX`].
    Set(&'a str),
    /// Compares without a change: the read-back of [`Password::Set`].
    Test(&'a str),
}

/// Bit of the user id byte: the password has 20 bytes.
const TWENTY_BYTES: u8 = 0x80;

impl SetUserPassword<'_> {
    /// Completion code of a test that did not match.
    pub const MISMATCH: u8 = 0x80;
    /// Of a test with 16 bytes where 20 are stored, or the other way round.
    pub const LENGTH: u8 = 0x81;
}

impl Ask for SetUserPassword<'_> {
    const NAME: &'static str = "Set User Password";
    type Answer = ();

    fn request(&self) -> Request {
        let (operation, password) = match self.operation {
            Password::Disable => (0, ""),
            Password::Enable => (1, ""),
            Password::Set(password) => (2, password),
            Password::Test(password) => (3, password),
        };
        let (form, length) = match password.len() {
            0..=PASSWORD_SET_MAX => (0, PASSWORD_SET_MAX),
            _ => (TWENTY_BYTES, PASSWORD_MAX),
        };
        let mut data = vec![form | self.user & 0x3f, operation];
        data.extend(password.bytes().take(length));
        data.resize(2 + length, 0);
        Request::new(netfn::APP, 0x47, data)
    }

    fn parse(&self, _: &mut Fields<'_>) -> Option<()> {
        Some(())
    }

    fn refusal(&self, code: u8) -> Option<&'static str> {
        Some(match code {
            Self::MISMATCH => "it has another one",
            Self::LENGTH => "it has one of another length",
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::message::tests::parse;
    use super::*;

    #[test]
    fn names_and_access() {
        let mut name = *b"admin\0\0\0\0\0\0\0\0\0\0\0";
        assert_eq!(parse(&GetUserName(2), &name).unwrap(), b"admin");
        name[5..].fill(b'x');
        assert_eq!(parse(&GetUserName(2), &name).unwrap().len(), 16);
        assert!(parse(&GetUserName(2), &name[..15]).is_none());
        let access = parse(&GetUserAccess { channel: 1, user: 2 }, &[0x0a, 0x41, 0x01, 0x34]).unwrap();
        assert_eq!(access, UserAccess { slots: 10, enabled: Some(true), may_message: true, privilege: 4 });
        let set = SetUserAccess { channel: 1, user: 3, privilege: Privilege::Administrator };
        assert_eq!(set.request().data, [0xb1, 3, 4]);
        let set = SetUserName { user: 3, name: "ops" }.request();
        assert_eq!((set.data.len(), &set.data[..5]), (17, &b"\x03ops\0"[..]));
    }

    #[test]
    fn passwords_are_filled_up_with_zeros() {
        let set = SetUserPassword { user: 3, operation: Password::Set("calvin") }.request().data;
        assert_eq!((set.len(), set[0], set[1], &set[2..9]), (18, 3, 2, &b"calvin\0"[..]));
        assert_eq!(SetUserPassword { user: 3, operation: Password::Test("x") }.request().data[..3], [3, 3, b'x']);
        let long = SetUserPassword { user: 3, operation: Password::Set("seventeen-letters") }.request().data;
        assert_eq!((long.len(), long[0], &long[18..]), (22, 0x83, &b"s\0\0\0"[..]));
        assert_eq!(SetUserPassword { user: 3, operation: Password::Enable }.request().data[..2], [3, 1]);
    }
}
