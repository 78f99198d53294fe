"""A machine hall of network namespaces: one server and racks of machines, each behind a shaped link.

    server ── core ──trunk── rack 0 ── machines
                 └───trunk── rack 1 ── machines

All bridges are in one namespace, every host has its own. An access link is a veth pair with a token bucket (tc-tbf(8)) at
both ends, so each direction has the link's rate; a trunk likewise. With one rack the machines hang on the core itself.
Rates are in Mbit/s as on the wire: 1448 bytes of TCP payload cost 1514, so nothing gets below 1.046 of size / rate.
"""

import concurrent.futures
import ctypes
import os
import signal
import subprocess
import time

PREFIX = "rackline-swarm-"
ALLOWED = "net.ipv4.tcp_allowed_congestion_control"
CLONE_NEWNET = 0x40000000


def command(*argv, check=True, stdin=None):
    done = subprocess.run(argv, input=stdin, capture_output=True, text=True)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(argv)}: {done.stderr.strip()}")
    return done.stdout


def remove_stale():
    """Namespaces of runs that were killed before they could clean up."""
    for line in command("ip", "netns", "list").splitlines():
        name = line.split()[0]
        if not name.startswith(PREFIX):
            continue
        owner = name[len(PREFIX):].split("-")[0]
        if not os.path.exists(f"/proc/{owner}"):
            remove_namespace(name)


# Bytes that a host's TCP hands over at once, at most: tbf cuts what is larger than its burst into single packets and costs whoever
# writes much at a time several times the processor time for them, and what is near it is a long wait on every link.
GSO = 16384


def remove_namespace(name):
    pids = [int(pid) for pid in command("ip", "netns", "pids", name, check=False).split()]
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    command("ip", "netns", "del", name, check=False)


