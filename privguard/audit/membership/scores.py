# SPDX-License-Identifier: Apache-2.0
"""The scores-only door: a model trained and attacked elsewhere, audited from one ``.npz``, CSV or Parquet file.

Arrays in the file: ``scores`` (n,), or ``losses`` (n,), which are lower for members, or several of either, named
``scores_<attack>``; ``members`` (n,) of bool. Optional:
``records`` (n, ...) of numbers or (n,) of text, without which no blind baseline can be run and no leak is claimed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from privguard import _check
from privguard.audit.membership import score
from privguard.audit.membership.attack import Evidence, LiRA, Loss, tune_rmia
from privguard.audit.membership.blind import Baseline, blind_baseline
from privguard.audit.membership.tables import read_table
from privguard.audit.membership.verdict import LEVEL, NOT_CLAIMED, AttackResult, Exposed, Leak, weigh
from privguard.records import Measurement


@final
@dataclass(frozen=True, kw_only=True)
class ScoresAudit(Measurement):
    """What given scores show. ``leak`` is None without a blind baseline: the split might explain everything.

    ``limit`` says how far a leak that was found goes, as no coins chose the members.
    """

    leak: Leak | None
    limit: str | None
    attacks: tuple[AttackResult, ...]
    blind: Any
    members: int
    non_members: int
    exposed: Exposed
    not_claimed: tuple[str, ...] = NOT_CLAIMED
    notes: tuple[str, ...] = ()


def read_scores(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of an ``.npz`` file by name, or the columns of a ``.csv`` or ``.parquet`` file.

    Arrays of objects are refused, as they would be pickles; see ``privguard.audit.membership.tables.read_table``.

    Args:
        path: the file.

    Raises:
        ValueError: where the file is none of these.
    """
    if path.suffix.lower() in {".csv", ".parquet"}:
        return read_table(path)
    try:
        with path.open("rb") as content, np.load(content, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (ValueError, TypeError, EOFError, AttributeError, BadZipFile) as error:
        raise ValueError(
            f"{path}: expected an .npz file of plain arrays; write it with numpy.savez, or give a .csv or .parquet"
        ) from error
    return arrays


def array(arrays: Mapping[str, NDArray[Any]], name: str, *, path: Path) -> NDArray[Any]:
    """The array of this name from the file at ``path``.

    Args:
        arrays: arrays by name.
        name: the array's name.
        path: the file.

    Raises:
        ValueError: the file has none; the message names those that it has.
    """
    _check.require(name in arrays, f"{path}: arrays", sorted(arrays), wanted=f"one called {name!r} among them")
    return arrays[name]


def audit_scores(arrays: Mapping[str, NDArray[Any]]) -> ScoresAudit:
    """Weigh the scores of one or several attacks against the split that they were computed on.

    Args:
        arrays: arrays by name.

    Raises:
        ValueError: where there are no scores, or no members.
    """
    attacks = {**_attacks(arrays), **_from_outputs(arrays)}
    _check.require(
        bool(attacks),
        "arrays",
        sorted(arrays),
        wanted="'scores' or 'losses', or several named 'scores_<attack>', or 'outputs' and 'labels'",
    )
    _check.require(
        "members" in arrays,
        "arrays",
        sorted(arrays),
        wanted="'members', True where the model was trained on the record",
    )
    members = _truth(np.asarray(arrays["members"]))
    for name, values in attacks.items():
        _check.require(
            values.shape == members.shape, f"scores of {name}: shape", values.shape, wanted=f"{members.shape}"
        )
        _check.require(bool(np.isfinite(values).all()), f"scores of {name}", "NaN or inf", wanted="finite numbers")
    sides = int(members.sum()), int((~members).sum())
    _check.require(min(sides) > 0, "members, others", sides, wanted="some of both")
    baseline = _baseline(arrays, members)
    groups = np.asarray(arrays["groups"]) if "groups" in arrays else None
    weighed = weigh(attacks, members, baseline, groups=groups)
    return ScoresAudit(
        leak=weighed.leak,
        limit=weighed.limit,
        attacks=weighed.attacks,
        blind=baseline.record.to_json() if baseline else None,
        members=int(members.sum()),
        non_members=int((~members).sum()),
        exposed=weighed.exposed,
        notes=weighed.notes,
    )


def significant(audit: ScoresAudit) -> list[str]:
    """Names of the attacks that rank members above others at the 5 % level, after paying for all of them.

    Args:
        audit: a weighed audit.
    """
    return [result.attack for result in audit.attacks if result.p_adjusted <= LEVEL]


def _attacks(arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float64]]:
    """Scores by attack, larger for a likelier member: losses are turned round."""
    attacks: dict[str, NDArray[np.float64]] = {}
    for key, values in arrays.items():
        for kind, sign in (("scores", 1.0), ("losses", -1.0)):
            if key == kind or key.startswith(f"{kind}_"):
                _check.require(values.dtype.kind in "biuf", key, values.dtype.name, wanted="numbers")
                attacks[key.removeprefix(f"{kind}_")] = sign * np.asarray(values, np.float64)
    return attacks


