"""The rules of rounds, one idea a file; everything that changes a row of this app is here.

activation.py  a study begins, goes on, ends             rounds.py      announce, finish, fail; what comes next
advance.py     may the round go on? One function a stage  stages.py      the one place where a stage changes
messages.py    a silo's signed message comes in           mail.py        the stored messages of a round
chunks.py      a piece of a masked update comes in        liveness.py    heartbeats, and who is lost
work.py        who makes the sum: this process or tasks   sweep.py       once a second: what no message tells
summing.py     a piece of the sum, masks removed          stepping.py    the same piece of the next model
finishing.py   the published, signed sum; its model       initial.py     the first model
verifying.py   the sum against sketches and check words   sketches.py    whom the sketch check leaves out
evaluation.py  what the summed tail says                  stopping.py    enough trained?
models.py      files of global models                     export.py      safetensors out
pretrained.py  the model with which a study starts        importing.py   safetensors in
incoming.py    a large upload, piece by piece
facts.py       what the manifest says about rounds        lookup.py      a round, for one of its silos
reasons.py     failures in words                          errors.py      refusals
"""
