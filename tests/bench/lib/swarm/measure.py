"""One contestant brings one file to all machines of a hall, once, while something may break: times, bytes, processor."""

import hashlib
import os
import resource
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from hall import busy_seconds


@dataclass
class Fault:
    """Something that breaks when the machines have got `at` of all bytes, and for how long."""

    kind: str
    at: float = 0.0
    seconds: float = 0.0


FAULTS = {
    "none": Fault("none"),
    "seeder": Fault("seeder", at=0.3, seconds=10),
    "third": Fault("third", at=0.5),
    "trunk": Fault("trunk", at=0.3, seconds=20),
    "slow": Fault("slow"),
    "garbage": Fault("garbage"),
}
SLOW_MBIT = 10


@dataclass
class Result:
    """Times in seconds from the start; bytes as copies of the file; `last` is None where not all that live came to an end."""

    contestant: str
    last: float | None
    ideal: float
    times: list = field(default_factory=list)
    alive: int = 0
    verified: int = 0
    wrong: int = 0
    server_copies: float = 0.0
    trunk_down: float = 0.0
    trunk_up: float = 0.0
    busy: float = 0.0
    cpu_per_gb: float = 0.0
    slow_last: float | None = None
    mib: int = 0

    @property
    def ratio(self):
        return self.last / self.ideal if self.last else None


class Run:
    """What a contestant sees: the hall, the file, a home for every host."""

    def __init__(self, hall, source, size, folder):
        self.hall, self.size, self.folder = hall, size, folder
        self.torrent, self.go = folder / "image.torrent", folder / "GO"
        for i in hall.hosts():
            self.home(i).mkdir()
        with open(source, "rb") as data, open(self.file(0), "wb") as file:
            os.sendfile(file.fileno(), data.fileno(), 0, size) if size < 1 << 30 else shutil.copyfileobj(data, file)

    def home(self, i):
        return self.folder / str(i)

    def file(self, i):
        return self.home(i) / "image"

    def stamp(self, i):
        return self.folder / f"stamp-{i}"

    def start(self, i, *argv, log=None, env=None):
        return self.hall.run(i, *argv, log=self.folder / f"{log}.log" if log else None, env=env)

    def started(self, i):
        return any(process.host == i for process in self.hall.processes)

    def output(self, i, *argv):
        return subprocess.run([*self.hall.enter(i), *argv], capture_output=True, text=True).stdout

    def log(self, name):
        try:
            return (self.folder / f"{name}.log").read_text(errors="replace")
        except OSError:
            return ""


def digest(path, size=None):
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() if size is None else hashlib.sha256(file.read(size)).hexdigest()
    except OSError:
        return None


def measure(contestant, hall, source, size, fault, limit, scratch, keep_logs=None):
    """`limit` is in seconds. Files are in memory, so that disks do not count."""
    folder = Path(tempfile.mkdtemp(prefix="rackline-swarm-", dir=scratch))
    try:
        run = Run(hall, source, size, folder)
        return Measurement(contestant, run, fault, limit).result()
    finally:
        hall.kill()
        if keep_logs:
            for log in folder.glob("*.log"):
                Path(keep_logs).mkdir(parents=True, exist_ok=True)
                shutil.copy(log, Path(keep_logs) / f"{contestant.name}-{log.name}")
        shutil.rmtree(folder, ignore_errors=True)


class Measurement:
    def __init__(self, contestant, run, fault, limit):
        self.contestant, self.run, self.fault, self.limit = contestant, run, fault, limit
        self.hall = run.hall
        self.dead, self.finished = set(), {}
        self.broken_at = self.mended = None
        self.victim = self.hall.machines // 2 or 1

    def result(self):
        hall, run = self.hall, self.run
        self.contestant.serve(run)
        if self.fault.kind == "garbage":
            hall.corrupt(self.victim)
        counters, busy, children = hall.counters(), busy_seconds(), cpu_of_children()
        self.before, self.zero = counters, time.time()
        run.go.touch()
        for i in hall.clients():
            self.contestant.fetch(run, i)
        while self.waiting() and time.time() - self.zero < self.limit:
            time.sleep(0.1)
            self.look()
            self.break_and_mend()
        took, after, busy = time.time() - self.zero, hall.counters(), busy_seconds() - busy
        self.mend()
        hall.kill()
        return self.sum_up(took, after, busy, cpu_of_children() - children)

    def waiting(self):
        return [i for i in self.hall.clients() if i not in self.finished and i not in self.dead]

    def look(self):
        for i in self.waiting():
            if (when := self.contestant.done(self.run, i)) is not None:
                self.finished[i] = when - self.zero

    def progress(self):
        now = self.hall.counters()
        alive = [i for i in self.hall.clients() if i not in self.dead]
        return sum(now[f"p{i}"][1] - self.before[f"p{i}"][1] for i in alive) / (len(alive) * self.run.size)

    def break_and_mend(self):
        """A trunk and a server come back after a while; machines do not."""
        fault = self.fault
        if not fault.at:
            return
        if self.broken_at is None and self.progress() >= fault.at:
            self.broken_at = time.time()
            if fault.kind == "seeder":
                self.hall.kill([0])
            elif fault.kind == "third":
                # The middle one of each three, so that nobody is spared by where it stands.
                self.dead = {i for i in self.hall.clients() if i % 3 == 2} - set(self.finished)
                self.hall.power(self.dead, False)
            elif fault.kind == "trunk":
                self.hall.cut_trunk(self.hall.racks - 1, True)
        if self.broken_at and fault.seconds and not self.mended and time.time() - self.broken_at >= fault.seconds:
            self.mend()

    def mend(self):
        if self.fault.kind == "trunk":
            self.hall.cut_trunk(self.hall.racks - 1, False)
        elif self.fault.kind == "seeder" and self.broken_at and not self.mended:
            self.contestant.again(self.run)
        elif self.fault.kind == "third":
            self.hall.power(self.dead, True)
        elif self.fault.kind == "garbage":
            self.hall.repair(self.victim)
        self.mended = True

    def sum_up(self, took, after, busy, cpu):
        run, hall = self.run, self.hall
        want = digest(run.file(0))
        alive = [i for i in hall.clients() if i not in self.dead]
        right = {i for i in alive if i in self.finished and digest(run.file(i)) == want}
        slow = self.victim if self.fault.kind == "slow" else None
        fast = [i for i in alive if i != slow]
        moved = lambda port, way: (after[port][way] - self.before[port][way]) / run.size
        whole = all(i in right for i in fast)
        return Result(
            contestant=self.contestant.name, last=max(self.finished[i] for i in fast) if whole else None,
            ideal=run.size * 8 / (hall.rate * 1e6), times=sorted(round(t, 3) for t in self.finished.values()), alive=len(alive),
            verified=len(right), wrong=len([i for i in self.finished if i in alive]) - len(right), server_copies=moved("p0", 0),
            trunk_down=max((moved(port, 1) for port in hall.trunks()), default=0.0),
            trunk_up=max((moved(port, 0) for port in hall.trunks()), default=0.0), busy=busy / took / os.cpu_count(),
            cpu_per_gb=cpu / (run.size * max(1, len(self.finished)) / 1e9), slow_last=self.finished.get(slow) if slow else None,
            mib=run.size >> 20)


def cpu_of_children():
    """Of all that have ended and were waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
