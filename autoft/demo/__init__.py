"""The embedded example: its data, a tiny foundation model and a study file, complete without a network."""

import json
from pathlib import Path

from autoft.files import write_text

CHECKPOINT = Path(__file__).resolve().parent / "checkpoint"
STUDY_FILE = Path(__file__).resolve().parent / "study.yaml"


def write_demo(folder: Path) -> Path:
    """Make `folder` a complete example: study.yaml and data/, with the model read from the installed package.

    Returns:
        The study file's path. Calling it again changes nothing, except that an edited study file is written anew.

    Raises:
        OSError: the folder cannot be written.
    """
    from autoft.demo.data import build_demo_data  # torch and matplotlib: not wanted by those who only need the path

    folder.mkdir(parents=True, exist_ok=True)
    build_demo_data(folder / "data")
    text = STUDY_FILE.read_text(encoding="utf-8")
    name = json.dumps(f"local-dir:{CHECKPOINT}")  # a JSON string is a YAML string, whatever characters the path has
    write_text(folder / "study.yaml", text.replace("local-dir:checkpoint", name))
    return folder / "study.yaml"
