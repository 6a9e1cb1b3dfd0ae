# SPDX-License-Identifier: Apache-2.0
"""What other tools read: the JSON Schema, the model card, the comparison; and the commands that print them."""

import json
from dataclasses import replace

import pytest
import yaml
from huggingface_hub import ModelCard
from reported import finding, keep, membership
from small import SmallRun, small_plan
from typer.testing import CliRunner

from privguard.attest.statement import SigningKey
from privguard.cli import app
from privguard.errors import TamperedError
from privguard.records import Outcome, Relation, Verdict
from privguard.report import compare, guarantee, render
from privguard.report.assemble import Sources, assemble
from privguard.report.card import to_card
from privguard.report.schema import schema, text


@pytest.fixture
def call():
    return lambda *words: CliRunner().invoke(app, ["report", *map(str, words)])


@pytest.fixture(scope="module")
def valid():
    """Whether the published schema takes some JSON, as another tool would ask; the schema itself is checked first."""
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator.check_schema(schema())
    return jsonschema.Draft202012Validator(schema()).is_valid


def written(report):
    return json.loads(render.to_json(report))


def test_a_report_with_everything_meets_the_schema(folder, trained, valid):
    keep(folder, finding(50.0, outcome=Outcome.REFUTED, cap=float("inf"), claimed=2.0), "loud.json")
    keep(folder, Verdict(scheme="s", null_model="n", log10_p=-9.0, trials=9, matches=9.0, log10_e=1.0), "mark.json")
    keep(folder, membership(), "membership.json")
    (folder / "checkpoints" / "clear").write_bytes(b"x")
    assert valid(written(assemble(folder, sources=Sources(data_name="d", journal=trained / "journal"))))


@pytest.mark.parametrize("run", [{"insecure_seed": 1}, {"noise_multiplier": 0.0}], ids=["seeded", "without noise"])
def test_a_run_without_a_guarantee_meets_the_schema(tmp_path, valid, run):
    small = SmallRun(tmp_path / "run")
    noise = {name: value for name, value in run.items() if name == "noise_multiplier"}
    small.go(small.start(small_plan(steps=2, **noise), **{name: run[name] for name in run if name not in noise}))
    assert valid(written(assemble(small.folder)))


def test_the_schema_takes_nothing_else(report, valid):
    good = written(report)
    assert valid(good)
    for name in good:
        assert not valid({key: value for key, value in good.items() if key != name}), name
    for change in (
        {"more": 1},
        {"format": "privguard epsilon report v2"},
        {"claim": {**good["claim"], "epsilon": -0.1}},
        {"claim": {**good["claim"], "epsilon": "3"}},
        {"ledger_head": "ab"},
        {"findings": [{**good["findings"][0], "outcome": "confirmed"}]},
    ):
        assert not valid({**good, **change}), change


def test_the_schema_knows_every_field_of_every_record(report):
    """A field that the code has and the schema has not would be a report that nobody else can read."""
    good, known = written(report), schema()["$defs"]
    assert set(good) == set(schema()["properties"])
    lists = {"figure": "figures", "finding": "findings", "checkpoint": "checkpoints", "support": "supports"}
    for kind, name in {"claim": "claim", "manifest": "manifest", **lists}.items():
        value = good[name][0] if kind in lists else good[name]
        assert set(value) == set(known[kind]["properties"]) == set(known[kind]["required"])


def test_the_card_is_read_by_the_hubs_own_reader(report):
    card = ModelCard(to_card(report, name="letters", licence="apache-2.0"), ignore_metadata_errors=False)
    assert card.data.license == "apache-2.0"
    assert set(card.data.tags) == {"differential-privacy", "dp-sgd", "privguard"}
    assert card.data.privacy["epsilon"] >= report.claim.epsilon
    assert card.data.privacy["delta"] == 1e-3
    assert card.data.privacy["ledger_head"] == report.ledger_head
    assert f"ε={guarantee.upward(report.claim.epsilon)}" in card.text
    assert "What this does not cover" in card.text


def test_the_card_of_a_run_without_a_claim_or_against_an_attack_says_so(report):
    none = to_card(replace(report, claim=None, summary=("no guarantee at all",)))
    assert yaml.safe_load(none.split("---")[1])["privacy"]["guarantee"] == "none"
    assert "**No guarantee**" in none
    against = to_card(replace(report, contradictions=("an attack showed | more\n## than that",)))
    assert yaml.safe_load(against.split("---")[1])["privacy"]["contradicted"] is True
    assert "**An attack contradicts the claim.** an attack showed \\| more ## than that" in against


def test_reports_at_another_relation_unit_or_delta_are_not_compared_quietly(report):
    same = compare.compare(report, report)
    assert same.incomparable == ()
    assert all(row.first == row.second for row in same.rows)
    for change, named in (({"delta": 1e-6}, "δ"), ({"relation": Relation.REPLACE_ONE}, "relations")):
        other = compare.compare(report, replace(report, claim=replace(report.claim, **change)))
        assert len(other.incomparable) == 1
        assert named in other.incomparable[0]
        assert "Do not compare these ε" in compare.to_html(other)
    assert "no claim" in compare.compare(report, replace(report, claim=None)).incomparable[0]


def test_from_report_to_signature_to_verdict_by_command(call, folder, tmp_path):
    key = SigningKey.generate()
    key.write(tmp_path / "key.pem")
    key.identity.write(tmp_path / "key.pub")
    made = call(folder, "--sign", tmp_path / "key.pem", "--data-name", "Letters")
    assert made.exit_code == 0, made.output
    assert "signed: " in made.stdout
    held = call("verify", folder, "--signer", tmp_path / "key.pub", "--json")
    assert json.loads(held.stdout)["named"] is True
    assert "whom you did not name" in call("verify", folder / "report.html").stdout
    (folder / "evidence" / "audit.json").write_text("{}")
    refused = call("verify", folder, "--signer", tmp_path / "key.pub")
    assert isinstance(refused.exception, TamperedError)  # main() turns it into exit 3
    assert str(refused.exception) == "evidence/audit.json: was changed"
    assert call(folder).exit_code == 0
    assert not (folder / "report.dsse.json").exists()  # a new report is not the one that was signed


def test_schema_card_and_comparison_by_command(call, report, folder, tmp_path):
    assert call("schema").stdout == text()
    assert json.loads(call("card", folder, "--name", "letters", "--json").stdout)["card"] == to_card(
        report, name="letters"
    )
    render.write(report, folder)
    written, page = folder / "report.json", tmp_path / "both.html"
    both = call("compare", folder, written, "--json", "--html", page)
    assert json.loads(both.stdout)["incomparable"] == []
    assert page.read_text().startswith("<!doctype html>")
    assert "may be compared" in call("compare", written, written).stdout
