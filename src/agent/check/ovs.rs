//! A switch host must switch: two ports of a bridge with the same VLAN tag reach each other through the kernel's
//! datapath, and with different tags they do not.

use std::time::Duration;

use super::{Found, Question, Visit};
use crate::agent::tool::{self, Output};
use crate::error::Result;

const BRIDGE: &str = "rl-check";
/// Internal ports, each in a network namespace of the same name.
const PORTS: [&str; 2] = ["rl-check-a", "rl-check-b"];
/// Link-local (RFC 3927): nothing else on the host is disturbed.
const ADDRESSES: [&str; 2] = ["169.254.77.1/30", "169.254.77.2/30"];
const TARGET: &str = "169.254.77.2";
const STEP: Duration = Duration::from_secs(30);

pub async fn check(visit: &mut Visit<'_>) {
    let question = Question {
        id: "ovs.daemon",
        expected: "a version".into(),
        deadline: STEP,
        hint: "see `systemctl status openvswitch-switch` on the host",
    };
    visit.ask(question, daemon()).await;

    let question = Question {
        id: "ovs.traffic",
        expected: "a ping between two ports with the same tag, through system@ovs-system".into(),
        deadline: Duration::from_secs(120),
        hint: "see `ovs-vsctl show` and `modprobe openvswitch` on the host",
    };
    // An earlier visit may have been cut off.
    take_down().await;
    let seconds = visit.ask(question, traffic()).await;
    visit.seconds("ovs.traffic", seconds);
    if seconds.is_some() {
        let question = Question {
            id: "ovs.vlan",
            expected: "no ping between ports with different tags".into(),
            deadline: Duration::from_secs(60),
            hint: "see `ovs-vsctl list port` on the host",
        };
        visit.ask(question, separation()).await;
    }
    take_down().await;
}

async fn daemon() -> Result<Found> {
    let output = tool::expect("ovs-vsctl", &["--timeout=20", "get", "Open_vSwitch", ".", "ovs_version"], STEP).await?;
    Ok(Found::Good(output.stdout.trim().trim_matches('"').to_owned()))
}

async fn traffic() -> Result<Found> {
    tool::expect("ovs-vsctl", &["--timeout=20", "add-br", BRIDGE], STEP).await?;
    for (port, address) in PORTS.into_iter().zip(ADDRESSES) {
        let add =
            ["--timeout=20", "add-port", BRIDGE, port, "tag=100", "--", "set", "Interface", port, "type=internal"];
        tool::expect("ovs-vsctl", &add, STEP).await?;
        tool::expect("ip", &["netns", "add", port], STEP).await?;
        tool::expect("ip", &["link", "set", port, "netns", port], STEP).await?;
        tool::expect("ip", &["-n", port, "addr", "add", address, "dev", port], STEP).await?;
        tool::expect("ip", &["-n", port, "link", "set", port, "up"], STEP).await?;
    }
    let datapath = tool::expect("ovs-appctl", &["dpif/show"], STEP).await?;
    if !in_kernel(&datapath.stdout) {
        return Ok(Found::Bad("the bridge is not in the kernel's datapath".into()));
    }
    let output = ping("5").await?;
    Ok(match output.success {
        true => Found::Good("the ping passes, through system@ovs-system".into()),
        false => Found::Bad(format!("the ping is lost: {}", output.last_words())),
    })
}

/// `dpif/show` lists bridges, indented, below their datapath.
fn in_kernel(show: &str) -> bool {
    let below = show.lines().skip_while(|l| !l.starts_with("system@ovs-system")).skip(1);
    below.take_while(|l| l.starts_with(char::is_whitespace)).any(|l| l.trim().trim_end_matches(':') == BRIDGE)
}

async fn separation() -> Result<Found> {
    tool::expect("ovs-vsctl", &["--timeout=20", "set", "Port", PORTS[1], "tag=200"], STEP).await?;
    let output = ping("2").await?;
    Ok(match output.success {
        true => Found::Bad("the ping passes between VLAN 100 and 200".into()),
        false => Found::Good("no ping passes".into()),
    })
}

/// Three at most, an answer to one of them is enough.
async fn ping(wait: &str) -> Result<Output> {
    tool::run("ip", &["netns", "exec", PORTS[0], "ping", "-n", "-c", "3", "-W", wait, TARGET], STEP).await
}

/// What is not there need not be taken down: failures here say nothing.
async fn take_down() {
    let _ = tool::run("ovs-vsctl", &["--timeout=20", "--if-exists", "del-br", BRIDGE], STEP).await;
    for port in PORTS {
        let _ = tool::run("ip", &["netns", "del", port], STEP).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bridge_must_be_below_the_kernel_datapath() {
        let kernel = "system@ovs-system: hit:3 missed:7\n  rl-check:\n    rl-check 65534/1: (internal)\n";
        let user = "netdev@ovs-netdev: hit:0 missed:0\n  rl-check:\n    rl-check 65534/1: (tap)\n";
        assert!(in_kernel(kernel));
        assert!(!in_kernel(user));
        assert!(!in_kernel(&format!("system@ovs-system: hit:0 missed:0\n  br0:\n{user}")));
    }
}
