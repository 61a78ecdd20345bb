"""JSON files of a model or adapter folder, which may come from somebody else."""

import json
from pathlib import Path

from rlvr.config import SettingError


def json_object(file: Path, whole: str = "model folder") -> dict | None:
    """The JSON object in a file of a model or adapter; None if no such file exists. Raises SettingError if it is damaged."""
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise SettingError(f"The file {file} cannot be read as a JSON object. Copy the {whole} again, or name another.")
    return content
