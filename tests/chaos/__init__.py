"""Breaks everything a study runs on, at seeded moments, and checks that nothing is lost: `python -m tests.chaos`."""
