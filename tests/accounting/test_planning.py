# SPDX-License-Identifier: Apache-2.0
"""Trade-off curves against closed forms and riskcal's figures; the row that is taken; what commands say."""

import json

import numpy as np
import pytest
from dp_accounting import GaussianDpEvent
from scipy.stats import norm
from typer.testing import CliRunner

from privguard import cli
from privguard.accounting.accountant import epsilon
from privguard.accounting.calibrate import Budget
from privguard.accounting.outlook import outlook
from privguard.accounting.planning.recommend import ENOUGH_STEPS, recommend
from privguard.accounting.planning.trade_off import TradeOff, trade_off
from privguard.records import Relation
from privguard.training.plan import Plan


def privguard(*arguments):
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


SIZE = {"epsilon": 3.0, "delta": 1e-5, "examples": 50_000, "batch_size": 500, "epochs": 3, "max_grad_norm": 1.0}


@pytest.mark.parametrize("times", [1, 9])
def test_the_curve_of_a_gaussian_is_its_closed_form_from_below(times):
    """β(α) = Φ(Φ⁻¹(1 - α) - μ) with μ = √times/σ (Dong, Roth & Su 2022); advantage 2Φ(μ/2) - 1."""
    curve, mu = trade_off([(GaussianDpEvent(2.5), times)], delta=1e-6), np.sqrt(times) / 2.5
    assert 2 * norm.cdf(mu / 2) - 1 - 1e-12 <= curve.advantage == pytest.approx(2 * norm.cdf(mu / 2) - 1, rel=2e-3)
    for rate in (1e-4, 1e-3, 0.01, 0.1, 0.5):
        true = norm.cdf(norm.ppf(1 - rate) - mu)
        assert true - 1e-3 <= curve.false_negatives(rate) <= true + 1e-12
        assert curve.odds(rate) == (1 - curve.false_negatives(rate)) / rate


def test_the_curve_of_a_run_is_that_of_riskcal():
    """riskcal 1.5.1: get_beta_from_pld and get_advantage_from_pld, on a grid four times as fine."""
    plan = Plan(
        sample_rate=0.01, noise_multiplier=0.7061334595628292, max_grad_norm=1.0, steps=300, delta=1e-5,
        expected_batch_size=500,
    )  # fmt: skip
    curve = plan.trade_off()
    known = {1e-4: 0.99901046, 1e-3: 0.9941889, 0.01: 0.96562243, 0.1: 0.79917221, 0.5: 0.34374977}
    for rate, theirs in known.items():
        assert theirs - 5e-4 <= curve.false_negatives(rate) <= theirs
    assert curve.advantage == pytest.approx(0.15698165, rel=2e-3)


def test_one_pair_bounds_as_its_formulas_do():
    curve = TradeOff(((np.log(3), 0.1),), Relation.ADD_OR_REMOVE_ONE)
    assert curve.false_negatives(0.1) == pytest.approx(0.6)
    assert curve.false_negatives(0.6) == pytest.approx(0.1)
    assert curve.false_negatives(1.0) == 0
    assert curve.advantage == pytest.approx((3 + 0.2 - 1) / 4)
    with pytest.raises(ValueError, match="rate="):
        curve.odds(0.0)


def test_the_recommended_row_leaves_the_least_and_its_plan_is_the_one_that_python_makes():
    budget = Budget(epsilon=3.0, delta=1e-5)
    rows = recommend(budget, examples=4_000, trained=26_010, epochs=4, momentum=0.9)
    (taken,) = (row for row in rows if row.taken)
    fair = [row for row in rows if row.steps >= ENOUGH_STEPS]
    assert taken.outlook.noise_over_signal == min(row.outlook.noise_over_signal for row in fair)
    plan = Plan.recommend(
        epsilon=3.0, delta=1e-5, examples=4_000, parameters=26_010, epochs=4, max_grad_norm=1.0, momentum=0.9
    )
    assert (plan.expected_batch_size, plan.bands) == (taken.batch_size, taken.bands)
    assert plan.noise_multiplier == pytest.approx(taken.noise_multiplier, rel=0.015)
    assert 2.98 < epsilon(plan.events(), delta=1e-5) <= 3
    assert taken.memory == 8 * 26_010 * (taken.bands - 1)
    again = outlook(
        noise_multiplier=plan.noise_multiplier, batch_size=taken.batch_size, steps=plan.steps, trained=26_010,
        strategy=plan.strategy,
    )  # fmt: skip
    assert again.noise_over_signal == pytest.approx(taken.outlook.noise_over_signal, rel=0.02)


def test_a_plan_comes_back_from_its_facts_and_what_is_none_is_refused():
    plan = Plan(sample_rate=0.5, noise_multiplier=1.0, max_grad_norm=1.0, steps=4, delta=1e-5, expected_batch_size=5)
    assert Plan.from_facts(json.loads(json.dumps(plan.facts()))) == plan
    for facts in ({}, {**plan.facts(), "stranger": 1}, {**plan.facts(), "unit": "nobody"}):
        with pytest.raises(ValueError, match=r"plan:|nobody"):
            Plan.from_facts(facts)


def test_the_commands_agree_with_python_and_refuse_files_that_hold_no_plan(tmp_path):
    one, banded = tmp_path / "one.json", tmp_path / "banded.json"
    for path, bands in ((one, 1), (banded, 16)):
        plan = Plan.for_budget(**SIZE, bands=bands, momentum=0.9)
        path.write_text(json.dumps({"plan": plan.facts()}))
    both = json.loads(privguard("plans", "compare", one, banded, "--json"))
    assert both["first"]["epsilon"] == pytest.approx(both["second"]["epsilon"], rel=2e-3)
    assert both["second"]["noise_left"] < 0.8 * both["first"]["noise_left"]
    assert both["second"]["replace_one"] > both["first"]["replace_one"]
    assert both["first"]["advantage"] == Plan.for_budget(**SIZE).trade_off().advantage
    assert "advantage of the best test" in privguard("plans", "compare", one, banded)
    one.write_text("[]")
    refused = CliRunner().invoke(cli.app, ["plans", "compare", str(one), str(banded)])
    assert isinstance(refused.exception, ValueError)
    assert "has no plan" in str(refused.exception)
