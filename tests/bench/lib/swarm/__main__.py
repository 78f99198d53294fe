"""Benchmarks of the swarm; see ../../swarm.sh for what is measured and how it is called."""

import argparse
import ctypes
import json
import os
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import contestants
import report
from hall import Hall, remove_stale
from measure import FAULTS, SLOW_MBIT, Result, measure


PR_SET_PDEATHSIG = 1


@dataclass
class Scenario:
    title: str
    machines: int
    rate: float
    mib: int
    racks: int = 1
    fault: str = "none"
    only: tuple = ()


EVERYBODY = ("rackline", "chain", "udpcast", "aria2", "libtorrent", "transmission", "rqbit", "nginx")
# Those that can lose a machine or the server and go on.
LASTING = ("rackline", "aria2", "libtorrent", "transmission")

SCENARIOS = {
    "8": Scenario("8 machines, 100 Mbit/s, 256 MiB", 8, 100, 256),
    "32": Scenario("32 machines, 50 Mbit/s, 128 MiB", 32, 50, 128),
    "8-fast": Scenario("8 machines, 200 Mbit/s, 512 MiB", 8, 200, 512),
    "32-fast": Scenario("32 machines, 200 Mbit/s, 256 MiB", 32, 200, 256),
    "racks-2": Scenario("2 racks of 8, 100 Mbit/s, trunks too, 128 MiB", 16, 100, 128, racks=2),
    "racks-4": Scenario("4 racks of 8, 50 Mbit/s, trunks too, 128 MiB", 32, 50, 128, racks=4),
} | {
    f"grow-{n}": Scenario(f"{n} machines, 50 Mbit/s, 128 MiB", n, 50, 128, only=("rackline", "chain", "aria2", "libtorrent"))
    for n in (2, 4, 8, 16)
} | {
    "seeder": Scenario("16 machines, 50 Mbit/s, 128 MiB; server killed at 30 %, back after 10 s", 16, 50, 128, 1, "seeder", LASTING),
    "third": Scenario("16 machines, 50 Mbit/s, 128 MiB; a third loses power at 50 %", 16, 50, 128, 1, "third", LASTING),
    "trunk": Scenario("2 racks of 8, 50 Mbit/s, 128 MiB; one trunk down for 20 s at 30 %", 16, 50, 128, 2, "trunk", LASTING),
    "slow": Scenario(f"16 machines, 50 Mbit/s, 64 MiB; one has {SLOW_MBIT}", 16, 50, 64, 1, "slow", (*LASTING, "udpcast", "chain")),
    "garbage": Scenario("16 machines, 50 Mbit/s, 128 MiB; one sends garbage", 16, 50, 128, 1, "garbage", LASTING),
    "sound": Scenario("16 machines, 50 Mbit/s, 128 MiB; nothing breaks", 16, 50, 128, only=LASTING),
}
GROUPS = {
    "speed": ("8", "32", "8-fast"),
    "racks": ("racks-2", "racks-4"),
    "growth": ("grow-2", "grow-4", "grow-8", "grow-16", "32"),
    "faults": ("sound", "seeder", "third", "trunk", "slow", "garbage"),
}


def arguments():
    parser = argparse.ArgumentParser(prog="swarm.sh", description=__doc__)
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=f"{', '.join(GROUPS)}, or one of {', '.join(SCENARIOS)}")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--who", help=f"contestants, separated by commas: {', '.join(contestants.ALL)}")
    parser.add_argument("--mib", type=int, help="size of the file, instead of the scenario's")
    parser.add_argument("--congestion", default="cubic", help="TCP's congestion control on all hosts")
    parser.add_argument("--peers", type=Path, required=True, help="folder of the contestants that are no Debian packages")
    parser.add_argument("--node", type=Path, required=True, help="the program of tests/bench/swarm-node.rs")
    parser.add_argument("--scratch", default="/dev/shm", help="folder in memory for the machines' files")
    parser.add_argument("--json", help="write every run and its figures here")
    parser.add_argument("--svg", help="draw last over ideal here")
    parser.add_argument("--add", action="append", default=[], metavar="JSON", help="take the runs of an earlier --json as well")
    parser.add_argument("--logs", help="keep the contestants' logs in this folder")
    return parser.parse_args()


