//! The machines' power: what each BMC's chassis control does to its QEMU.
//!
//! QEMU is started here and not by `ipmi_sim`, so that it neither inherits the BMC's sockets nor ends with it, and so
//! that its end is known at once. `ipmi_sim` runs `rackline lab chassis DIR` for each chassis command, which asks over
//! the socket `DIR/chassis.sock`; one thread serves a machine's socket, so two commands cannot cross.

use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::guard::Guard;
use super::net;
use super::qmp::Qmp;
use super::serial::Cable;
use super::spec::Machine;
use super::vm::{self, BootDevice};
use crate::error::{Error, Kind, OrFail, Result};

/// From `exec` to the first answer: QEMU reads its ROMs and sets up its memory; a busy host takes seconds.
const START_WITHIN: Duration = Duration::from_secs(20);
const CLIENT_WITHIN: Duration = Duration::from_secs(5);
const MAX_REQUEST: u64 = 4096;

/// A chassis command's arguments and what came of them, one JSON line each way.
#[derive(Debug, Serialize, Deserialize)]
pub struct Request(pub Vec<String>);

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// `name:value` for each name that was asked for; nothing after `set`.
    Done(Vec<String>),
    Failed(String),
}

pub fn socket(run: &Path) -> PathBuf {
    run.join("chassis.sock")
}

/// One machine with its power. Clones mean the same machine.
#[derive(Clone)]
pub struct Chassis {
    machine: Arc<Machine>,
    netns: String,
    guard: Guard,
    slot: Arc<Mutex<Slot>>,
}

struct Slot {
    qemu: Option<Child>,
    /// For the next start alone.
    boot: BootDevice,
    /// For every start without such a wish.
    order: BootDevice,
    /// How often the firmware has started.
    starts: u64,
}

impl Chassis {
    pub fn new(machine: &Machine, netns: &str, guard: &Guard) -> Self {
        let slot = Slot { qemu: None, boot: BootDevice::None, order: BootDevice::None, starts: 0 };
        Self {
            machine: Arc::new(machine.clone()),
            netns: netns.to_owned(),
            guard: guard.clone(),
            slot: Arc::new(Mutex::new(slot)),
        }
    }

