"""The coordinator before many workers and long histories, measured with simulated workers and a simulated clock. See `benches.scale.__main__`."""
