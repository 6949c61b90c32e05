"""The command line: the composition root, the only place where autoft meets workers and storage."""