class Hall:
    def __init__(self, machines, rate, racks=1, trunk=None, slow=None, burst="64kb", latency="20ms", congestion="cubic"):
        """`slow` gives single machines another rate: {3: 10}."""
        self.machines, self.rate, self.racks, self.trunk = machines, rate, racks, trunk or rate
        self.shape = f"burst {burst} latency {latency}"
        self.congestion = congestion
        self.base = f"{PREFIX}{os.getpid()}-"
        self.switch = self.base + "switch"
        self.processes = []
        self.reader = self.allowed = None
        self.made = []
        try:
            self.build(slow or {})
        except BaseException:
            self.close()
            raise

    # Layout

    def host(self, i):
        """Name of a host's namespace; 0 is the server."""
        return f"{self.base}{i}"

    def address(self, i):
        return f"10.77.{self.rack(i) + 1 if i else 0}.{i + 1}"

    def rack(self, i):
        return (i - 1) * self.racks // self.machines if i else -1

    def hosts(self):
        return range(self.machines + 1)

    def clients(self):
        return range(1, self.machines + 1)

    def trunks(self):
        """Port of the core to each rack; there is none where all hang on the core."""
        return [f"t{r}" for r in range(self.racks)] if self.racks > 1 else []

    def build(self, slow):
        # A namespace may only use what the host allows, which need not be what is asked for here.
        allowed = command("sysctl", "-n", ALLOWED).split()
        if self.congestion not in allowed:
            self.allowed = " ".join(allowed)
            command("sysctl", "-qw", f"{ALLOWED}={self.allowed} {self.congestion}")
        for name in [self.switch, *map(self.host, self.hosts())]:
            command("ip", "netns", "add", name)
            self.made.append(name)
        bridges = ["core"] + ([f"rack{r}" for r in range(self.racks)] if self.racks > 1 else [])
        lines = ["link set lo up"]
        for bridge in bridges:
            lines += [f"link add {bridge} type bridge mcast_snooping 0", f"link set {bridge} up"]
        for r, port in enumerate(self.trunks()):
            lines += [f"link add {port} type veth peer name u{r}", f"link set {port} master core up",
                      f"link set u{r} master rack{r} up"]
        for i in self.hosts():
            bridge = f"rack{self.rack(i)}" if i and self.racks > 1 else "core"
            lines += [f"link add p{i} type veth peer name e0 netns {self.host(i)}", f"link set p{i} master {bridge} up"]
        self.batch("ip", self.switch, lines)
        shapes = []
        for r, port in enumerate(self.trunks()):
            shapes += [f"qdisc add dev {dev} root tbf rate {self.trunk}mbit {self.shape}" for dev in (port, f"u{r}")]
        for i in self.hosts():
            shape = f"root tbf rate {slow.get(i, self.rate)}mbit {self.shape}"
            self.batch("ip", self.host(i), ["link set lo up", f"addr add {self.address(i)}/16 brd + dev e0", f"link set e0 up gso_max_size {GSO}",
                                            "route add 224.0.0.0/4 dev e0"])
            self.batch("tc", self.host(i), [f"qdisc add dev e0 {shape}"])
            shapes.append(f"qdisc add dev p{i} {shape}")
            command(*self.enter(i), "sysctl", "-qw", f"net.ipv4.tcp_congestion_control={self.congestion}")
        self.batch("tc", self.switch, shapes)
        # Where the host has br_netfilter, its hooks cost more than the rest of the bridge.
        quiet = [f"net.bridge.bridge-nf-call-{tables}=0" for tables in ("iptables", "ip6tables", "arptables")]
        command("ip", "netns", "exec", self.switch, "sysctl", "-eqw", *quiet)
        self.reader = concurrent.futures.ThreadPoolExecutor(1, initializer=self.enter_switch)

    def batch(self, tool, namespace, lines):
        command(tool, "-n", namespace, "-batch", "-", stdin="\n".join(lines) + "\n")

    # What happens in it

    def enter(self, i):
        return ["nsenter", f"--net=/run/netns/{self.host(i)}"]

    def run(self, i, *argv, log=None, env=None):
        """Starts a program on a host, as a process group of its own; `log` is a path."""
        out = open(log, "ab") if log else subprocess.DEVNULL
        try:
            process = subprocess.Popen([*self.enter(i), *map(str, argv)], stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                                       env={**os.environ, **(env or {})}, process_group=0)
        finally:
            if log:
                out.close()
        process.host = i
        self.processes.append(process)
        return process

    def kill(self, hosts=None):
        """Ends everything on these hosts, or on all, at once."""
        chosen = [p for p in self.processes if hosts is None or p.host in hosts]
        for process in chosen:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        for process in chosen:
            process.wait()
        self.processes = [p for p in self.processes if p not in chosen]

    def power(self, hosts, on):
        """Without power, a machine does not even end its connections."""
        self.batch("ip", self.switch, [f"link set p{i} {'up' if on else 'down'}" for i in hosts])
        if not on:
            self.kill(hosts)

    def cut_trunk(self, rack, cut):
        command("ip", "-n", self.switch, "link", "set", f"t{rack}", "down" if cut else "up")

    def corrupt(self, i):
        """From now on, one in fifty large packets that machine `i` sends has four other bytes in its payload. A veth pair has
        checksum offload, so the receiver's TCP takes them: like memory or a network card that is broken."""
        rule = "meta l4proto tcp meta length > 1000 numgen random mod 50 == 0 @th,480,32 set 0x4f6f7073"
        for words in ("add table ip broken", "add chain ip broken out { type filter hook output priority 0; }",
                      f"add rule ip broken out {rule}"):
            command(*self.enter(i), "nft", words)

    def repair(self, i):
        command(*self.enter(i), "nft", "delete", "table", "ip", "broken", check=False)

    # What is measured

    def enter_switch(self):
        """For the one thread of `reader` only: it then sees the switch's counters."""
        with open(f"/run/netns/{self.switch}") as namespace:
            if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")

    def counters(self):
        """Bytes that each port of the switch has received and sent: {port: (received, sent)}."""
        return self.reader.submit(read_counters).result()

    def close(self):
        self.kill()
        if self.reader:
            self.reader.shutdown()
        for name in self.made:
            remove_namespace(name)
        self.made = []
        if self.allowed:
            command("sysctl", "-qw", f"{ALLOWED}={self.allowed}")
            self.allowed = None


def read_counters():
    counters = {}
    with open("/proc/thread-self/net/dev") as lines:
        for line in list(lines)[2:]:
            name, _, values = line.partition(":")
            values = values.split()
            counters[name.strip()] = (int(values[0]), int(values[8]))
    return counters


def busy_seconds():
    """CPU seconds that the machine has spent on anything: user, nice, system, irq and softirq of proc_stat(5)."""
    with open("/proc/stat") as stat:
        user, nice, system, _idle, _iowait, irq, softirq = map(int, stat.readline().split()[1:8])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def wait_for(condition, seconds, what):
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{what}: not within {seconds} s")
        time.sleep(0.05)
