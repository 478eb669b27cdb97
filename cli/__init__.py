"""The `hf-xlt` command: one file per sub-command, torch imported inside the command only."""
