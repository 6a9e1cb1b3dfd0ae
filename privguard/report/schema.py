# SPDX-License-Identifier: Apache-2.0
"""The JSON Schema of ``report.json``, published with the package (draft 2020-12)."""

import json
from importlib import resources
from typing import Any


def text() -> str:
    """The schema as it lies in the package."""
    return resources.files("privguard.report").joinpath("report.schema.json").read_text(encoding="utf-8")


def schema() -> dict[str, Any]:
    """The schema as a value, for a validator."""
    return json.loads(text())
