"""The patient's word: who has consented and who has opted out. Read again before every round; it narrows everything else.

    opt_out.py               the CSV opt-out list, which beats all
    fhir_json.py             strict, bounded JSON
    fhir_time.py, fhir.py    FHIR R4 Consent: the dozen fields that count, in one record a resource
    rules.py                 records -> PERMIT or DENY, with a code, a sentence and the record that decided
    sources.py, server.py    a folder, a Bundle, an NDJSON file; a FHIR server's search
    patients.py              whose consent it is: a reference in FHIR -> the PatientID of the images
    registry.py              what is in force now, with the last good copy for when the source is away
    changes.py               consent.recorded and consent.withdrawn in the silo's log
    prove.py                 was this patient in the cohort of that round: a proof for a stranger
    cases.py                 files of cases, for whoever wants to try the rules

Nothing here puts a patient's id, a name or a path into an error: a file is "file 3", counted in the order of their names.
"""
