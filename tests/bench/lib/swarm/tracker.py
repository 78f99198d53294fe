"""A small BitTorrent tracker (BEP 3, compact answers of BEP 23) for the peers of the benchmark.

usage: tracker.py ADDRESS PORT INTERVAL

Everybody gets everybody, in random order.
"""

import random
import socket
import struct
import sys
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from metainfo import bencode

INTERVAL = int(sys.argv[3])
swarms = {}


def compact(address, port):
    return socket.inet_aton(address) + struct.pack(">H", port)


class Announce(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        query = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(self.path).query, encoding="latin-1"))
        me, swarm = self.client_address[0], swarms.setdefault(query.get("info_hash"), {})
        if query.get("event") == "stopped":
            swarm.pop(me, None)
        else:
            swarm[me] = int(query.get("port", 0))
        others = [other for other in list(swarm) if other != me]
        random.shuffle(others)
        others = others[:max(0, int(query.get("numwant", 50)))]
        answer = bencode({"interval": INTERVAL, "min interval": INTERVAL, "complete": 1, "incomplete": len(swarm),
                          "peers": b"".join(compact(other, swarm[other]) for other in others)})
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)


class Server(ThreadingHTTPServer):
    request_queue_size = 512
    daemon_threads = True


Server((sys.argv[1], int(sys.argv[2])), Announce).serve_forever()
