"""The scenarios by name, and where their records are kept."""

from pathlib import Path

# name -> (module, function)
SCENARIOS = {
    "crowd": ("crowd", "run"),
    "storm": ("storm", "run"),
    "storm-pruned": ("storm", "run_pruned"),
    "partition": ("partition", "run"),
    "points": ("points", "run"),
    "full_disk": ("full_disk", "run"),
    "secrets": ("leaks", "run"),
}
OUT = Path(__file__).with_name("latest.json")