def _from_outputs(arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float64]]:
    """The loss, and with references LiRA and RMIA, of a model's outputs; the log of probabilities is taken first."""
    if "outputs" not in arrays:
        return {}
    for name in ("labels", *(("included",) if "reference_outputs" in arrays else ())):
        _check.require(name in arrays, "arrays", sorted(arrays), wanted=f"{name!r} beside 'outputs'")
    if arrays["labels"].dtype.kind == "f" and bool((arrays["labels"] != np.floor(arrays["labels"])).any()):
        return {"residual": _residual(arrays["outputs"], arrays["labels"])}
    outputs, labels = score.as_logits(arrays["outputs"]), score.class_numbers(None, arrays["labels"])
    inside = len(labels) == len(outputs) and labels.min() >= 0 and labels.max() < outputs.shape[1]
    _check.require(inside, "labels", labels.shape, wanted=f"({len(outputs)},), numbers below {outputs.shape[1]}")
    if "reference_outputs" not in arrays:
        return {"loss": Loss().statistic(Evidence(logits=outputs, labels=labels))}
    references = np.asarray(arrays["reference_outputs"], np.float64)
    good = len(references) > 1 and references.shape[1:] == outputs.shape
    wanted = f"(R, {len(outputs)}, {outputs.shape[1]}) of two or more references"
    _check.require(good, "reference_outputs.shape", references.shape, wanted=wanted)
    included = np.stack([_truth(row) for row in np.atleast_2d(arrays["included"])])
    logits = np.stack([score.as_logits(each) for each in references])
    evidence = Evidence(logits=outputs, labels=labels, reference_logits=logits, included=included)
    return {each.name: each.statistic(evidence) for each in (Loss(), LiRA(), tune_rmia(evidence))}


def _residual(outputs: NDArray[Any], targets: NDArray[Any]) -> NDArray[np.float64]:
    """Minus the size of a regression's residuals (n,)."""
    _check.require(outputs.size == targets.size, "outputs.shape", outputs.shape, wanted=f"({targets.size},)")
    return -np.abs(outputs.reshape(-1).astype(np.float64) - targets.reshape(-1))


def _truth(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Who was a member (n,), from truth values or from 0 and 1: nothing else is taken for either."""
    plain = values.ndim == 1 and values.dtype.kind in "biuf" and bool(np.isin(values, (0, 1)).all())
    _check.require(plain, "members", np.unique(values)[:3].tolist(), wanted="true and false, or 1 and 0")
    return values.astype(bool)


def _baseline(arrays: Mapping[str, NDArray[Any]], members: NDArray[np.bool_]) -> Baseline | None:
    if "records" not in arrays:
        return None
    records: Any = arrays["records"]
    return blind_baseline([str(text) for text in records] if records.dtype.kind == "U" else records, members)
