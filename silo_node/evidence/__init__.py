"""The silo's own audit log, and what of the portal's it has seen.

evidence_log.py         the log; records.py its entries
egress_log.py           every request that left, with its bytes
portal_log.py           the portal's checkpoints: only forward, never two histories
evidence_export.py      log and egress for an auditor
"""
