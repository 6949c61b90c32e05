"""How OpenMP's threads wait for each other. Read when torch is imported, so this imports nothing."""

from collections.abc import MutableMapping

SPINS = "1000"  # some microseconds; see docs/adr/0006-brief-waiting.md


def wait_briefly(environment: MutableMapping[str, str]) -> None:
    """Have waiting threads look again for a moment before they sleep, unless the environment has a policy of its own."""
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & environment.keys():
        environment["GOMP_SPINCOUNT"] = SPINS
