"""Data-use policies, studies, manifests, reviews and the hospitals' approvals."""
