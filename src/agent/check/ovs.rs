//! A switch host must switch: two ports of a bridge with the same VLAN tag reach each other through the kernel's
//! datapath, by flows that fit more than one connection, also while Open vSwitch is restarted; with different tags they do
//! not. Bridges that are configured lead somewhere.

use std::future::Future;
use std::time::Duration;

use super::uplinks::{self, Bridge};
use super::{Found, Visit, kvm, said};
use crate::agent::Roots;
use crate::agent::tool::{self, Output};
use crate::check::Kind;
use crate::error::Result;

const BRIDGE: &str = "rl-check";
/// Internal ports, each in a network namespace of the same name.
const PORTS: [&str; 2] = ["rl-check-a", "rl-check-b"];
/// Link-local (RFC 3927): nothing else on the host is disturbed.
const ADDRESSES: [&str; 2] = ["169.254.77.1/30", "169.254.77.2/30"];
const TARGET: &str = "169.254.77.2";
/// How an exact flow between them would name them.
const NAMED: &str = "169.254.77.";
const STEP: Duration = Duration::from_secs(30);
const RESTART: Duration = Duration::from_secs(120);
/// The ping during the restart: one each 0.2 s, for 30 s.
const EACH: f64 = 0.2;
const WINDOW: &str = "30";

pub async fn check(roots: &Roots, visit: &mut Visit<'_>) {
    // An earlier visit may have been cut off.
    take_down().await;
    visit.ask(Kind::OvsDaemon, daemon()).await;
    visit.ask(Kind::OvsBridges, async { Ok(topology().await?.map_or_else(Found::Bad, |b| uplinks::errors(&b))) }).await;
    let out = |name: &str| kvm::is_uplink(roots, name);
    visit
        .ask(Kind::OvsUplinks, async { Ok(topology().await?.map_or_else(Found::Bad, |b| uplinks::judge(&b, out))) })
        .await;
    if visit.asks(Kind::OvsTraffic) {
        let passes = visit.ask(Kind::OvsTraffic, traffic()).await;
        visit.ask(Kind::OvsFlows, with(passes, flows())).await;
        visit.ask(Kind::OvsRestart, with(passes, restart())).await;
        visit.ask(Kind::OvsVlan, with(passes, separation())).await;
        take_down().await;
    }
}

/// What is asked of traffic that does not pass has a short answer; that none passes with different tags would prove nothing.
async fn with(passes: bool, work: impl Future<Output = Result<Found>>) -> Result<Found> {
    if passes { work.await } else { Ok(Found::bad("no traffic passes at all")) }
}

async fn daemon() -> Result<Found> {
    let output = tool::expect("ovs-vsctl", &["--timeout=20", "get", "Open_vSwitch", ".", "ovs_version"], STEP).await?;
    let version = output.stdout.trim().trim_matches('"');
    Ok(match version.starts_with(|c: char| c.is_ascii_digit()) {
        true => Found::Good(version.to_owned()),
        false => Found::bad(format!("ovs-vsctl says {}, no version", said(version))),
    })
}

