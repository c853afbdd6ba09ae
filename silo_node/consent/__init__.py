"""The patient's word: who has opted out. Read again before every round; it beats everything else."""
