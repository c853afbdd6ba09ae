"""What to do about a problem, by its code: one catalogue for `silo status`, `silo doctor` and the node's page.

The sentence of a problem says what was found, and where; what stands here says what the person who reads it does next. A
code of the portal's own is not listed: its sentence says why it refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

NETWORK_ADMIN: Final = "Send code and sentence to the network's admin."
_PROTOCOL: Final = (
    "Nothing more leaves this hospital in this round. Nothing to do here; if it comes again, send code and sentence to "
    "the network's admin: the portal or another silo does not keep to the protocol."
)
_STEWARD: Final = "A steward decides: `silo approve` shows the study, and what has changed, before anything is signed."
_POLICY: Final = "A steward signs a policy: `silo policy`."
_LABELS: Final = (
    "Correct that line of labels.csv and save it; it is read again by itself. `silo scan` checks it at once."
)
_OPT_OUT: Final = (
    "Correct the list and save it: no round runs until it can be read, because a patient might stand in it."
)
_CONNECTION: Final = "Run `silo doctor`: it tries each step of the way to the portal and names the first that fails."
_ROOM: Final = "Make room on that disk, or give this user a larger quota; work goes on by itself once there is room."
_STUDY: Final = (
    "Nothing to do here: this hospital takes no part in it. Ask the study's researcher or the network's admin."
)
_FILE: Final = "The file stays out of every round, the others are used. `silo scan --files` names it."
_BACKUP: Final = "Stop the silo and restore that file from a backup; do not edit it."

_ENTRIES: Final[tuple[tuple[str, tuple[str, ...]], ...]] = (
    # --- the way to the portal
    (_CONNECTION, ("PORTAL_UNREACHABLE",)),
    (
        "Ask who runs the proxy to let this machine reach the portal's host and port by CONNECT; where the proxy wants a "
        "name and password, put them into its address. It is tried again by itself.",
        ("PROXY_REFUSES",),
    ),
    (
        "Correct `proxy` in silo.toml, or HTTPS_PROXY and ALL_PROXY: http://HOST:PORT of an HTTP proxy, with http:// also where "
        "the portal is https://; no SOCKS.",
        ("PROXY_ADDRESS",),
    ),
    (
        "If your proxy opens TLS, put its authority's PEM file into silo.toml as `ca_bundle`, then restart the silo. If it "
        "does not, somebody is in between: ask the network's admin before you go on.",
        ("PORTAL_CERTIFICATE",),
    ),
    (
        "Somebody is in between, or the portal has another key: do not go on. Call the network's admin by telephone and "
        "compare the portal's fingerprint that `silo status` shows.",
        ("ANSWER_NOT_GENUINE", "OTHER_LOG", "OTHER_PORTAL", "PORTAL_KEYS_DIFFER"),
    ),
    (
        "Set this machine's clock, best by a time service (`timedatectl set-ntp true`); both times are named. If this clock "
        "is right, tell the network's admin that the portal's is not.",
        ("CLOCK_SKEW",),
    ),
    ("The portal may be of another version: ask the network's admin, or update this software.", ("BAD_ANSWER",)),
    (
        "Wait until the network's admin has compared this silo's fingerprint with you and confirmed it.",
        ("SILO_PENDING",),
    ),
    (
        "Where a new key waits here (KEY_WAITS), `silo key rotate` again. Else ask the network's admin for a new invitation: "
        "`silo enrol` with its token, or `silo key rotate --token` where the old key may have been stolen.",
        ("SILO_REVOKED", "UNKNOWN_KEY"),
    ),
    ("`silo enrol FOLDER --token ...`; the portal's admin has the token.", ("NOT_ENROLLED",)),
    ("Call the network's admin: the new key is not in force; `silo key rotate` tries it again.", ("KEY_NOT_TAKEN",)),
    # --- this machine
    (_ROOM, ("SILO_DISK_FULL", "DISK_FULL")),
    (
        "If silo.toml names a broker: start it, or check address and password. If not: see broker/valkey.log in the silo's "
        "folder; the silo starts its own again by itself.",
        ("BROKER",),
    ),
    (
        "Close what else uses the memory (for a graphics card: `nvidia-smi`), or give the machine more. The round goes on "
        'without this hospital, and the next one tries again. `[training] device = "cpu"` trains without the card.',
        ("OUT_OF_MEMORY", "TRAINING_KILLED"),
    ),
    (
        'Check the driver (`nvidia-smi`) and that the installed torch has CUDA, or set `[training] device = "auto"` or '
        '"cpu" in silo.toml and restart.',
        ("GPU_MISSING",),
    ),
    ("Look into silo.log in the silo's folder: its last lines say where it failed.", ("TRAINING_FAILED", "ROUND_FAILED")),
    ("Start it: `systemctl start consilium-silo`, or `silo run`.", ("NOT_RUNNING",)),
    (
        "Check whether the DICOM folder's network drive or the silo's disk hangs; then restart the silo.",
        ("STATUS_STALE",),
    ),
    ("Stop the other one first: its process id is in silo.lock.", ("ALREADY_RUNNING",)),
    ("Wait for the other command to end, then try again.", ("JOURNAL_BUSY", "INDEX_BUSY", "STEWARD_BUSY")),
    (_BACKUP, ("JOURNAL_DAMAGED", "EVIDENCE_DAMAGED")),
    ("Nothing: the silo is stopping.", ("STOPPING",)),
    ("Nothing was changed. Do it again when you are sure.", ("ABORTED",)),
    ("Correct the setting, file or argument that is named.", ("USAGE",)),
    ("Nothing: it trains in the hours that silo.toml allows (`[hours]`), and refuses rounds at others.", ("NIGHT_ONLY",)),
    ("Install the newer version of this software: its files can't be read by an older one.", ("UPGRADE_NEEDED",)),
    ("Look into silo.log where it failed, then start it again: it takes up every open round.", ("SILO_FAILED", "NOT_HEALTHY")),
    ("End the program that holds egress.db open (a backup?); if none does, restore the file.", ("EGRESS_LOG", "FILE_UNREADABLE")),
    (
        "Wait until the round has ended, then do it again. A new key of this silo waits by itself: `silo run` takes it as soon "
        "as no round is open.",
        ("ROUND_OPEN",),
    ),
    (
        "Nothing where `silo run` runs: it takes the new key as soon as no round is open. Else start it, or run "
        "`silo key rotate` again; both go on with the same key. Remove no file: the portal may know the new key already.",
        ("KEY_WAITS",),
    ),
    (
        "`silo key rotate`, best while no study runs: a study that has begun goes on without this hospital "
        "(docs/hospital-it.md).",
        ("KEY_OLD",),
    ),
    # --- images and labels
    ("Check `data` in silo.toml, and that its drive is mounted.", ("DATA_FOLDER_MISSING", "DATA_FOLDER_EMPTY")),
    ("Rename the folder whose name is not UTF-8.", ("DATA_FOLDER_NAME",)),
    (
        "Let the silo's user read the folder: `namei -l` on its path shows where the right is missing.",
        ("DATA_FOLDER_UNREADABLE",),
    ),
    ("Run `silo scan`: it reads the images' headers into the index.", ("INDEX_MISSING",)),
    ("Remove index.db from the silo's folder and run `silo scan`: it is made again from the images.", ("INDEX_DAMAGED",)),
    (
        "Run as the owner of the silo's folder, or correct owner and mode of index.db; mount a read-only drive for writing.",
        ("INDEX_READ_ONLY",),
    ),
    (
        "Look at the drive of the silo's folder, its cable or the network, and into the machine's log (`dmesg`); then "
        "`silo scan`. Do not delete index.db for this.",
        ("INDEX_IO",),
    ),
    ("Put labels.csv beside the images, or name it in silo.toml as `labels`.", ("LABELS_MISSING",)),
    (
        _LABELS,
        (
            *("LABELS_MALFORMED", "LABELS_COLUMN", "LABELS_LABEL", "LABELS_SPLIT", "LABELS_FILE", "LABELS_DUPLICATE"),
            *("LABELS_NEEDED", "LABELS_UNREADABLE"),
        ),
    ),
    (
        "Look with `silo scan` how many images can be used, and whether labels.csv and the consent source name their "
        "patients. With too few the study goes on without this hospital.",
        ("COHORT_EMPTY", "COHORT_TOO_SMALL"),
    ),
    (
        "Nothing, where such images shall stay out; else add their modality to `modalities` in silo.toml and scan again.",
        ("WRONG_MODALITY",),
    ),
    (
        _FILE,
        (
            *("NOT_DICOM", "CORRUPT", "UNREADABLE", "NO_PATIENT", "NO_INSTANCE", "NO_IMAGE", "TOO_LARGE", "DUPLICATE"),
            *("PIXELS_CORRUPT", "PIXELS_CUT", "PIXELS_CRASHED", "PIXELS_SLOW", "PIXELS_MEMORY", "NO_PIXELS", "NOT_A_FILE"),
            *("LINK_OUTSIDE", "BAD_NAME", "HEADER_TOO_LARGE", "PIXELS_NO_VALUE"),
        ),
    ),
    (
        "`silo scan` reads it anew at once, else the next scan does; until then it stays out. If nobody of yours changed it, "
        "find out who can write to the folder.",
        ("FILE_CHANGED", "LABELS_CHANGED"),
    ),
    ("Nothing: the patient's wish is kept.", ("OPTED_OUT",)),
    (
        "Nothing, where the patient has not consented: the images come by themselves once a consent permits a use. Otherwise "
        "`silo consent check PATIENT` says which consent decides, and why.",
        ("NOT_CONSENTED",),
    ),
    ("Nothing: what the link leads to is read at its own place in the data folder.", ("LINK_FOLDER",)),
    ("Name the patient of that file in labels.csv (columns `file` and `PatientID`), then scan again.", ("PATIENT_UNKNOWN",)),
    (
        "Install the decoders (`pip install consilium[silo]` brings them all), restart, and `silo scan`. Videos (MPEG) and what "
        "is only referred to (JPIP) nothing here reads: leave them out.",
        ("PIXELS_UNSUPPORTED", "NO_DECODER"),
    ),
    # --- consent
    (_OPT_OUT, ("OPT_OUT_MALFORMED", "OPT_OUT_COLUMN", "OPT_OUT_UNREADABLE", "OPT_OUT_DATE", "OPT_OUT_EMPTY")),
    ("Bring the list back to where silo.toml says, and check who writes it.", ("OPT_OUT_MISSING", "OPT_OUT_STALE")),
    (
        "Bring the list back to where silo.toml says before the time that is named; until then rounds go on with what was read.",
        ("OPT_OUT_STALE_SOON",),
    ),
    (
        "Bring the source of the consents back before the time that is named; until then rounds go on with what was read. "
        "`silo consent status` reads it at once.",
        ("CONSENT_STALE_SOON",),
    ),
    (
        "Check that the FHIR server runs, that this machine may reach it, and url and token_file in [consent]: `silo consent "
        "status` asks it at once. It is asked again each minute.",
        ("CONSENT_SERVER",),
    ),
    ("Import the whole list; `--yes` where those who are missing in it have withdrawn their no.", ("OPT_OUT_SHORTER",)),
    (
        "Import a whole export; `--yes` where each of those patients has withdrawn their no. `--dry-run` only counts.",
        ("CONSENT_FEWER",),
    ),
    ("Keep one list with everybody in it, or name the one that counts in silo.toml as `opt_out`.", ("OPT_OUT_SEVERAL",)),
    (
        "Correct [consent] in silo.toml, or bring the source back: `silo consent status` reads it at once and says what "
        "it found. No round runs on a reading that is too old.",
        (
            *("CONSENT_MISSING", "CONSENT_MALFORMED", "CONSENT_STALE", "CONSENT_TOKEN"),
            *("CONSENT_UNASSIGNED", "CONSENT_MAP_MISSING", "CONSENT_MAP_MALFORMED", "CONSENT_MAP_UNREADABLE"),
            *("CONSENT_NOT_READ",),
        ),
    ),
    (
        "Set [consent] in silo.toml or use `silo consent import`; until then no study that uses images runs here.",
        ("CONSENT_NO_SOURCE",),
    ),
    (
        "Check the round's name and whose images it used: `silo evidence` lists the rounds of this silo.",
        ("ROUND_UNKNOWN", "NO_IMAGE_OPENED", "PSEUDONYMS_ERASED"),
    ),
    (
        "Somebody changed what the silo keeps of that round: keep the folder as it is, and show it to an auditor.",
        ("PROOF_FAILS",),
    ),
    # --- the PACS
    (
        "Check address, name and password of the PACS in silo.toml and whether it runs; it is tried again by itself, and "
        "what was fetched stays.",
        ("PACS_UNREACHABLE", "PACS_DENIED", "PACS_ANSWER"),
    ),
    (
        "The instance stays out, the others are fetched. Ask who runs the PACS where it comes again.",
        ("PACS_CUT", "PACS_OTHER", "PACS_SLOW", "PACS_GONE", "INSTANCE_TOO_BIG"),
    ),
    ("Delete pacs.db and the inbox from the silo's folder: the next fetch gets both again.", ("PACS_DB_DAMAGED",)),
    (
        "Name the PACS in silo.toml, or choose a free port for the receiver, then restart.",
        ("NO_PACS", "NO_RECEIVER", "RECEIVER_PORT"),
    ),
    (
        "Put a certificate and its key without a passphrase where [receiver] tls_cert and tls_key in silo.toml say (PEM files "
        "that this user can read, the key nobody else), and authorities in force where tls_ca says: they are taken by "
        "themselves, without a restart.",
        ("RECEIVER_CERTIFICATE",),
    ),
    (
        "Let it be renewed, and put the new certificate and key in the place of the old ones: they are taken by themselves.",
        ("RECEIVER_CERTIFICATE_ENDS",),
    ),
    (
        "Read the end of worker-receiver.log in the silo's folder; it is started again by itself. If it comes again, send "
        "that end to the network's admin.",
        ("RECEIVER_SILENT",),
    ),
    # --- what stewards sign
    (
        _STEWARD,
        (
            *("APPROVAL_MISSING", "APPROVAL_EXPIRED", "APPROVAL_NOT_YET", "APPROVAL_OTHER_MANIFEST"),
            *("APPROVAL_OTHER_POLICY", "APPROVAL_REVOKED", "APPROVAL_REJECTED", "APPROVAL_THRESHOLD"),
            *("APPROVAL_SIGNATURE", "APPROVAL_EXPIRES_SOON"),
        ),
    ),
    (
        "Find out who put that file into approvals/: it is no statement of this hospital's stewards. Remove it and, where "
        "the study may run, sign with `silo approve`.",
        ("APPROVAL_FORM", "APPROVAL_OTHER_SILO"),
    ),
    (_POLICY, ("POLICY_MISSING", "POLICY_EXPIRED", "POLICY_EXPIRES_SOON", "POLICY_NOT_VALID", "POLICY_OTHER_SILO")),
    ("Find out who changed policy.json, then let a steward sign it anew: `silo policy`.", ("POLICY_SIGNATURE",)),
    ("Nothing, where the policy is what the hospital wants. Otherwise a steward changes it: `silo policy`.", ("POLICY_DENY",)),
    ("Make the first steward's key: `silo steward`.", ("TRUST_MISSING",)),
    ("Find out who changed trust.json and restore it from a backup: it says who decides for this hospital.", ("TRUST",)),
    ("The stewards agree on who decides, as many as the hospital asks for: `silo trust`.", ("TRUST_THRESHOLD",)),
    ("Begin again on the node's page, at the address at which the passkey was made.", ("PASSKEY_NOT_VALID", "QUESTION_OVER")),
    (
        "Wait, or let hospital IT set a new password: `silo page user password`.",
        ("SIGN_IN_PAUSED", "SIGN_IN_WRONG", "SIGN_IN_BUSY"),
    ),
    (
        "Give [page] in silo.toml a port that no other program uses, then restart the silo; or end that program: the page is "
        "tried again by itself.",
        ("PAGE_PORT_TAKEN",),
    ),
    (
        "Put a certificate and its key without a passphrase where [page] tls_cert and tls_key in silo.toml say (PEM files "
        "that this user can read, the key not everybody): the page is tried again by itself.",
        ("PAGE_CERTIFICATE",),
    ),
    (
        "Let it be renewed, and put the new certificate and key in the place of the old ones: the page takes them up by itself.",
        ("PAGE_CERTIFICATE_ENDS",),
    ),
    (
        "Put a token of 20 characters or more into the file that [page] metrics_token_file in silo.toml names, readable for "
        "this user, and the same one into Prometheus' settings: the page is tried again by itself.",
        ("PAGE_TOKEN",),
    ),
    (
        "Read the end of page.log in the silo's folder; rounds go on without the page. If it comes again, send that end to "
        "the network's admin.",
        ("PAGE_CRASHED",),
    ),
    ("Choose the study from the list of studies.", ("NO_SUCH_STUDY",)),
    ("The stewards extend it or name a new key: `silo trust`.", ("TRUST_KEY_EXPIRES", "TRUST_KEY_EXPIRED")),
    (
        "A steward reads why, and decides: `silo resume` says what is risked before anything is signed.",
        ("STUDY_PAUSED", "OTHER_LIST_UNMASKED", "MODEL_OLDER", "RESUME_NOT_VALID", "STALE_RESUME", "BAD_RESUME"),
    ),
    (
        "A steward raises the limit by approving anew (`silo approve`), or nothing is done.",
        ("LIMIT_MAX_ROUNDS", "LIMIT_EVALUATIONS"),
    ),
    # --- the portal's audit log
    (
        "Run nothing until a person has looked: keep the named file, and show it to the network's admin AND to an auditor, "
        "because one of the two logs was made to deceive. `consilium-verify` checks both notes.",
        ("LOG_FORKED",),
    ),
    (
        "If it comes again, ask the network's admin: the portal does not show its audit log as it must.",
        ("LOG_UNREADABLE", "LOG_PROOF", "LOG_RECORD"),
    ),
    # --- studies and rounds
    (
        _STUDY,
        (
            *("MANIFEST_DIFFERS", "MANIFEST_NOT_VALID", "MODEL_DIFFERS", "MODEL_NOT_SIGNED", "NETWORK_NOT_ALLOWED"),
            *("NOT_A_PARTICIPANT", "OUTSIDE_DATES", "PLAN_REFUSED", "STATE_DIFFERS", "LOSS_NOT_FINITE", "UPDATE_NOT_VALID"),
            *("BAD_ANNOUNCEMENT", "OLD_ROUND", "SKETCH_OF_TOO_FEW"),
        ),
    ),
    (
        "A study that has not begun: ask its owner to submit it again, then a steward approves the new version. One that "
        "has begun goes on without this hospital; its owner may draft a new study that starts from the last model.",
        ("KEY_ROTATED",),
    ),
    (
        "The study names another key than this hospital knows. Ask the network's admin, by telephone, whose key changed.",
        ("OTHER_KEY", "PARTNER_KEY_DIFFERS"),
    ),
    (
        "Look at the study's page at the portal: a member's check word is missing, so the sum is not confirmed by all.",
        ("SUM_UNVERIFIED",),
    ),
    (
        _PROTOCOL,
        (
            *("BAD_CHECK", "BAD_CLAIM", "BAD_DEALER", "BAD_KEY", "BAD_MESSAGE", "BAD_NONCE", "BAD_PROOF", "BAD_SIGNATURE"),
            *("BAD_STATE", "BAD_UPDATE", "CHECK_MISSING", "EXCLUDED", "JOURNAL_CONFLICT", "LEFT_OUT", "LIST_UNREADABLE"),
            *("NOT_ENOUGH_SHARES", "NOT_NEIGHBOUR", "NOT_OPENED", "NO_MODEL", "NO_SKETCH", "OTHER_LENGTH", "OTHER_MESSAGE"),
            *("OTHER_MODEL", "OTHER_PROTOCOL", "OTHER_ROSTER", "OTHER_ROUND", "OTHER_SET", "OTHER_SUM", "OUTSIDE_PARENT"),
            *("OUT_OF_STAGE", "ROSTER_TOO_SMALL", "ROUND_OVER", "ROUND_SPENT", "SECOND_BUNDLES", "SECOND_CHECK"),
            *("SECOND_LIST", "SECOND_NEIGHBOURS", "SECOND_ROSTER", "SECOND_SET", "SECOND_SKETCH", "SECOND_STATE"),
            *("SECOND_SUM", "SECOND_UPDATE", "SET_TOO_SMALL", "SKETCH_DIFFERS", "SUM_DIFFERS", "SUM_NOT_SIGNED"),
            *("SUM_NOT_TRUE", "SUM_OUT_OF_RANGE", "TOO_FEW_KNOWN", "TOO_FEW_NEIGHBOURS", "TOO_FEW_SIGNATURES"),
            *("TOO_MANY_NEIGHBOURS", "TWICE", "TWO_LISTS"),
        ),
    ),
)  # fmt: skip
WHAT_TO_DO: Final[Mapping[str, str]] = MappingProxyType({code: do for do, codes in _ENTRIES for code in codes})
"""code -> what the reader does next."""


def what_to_do(code: str) -> str:
    """For a code that is not this software's own: who can help."""
    return WHAT_TO_DO.get(code, NETWORK_ADMIN)
