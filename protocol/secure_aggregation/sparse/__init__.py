"""Secure aggregation for many silos: each masks with a neighbourhood, so its work grows with log n, not with n.

SecAgg+ (Bell, Bonawitz, Gascon, Lepoint, Raykova 2020, the variant against a malicious server), bound to this project's
signed messages, journal and manifest. docs/many-silos.md has the argument. State machines without I/O, as the dense
protocol's, which stays what smaller studies use.

    silo.py set_up.py upload.py reveal.py checking.py   what a hospital runs     coordinator.py recovery.py   what the portal runs
    bounds.py       how many neighbours and shares are needed         parameters.py   what all agree on
    graph.py        who is whose neighbour                            trees.py        sets as Merkle trees
    messages.py     what is signed                                    boxes.py        what is sealed
    nonces.py       second nonces and what fixes them                 wire.py         what the portal hands a silo, as JSON
"""

from protocol.secure_aggregation.sparse.bounds import Neighbourhood, neighbours
from protocol.secure_aggregation.sparse.boxes import Parcel
from protocol.secure_aggregation.sparse.coordinator import SparseCoordinator
from protocol.secure_aggregation.sparse.nonces import OpenedNonces
from protocol.secure_aggregation.sparse.parameters import SparseParameters, promised
from protocol.secure_aggregation.sparse.set_up import Neighbour
from protocol.secure_aggregation.sparse.silo import SparseRound
from protocol.secure_aggregation.sparse.trees import Claim, Leaf

__all__ = [
    "Claim",
    "Leaf",
    "Neighbour",
    "Neighbourhood",
    "OpenedNonces",
    "Parcel",
    "SparseCoordinator",
    "SparseParameters",
    "SparseRound",
    "neighbours",
    "promised",
]
