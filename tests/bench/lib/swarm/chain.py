"""The plainest pipeline: each machine passes on what it receives, unverified, and nothing may fail. What physics allows.

usage: chain.py head FILE NEXT
       chain.py node OUT STAMP PORT [NEXT]

NEXT is ADDRESS:PORT. A node connects to the next one before it accepts the one before it, writes OUT while it passes the
bytes on, and the finish time to STAMP.
"""

import socket
import sys
import time


def connect(where):
    address, port = where.rsplit(":", 1)
    for _ in range(2000):
        try:
            return socket.create_connection((address, int(port)))
        except OSError:
            time.sleep(0.01)
    sys.exit(f"{where} does not answer")


def head(path, next_one):
    with connect(next_one) as link, open(path, "rb") as file:
        link.sendfile(file)
        link.shutdown(socket.SHUT_WR)
        link.recv(1)


def node(out, stamp, port, *next_one):
    listener = socket.create_server(("0.0.0.0", int(port)))
    successor = connect(next_one[0]) if next_one else None
    link, _ = listener.accept()
    buffer = memoryview(bytearray(1 << 16))
    with open(out, "wb", buffering=0) as file:
        while length := link.recv_into(buffer):
            if successor:
                successor.sendall(buffer[:length])
            file.write(buffer[:length])
    with open(stamp, "w") as file:
        file.write(f"{time.time():.6f}\n")
    if successor:
        successor.shutdown(socket.SHUT_WR)
        successor.recv(1)


{"head": head, "node": node}[sys.argv[1]](*sys.argv[2:])