def own_session():
    """Before other work on this machine, all contestants alike: a session of its own is a scheduling group of its own
    (sched(7)). Its child goes on from here; this process stays with the terminal and hands on what it is told."""
    child = os.fork()
    if child:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda *_: os.kill(child, signal.SIGINT))
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    os.setsid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        Path("/proc/self/autogroup").write_text("-15")
    except OSError:
        pass


def main():
    options = arguments()
    own_session()
    names = options.scenarios or ([] if options.add else list(GROUPS))
    keys = [key for name in names for key in GROUPS.get(name, (name,))]
    if unknown := [key for key in keys if key not in SCENARIOS]:
        sys.exit(f"no such scenario: {', '.join(unknown)}")
    kept = {}
    for path in options.add:
        for part in json.loads(Path(path).read_text()):
            runs = [Result(**{key: value for key, value in run.items() if key != "ratio"}) for run in part["runs"]]
            kept.setdefault(part["scenario"], (part["title"], []))[1].extend(runs)
    remove_stale()
    options.interrupted = False
    for key in dict.fromkeys(keys):
        scenario = SCENARIOS[key]
        if options.mib:
            title = scenario.title.replace(f"{scenario.mib} MiB", f"{options.mib} MiB")
            scenario = replace(scenario, mib=options.mib, title=title)
        kept.setdefault(key, (scenario.title, []))[1].extend(play(scenario, options))
        if options.interrupted:
            print("interrupted: what was measured so far follows", file=sys.stderr)
            break
    shown = [(key, title, results) for key, (title, results) in kept.items() if results]
    for _, title, results in shown:
        print(report.table(title, results))
    print(report.EXPLANATION)
    print(f"{os.cpu_count()} cores, kernel {os.uname().release}, TCP {options.congestion}, {time.strftime('%F %R')}")
    if options.json:
        report.as_json(options.json, shown)
    if options.svg:
        report.picture(options.svg, shown)


def play(scenario, options):
    """All contestants in turn, then all of them again: what disturbs the machine for a while disturbs nobody alone."""
    names = options.who.split(",") if options.who else scenario.only or EVERYBODY
    players = [contestants.ALL[name](options.peers, options.node) for name in names]
    slow = {scenario.machines // 2: SLOW_MBIT} if scenario.fault == "slow" else {}
    results = []
    print(f"# {scenario.title}", file=sys.stderr)
    with tempfile.TemporaryFile(dir=options.scratch) as source:
        for _ in range(scenario.mib):
            source.write(os.urandom(1 << 20))
        source.flush()
        hall = Hall(scenario.machines, scenario.rate, scenario.racks, slow=slow, congestion=options.congestion)
        try:
            for _ in range(options.runs):
                for player in players:
                    size = int((scenario.mib << 20) * player.fraction)
                    results.append(once(player, hall, source, size, scenario, options))
        except KeyboardInterrupt:
            options.interrupted = True
        finally:
            hall.close()
    return results


def once(player, hall, source, size, scenario, options):
    ideal = size * 8 / (hall.rate * 1e6)
    # Unicast takes as many times the ideal as there are machines; a slow machine as much longer as it is slower.
    fair = hall.machines * 1.3 if player.fraction != 1 else 6
    limit = 30 + ideal * max(fair, hall.rate / SLOW_MBIT * 1.5 if scenario.fault == "slow" else 0)
    path = f"/proc/self/fd/{source.fileno()}"
    try:
        result = measure(player, hall, path, size, FAULTS[scenario.fault], limit, options.scratch, options.logs)
    except RuntimeError as why:
        print(f"  {player.name:13} did not start: {why}", file=sys.stderr)
        return Result(player.name, None, ideal, mib=size >> 20)
    shown = f"{result.ratio:.3f}" if result.ratio else f"not ended after {limit:.0f} s"
    slow = f"  slow one {result.slow_last:.1f} s" if result.slow_last else ""
    print(f"  {player.name:13} {shown}  verified {result.verified}/{result.alive}  server {result.server_copies:.2f}  "
          f"CPU {result.busy * 100:.0f} %{slow}", file=sys.stderr, flush=True)
    return result


main()
