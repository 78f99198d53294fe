"""One libtorrent peer with settings for a local network. usage: libtorrent_peer.py TORRENT DIR STAMP GO seed|leech

Waits until the file GO exists, so that the start of the interpreter is not measured; writes the time at which it has the
whole file to STAMP, and serves until it is killed.
"""

import os
import sys
import time

import libtorrent as lt

torrent, folder, stamp, go, mode = sys.argv[1:]
session = lt.session({
    "listen_interfaces": "0.0.0.0:6881",
    "enable_dht": False, "enable_lsd": False, "enable_upnp": False, "enable_natpmp": False,
    "enable_outgoing_utp": False, "enable_incoming_utp": False,
    "connection_speed": 200, "min_reconnect_time": 1, "peer_connect_timeout": 3, "torrent_connect_boost": 100,
    "alert_mask": lt.alert.category_t.status_notification | lt.alert.category_t.error_notification,
})
parameters = lt.add_torrent_params()
parameters.ti = lt.torrent_info(torrent)
parameters.save_path = folder
parameters.flags &= ~(lt.torrent_flags.auto_managed | lt.torrent_flags.paused)
if mode == "seed":
    parameters.flags |= lt.torrent_flags.seed_mode
print("ready", flush=True)
while mode == "leech" and not os.path.exists(go):
    time.sleep(0.01)
session.add_torrent(parameters)
while True:
    session.wait_for_alert(200)
    for alert in session.pop_alerts():
        if mode == "leech" and isinstance(alert, lt.torrent_finished_alert):
            with open(stamp, "w") as file:
                file.write(f"{time.time():.6f}\n")
        elif "error" in type(alert).__name__:
            print(alert, flush=True)
