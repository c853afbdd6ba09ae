"""How apps above hear of a silo without organisations importing them. Sent inside the transaction of the change.

key_changing(silo)   the silo's next key is about to be taken; a receiver may refuse what only it can check
A receiver's error rolls the change back.
"""

from django.dispatch import Signal

key_changing = Signal()