/// The inner error is a sentence about output that cannot be read.
async fn topology() -> Result<Result<Vec<Bridge>, String>> {
    let mut tables = Vec::new();
    for (table, columns) in [
        ("Bridge", "--columns=name,ports"),
        ("Port", "--columns=_uuid,interfaces"),
        ("Interface", "--columns=_uuid,name,type,link_state,error"),
    ] {
        let args = ["--timeout=20", "--format=json", columns, "list", table];
        tables.push(tool::expect("ovs-vsctl", &args, STEP).await?.stdout);
    }
    Ok(uplinks::read(&tables[0], &tables[1], &tables[2]))
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

/// Right after the ping: flows go ten seconds after their last packet.
async fn flows() -> Result<Found> {
    let show = tool::expect("ovs-appctl", &["dpctl/show"], STEP).await?;
    let dump = tool::expect("ovs-appctl", &["dpctl/dump-flows", "--names"], STEP).await?;
    Ok(judge_flows(&show.stdout, &dump.stdout))
}

/// `dpctl/show`: `lookups: hit:13 missed:14 lost:0` and `flows: 2`; `dump-flows`: a line for each.
fn judge_flows(show: &str, dump: &str) -> Found {
    let number = |name: &str| {
        let text = show.split_once(name)?.1.trim_start();
        text.split(|c: char| !c.is_ascii_digit()).next()?.parse::<u32>().ok()
    };
    let (Some(flows), Some(lost)) = (number("flows:"), number("lost:")) else {
        return Found::bad(format!("dpctl/show says {}, no flows", said(show)));
    };
    if lost > 0 {
        return Found::bad(format!("{lost} packets were lost on their way to user space"));
    }
    let ours = |line: &&str| line.contains("eth_type(0x0800)") && PORTS.iter().any(|port| line.contains(port));
    let ours: Vec<&str> = dump.lines().filter(ours).collect();
    if ours.is_empty() {
        return Found::bad("none of the flows is that of the ping");
    }
    if let Some(exact) = ours.iter().find(|line| line.contains(NAMED)) {
        let matched = exact.split(", packets").next().unwrap_or(exact);
        return Found::bad(format!("the flow of the ping fits this one connection only: {matched}"));
    }
    Found::Value(flows.into(), format!("{flows} flows, those of the ping without its addresses, no packet lost"))
}

async fn restart() -> Result<Found> {
    let ping = ["netns", "exec", PORTS[0], "ping", "-n", "-i", "0.2", "-w", WINDOW, TARGET];
    let restart = async {
        // The first answers show that it runs.
        tokio::time::sleep(Duration::from_secs(2)).await;
        tool::expect("systemctl", &["restart", "ovs-vswitchd.service"], RESTART).await
    };
    let (pinged, restarted) = tokio::join!(tool::run("ip", &ping, RESTART), restart);
    restarted?;
    let during = gap(&pinged?.stdout);
    // The new one has to do it too.
    let after = self::ping("5").await?;
    Ok(match (during, after.success) {
        (Some(seconds), true) => Found::Value(seconds, format!("{seconds:.1} s without an answer")),
        (Some(_), false) => Found::bad(format!("no traffic after the restart: {}", after.last_words())),
        (None, _) => Found::bad("no ping was answered"),
    })
}

/// The longest time without an answer, in seconds; `None`: there was none at all.
fn gap(output: &str) -> Option<f64> {
    let number = |text: &str| text.split(|c: char| !c.is_ascii_digit()).next()?.parse::<u32>().ok();
    let mut answered: Vec<u32> = output.lines().filter_map(|l| number(l.split_once("icmp_seq=")?.1)).collect();
    answered.sort_unstable();
    let last = *answered.last()?;
    // `150 packets transmitted, 148 received, …`
    let sent = output.lines().find_map(|l| number(l.split_once(" packets transmitted").map(|_| l)?)).unwrap_or(last);
    let ends = [0].into_iter().chain(answered.iter().copied()).zip(answered.iter().copied().chain([sent + 1]));
    let longest = ends.map(|(one, next)| next.saturating_sub(one).saturating_sub(1)).max()?;
    Some(f64::from(longest) * EACH)
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

    const SHOW: &str = "system@ovs-system:\n  lookups: hit:13 missed:14 lost:0\n  flows: 2\n  masks: hit:28 total:2\n";
    const FLOW: &str = "recirc_id(0),in_port(rl-check-a),eth(src=0e:01,dst=0e:02),eth_type(0x0800),ipv4(frag=no), packets:2, bytes:196, used:0.1s, actions:rl-check-b\n";

    #[test]
    fn the_bridge_must_be_below_the_kernel_datapath() {
        let kernel = "system@ovs-system: hit:3 missed:7\n  rl-check:\n    rl-check 65534/1: (internal)\n";
        let user = "netdev@ovs-netdev: hit:0 missed:0\n  rl-check:\n    rl-check 65534/1: (tap)\n";
        assert!(in_kernel(kernel));
        assert!(!in_kernel(user));
        assert!(!in_kernel(&format!("system@ovs-system: hit:0 missed:0\n  br0:\n{user}")));
    }

    #[test]
    fn flows_fit_more_than_one_connection() {
        assert!(matches!(judge_flows(SHOW, FLOW), Found::Value(flows, _) if flows == 2.0));
        let sentence = |show: &str, dump: &str| match judge_flows(show, dump) {
            Found::Bad(found) => found,
            other => panic!("{other:?}"),
        };
        let exact = FLOW.replace("frag=no", "src=169.254.77.1,dst=169.254.77.2,proto=1,frag=no");
        assert!(sentence(SHOW, &exact).starts_with("the flow of the ping fits this one connection only: recirc_id(0)"));
        assert_eq!(sentence(&SHOW.replace("lost:0", "lost:9"), FLOW), "9 packets were lost on their way to user space");
        assert_eq!(sentence(SHOW, "recirc_id(0),in_port(eth0)"), "none of the flows is that of the ping");
        assert!(sentence("garbage", FLOW).contains("\"garbage\""));
        assert!(sentence("", FLOW).contains("nothing"));
    }

    #[test]
    fn the_longest_time_without_an_answer() {
        let output = |answered: &[u32], sent: u32| {
            let lines =
                answered.iter().map(|n| format!("64 bytes from 169.254.77.2: icmp_seq={n} ttl=64 time=0.1 ms\n"));
            format!("{}\n{sent} packets transmitted, {} received\n", lines.collect::<String>(), answered.len())
        };
        let near = |text: &str, seconds: f64| assert!((gap(text).unwrap() - seconds).abs() < 1e-9, "{text}");
        near(&output(&[1, 2, 3, 4], 4), 0.0);
        near(&output(&[1, 2, 8, 9], 9), 1.0);
        near(&output(&[1, 2], 12), 2.0);
        near(&output(&[4, 5], 5), 0.6);
        assert_eq!(gap(&output(&[], 100)), None);
        assert_eq!(gap("ping: sendmsg: garbage"), None);
    }
}
