"""What a hospital installs: its node in the network, the silo. It runs behind the hospital's firewall and opens no port.

    cli.py, commands_*.py   `silo ...`: one file a group of commands; terminal.py is what they share
    config.py, keys.py      the folder of a silo: silo.toml, its keys, what was pinned at enrolment
    sync.py                 `silo run`: waits for assignments, acts at once, answers
    round_runner.py         one round, from the announcement to the next model's digest
    many_runner.py          the same where there are many silos
    sum_check.py            the published sum, held against what all members sent before it is used
    watching.py, status.py  what is wrong round a running silo, within seconds, in FOLDER/status.json
    local_checks.py         what is found without the network; problems.py: what to do about each code
    doctor*.py              `silo doctor`: everything at once, with what to do
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
    log_files.py, disk.py   what would fill the disk over months, kept within limits
    migrations.py           the SQLite files from one version of the software to the next
    hours.py, backoff.py    when it may train, and how long it waits after a failure
    health.py, systemd.py   how others learn that it lives; key_rotation.py: a new key for it
    evidence_export.py      the log and what left, for an auditor
    page/                   the node's own page, on this machine
    pacs/                   images from the hospital's PACS, asked for or sent
    imaging/, consent/, training/       the data, who consented, and the learning

This package knows `protocol` and nothing of the portal's code. Importing any module here loads neither torch nor pydicom.
"""

__version__ = "0.1.0"
