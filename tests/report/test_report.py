# SPDX-License-Identifier: Apache-2.0
"""The ε report: true to its records, and to the definitions its sentences come from."""

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reported import finding, keep, membership
from scipy.stats import norm
from small import SmallRun, small_plan

from privguard.attest.statement import SigningKey, Statement
from privguard.attest.statement import sign as signed_by
from privguard.errors import LedgerError, TamperedError
from privguard.records import Claim, Digest, Manifest, Outcome, Relation, Unit
from privguard.report import guarantee, render, supports
from privguard.report.assemble import Sources, assemble
from privguard.report.record import Report

EPSILONS = st.floats(0, 60)
DELTAS = st.floats(0, 0.1)


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
    assert guarantee.best_accuracy([(epsilon, 0.0)]) == pytest.approx(truth)
    assert truth - 1e-12 <= guarantee.best_accuracy([(epsilon, delta)]) <= 1


@given(st.floats(0.3, 5), st.floats(1e-4, 0.5))
def test_no_gaussian_test_beats_the_stated_rates(sigma, fpr):
    """The Gaussian mechanism's own optimal test (Dong et al. 2019) stays below what its (ε, δ) pairs promise."""
    profile = [(e / 10, _gaussian_delta(sigma, e / 10)) for e in range(200)]
    tpr = norm.cdf(norm.ppf(fpr) + 1 / sigma)
    assert tpr <= guarantee.best_tpr(profile, fpr=fpr) + 1e-12
    assert guarantee.best_accuracy(profile) == pytest.approx(norm.cdf(1 / (2 * sigma)))  # ε = 0 gives it exactly


def _gaussian_delta(sigma, epsilon):
    """Balle & Wang 2018, Theorem 8."""
    a, b = 1 / (2 * sigma), epsilon * sigma
    return norm.cdf(a - b) - math.exp(epsilon) * norm.cdf(-a - b)


@given(EPSILONS, st.floats(0, 1), DELTAS)
def test_rates_lie_between_guessing_and_certainty(epsilon, fpr, delta):
    assert fpr - 1e-9 <= guarantee.best_tpr([(epsilon, delta)], fpr=fpr) <= 1


def test_printed_numbers_are_never_below_the_computed_ones():
    assert guarantee.upward(2.0000001) == "2.001"
    assert guarantee.percent(0.95001) == "95.1\N{NO-BREAK SPACE}%"
    assert float(guarantee.factor(1.0)) >= math.e
    assert guarantee.factor(40) == "more than 400 million"
    assert guarantee.upward(math.inf) == "∞"


def test_one_sentence_connects_the_factor_and_the_share():
    """e³ to 1 is 20.1 to 1, right 95.3 % of the time; the other pair bounds it by (e^0.5 + 0.01) / (1 + e^0.5)."""
    facts = {"relation": Relation.ADD_OR_REMOVE_ONE, "unit": Unit.EXAMPLE, "accountant": "any", "interval": 1e-4}
    claim = Claim(epsilon=3.0, delta=1e-5, **facts)
    apart = guarantee.connection(claim, [(3.0, 1e-5), (0.5, 0.01)])
    assert "at most 20.1 turns even odds into at most 20.1 to 1" in apart
    assert "right 95.3\N{NO-BREAK SPACE}% of the time" in apart
    assert apart.endswith("at most 62.7\N{NO-BREAK SPACE}%.")
    assert "62.7\N{NO-BREAK SPACE}%" in guarantee.odds(claim, [(3.0, 1e-5), (0.5, 0.01)])
    alike = guarantee.connection(claim, [(3.0, 1e-5)])
    assert alike.endswith("right 95.3\N{NO-BREAK SPACE}% of the time: the factor and the share say the same.")


@pytest.mark.parametrize("form", [render.to_html, render.to_markdown])
def test_the_words_of_the_audits_are_explained_where_they_stand(folder, report, form):
    plain = form(report)
    assert guarantee.connection(report.claim, report.profile) in plain
    assert "The cap of an audit is the highest ε that it could have shown at all" in plain
    assert "Canaries" not in plain  # the small run's audit has none
    keep(folder, finding(0.5, counts={"canaries": 40}, cap=1327.4), "canaries.json")
    said = form(assemble(folder))
    assert "Canaries are synthetic records that belong to nobody." in said
    assert said.index("Canaries are synthetic records") < said.index("1327.400")
    assert said.index("The cap of an audit") < said.index("1327.400")


