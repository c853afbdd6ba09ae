"""What a hospital installs: its node in the network, the silo. It runs behind the hospital's firewall and opens no port.

    cli.py, commands/       `silo ...`
    config.py, keys.py, pin.py, key_rotation.py     a silo's folder: silo.toml, its keys, what was pinned at enrolment
    sync.py                 `silo run`: waits for assignments, acts at once, answers
    gate.py                 "may this round run?" - one function, all checks, before any image is opened
    egress.py               the only module that sends; everything is signed, counted and logged
    journal.py              what survives kill -9, and is destroyed when a round ends
    tasks.py                the work that other processes do for it
    rounds/                 one round, from the announcement to the next model's digest
    steward/                what a steward sees, decides and signs
    health/                 what is wrong, in `silo status` and `silo doctor`
    service/                what lets it run for months
    evidence/               its own audit log, and what of the portal's it has seen
    page/                   the node's own page, on this machine
    pacs/                   images from the hospital's PACS, asked for or sent
    imaging/, consent/, training/       the data, who consented, and the learning

This package knows `protocol` and nothing of the portal's code. Importing any module here loads neither torch nor pydicom.
"""

__version__ = "0.1.0"