    fn slot(&self) -> MutexGuard<'_, Slot> {
        self.slot.lock().unwrap_or_else(|e| e.into_inner())
    }

    pub fn is_on(&self) -> bool {
        self.slot().is_on()
    }

    /// Of the QEMU that is the machine while it is on.
    pub fn process_id(&self) -> Option<u32> {
        self.slot().qemu.as_ref().map(Child::id)
    }

    pub fn boot_device(&self) -> BootDevice {
        self.slot().boot
    }

    pub fn on(&self) -> Result<()> {
        let mut slot = self.slot();
        if slot.is_on() {
            return Ok(());
        }
        let (machine, normal) = (&self.machine, vm::boot_order(&self.machine, slot.order));
        let first = vm::boot_order(machine, slot.next());
        let failed = || format!("cannot start {}", machine.name());
        let log = OpenOptions::new().create(true).append(true).open(machine.dir.join("qemu.log"));
        let log = log.or_fail(Kind::Internal, "lab.qemu", failed)?;
        let mut command = net::inside(&self.netns, vm::QEMU);
        command.args(vm::arguments(machine, &first)).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        // The sockets of the last run would be found before the new ones are there.
        for old in [vm::monitor(machine), vm::events(machine)] {
            let _ = fs::remove_file(old);
        }
        let qemu = slot.qemu.insert(self.guard.spawn(&mut command)?);
        let mut monitor = self.wait_for(qemu, &vm::monitor(machine))?;
        let events = self.wait_for(qemu, &vm::events(machine))?;
        slot.boot = BootDevice::None;
        slot.starts += 1;
        if first != normal {
            // Firmware has its order from the reset that was; this one is for the next.
            monitor.set_boot_order(&normal)?;
        }
        let chassis = self.clone();
        std::thread::spawn(move || chassis.watch(events));
        Ok(())
    }

    fn wait_for(&self, qemu: &mut Child, socket: &Path) -> Result<Qmp> {
        let deadline = Instant::now() + START_WITHIN;
        loop {
            let ended = qemu.try_wait().ok().flatten().is_some();
            match Qmp::connect(socket) {
                Ok(qmp) => return Ok(qmp),
                Err(e) if ended || Instant::now() > deadline => {
                    let _ = qemu.kill();
                    let _ = qemu.wait();
                    let log = super::text::tail(&self.machine.dir.join("qemu.log"), 3).join(" ");
                    return Err(
                        Error::internal("lab.qemu", format!("{} did not start: {log}", self.machine.name())).because(e)
                    );
                }
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
            self.guard.check()?;
        }
    }

    /// A boot device that was set while the machine ran holds for one reset, whoever causes it.
    fn watch(&self, mut events: Qmp) {
        while let Ok(Some(event)) = events.event() {
            if event != "RESET" {
                continue;
            }
            let mut slot = self.slot();
            slot.starts += 1;
            if slot.boot != BootDevice::None {
                slot.boot = BootDevice::None;
                if events.set_boot_order(&vm::boot_order(&self.machine, slot.order)).is_err() {
                    return;
                }
            }
        }
    }

    /// As if the plug was pulled: nothing in the guest gets a word in.
    pub fn off(&self) -> Result<()> {
        let Some(mut qemu) = self.slot().qemu.take() else { return Ok(()) };
        let ended = qemu.kill().and_then(|()| qemu.wait());
        ended.or_fail(Kind::Internal, "lab.qemu", || format!("cannot switch {} off", self.machine.name()))?;
        Ok(())
    }

    pub fn reset(&self) -> Result<()> {
        self.if_on("system_reset")
    }

    /// The ACPI power button.
    pub fn soft_off(&self) -> Result<()> {
        self.if_on("system_powerdown")
    }

    pub fn set_boot_device(&self, device: BootDevice) -> Result<()> {
        let order = self.slot().order;
        self.set_boot(device, order)
    }

    /// `order` holds until it is changed.
    fn set_boot(&self, boot: BootDevice, order: BootDevice) -> Result<()> {
        let mut slot = self.slot();
        (slot.boot, slot.order) = (boot, order);
        if slot.is_on() {
            self.monitor()?.set_boot_order(&vm::boot_order(&self.machine, slot.next()))?;
        }
        Ok(())
    }

    fn if_on(&self, command: &str) -> Result<()> {
        match self.slot().is_on() {
            true => self.monitor()?.command(command, json!({})).map(drop),
            false => Ok(()),
        }
    }

    fn monitor(&self) -> Result<Qmp> {
        Qmp::connect(&vm::monitor(&self.machine))
    }

    /// `get NAME…` or `set NAME VALUE…`, as `ipmi_sim` calls its `chassis_control` program.
    fn run(&self, arguments: &[String]) -> Result<Vec<String>> {
        let wrong = || Error::input("lab.chassis", format!("not a chassis command: {}", arguments.join(" ")));
        let (verb, rest) = arguments.split_first().ok_or_else(wrong)?;
        if verb == "get" {
            return rest.iter().map(|name| self.get(name).map(|v| format!("{name}:{v}")).ok_or_else(wrong)).collect();
        }
        for pair in rest.chunks(2) {
            let [name, value] = pair else { return Err(wrong()) };
            match (verb.as_str(), name.as_str(), value.as_str()) {
                ("check", ..) | ("set", "identify", _) => {}
                ("set", "power", "0") => self.off()?,
                ("set", "power", _) => self.on()?,
                ("set", "reset", _) => self.reset()?,
                ("set", "shutdown", _) => self.soft_off()?,
                ("set", "boot", device) => {
                    self.set_boot_device(BootDevice::from_ipmi_sim(device).ok_or_else(wrong)?)?
                }
                ("set", "order", device) => {
                    let boot = self.boot_device();
                    self.set_boot(boot, BootDevice::from_ipmi_sim(device).ok_or_else(wrong)?)?
                }
                _ => return Err(wrong()),
            }
        }
        Ok(Vec::new())
    }

    fn get(&self, name: &str) -> Option<String> {
        Some(match name {
            "power" => u8::from(self.is_on()).to_string(),
            "boot" => self.boot_device().ipmi_sim().to_owned(),
            // What follows is for the Redfish BMC; `ipmi_sim` does not know it.
            "order" => self.slot().order.ipmi_sim().to_owned(),
            "starts" => self.slot().starts.to_string(),
            "reset" | "shutdown" | "identify" => "0".to_owned(),
            _ => return None,
        })
    }

    /// Until the socket is shut down.
    fn serve(&self, door: &UnixListener) {
        while let Ok((mut client, _)) = door.accept() {
            if let Err(e) = self.answer(&mut client) {
                tracing::warn!(machine = self.machine.name(), "{e:?}");
            }
        }
    }

    fn answer(&self, client: &mut UnixStream) -> Result<()> {
        let failed = || "a chassis command was not understood";
        let timeout = client.set_read_timeout(Some(CLIENT_WITHIN)).and(client.set_write_timeout(Some(CLIENT_WITHIN)));
        timeout.or_fail(Kind::Internal, "lab.chassis", failed)?;
        let mut line = String::new();
        let read = BufReader::new(client.try_clone().or_fail(Kind::Internal, "lab.chassis", failed)?.take(MAX_REQUEST))
            .read_line(&mut line);
        read.or_fail(Kind::Internal, "lab.chassis", failed)?;
        let Request(arguments) = serde_json::from_str(&line).or_fail(Kind::Input, "lab.chassis", failed)?;
        let answer = self.run(&arguments).map_or_else(|e| Answer::Failed(format!("{e:?}")), Answer::Done);
        let text = serde_json::to_string(&answer).or_fail(Kind::Internal, "lab.chassis", failed)?;
        writeln!(client, "{text}").or_fail(Kind::Internal, "lab.chassis", failed)
    }
}

