//! Payloads of a session besides IPMI messages, and the settings of the one there is: Serial over LAN (sections 24 and 26).

use std::net::{Ipv4Addr, SocketAddr};

use super::app::PRESENT_CHANNEL;
use super::message::{Ask, Fields, Request, netfn};

/// Payload type of Serial over LAN (table 13-16) and the instance that every BMC has.
pub const SOL: u8 = 1;
const INSTANCE: u8 = 1;

/// Completion codes of Activate Payload (table 24-2) that a console does something about.
pub const ALREADY_ACTIVE: u8 = 0x80;
pub const DISABLED: u8 = 0x81;

/// Encrypted and signed like everything else of the session; alerts of the machine through the same serial port go out
/// while the console is open; the port's control lines are up from the start.
const ACTIVATION: u8 = 0x80 | 0x40 | 0x08;

/// Activate Payload (24.1) for Serial over LAN.
pub struct ActivateSol;

/// What the BMC says to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Activated {
    /// Bytes of the largest payload that the BMC takes and sends, with the four bytes before the characters.
    pub inbound: u16,
    pub outbound: u16,
    /// Where it wants the packets. Always the session's own port in practice, and often wrong behind a proxy.
    pub port: u16,
}

impl Ask for ActivateSol {
    const NAME: &'static str = "Activate Payload";
    type Answer = Activated;

    fn request(&self) -> Request {
        Request::new(netfn::APP, 0x48, [SOL, INSTANCE, ACTIVATION, 0, 0, 0])
    }

    fn parse(&self, data: &mut Fields<'_>) -> Option<Activated> {
        let _auxiliary = data.u32()?;
        Some(Activated { inbound: data.u16()?, outbound: data.u16()?, port: data.u16()? })
    }

    fn refusal(&self, code: u8) -> Option<&'static str> {
        Some(match code {
            ALREADY_ACTIVE => "somebody else has the console",
            DISABLED => "Serial over LAN is switched off",
            0x82 => "as many consoles as it can have are in use",
            0x83 => "it cannot encrypt the console",
            0x84 => "it has no console without encryption",
            _ => return None,
        })
    }
}

/// Deactivate Payload (24.2): ends the console, whoever has it.
pub struct DeactivateSol;

impl Ask for DeactivateSol {
    const NAME: &'static str = "Deactivate Payload";
    type Answer = ();

    fn request(&self) -> Request {
        Request::new(netfn::APP, 0x49, [SOL, INSTANCE, 0, 0, 0, 0])
    }

    fn parse(&self, _: &mut Fields<'_>) -> Option<()> {
        Some(())
    }

    fn refusal(&self, code: u8) -> Option<&'static str> {
        Some(match code {
            0x80 => "the console was not in use",
            0x81 => "Serial over LAN is switched off",
            _ => return None,
        })
    }
}

/// Get Payload Instance Info (24.4): which session has the console.
pub struct GetSolHolder;

impl Ask for GetSolHolder {
    const NAME: &'static str = "Get Payload Instance Info";
    /// The id that the BMC gave the session; `None` where nobody has the console.
    type Answer = Option<u32>;

    fn request(&self) -> Request {
        Request::new(netfn::APP, 0x4b, [SOL, INSTANCE])
    }

    fn parse(&self, data: &mut Fields<'_>) -> Option<Option<u32>> {
        data.u32().map(|id| (id != 0).then_some(id))
    }
}

/// Get Session Info (22.20).
pub enum GetSession {
    /// The one that this is asked in.
    Own,
    /// By the id that the BMC gave it.
    Id(u32),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionInfo {
    /// Slot of the user, 1 to 63.
    pub user: u8,
    /// Of the one who logged in, where the BMC tells.
    pub from: Option<SocketAddr>,
}

impl Ask for GetSession {
    const NAME: &'static str = "Get Session Info";
    /// `None`: no such session.
    type Answer = Option<SessionInfo>;

    fn request(&self) -> Request {
        let data = match self {
            Self::Own => vec![0],
            Self::Id(id) => [&[0xff][..], &id.to_le_bytes()].concat(),
        };
        Request::new(netfn::APP, 0x3d, data)
    }

    fn parse(&self, data: &mut Fields<'_>) -> Option<Option<SessionInfo>> {
        let [handle, _possible, _active] = data.array()?;
        if handle == 0 || data.0.is_empty() {
            return Some(None);
        }
        let [user, _privilege, _channel] = data.array()?;
        let mut lan = || {
            let address = Ipv4Addr::from(data.array::<4>()?);
            let _mac = data.take(6)?;
            Some(SocketAddr::from((address, data.u16()?)))
        };
        let from = lan().filter(|from| !from.ip().is_unspecified());
        Some(Some(SessionInfo { user: user & 0x3f, from }))
    }
}

/// Set User Payload Access (24.6): lets a user have the console.
pub struct AllowSol {
    pub user: u8,
}

impl Ask for AllowSol {
    const NAME: &'static str = "Set User Payload Access";
    type Answer = ();

