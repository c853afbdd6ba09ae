"""What a hospital installs: its node in the network, the silo. It runs behind the hospital's firewall and opens no port.

    cli.py, commands_*.py   `silo init | enrol | scan | steward | trust | policy | approve | resume | run | status`
    config.py, keys.py      the folder of a silo: silo.toml, its keys, what was pinned at enrolment
    sync.py                 `silo run`: waits for assignments, acts at once, answers
    round_runner.py         one round, from the announcement to the next model's digest
    many_runner.py          the same where there are many silos
    sum_check.py            the published sum, held against what all members sent before it is used
    gate.py                 "may this round run?" - one function, all checks, before any image is opened
    approvals.py            what the steward signs
    passkeys.py             the same by passkey, on the silo's own page
    policies.py, decisions.py   what a steward sees before signing; what waits, what ends soon
    trust_changes.py        the next trust.json: proposed, signed, put in force
    pauses.py, resumes.py   a study that waits here, and the steward's signed resume
    egress.py               the only module that sends; everything is signed, counted and logged
    journal.py              what survives kill -9, and is destroyed when a round ends
    evidence_log.py         the silo's own audit log
    tasks.py, broker.py, processes.py   work in other processes, none of which outlives the silo
    imaging/, consent/, training/       the data, who consented, and the learning

This package knows `protocol` and nothing of the portal's code. Importing any module here loads neither torch nor pydicom.
"""

__version__ = "0.1.0"
