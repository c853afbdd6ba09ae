"""Hospitals, people and their roles, silos and their keys."""
