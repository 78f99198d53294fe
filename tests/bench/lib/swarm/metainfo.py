"""Writes a .torrent (BEP 3) for one file. usage: metainfo.py FILE NAME ANNOUNCE PIECE_BYTES OUT [private]"""

import hashlib
import sys


def bencode(value):
    match value:
        case int():
            return b"i%de" % value
        case bytes():
            return b"%d:%s" % (len(value), value)
        case str():
            return bencode(value.encode())
        case dict():
            return b"d" + b"".join(bencode(key) + bencode(value[key]) for key in sorted(value)) + b"e"
    raise TypeError(type(value))


def metainfo(path, name, announce, piece, private=False):
    pieces, length = [], 0
    with open(path, "rb") as file:
        while block := file.read(piece):
            pieces.append(hashlib.sha1(block).digest())
            length += len(block)
    info = {"length": length, "name": name, "piece length": piece, "pieces": b"".join(pieces)}
    if private:
        info["private"] = 1
    return bencode({"announce": announce, "info": info})


if __name__ == "__main__":
    path, name, announce, piece, out, *rest = sys.argv[1:]
    with open(out, "wb") as file:
        file.write(metainfo(path, name, announce, int(piece), bool(rest)))
