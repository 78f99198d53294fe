//! The in-band work against a BMC in memory that answers byte by byte as the specification has it.

use super::*;
use crate::ipmi::message::netfn;

/// Two channels (1 is a LAN, 2 is not) and a table of users.
struct Bmc {
    users: Vec<User>,
    address: [u8; 4],
    /// Says yes to Set User Access and does nothing.
    deaf: bool,
    knows_password_test: bool,
}

#[derive(Default, Clone)]
struct User {
    name: Vec<u8>,
    password: Vec<u8>,
    enabled: bool,
    access: u8,
}

impl Bmc {
    fn new(names: &[&str]) -> Self {
        let mut users = vec![User::default(); 6];
        for (user, name) in users.iter_mut().skip(2).zip(names) {
            user.name = name.as_bytes().to_vec();
        }
        Self { users, address: [10, 77, 1, 1], deaf: false, knows_password_test: true }
    }

    fn answer(&mut self, request: &Request) -> (u8, Vec<u8>) {
        let d = &request.data;
        match (request.netfn, request.cmd) {
            (netfn::APP, 0x01) => (0, vec![0x20, 1, 2, 0x63, 2, 0xbf, 0xa2, 2, 0, 0, 1]),
            (netfn::APP, 0x42) => match d[0] {
                1 => (0, vec![1, 4, 1, 0x80, 0xf2, 0x1b, 0, 0, 0]),
                2 => (0, vec![2, 1, 1, 0x80, 0xf2, 0x1b, 0, 0, 0]),
                _ => (0xcc, vec![]),
            },
            (netfn::TRANSPORT, 0x02) => match d[1] {
                3 => (0, [&[0x11], &self.address[..]].concat()),
                5 => (0, vec![0x11, 2, 0, 0, 0x77, 1, 1]),
                _ => (0x80, vec![]),
            },
            (netfn::APP, 0x44) => (0, vec![5, 1, 0, self.users[d[1] as usize].access]),
            (netfn::APP, 0x43) => {
                if !self.deaf {
                    self.users[d[1] as usize].access = d[0] & 0x30 | d[2];
                }
                (0, vec![])
            }
            (netfn::APP, 0x46) => match &self.users[d[0] as usize].name {
                name if name.is_empty() => (0xcc, vec![]),
                name => {
                    let mut name = name.clone();
                    name.resize(16, 0);
                    (0, name)
                }
            },
            (netfn::APP, 0x45) => {
                self.users[d[0] as usize].name = d[1..].iter().copied().take_while(|b| *b != 0).collect();
                (0, vec![])
            }
            (netfn::APP, 0x47) => self.password(d),
            _ => (0xc1, vec![]),
        }
    }

    fn password(&mut self, d: &[u8]) -> (u8, Vec<u8>) {
        let user = &mut self.users[(d[0] & 0x3f) as usize];
        match d[1] {
            1 => user.enabled = true,
            2 => user.password = d[2..].to_vec(),
            3 if !self.knows_password_test => return (0xcc, vec![]),
            3 if user.password != d[2..] => return (0x80, vec![]),
            _ => {}
        }
        (0, vec![])
    }
}

impl Exchange for Bmc {
    fn exchange(&mut self, request: &Request) -> Result<Response> {
        let (completion, data) = self.answer(request);
        Ok(Response { netfn: request.netfn | 1, cmd: request.cmd, completion: Completion(completion), data })
    }
}

fn words(name: &str) -> BmcUser {
    BmcUser { name: name.into(), password: "16-characters-pw".into() }
}

#[test]
fn which_bmc_this_machine_has() {
    let found = describe(&mut Bmc::new(&[])).unwrap();
    assert_eq!(found.firmware.as_deref(), Some("2.63"));
    assert_eq!(found.address, Some("10.77.1.1".parse().unwrap()));
    assert_eq!(found.mac.unwrap().to_string(), "02:00:00:77:01:01");
    let without = describe(&mut Bmc { address: [0; 4], ..Bmc::new(&[]) }).unwrap();
    assert_eq!(without.address, None);
    assert!(without.mac.is_some());
}

#[test]
fn a_user_in_the_first_free_slot_and_the_same_one_again() {
    let mut bmc = Bmc::new(&["root"]);
    ensure_user(&mut bmc, &words("rackline")).unwrap();
    let user = bmc.users[3].clone();
    assert_eq!((user.name.as_slice(), user.enabled, user.access), (&b"rackline"[..], true, 0x34));
    assert!(user.password.starts_with(b"16-characters-pw"));
    ensure_user(&mut bmc, &words("rackline")).unwrap();
    assert_eq!(bmc.users.iter().filter(|u| u.name == b"rackline").count(), 1);
    assert_eq!(bmc.users[2].access, 0, "the other user is left alone");
}

#[test]
fn full_deaf_and_overlong_are_named() {
    let code = |bmc: &mut Bmc, user: &BmcUser| ensure_user(bmc, user).unwrap_err().code();
    assert_eq!(code(&mut Bmc::new(&["a", "b", "c", "d"]), &words("rackline")), "bmc.users-full");
    assert_eq!(code(&mut Bmc { deaf: true, ..Bmc::new(&[]) }, &words("rackline")), "bmc.not-applied");
    assert_eq!(code(&mut Bmc::new(&[]), &words("a-name-of-17bytes")), "bmc.user");
    let long = BmcUser { name: "a".into(), password: "17-characters-pwd".into() };
    assert_eq!(code(&mut Bmc::new(&[]), &long), "bmc.user");
    ensure_user(&mut Bmc { knows_password_test: false, ..Bmc::new(&[]) }, &words("rackline")).unwrap();
}

#[test]
fn the_ioctl_numbers_are_those_of_the_kernel() {
    // IPMICTL_SEND_COMMAND and IPMICTL_RECEIVE_MSG_TRUNC on a 64-bit machine.
    assert_eq!((SEND_COMMAND, RECEIVE_TRUNCATED), (0x8028_690d, 0xc030_690b));
    assert_eq!(size_of::<SystemInterfaceAddress>(), 8);
}
