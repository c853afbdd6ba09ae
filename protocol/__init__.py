"""What portal and hospital must agree on, byte for byte.

Everything here is pure: no network, no Django, no torch, and no state beyond the files that a caller names. Both sides
import the same code, so neither has to trust the other's reading of a format.

    canonical.py          RFC 8785 bytes and digests: what is hashed and signed
    signing.py            keys (keys.py, pkcs8.py), passkeys (passkeys.py), DSSE, RFC 9421 (http_signatures.py)
    manifest.py           the study that is approved            policy.py            DUO terms: PERMIT, REVIEW or DENY
    manifest_changes.py   what differs between two versions
    approval.py           statements, thresholds, trust         messages.py          every message of a round
    secure_aggregation/   masks: the silo's and the coordinator's state machines, without I/O
    server_step.py        from the published sum to the next model
    transparency/         the audit log, and `consilium-verify` for an auditor who trusts nobody

Verification raises; nothing here returns a flag that a caller could forget to read.
"""
