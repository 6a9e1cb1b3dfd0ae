# SPDX-License-Identifier: Apache-2.0
"""A detector for everybody: coarse answers over HTTP, signed receipts, a journal without the content.

Extra ``detector``.
"""

from importlib.util import find_spec


def require_extra() -> None:
    """Refuse to go on without the packages that serve.

    Raises:
        ModuleNotFoundError: one of them is missing.
    """
    missing = [name for name in ("starlette", "uvicorn", "limits") if find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(f"the public detector needs {', '.join(missing)}; pip install 'privguard[detector]'")