def test_every_format_says_the_same_claim(report):
    said = json.loads(render.to_json(report))
    assert said["claim"]["epsilon"] == report.claim.epsilon
    number = guarantee.upward(report.claim.epsilon)
    assert f"ε={number} at δ=0.001" in render.to_markdown(report)
    assert f"ε = {number} at δ = 0.001" in render.to_html(report)


def test_the_page_needs_no_network_and_carries_what_it_must(report):
    page = render.to_html(report)
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
        *(
            "Poisson",
            "100 (treated as a public number)",
            "<svg",
            'aria-label="ε grows',
            "checkpoints/step-00000006.sealed",
        ),
    ):
        assert wanted in page, wanted


def test_the_curve_rises_to_the_claim(report):
    steps, epsilons = zip(*report.curve, strict=True)
    assert list(steps) == sorted(steps)
    assert list(epsilons) == sorted(epsilons)
    assert (steps[-1], epsilons[-1]) == (6, report.claim.epsilon)


def test_an_altered_ledger_is_no_report(folder):
    ledger = folder / "ledger.jsonl"
    ledger.write_text(ledger.read_text().replace('"noise_multiplier":1', '"noise_multiplier":9', 1))
    with pytest.raises(LedgerError):
        assemble(folder)


def test_an_altered_manifest_is_no_report(folder):
    manifest = folder / "run.json"
    manifest.write_text(manifest.read_text().replace('"examples": 100', '"examples": 999', 1))
    with pytest.raises(TamperedError, match=r"run\.json"):
        assemble(folder)


def test_a_finding_above_the_claim_heads_the_report(folder):
    keep(folder, finding(50.0, outcome=Outcome.REFUTED, cap=60.0), "loud.json")
    report = assemble(folder)
    assert len(report.contradictions) == 1
    page = render.to_html(report)
    assert page.index("An attack contradicts the claim") < page.index('<h2 id="claim">ε = ')


def test_a_finding_is_held_against_what_the_ledger_allows_at_its_own_delta(folder, report):
    """At a larger δ less is allowed: a bound below the claim can contradict the ledger, and at a smaller δ need not."""
    low = 0.9 * report.claim.epsilon
    keep(folder, finding(low, delta=0.2), "wide.json")
    assert len(assemble(folder).contradictions) == 1
    keep(folder, finding(1.1 * report.claim.epsilon, delta=1e-6), "wide.json")
    assert assemble(folder).contradictions == ()


def test_a_finding_about_another_unit_does_not_contradict_unless_it_refuted_its_own_claim(folder):
    keep(folder, finding(50.0, settings={"unit": "user"}), "users.json")
    assert assemble(folder).contradictions == ()
    keep(folder, finding(50.0, settings={"unit": "user"}, outcome=Outcome.REFUTED, claimed=2.0), "users.json")
    assert "above the 2.000 that it was held against" in assemble(folder).contradictions[0]


@pytest.mark.parametrize(
    "text", ["{", "[1", '{"record": "Finding"}', '{"record": "Verdict", "log10_p": -3}', '{"payloadType": 1}']
)
def test_evidence_that_is_damaged_is_named_and_no_report(folder, text):
    (folder / "evidence" / "bad.json").write_text(text)
    with pytest.raises(TamperedError, match=r"evidence/bad\.json: "):
        assemble(folder)


def test_a_finding_that_is_not_a_number_is_no_evidence(folder):
    """NaN is above nothing, so it would pass for an audit that found nothing."""
    keep(folder, finding(float("nan")), "nan.json")
    with pytest.raises(TamperedError, match=r"nan\.json"):
        assemble(folder)


def test_a_membership_audit_is_shown_as_what_it_is_no_bound(folder):
    found = membership()
    keep(folder, found, "membership.json")
    report = assemble(folder)
    (shown,) = report.memberships
    assert (shown.leak, shown.members, shown.non_members) == (found.leak.value, 60, 60)
    assert [each.auc for each in shown.attacks] == [each.auc.value for each in found.attacks]
    assert report.contradictions == ()
    for text in (render.to_html(report), render.to_markdown(report)):
        assert f"60 members against 60 others: {found.leak.value}." in text
        assert "no bound on ε" in text


