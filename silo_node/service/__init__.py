"""What lets a silo run for months: its processes, its disk, its clock.

supervisor.py, worker.py, processes.py  work in other processes, none of which outlives the silo
broker.py               the queue between them
listeners.py            the receiver and the page beside the round
logs.py, log_files.py, disk.py  what would fill the disk over months, kept within limits
migrations.py           the SQLite files from one version of the software to the next
hours.py, backoff.py    when it may train, and how long it waits after a failure
systemd.py              what the system's supervisor is told
"""
