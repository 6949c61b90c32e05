"""What a trial costs on a GPU over the bare training step, and a small study on one: `python -m benches.gpu`; see `benches.gpu.__main__`."""
