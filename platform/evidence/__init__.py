"""The audit log: entries written with the act, one sequencer, tiles, checkpoints, exports. Below every other app."""
