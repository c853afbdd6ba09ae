"""Images from the hospital's PACS: into FOLDER/inbox, which is scanned like the DICOM folder.

    dicomweb.py   asks a PACS what it has (QIDO-RS) and gets one instance (WADO-RS); every answer is bounded
    fetch.py      `silo fetch`: what is missing here, one by one; stopped at any moment, the next run goes on
    receiver.py   `silo receive`: takes what known peers send (C-STORE)
    inbox.py      the files: whole or absent, checked before they get their name
    book.py       pacs.db: what is wanted, there or refused, and how the last fetch ended
    watch.py      notices new files and the time of the next fetch, for `silo run`

inbox/ and pacs.db hold patients' ids and images; both stay in the hospital (modes 0700 and 0600).
"""
