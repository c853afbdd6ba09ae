"""What a steward sees, decides and signs.

documents.py            trust, policy, decisions and resumes as they stand in the silo's folder, verified when read
approvals.py            what the steward signs; passkeys.py the same by passkey, on the silo's own page
policies.py             a policy in words before it is signed
decisions.py            what waits, what ends soon; reasons.py the sentence for each code
trust_changes.py        the next trust.json: proposed, signed, put in force
pauses.py, resumes.py   a study that waits here, and the steward's signed resume
"""
