"""How OpenMP's threads wait: as the environment says, else briefly."""

import os
import subprocess
import sys

import pytest

from autoft.threads import SPINS, wait_briefly


@pytest.mark.parametrize("given", [{"OMP_WAIT_POLICY": "PASSIVE"}, {"OMP_WAIT_POLICY": "ACTIVE"}, {"GOMP_SPINCOUNT": "7"}])
def test_the_users_policy_stays(given: dict[str, str]) -> None:
    environment = {"HOME": "/", **given}
    wait_briefly(environment)
    assert environment == {"HOME": "/", **given}


@pytest.mark.parametrize("entry", ["import workers", "import sys; sys.argv = ['autoft', 'init', '/dev/null/x']; from autoft.cli.main import main; main()"])
def test_it_is_decided_before_torch_is_imported(entry: str) -> None:
    kept = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    code = (
        "import os, sys, importlib.abc\n"
        "class Watch(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, *more):\n"
        "        if name == 'torch': seen.append(os.environ.get('GOMP_SPINCOUNT'))\n"
        "seen = []\n"
        "sys.meta_path.insert(0, Watch())\n"
        f"exec({entry!r})\n"
        "import torch\n"
        "print(seen[0])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=kept, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert done.stdout.splitlines()[-1] == SPINS
