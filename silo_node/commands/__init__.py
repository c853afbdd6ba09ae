"""`silo ...`: one file a group of commands; terminal.py is what they share, settings_file.py what `silo init` writes."""
