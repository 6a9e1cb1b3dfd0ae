# SPDX-License-Identifier: Apache-2.0
"""The one claim of a run: its ledger's price, under the relation and for the unit of its manifest."""

import dp_accounting as dp
import pytest

from privguard.accounting.accountant import epsilon, spent
from privguard.accounting.claim import claim_of, epsilon_of
from privguard.accounting.ledger import Ledger
from privguard.records import Manifest, Relation, Unit

STEP = dp.PoissonSampledDpEvent(0.05, dp.GaussianDpEvent(0.9))


def manifest(**plan):
    fields = dict.fromkeys(("run", "created", "clipping", "probe", "noise", "precision"), "")
    tables = {name: {} for name in ("model", "data", "software", "mechanism", "outlook")}
    plan = {"delta": 1e-5, "relation": "add-or-remove-one", "unit": "example"} | plan
    return Manifest(**fields, **tables, plan=plan, recipients=(), unchecked=("the loader was not probed",))


@pytest.fixture
def history(tmp_path):
    path = tmp_path / "ledger.jsonl"
    with Ledger.create(path, {"run": "r", "relation": "add-or-remove-one", "delta": 1e-5}) as ledger:
        ledger.reserve(STEP, 40)
        ledger.data("0" * 64, "a record was deleted")
    return Ledger.read(path)


@pytest.mark.parametrize("relation", list(Relation))
@pytest.mark.parametrize("delta", [1e-5, 1e-7])
def test_the_figure_is_that_of_the_ledger_at_the_plans_delta_and_relation(history, relation, delta):
    plan = manifest(delta=delta, relation=relation.value)
    assert claim_of(plan, history).epsilon == spent(history, delta=delta, relation=relation).epsilon
    assert (claim_of(plan, history).delta, claim_of(plan, history).relation) == (delta, relation)
    assert epsilon_of(plan, history) == epsilon(history, delta=delta, relation=relation)
    assert epsilon_of(plan, history) == pytest.approx(claim_of(plan, history).epsilon)


def test_the_figures_differ_where_they_have_to(history):
    """Without this the test above would pass for a claim that ignores its manifest."""
    figures = {epsilon_of(manifest(delta=d, relation=r.value), history) for d in (1e-5, 1e-7) for r in Relation}
    assert len(figures) == 2 * len(Relation)


@pytest.mark.parametrize("unit", list(Unit))
def test_the_unit_is_the_plans(history, unit):
    assert claim_of(manifest(unit=unit.value), history).unit is unit


def test_what_was_not_checked_is_named_from_manifest_and_ledger_alike(history):
    first, *others = claim_of(manifest(), history).unchecked
    assert first == "the loader was not probed"
    assert tuple(others) == history.unchecked
    assert any("a record was deleted" in note for note in others)
