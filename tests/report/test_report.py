"""The ε report: true to its records, and to the definitions its sentences come from."""

import json
import math
import shutil
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

sys.path.insert(0, str(Path(__file__).parents[1] / "integrations"))

from small import SmallRun, small_plan

from privguard.errors import LedgerError, TamperedError
from privguard.records import Finding, Manifest, Outcome, Relation
from privguard.report import render, statement
from privguard.report.assemble import assemble

EPSILONS = st.floats(0, 60)
DELTAS = st.floats(0, 0.1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    run = SmallRun(tmp_path_factory.mktemp("report") / "run")
    run.go(run.start(small_plan(steps=6, examples=100)))
    return run.folder


def test_a_report_prices_the_relation_and_unit_of_its_plan(tmp_path):
    run = SmallRun(tmp_path / "run")
    private = run.start(small_plan(steps=4, relation=Relation.REPLACE_ONE))
    run.go(private)
    claim, report = private.claim(), assemble(run.folder)
    assert report.claim == claim
    assert report.claim.relation is Relation.REPLACE_ONE
    assert report.claim.epsilon == claim.replace_one  # and not the smaller one, for add or remove
    assert report.curve[-1][1] == pytest.approx(claim.epsilon, rel=1e-3)


@given(EPSILONS, DELTAS)
def test_randomised_response_meets_the_best_accuracy_exactly(epsilon, delta):
    """With δ = 0 the optimal test against randomised response attains the bound; δ only loosens it."""
    truth = math.exp(epsilon) / (1 + math.exp(epsilon))
    assert statement.best_accuracy([(epsilon, 0.0)]) == pytest.approx(truth)
    assert truth - 1e-12 <= statement.best_accuracy([(epsilon, delta)]) <= 1


@given(st.floats(0.3, 5), st.floats(1e-4, 0.5))
def test_no_gaussian_test_beats_the_stated_rates(sigma, fpr):
    """The Gaussian mechanism's own optimal test (Dong et al. 2019) stays below what its (ε, δ) pairs promise."""
    profile = [(e / 10, _gaussian_delta(sigma, e / 10)) for e in range(200)]
    tpr = norm.cdf(norm.ppf(fpr) + 1 / sigma)
    assert tpr <= statement.best_tpr(profile, fpr=fpr) + 1e-12
    assert statement.best_accuracy(profile) == pytest.approx(norm.cdf(1 / (2 * sigma)))  # ε = 0 gives it exactly


def _gaussian_delta(sigma, epsilon):
    """Balle & Wang 2018, Theorem 8."""
    a, b = 1 / (2 * sigma), epsilon * sigma
    return norm.cdf(a - b) - math.exp(epsilon) * norm.cdf(-a - b)


@given(EPSILONS, st.floats(0, 1), DELTAS)
def test_rates_lie_between_guessing_and_certainty(epsilon, fpr, delta):
    assert fpr - 1e-9 <= statement.best_tpr([(epsilon, delta)], fpr=fpr) <= 1


def test_printed_numbers_are_never_below_the_computed_ones():
    assert statement.upward(2.0000001) == "2.001"
    assert statement.percent(0.95001) == "95.1 %"
    assert float(statement.factor(1.0)) >= math.e
    assert statement.factor(40) == "more than 400 million"
    assert statement.upward(math.inf) == "∞"


def test_every_format_says_the_same_claim(folder):
    report = assemble(folder)
    said = json.loads(render.to_json(report))
    assert said["claim"]["epsilon"] == report.claim.epsilon
    number = statement.upward(report.claim.epsilon)
    assert f"ε={number} at δ=0.001" in render.to_markdown(report)
    assert f"ε = {number} at δ = 0.001" in render.to_html(report)


def test_the_page_needs_no_network_and_carries_what_it_must(folder):
    page = render.to_html(assemble(folder))
    assert "http://" not in page.replace("http://www.w3.org", "")  # names of XML, never fetched
    assert "src=" not in page
    assert "@import" not in page
    for wanted in (
        *(
            "Unit of privacy",
            "Neighbouring relation",
            "Sampler",
            "Denominator",
            "Noise source",
            "Precision",
            "Accountant",
        ),
        *("replaced", "Ledger", "Data commitment", "Software", "What this does not cover", "What it rests on"),
        *("Poisson", "100, treated as public", "<svg", 'aria-label="ε grows', "checkpoints/step-00000006.sealed"),
    ):
        assert wanted in page, wanted


def test_the_curve_rises_to_the_claim(folder):
    report = assemble(folder)
    steps, epsilons = zip(*report.curve, strict=True)
    assert list(steps) == sorted(steps)
    assert list(epsilons) == sorted(epsilons)
    assert (steps[-1], epsilons[-1]) == (6, report.claim.epsilon)


def test_an_altered_ledger_is_no_report(folder, tmp_path):
    altered = _copy(folder, tmp_path)
    ledger = altered / "ledger.jsonl"
    ledger.write_text(ledger.read_text().replace('"noise_multiplier":1', '"noise_multiplier":9', 1))
    with pytest.raises(LedgerError):
        assemble(altered)


def test_an_altered_manifest_is_no_report(folder, tmp_path):
    altered = _copy(folder, tmp_path)
    manifest = altered / "run.json"
    manifest.write_text(manifest.read_text().replace('"examples": 100', '"examples": 999', 1))
    with pytest.raises(TamperedError, match=r"run\.json"):
        assemble(altered)


def test_a_finding_above_the_claim_heads_the_report(folder, tmp_path):
    refuted = _copy(folder, tmp_path)
    finding = Finding(
        epsilon_low=50.0, delta=1e-3, confidence=0.95, method="one-run", outcome=Outcome.REFUTED, cap=60.0
    )
    (refuted / "evidence").mkdir()
    (refuted / "evidence" / "audit.json").write_text(json.dumps(finding.to_json()))
    report = assemble(refuted)
    assert len(report.contradictions) == 1
    page = render.to_html(report)
    assert page.index("An attack contradicts the claim") < page.index("ε = ")


def test_a_seeded_run_is_reported_without_a_claim(tmp_path):
    run = SmallRun(tmp_path / "run")
    run.go(run.start(small_plan(steps=2), insecure_seed=1))
    report = assemble(run.folder)
    assert report.claim is None
    assert "insecure seed" in render.to_markdown(report)
    assert "No guarantee" in render.to_html(report)


def test_a_run_without_noise_is_reported_as_infinite(tmp_path):
    run = SmallRun(tmp_path / "run")
    run.go(run.start(small_plan(steps=2, noise_multiplier=0.0)))
    report = assemble(run.folder)
    assert math.isinf(report.claim.epsilon)
    assert "no guarantee at all" in render.to_html(report)
    assert json.loads(render.to_json(report), parse_constant=pytest.fail)["claim"]["epsilon"] == "inf"


def test_text_from_outside_is_escaped(folder):
    report = assemble(folder)
    facts = Manifest.from_json({**report.manifest.to_json(), "clipping": "<script>alert(1)</script>"})
    page = render.to_html(type(report)(**{**vars(report), "manifest": facts}))
    assert "<script>" not in page


def _copy(folder, tmp_path):

    return Path(shutil.copytree(folder, tmp_path / "copy"))
