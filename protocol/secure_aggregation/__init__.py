"""Secure aggregation: the portal learns the sum over enough silos, and nothing else about one silo's update.

Double masking with Shamir shares and a consistency check (Bonawitz et al. 2017), with signed sets, masks bound to the
model, and a journal that decides what may still be said after a crash. State machines without I/O: signed messages in,
signed messages out.

    silo.py          what a hospital runs: refuses every lie, reveals last     coordinator.py   what the portal runs
    sets.py          roster, R, updates, list: read alike by both               parameters.py    ctx, thresholds, chunks
    prg.py masking.py   the masks       sealing.py       HPKE, AEAD, hashes
    shamir.py decoding.py recovery.py   the shares, which are false, and what they rebuild
    quantise.py      floats to words    journal.py records.py resume.py         what survives, and a steward's resume
    sketching.py checks.py checking.py verdict.py   sketches, check words       sketch.py check_word.py anomaly.py   their numbers
    words.py         words to bytes     errors.py        every error            sparse/          the same for many silos
"""

from protocol.secure_aggregation.coordinator import Coordinator, ReadyChoice, Removal
from protocol.secure_aggregation.errors import JournalConflict, NotEnoughShares, ProtocolViolation, StudyPaused
from protocol.secure_aggregation.journal import Journal, StudyLedger
from protocol.secure_aggregation.parameters import CHUNK_WORDS, PROTOCOL, RoundParameters, colluders, threshold
from protocol.secure_aggregation.resume import Resume, resume
from protocol.secure_aggregation.sets import ListView, ReadyView, RosterView
from protocol.secure_aggregation.silo import SiloRound

__all__ = [
    "CHUNK_WORDS",
    "PROTOCOL",
    "Coordinator",
    "Journal",
    "JournalConflict",
    "ListView",
    "NotEnoughShares",
    "ProtocolViolation",
    "ReadyChoice",
    "ReadyView",
    "Removal",
    "Resume",
    "RosterView",
    "RoundParameters",
    "SiloRound",
    "StudyLedger",
    "StudyPaused",
    "colluders",
    "resume",
    "threshold",
]
