"""One round at a silo, from the announcement to the next model's digest.

announcement.py         which round the portal opened, and of what it must be bound to
round_runner.py         the round; many_runner.py the same where there are many silos
round_parameters.py     what both take from the manifest
runs.py, model_store.py what a round has on disk, and the models it starts from
error_feedback.py       what rounding left over, kept for the next round
published_sum.py        the sum as the portal published it
sum_check.py            held against what all members sent before it is used
refusals.py             what a silo says when it takes no part
"""