def test_a_bundle_for_a_mark_is_judged_by_who_makes_the_report(folder):
    said = Statement(
        subjects=(Digest(name="stolen.safetensors", sha256="ab" * 32),),
        predicate_type="https://privguard.dev/mark-evidence/v1",
    )
    signed_by(said, by=SigningKey.generate()).write(folder / "evidence" / "claim.json")
    (unjudged,) = assemble(folder).claims
    assert (unjudged.outcome, unjudged.suspect) == ("not judged", "stolen.safetensors (abababababababab…)")

    from privguard.watermark.claims import evidence
    from privguard.watermark.claims.commitment import Trust

    report = assemble(folder, sources=Sources(judge=lambda bundle: evidence.verify(bundle, trust=Trust())))
    assert report.claims[0].outcome == "protocol invalid"
    assert "expected a signature of nobody" in report.claims[0].reason
    assert "stolen.safetensors" in render.to_html(report)
    assert "protocol invalid" in render.to_markdown(report)


def test_checkpoints_say_who_can_open_them_and_who_did(folder, trained):
    report = assemble(folder, sources=Sources(journal=trained / "journal"))
    names = {each.name for each in report.checkpoints}
    assert names == {"checkpoints/step-00000005.sealed", "checkpoints/step-00000006.sealed"}
    assert all(each.resume == report.manifest.recipients and each.form == "file" for each in report.checkpoints)
    assert {(act.who, act.action, act.result) for act in report.access.acts} == {("alice@lab", "seal", "done")}
    assert {act.checkpoint for act in report.access.acts} == names


def test_a_checkpoint_in_clear_is_shown_as_one(folder):
    (folder / "checkpoints" / "model.bin").write_bytes(b"weights")
    (clear,) = [each for each in assemble(folder).checkpoints if each.form == "in clear"]
    assert clear.name == "checkpoints/model.bin"
    assert "not sealed" in render.to_markdown(assemble(folder))


def test_relation_and_unit_of_the_claim_are_the_plans(tmp_path):
    """A replace-one claim costs more; reporting the other relation would understate it."""
    run = SmallRun(tmp_path / "run")
    private = run.start(small_plan(steps=2, relation=Relation.REPLACE_ONE, unit=Unit.USER))
    run.go(private)
    report = assemble(run.folder)
    assert report.claim == private.claim()
    assert report.claim.relation is Relation.REPLACE_ONE
    assert report.claim.epsilon == report.claim.replace_one
    assert report.curve[-1][1] == report.claim.epsilon
    assert len(report.figures) == 1
    assert "all examples of one person together" in report.summary[0]
    assert "a person's whole contribution" in render.to_markdown(report)


def test_a_report_is_read_back_as_it_was_written(report):
    assert Report.from_json(json.loads(render.to_json(report))) == report


@pytest.mark.parametrize(
    "change", [{"format": "other"}, {"more": 1}, {"claim": {}}, {"findings": [{"epsilon_low": 1}]}]
)
def test_what_is_no_report_is_not_read(report, change):
    with pytest.raises(TamperedError, match="report: not in the form"):
        Report.from_json({**report.to_json(), **change})


def test_the_table_of_duties_supports_and_never_says_that_anybody_complies(report):
    rows = supports.table(journal=True)
    assert {row.framework for row in rows} == {"NIST AI RMF 1.0", "ISO/IEC 42001:2023", "GDPR", "EU AI Act"}
    assert {"Art. 25", "Art. 32", "Art. 35"} <= {row.clause for row in rows}
    assert all(row.left for row in rows)
    for text in (render.to_markdown(report), render.to_html(report)):
        assert text.count("supports: ") == len(rows)
        assert "compliant" not in text
        assert text.count("complies") == 1  # in the sentence that no report can say so


def test_no_row_rests_on_a_journal_that_was_not_at_hand():
    resting = [row.evidence for row in supports.table(journal=False) if "journal" in row.evidence]
    assert resting
    assert all("access journal (none was at hand)" in evidence for evidence in resting)


@pytest.mark.parametrize(
    ("probed", "said"),
    [
        ("model and loss", "found no leak between examples; it covered model and loss."),
        ("nothing: the loop is not known", "Nothing looked for leaks between examples before the first step: the loop"),
    ],
)
def test_what_was_probed_cannot_be_read_as_its_opposite(report, probed, said):
    assert said in " ".join(guarantee.assumptions(replace(report.manifest, probe=probed)))


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


def test_text_from_outside_is_escaped(report):
    facts = Manifest.from_json({**report.manifest.to_json(), "clipping": "<script>alert(1)</script>"})
    page = render.to_html(replace(report, manifest=facts))
    assert "<script>" not in page