impl Slot {
    fn next(&self) -> BootDevice {
        if self.boot == BootDevice::None { self.order } else { self.boot }
    }

    fn is_on(&mut self) -> bool {
        // A guest that powers itself off ends its QEMU.
        if self.qemu.as_mut().is_some_and(|q| !matches!(q.try_wait(), Ok(None))) {
            self.qemu = None;
        }
        self.qemu.is_some()
    }
}

/// The machines and the threads that serve their sockets.
pub struct Rack {
    pub chassis: Vec<Chassis>,
    doors: Vec<(UnixListener, JoinHandle<()>)>,
    cables: Vec<Cable>,
}

impl Rack {
    pub fn start(machines: &[Machine], netns: &str, guard: &Guard) -> Result<Self> {
        let mut rack = Rack { chassis: Vec::new(), doors: Vec::new(), cables: Vec::new() };
        for machine in machines {
            let failed = || format!("cannot serve the chassis of {}", machine.name());
            let listener = UnixListener::bind(socket(&machine.run)).or_fail(Kind::Internal, "lab.chassis", failed)?;
            let door = listener.try_clone().or_fail(Kind::Internal, "lab.chassis", failed)?;
            rack.cables.push(Cable::plug(machine, netns)?);
            let chassis = Chassis::new(machine, netns, guard);
            rack.chassis.push(chassis.clone());
            rack.doors.push((listener, std::thread::spawn(move || chassis.serve(&door))));
        }
        Ok(rack)
    }

    /// After the guard has ended all processes: lets the threads end and takes note of QEMU's end.
    pub fn stop(&mut self) {
        for (listener, thread) in self.doors.drain(..) {
            let _ = rustix::net::shutdown(&listener, rustix::net::Shutdown::Both);
            let _ = thread.join();
        }
        for chassis in &self.chassis {
            let _ = chassis.off();
        }
        self.cables.drain(..).for_each(Cable::unplug);
    }
}

impl Drop for Rack {
    fn drop(&mut self) {
        self.stop();
    }
}
