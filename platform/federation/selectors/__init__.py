"""Reading: what a silo has to do (`assignments`), and who approved (`approvals`)."""
