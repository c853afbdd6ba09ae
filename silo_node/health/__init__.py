"""What is wrong with this silo, and what to do about it.

watching.py, status.py  round a running silo, within seconds, in FOLDER/status.json
local_checks.py         what is found without the network
doctor.py, doctor_network.py    `silo doctor`: everything at once
problems.py             what to do about each code
metrics.py              the same in numbers, for the hospital's Prometheus
liveness.py             whether `silo run` lives, for a container's health check
"""
