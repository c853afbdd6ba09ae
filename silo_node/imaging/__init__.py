"""DICOM in: which pictures a hospital has (index), which a round may use (cohort), and their pixels (decode, cache).

    labels.py   what the hospital says about its pictures (CSV)
    label_sources.py   the same from elsewhere: DICOM structured reports
    bounded.py  one file, opened so that nothing in it costs more than a fixed amount of time and memory
    known.py    whether an opened file is the one that the index speaks of
    fragments.py   which fragments of compressed pixel data are one frame
    header.py   one file's header, without its pixels
    terms.py    what of a header may be shown
    index.py    headers of a folder, in SQLite; every file is a row, a bad one a row with its reason
    cohort.py   who may take part in this round, and why others may not
    decode.py   one file -> one grey picture of the plan's size
    lookup.py   rescaling and lookup tables
    decoder_pool.py, decoder_worker.py   decoding where a crash of a C library ends one process and no other
    cache.py    decoded pictures, once, in a memory map
    csv_file.py one CSV file, strictly        errors.py  what can stand against a round

No identity value (patient id, name, path, UID) appears in any message raised here: a line number or a count says where.
"""
