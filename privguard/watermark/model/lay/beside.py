# SPDX-License-Identifier: Apache-2.0
"""One door to the laying programs: the one that the committed settings of a weight mark name."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from privguard import _check
from privguard.watermark.model.lay import chains, transformers
from privguard.watermark.model.lay.chains import Tensors
from privguard.watermark.model.lay.laid import Laid, Layer, missing
from privguard.watermark.model.lay.structure import Structure

PROGRAMS = (chains.PROGRAM, transformers.PROGRAM)


def lay(suspect: Tensors, *, unmarked: Tensors, settings: Mapping[str, Any]) -> Laid:
    """The suspect as the committed settings have it laid: as a transformer, as a chain, else by names and shapes.

    Raises:
        ValueError: the settings name another program; a reading by that one has to be made with its version.
    """
    program = settings.get("reading", chains.PROGRAM)
    _check.require(program in PROGRAMS, "reading", program, wanted=f"{' or '.join(PROGRAMS)}, those of this version")
    if program == transformers.PROGRAM:
        structure = Structure.from_json(settings["structure"])
        return transformers.lay(suspect, unmarked=unmarked, structure=structure, names=list(settings["tensors"]))
    order = [str(name) for name in settings.get("order", ())]
    if order:
        return chains.lay(suspect, unmarked=unmarked, order=order)
    return _by_name(suspect, unmarked, settings["tensors"])


def _by_name(suspect: Tensors, unmarked: Tensors, names: Sequence[str]) -> Laid:
    """Tensors of the same name and shape; for networks of which nobody has described the structure."""
    tensors, layers = {}, list[Layer]()
    for name in names:
        same = name in suspect and suspect[name].shape == unmarked[name].shape
        tensors[name] = np.asarray(suspect[name], np.float32) if same else missing(unmarked[name])
        units = len(unmarked[name])
        layers.append(Layer(name=name, theirs=name if same else None, units=units, matched=units if same else 0))
    return Laid(tensors=tensors, layers=tuple(layers))
