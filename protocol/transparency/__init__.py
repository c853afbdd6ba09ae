"""The audit log: C2SP formats over RFC 6962 hashing, readable and checkable with tools that are not ours.

    tree.py         hashes, inclusion and consistency proofs
    note.py         checkpoints, signed notes, cosignatures
    tiles.py        the log as static files
    proof.py        one record's proof in one file
    record.py       what one entry holds
    log_policy.py   which log and which witnesses to believe
    witness.py      the witness's side: a request in, an answer out
    export.py       the check of a whole exported log
    verify.py       `consilium-verify`, the auditor's command

Nothing here opens a connection, and an auditor needs no more of Consilium than this package and what it imports:
`cryptography`, `rfc8785` and the standard library.
"""
