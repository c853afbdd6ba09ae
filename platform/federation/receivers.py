"""Hears of a study's life from governance, and of a silo's key from organisations, which know nothing of this app."""

from __future__ import annotations

from typing import Any

from django.dispatch import receiver

from federation.services import activation
from federation.services.key_change import key_change_check
from federation.services.pretrained import pretrained_check
from governance import signals
from governance.models import Manifest, Study
from organisations.models import Silo
from organisations.signals import key_changing


@receiver(signals.manifest_frozen, dispatch_uid="federation.frozen")
def on_frozen(*, study: Study, manifest: Manifest, **_: Any) -> None:
    """A draft was submitted: the model that it starts from must be here."""
    pretrained_check(study=study, manifest=manifest)


@receiver(signals.study_activated, dispatch_uid="federation.activated")
def on_activated(*, study: Study, **_: Any) -> None:
    """Enough hospitals approved: announce the first round."""
    activation.study_activate(study=study)


@receiver(signals.study_resumed, dispatch_uid="federation.resumed")
def on_resumed(*, study: Study, **_: Any) -> None:
    """A person resumed the study: announce the next round."""
    activation.study_resumed(study=study)


@receiver(signals.study_halted, dispatch_uid="federation.halted")
def on_halted(*, study: Study, **_: Any) -> None:
    """The study is paused or over: no further round."""
    activation.study_halted(study=study)


@receiver(key_changing, dispatch_uid="federation.key_changing")
def on_key_changing(*, silo: Silo, **_: Any) -> None:
    """A silo's next key is about to be taken: not while it takes part in a round."""
    key_change_check(silo)
