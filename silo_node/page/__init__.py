"""The node's own page, for hospital IT and the stewards: on this machine only, unless the settings say otherwise.

    serve.py        the process: `silo page`, and a child of `silo run`
    start.py        what must hold before it can be served: certificate, address
    app.py          what every request passes: host, size, sign-in, role, form token; then one view
    routes.py       every address, who may open it, and the view behind it; what is not there does not exist
    accounts.py     page.db: who may sign in, their sessions, and the pause after wrong passwords; entries.py: in the silo's log
    headers.py      the Host check and the headers of every answer
    reading.py      what the pages show, read from the silo's folder; writes nothing
    sent.py         what left this hospital: filtered, in pages, as CSV
    studies.py      a study as a steward reads it, and the decision by passkey
    views*.py       one function an address; views_sign.py what a steward signs beside studies
    checks.py       the results of `silo doctor`
    templates/, static/     one stylesheet, two small scripts; nothing comes from another host, no code stands in a page

No view changes anything on GET. The portal can't reach this page: the silo opens no port to it.
"""
