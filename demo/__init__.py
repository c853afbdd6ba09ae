"""A whole network on one machine: a portal, hospitals, people and a study, through the same doors that people use.

processes.py   start, watch and end child processes; nothing stays behind
portal.py      the portal's own processes (database, broker, web, worker)
people.py      a person at the portal's pages: sign in (TOTP too), fill in forms
hospital.py    a hospital's silo, through the `silo` command
network.py     portal + hospitals + people, ready for a study
study.py       the study that the demo submits
synthetic.py   DICOM for those who bring none      plan.py   the training plan
summary.py     what var/demo/summary.json says     __main__.py   `make demo`
"""
