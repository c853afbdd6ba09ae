"""Benchmarks: each prints a ratio against a limit or a peer, in one run.

A package with this file, because a dependency installs a package of the same name.
"""
