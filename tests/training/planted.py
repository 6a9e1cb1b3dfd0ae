# SPDX-License-Identifier: Apache-2.0
"""Bugs that break the guarantee, planted one by one in the source, and the tests of their own module that must fail.

``python -m tests.training.planted [NAME …]``. Each is one exchanged piece of text in a copy of the package; the copy's
tests run in a process of their own. A test that passes beside a bug is no test of that promise.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import final

ROOT = Path(__file__).parents[2]
_FAILED = 1  # what pytest says where a test failed; another number means that it ran none


@final
@dataclass(frozen=True)
class Bug:
    """One exchanged piece of text.

    Attributes:
        file: from ``privguard/training``.
        right: what stands there, once.
        wrong: what stands there instead.
        tests: in ``tests``, those that must fail.
    """

    file: str
    right: str
    wrong: str
    tests: str


_GUARANTEE = "training/bookkeeping/test_guarantee.py"
_REFUSALS = "training/bookkeeping/test_refusals.py"
_ISOLATION = "training/test_isolation.py"
_ROWS = "training/test_correlation.py"
_BANDED = "integrations/test_bands.py"

BUGS = {
    "records are clipped to twice the norm": Bug(
        "clip.py", "max_norm / norms.clamp(min=max_norm)", "2 * max_norm / norms.clamp(min=2 * max_norm)", _GUARANTEE
    ),
    "padding is counted": Bug("one_by_one.py", "if not mask.item():", "if False:", _GUARANTEE),
    "a record that is not finite is left in": Bug(
        "bookkeeping/bookkeeper.py",
        "any_silent = bool(silent.any())",
        "any_silent = False",
        f"{_GUARANTEE}::test_a_record_that_is_not_finite_counts_as_zero",
    ),
    "rounding of a Gram norm is ignored": Bug(
        "bookkeeping/gradients.py", "KAPPA * ROUNDING * self.lengths.square() + lost", "lost", _GUARANTEE
    ),
    "the cross term of tied weights is left out": Bug(
        "bookkeeping/gradients.py", "table + output + 2 * cross,", "table + output,", _GUARANTEE
    ),
    "a parameter that nothing reached passes": Bug(
        "bookkeeping/bookkeeper.py", "if self._all_reached or not batch.mask.any():", "if True:", _REFUSALS
    ),
    "gradients that escape are not watched": Bug(
        "clip.py",
        "[p.register_post_accumulate_grad_hook(self._refuse(n)) for n, p in parameters.items()]",
        "[]",
        _REFUSALS,
    ),
    "parameters unfrozen later are not seen": Bug("clip.py", "if now != self._watched:", "if False:", _REFUSALS),
    "the same examples go backward twice": Bug(
        "clip.py", "self.mask, self._spent = None, True", "self._spent = True", _REFUSALS
    ),
    "dropout is drawn twice": Bug(
        "bookkeeping/layers/without_rule.py", 'getattr(child, "p", 1) > 0', "False", _REFUSALS
    ),
    "float32 adds up all positions": Bug(
        "bookkeeping/products.py", "LONGEST = 128", "LONGEST = 1 << 30", "training/bookkeeping/test_products.py"
    ),
    "leaves outside the model are not looked for": Bug(
        "bookkeeping/isolation/reach.py",
        "if id(leaf) not in known and",
        "if False and",
        "training/bookkeeping/test_reach.py",
    ),
    "halves are checked in no first step": Bug(
        "bookkeeping/isolation/halves.py", "_FIRST = 2 ", "_FIRST = 0 ", "integrations/test_interactions.py"
    ),
    "an interaction voids nothing": Bug(
        "step.py", "if self._next > 0:", "if self._next < 0:", "integrations/test_interactions.py"
    ),
    "one batch size is probed": Bug("probes/examples.py", "SIZES = (5, 3, 1)", "SIZES = (5, 5, 5)", _ISOLATION),
    "a mix of a thousandth is tolerated": Bug("probes/examples.py", "SAME = 1e-5", "SAME = 1e-2", _ISOLATION),
    "no label is missing in the probe": Bug("probes/examples.py", "IGNORED = -100", "IGNORED = 0", _ISOLATION),
    "a head of zeros hides what lies behind it": Bug(
        "probes/gradients.py", "_SMALL = 0.02", "_SMALL = 0.0", _ISOLATION
    ),
    "hard examples of the batch pass": Bug(
        "probes/examples.py",
        "_check_company(model, losses, in_float32(first), in_float32(company))",
        "pass",
        _ISOLATION,
    ),
    "a buffer written in real forwards passes": Bug(
        "probes/buffers.py", "self._before = _kept(self._model)", "self._before = None", "training/test_buffers.py"
    ),
    "rounding to the grid is not charged": Bug(
        "noise/grid.py",
        "(l2_bound + spread * step)",
        "l2_bound",
        "training/test_noise.py integrations/test_mechanism.py",
    ),
    "noise is scaled to the clipping norm": Bug(
        "noise/grid.py",
        "multiplier * self.sensitivity / self.step",
        "multiplier * 0.9 / self.step",
        "training/test_noise.py",
    ),
    "sampling takes one more word": Bug(
        "sampling/sample.py",
        "source.words(examples) < np.uint64(threshold)",
        "source.words(examples) < np.uint64(threshold // 10 * 11)",
        "training/test_sample.py",
    ),
    "a record under a negative index is another one": Bug(
        "sampling/identity.py",
        "rows[np.where(indices < 0, indices + len(rows), indices)]",
        "np.stack([rows[indices, 0], indices], 1)",
        "training/test_identity.py",
    ),
    "plain Poisson samples meet correlated noise": Bug(
        "plan.py",
        "Poisson(self.sample_rate) if self.bands == 1 else",
        "Poisson(self.sample_rate) if self.bands else",
        f"{_BANDED}::test_a_record_takes_part_in_the_steps_of_one_group_and_plain_poisson_shows",
    ),
    "the rate is that of all records and not of a group": Bug(
        "../accounting/bands.py",
        "min(1.0, bands * self.batch_size / self.examples)",
        "min(1.0, self.batch_size / self.examples)",
        "accounting/test_bands.py::test_the_rate_is_the_one_within_a_group_and_the_events_are_begun_blocks",
    ),
    "a record's group is its index": Bug(
        "sampling/sample.py",
        "self.groups.words(examples)[drawn] % np.uint64(self.bands)",
        "np.arange(examples, dtype=np.uint64)[drawn] % np.uint64(self.bands)",
        "training/test_sample.py",
    ),
    "rows are used by two futures": Bug(
        "noise/correlation.py",
        "if self._positions and position != self._positions[-1] + 1:",
        "if False:",
        f"{_ROWS}::test_a_position_out_of_turn_and_another_layout_are_refused",
    ),
    "a resumed run puts records into other groups": Bug(
        "../runs/seeds.py",
        'self.lasting.child("groups")',
        'self.current.child("groups")',
        f"{_BANDED}::test_the_group_key_outlives_the_keys_of_samples_and_noise",
    ),
    "columns are longer than is priced": Bug(
        "noise/past.py",
        "np.trunc(weights * 2.0**digits)",
        "np.ceil(weights * 2.0**digits)",
        f"{_ROWS}::test_the_columns_of_what_is_undone_have_at_most_the_norm_that_is_priced",
    ),
    "a begun block costs nothing": Bug(
        "plan.py",
        "return -(-steps // self.bands)",
        "return steps // self.bands",
        "accounting/test_bands.py::test_the_rate_is_the_one_within_a_group_and_the_events_are_begun_blocks",
    ),
    "a block is told to the ledger twice as long": Bug(
        "step.py",
        "span=self._plan.bands)",
        "span=2 * self._plan.bands)",
        f"{_BANDED}::test_a_run_is_priced_by_its_begun_blocks_and_says_what_it_did",
    ),
}


@contextmanager
def planted(bug: Bug) -> Iterator[Path]:
    """A copy of package and tests with the bug in it."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for part in ("privguard", "tests"):
            shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__", "vectors"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        path = copy / "privguard" / "training" / bug.file
        text = path.read_text()
        if text.count(bug.right) != 1:
            raise ValueError(f"{bug.file}: {bug.right!r} stands there {text.count(bug.right)} times, wanted once")
        path.write_text(text.replace(bug.right, bug.wrong))
        yield copy


def is_caught(bug: Bug) -> bool:
    """Whether a test of the bug's own module fails; a collection that fails catches nothing."""
    with planted(bug) as copy:
        tests = [f"tests/{name}" for name in bug.tests.split()]
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "not slow and not gpu"]
        environment = {**os.environ, "PYTHONPATH": str(copy)}
        done = subprocess.run([*command, *tests], cwd=copy, env=environment, capture_output=True, check=False)
    return done.returncode == _FAILED and b"rror during collection" not in done.stdout


def main() -> None:
    chosen = sys.argv[1:] or list(BUGS)
    missed = []
    for name in chosen:
        caught = is_caught(BUGS[name])
        print(f"{'caught' if caught else 'MISSED'}: {name}", flush=True)
        missed += [] if caught else [name]
    print(f"{len(chosen) - len(missed)} of {len(chosen)} planted bugs are caught by the tests of their own module")
    raise SystemExit(bool(missed))


if __name__ == "__main__":
    main()