    fn request(&self) -> Request {
        // The top bits 00 enable; bit n of the first mask is payload type n.
        Request::new(netfn::APP, 0x4c, [PRESENT_CHANNEL, self.user & 0x3f, 1 << SOL, 0, 0, 0])
    }

    fn parse(&self, _: &mut Fields<'_>) -> Option<()> {
        Some(())
    }
}

/// SOL Configuration Parameter 1, "SOL Enable" (table 26-5).
const ENABLE: u8 = 1;

/// Get SOL Configuration Parameters (26.3): whether Serial over LAN is on.
pub struct GetSolEnabled;

impl Ask for GetSolEnabled {
    const NAME: &'static str = "Get SOL Configuration Parameters";
    type Answer = bool;

    fn request(&self) -> Request {
        Request::new(netfn::TRANSPORT, 0x22, [PRESENT_CHANNEL, ENABLE, 0, 0])
    }

    fn parse(&self, data: &mut Fields<'_>) -> Option<bool> {
        let _revision = data.u8()?;
        data.u8().map(|enabled| enabled & 1 != 0)
    }
}

/// Set SOL Configuration Parameters (26.2): switches Serial over LAN on, for good.
pub struct EnableSol;

impl Ask for EnableSol {
    const NAME: &'static str = "Set SOL Configuration Parameters";
    type Answer = ();

    fn request(&self) -> Request {
        Request::new(netfn::TRANSPORT, 0x21, [PRESENT_CHANNEL, ENABLE, 1])
    }

    fn parse(&self, _: &mut Fields<'_>) -> Option<()> {
        Some(())
    }

    fn refusal(&self, code: u8) -> Option<&'static str> {
        Some(match code {
            0x80 => "it has no such setting",
            0x81 => "somebody else is changing the settings",
            0x82 => "this setting cannot be changed",
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::message::tests::{parse, survives_truncation};
    use super::*;

    #[test]
    fn an_activation_tells_the_sizes() {
        // As ipmi_sim answers it: sizes 32 and 16384, port 623, no VLAN.
        let answer = [0, 0, 0, 0, 0x20, 0, 0, 0x40, 0x6f, 0x02, 0xff, 0xff];
        assert_eq!(parse(&ActivateSol, &answer), Some(Activated { inbound: 32, outbound: 16384, port: 623 }));
        assert_eq!(parse(&ActivateSol, &answer[..9]), None);
        survives_truncation(&ActivateSol, &answer);
        assert_eq!(ActivateSol.request().data, [1, 1, 0xc8, 0, 0, 0]);
    }

    #[test]
    fn the_holder_of_the_console_is_a_session_with_an_address() {
        assert_eq!(parse(&GetSolHolder, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), Some(None));
        assert_eq!(parse(&GetSolHolder, &[4, 3, 2, 1, 1, 0, 0, 0, 0, 0, 0, 0]), Some(Some(0x0102_0304)));
        let answer = [1, 5, 2, 2, 4, 0x11, 192, 0, 2, 9, 2, 0, 0, 0, 0, 1, 0x34, 0x12];
        let info = parse(&GetSession::Id(7), &answer).unwrap().unwrap();
        assert_eq!((info.user, info.from), (2, Some(SocketAddr::from(([192, 0, 2, 9], 0x1234)))));
        // Some tell the user only, some that there is no such session.
        assert_eq!(parse(&GetSession::Own, &answer[..6]), Some(Some(SessionInfo { user: 2, from: None })));
        assert_eq!(parse(&GetSession::Own, &[0, 5, 2]), Some(None));
        survives_truncation(&GetSession::Own, &answer);
        assert_eq!(GetSession::Id(0x0102_0304).request().data, [0xff, 4, 3, 2, 1]);
    }

    #[test]
    fn whether_the_console_is_on() {
        assert_eq!(parse(&GetSolEnabled, &[0x11, 1]), Some(true));
        assert_eq!(parse(&GetSolEnabled, &[0x11, 0xfe]), Some(false));
        assert_eq!(parse(&GetSolEnabled, &[0x11]), None);
        assert_eq!(AllowSol { user: 3 }.request().data, [0x0e, 3, 2, 0, 0, 0]);
    }
}
