"""Refusals of this app, made in one place so that each reads the same everywhere. The class is the portal's."""

from __future__ import annotations

from portal.problems import Refused

__all__ = ["Refused", "bad_message", "not_yours", "out_of_stage"]


def not_yours(name: str) -> Refused:
    """There is no such round or model for this silo; whether it exists for others is not said."""
    return Refused("NOT_YOUR_STUDY", f"{name} does not exist, or it is of a study that your silo takes no part in.")


def out_of_stage(key: str, what: str, stage: str) -> Refused:
    """The message belongs to another stage than the one that the round is in."""
    return Refused(
        "OUT_OF_STAGE", f"Round {key} is in the stage '{stage}' and does not take '{what}' now; ask for assignments."
    )


def bad_message(sentence: str) -> Refused:
    """What came is not a valid message of this round."""
    return Refused("BAD_MESSAGE", sentence)
