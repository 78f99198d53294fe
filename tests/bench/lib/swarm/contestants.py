"""Who takes part, and how each is started. All are set up for a local network as well as their options allow.

A contestant has `serve(run)`, which returns when the server and whatever must be ready before the clock starts is ready, and
`fetch(run, i)`, which starts machine `i`. A machine is done when `run.stamp(i)` holds the time, written by itself.
"""

import json
import os
import shutil
import time
from pathlib import Path

from hall import wait_for
from metainfo import metainfo

HERE = Path(__file__).parent
PYTHON = "/usr/bin/python3"
PIECE = 1 << 20
TRACKER_PORT = 6969


class Contestant:
    name = ""
    # A part of the file is enough where the time is in proportion to its size and would be very long.
    fraction = 1
    restartable = True

    def __init__(self, peers, node):
        self.peers, self.node = peers, node

    def serve(self, run):
        raise NotImplementedError

    def fetch(self, run, i):
        raise NotImplementedError

    def again(self, run):
        """The server comes back after it was killed."""
        self.serve(run)

    def done(self, run, i):
        try:
            return float(run.stamp(i).read_text())
        except (OSError, ValueError):
            return None


class Rackline(Contestant):
    """Agents and appliance as they are: each machine says once a second where it is and is told whom to follow. A server that
    comes back has forgotten everybody."""

    name = "rackline"

    def images(self, run):
        return run.folder / "images"

    def serve(self, run):
        if not self.images(run).exists():
            run.output(0, self.node, "cut", run.file(0), self.images(run))
        run.start(0, self.node, "seed", self.images(run), log="0")
        time.sleep(0.5)

    def fetch(self, run, i):
        run.start(i, self.node, "leech", self.images(run), run.file(i), "--appliance", run.hall.address(0),
                  "--rack", f"rack{run.hall.rack(i)}", "--stamp", run.stamp(i), log=f"{i}")


class Nginx(Contestant):
    """Unicast: one download for each machine, all at once, by sendfile."""

    name = "nginx"
    fraction = 1 / 8

    def serve(self, run):
        config = run.folder / "nginx.conf"
        config.write_text(f"""
            worker_processes 1; daemon off; user root; pid {run.folder}/nginx.pid; error_log {run.folder}/nginx.log;
            events {{ worker_connections 1024; }}
            http {{ access_log off; sendfile on; tcp_nopush on; client_body_temp_path {run.folder}/t;
                proxy_temp_path {run.folder}/t; fastcgi_temp_path {run.folder}/t; uwsgi_temp_path {run.folder}/t;
                scgi_temp_path {run.folder}/t; server {{ listen 8080; root {run.home(0)}; }} }}""")
        run.start(0, "nginx", "-e", run.folder / "nginx.log", "-c", config)
        time.sleep(0.5)

    def fetch(self, run, i):
        # -C -: goes on where it stopped when the server comes back.
        run.start(i, "sh", "-c", f"until curl -sf -C - -o {run.file(i)} http://{run.hall.address(0)}:8080/image; do sleep 1; done; "
                                 f"date +%s.%N >{run.stamp(i)}")


class Chain(Contestant):
    """The plain pipeline of chain.py: not a contestant that survives anything, but what is possible."""

    name = "chain"
    restartable = False

    def serve(self, run):
        last = run.hall.machines
        for i in reversed(run.hall.clients()):
            successor = [f"{run.hall.address(i + 1)}:7000"] if i < last else []
            run.start(i, PYTHON, HERE / "chain.py", "node", run.file(i), run.stamp(i), 7000, *successor)
        time.sleep(1 + 0.1 * last)

    def fetch(self, run, i):
        if i == 1:
            run.start(0, PYTHON, HERE / "chain.py", "head", run.file(0), f"{run.hall.address(1)}:7000")


class Udpcast(Contestant):
    """Multicast, at a payload rate just under that of the links."""

    name = "udpcast"
    restartable = False

    def serve(self, run):
        for i in run.hall.clients():
            run.start(i, "sh", "-c", f"udp-receiver --nokbd --nosync --interface e0 --file {run.file(i)} && "
                                     f"date +%s.%N >{run.stamp(i)}")
        time.sleep(1 + 0.05 * run.hall.machines)

    def fetch(self, run, i):
        if i == 1:
            run.start(0, "udp-sender", "--nokbd", "--interface", "e0", "--full-duplex", "--max-bitrate",
                      f"{int(run.hall.rate * 955)}k", "--min-receivers", run.hall.machines, "--max-wait", 5, "--file", run.file(0))


