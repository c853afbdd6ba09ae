"""How apps above hear of a study's life without governance importing them. Sent inside the transaction of the change.

manifest_frozen(study, manifest)    a draft was submitted; a receiver may refuse what only it can check
study_activated(study, manifest)   enough hospitals approved: the first round may be announced
study_resumed(study)               a person resumed a paused study
study_halted(study)                paused, withdrawn, stopped or expired: no round may go on
approval_changed(manifest, silo)   a hospital decided, or revoked its decision, while the study is active
A receiver's error rolls the change back.
"""

from django.dispatch import Signal

manifest_frozen = Signal()
study_activated = Signal()
study_resumed = Signal()
study_halted = Signal()
approval_changed = Signal()
