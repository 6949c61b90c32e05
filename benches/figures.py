"""What every benchmark writes down: the spread of what was measured, the machine, a dated record, and the figures by name."""

import json
import os
import platform
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
CORES = len(os.sched_getaffinity(0))


def spread(values: list[float]) -> dict[str, float]:
    """Median, quartiles, extremes and number of some values, in their unit."""
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else (values[0],) * 3
    return {"median": middle, "quartile_low": low, "quartile_high": high, "min": min(values), "max": max(values), "n": len(values)}


def hardware(device: str = "cpu") -> dict[str, Any]:
    """The machine; its load averages over 1, 5 and 15 minutes are of the end, the benchmark's own work included."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")
    gpu = None
    if device.startswith("cuda"):
        import torch  # programs that need none are spared it

        gpu = torch.cuda.get_device_name(device)
    return {"cpu": model, "cores": CORES, "machine": platform.machine(), "gpu": gpu, "load_average": list(os.getloadavg())}


def write(record: Mapping[str, Any], topic: str, named: Mapping[str, float]) -> Path:
    """Write `records/DATE-TOPIC.json`, and `named` into latest.json; figures of the same day that were not measured again stay.

    Args:
        record: with "date" and "figures", which maps names to what was measured.

    Returns: the record's path.
    """
    path = HERE / "records" / f"{record['date']}-{topic}.json"
    path.parent.mkdir(exist_ok=True)
    before = json.loads(path.read_text())["figures"] if path.is_file() else {}
    path.write_text(json.dumps({**record, "figures": {**before, **record["figures"]}}, indent=1) + "\n")
    latest = HERE / "latest.json"
    known = json.loads(latest.read_text()) if latest.is_file() else {}
    known |= {name: round(value, 4) for name, value in named.items()}
    latest.write_text(json.dumps(known, indent=1) + "\n")
    return path
