#!/bin/env python
# {{ name }}{% if location %}, {{ location }}{% endif %}: made by Rackline from [[switches]]
import os

from cli import cli

vrf = os.environ.get("POAP_VRF", "management")
cli("terminal dont-ask")
cli("copy {{ base }}/running-config bootflash:poap.cfg vrf " + vrf)
cli("copy bootflash:poap.cfg scheduled-config")
