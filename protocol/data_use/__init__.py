"""What a hospital's data-use policy says to a study, term by term. policy.py puts the findings together.

Policy and study are plain JSON values, as in the shared test cases.

    findings.py      one finding; how answers are read     permissions.py   for which purposes at all
    modifiers.py     conditions on top                     limits.py        the hospital's own limits
    document.py      the signed policy document            words.py         the same in words
"""