class Torrent(Contestant):
    """What the BitTorrent clients have in common."""

    private = False

    def tracker(self, run):
        where = run.hall.address(0)
        run.torrent.write_bytes(metainfo(run.file(0), "image", f"http://{where}:{TRACKER_PORT}/announce", PIECE, self.private))
        run.start(0, PYTHON, HERE / "tracker.py", where, TRACKER_PORT, 30, log="tracker")
        time.sleep(0.7)

    def hook(self, run):
        """What a client is to call when it has all: writes the time."""
        script = run.folder / "hook"
        script.write_text('#!/bin/sh\nexec date +%s.%N >"$STAMP"\n')
        script.chmod(0o755)
        return script


class Aria2(Torrent):
    name = "aria2"

    def serve(self, run):
        self.tracker(run)
        self.fetch(run, 0, "--bt-seed-unverified=true")
        time.sleep(2)

    def fetch(self, run, i, *more):
        run.start(i, "aria2c", "--no-conf", "--enable-dht=false", "--enable-dht6=false", "--bt-enable-lpd=false",
                  "--listen-port=6881", "--seed-ratio=0.0", "--file-allocation=none", "--bt-max-peers=60", "--summary-interval=0",
                  "--console-log-level=error", "--disk-cache=16M", "--allow-overwrite=true", f"--dir={run.home(i)}",
                  f"--on-bt-download-complete={self.hook(run)}", *more, run.torrent, log=f"aria2-{i}",
                  env={"STAMP": str(run.stamp(i))})


class Transmission(Torrent):
    name = "transmission"
    SETTINGS = {
        "incomplete-dir-enabled": False, "rpc-enabled": True, "rpc-port": 9091, "rpc-whitelist-enabled": False,
        "rpc-authentication-required": False, "dht-enabled": False, "lpd-enabled": False, "pex-enabled": True,
        "utp-enabled": False, "port-forwarding-enabled": False, "peer-port": 51413, "watch-dir-enabled": True,
        "start-added-torrents": True, "script-torrent-done-enabled": True, "preallocation": 0, "peer-limit-per-torrent": 60,
        "umask": 18, "message-level": 1, "ratio-limit-enabled": False, "cache-size-mb": 4,
    }

    def serve(self, run):
        self.tracker(run)
        self.fetch(run, 0)
        # It checks the whole file first.
        whole = lambda: "100%" in run.output(0, "transmission-remote", "127.0.0.1:9091", "-l")
        wait_for(whole, 60, "transmission's check of the file")
        time.sleep(1)

    def fetch(self, run, i):
        config, watched = run.home(i) / "config", run.home(i) / "watched"
        config.mkdir(exist_ok=True), watched.mkdir(exist_ok=True)
        (config / "settings.json").write_text(json.dumps(self.SETTINGS | {
            "download-dir": str(run.home(i)), "watch-dir": str(watched), "script-torrent-done-filename": str(self.hook(run))}))
        shutil.copy(run.torrent, watched / "image.torrent")
        run.start(i, "transmission-daemon", "-f", "-g", config, log=f"transmission-{i}", env={"STAMP": str(run.stamp(i))})


class Libtorrent(Torrent):
    name = "libtorrent"

    def serve(self, run):
        self.tracker(run)
        self.peer(run, 0, "seed")
        for i in run.hall.clients():
            self.peer(run, i, "leech")
        every = lambda: all("ready" in run.log(f"libtorrent-{i}") for i in run.hall.hosts())
        wait_for(every, 60, "libtorrent's start")

    def peer(self, run, i, mode):
        run.start(i, self.peers / "venv/bin/python3", HERE / "libtorrent_peer.py", run.torrent, run.home(i), run.stamp(i), run.go,
                  mode, log=f"libtorrent-{i}")

    def fetch(self, run, i):
        if not run.started(i):
            self.peer(run, i, "leech")

    def again(self, run):
        self.tracker(run)
        self.peer(run, 0, "seed")


class Rqbit(Torrent):
    """The client that is built on librqbit. It tells nobody when it is done: the blocks of its sparse file are looked at."""

    name = "rqbit"

    def serve(self, run):
        self.tracker(run)
        self.fetch(run, 0, "--overwrite")
        time.sleep(3)

    def fetch(self, run, i, *more):
        run.start(i, self.peers / "bin/rqbit", "--disable-dht", "--listen-port", 4240, "-v", "warn", "download", "-o", run.home(i),
                  *more, run.torrent, log=f"rqbit-{i}", env={"HOME": str(run.home(i)), "XDG_CONFIG_HOME": str(run.home(i)),
                                                               "RQBIT_LSD_DISABLE": "true"})

    def done(self, run, i):
        try:
            return time.time() if run.file(i).stat().st_blocks * 512 >= run.size else None
        except OSError:
            return None


ALL = {kind.name: kind for kind in (Rackline, Chain, Udpcast, Aria2, Libtorrent, Transmission, Rqbit, Nginx)}
