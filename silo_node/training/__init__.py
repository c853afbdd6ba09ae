"""Training: from a plan (data) and a cohort to an update of the shared weights.

    plan.py            what the plan says, checked again by the hospital; no torch
    networks.py        MONAI networks by allowlist, and their tensor table
    transforms.py      MONAI transforms by allowlist, for whole batches
    batches.py         from cached pictures to the network's input
    local_training.py  the incoming model, some epochs on, and the difference
    evaluate.py        the incoming model on the hospital's test patients
    constant.py        numpy only: "training" that adds a constant, for benchmarks
    result.py          what a round gives         errors.py  what can go wrong
    trainer.py         the way in: build_table, run, preload

Importing this package, `plan`, `constant` or `trainer` does not import torch.
"""
