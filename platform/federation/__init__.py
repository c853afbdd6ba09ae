"""Rounds: what the portal asks of the silos, what they answered, and the models that came of it.

`models.py` holds the rows, `services/` changes them (one idea a file), `selectors/` reads them, `tasks.py` is the
Celery side; `api.py`, `node_app.py` and `longpoll.py` are what a silo talks to. No process holds state that
matters: every step is derived from the rows, so any worker may go on where another was killed.
"""
