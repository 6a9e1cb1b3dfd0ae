# SPDX-License-Identifier: Apache-2.0
"""Scores and records from CSV and Parquet files: the same audit as from arrays, and one clear line for all else."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from privguard.audit.loading import examples
from privguard.audit.membership import roc
from privguard.audit.membership.attack import Evidence, LiRA
from privguard.audit.membership.scores import audit_scores, read_scores
from privguard.cli import app
from privguard.cli._output import exit_code


def columns():
    random = np.random.default_rng(2)
    members = np.arange(120) < 60
    return {
        "scores_a": random.standard_normal(120) + members,
        "losses_b": random.standard_normal(120),
        "members": members,
        "records_age": random.integers(20, 60, 120),
        "records_sum": random.standard_normal(120),
    }


def write(path, table):
    if path.suffix == ".parquet":
        import pyarrow as pa
        from pyarrow import parquet

        parquet.write_table(pa.table({name: values.tolist() for name, values in table.items()}), path)
        return path
    rows = [
        ",".join(table),
        *(",".join(map(repr, row)) for row in zip(*(v.tolist() for v in table.values()), strict=True)),
    ]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["s.csv", "s.parquet"])
def test_a_table_gives_the_audit_of_its_arrays(tmp_path, name):
    table = columns()
    shown = CliRunner().invoke(app, ["audit", "scores", str(write(tmp_path / name, table)), "--json"])
    assert shown.exit_code == 0, shown.output
    records = np.stack([table.pop("records_age"), table.pop("records_sum")], 1)
    assert json.loads(shown.stdout) == json.loads(json.dumps(audit_scores({**table, "records": records}).to_json()))


@pytest.mark.parametrize("name", ["e.csv", "e.parquet"])
def test_a_table_gives_examples(tmp_path, name):
    table = {"inputs_a": np.array([1, 2]), "inputs_b": np.array([2, 3]), "labels": np.array([1, 0])}
    taken = examples(write(tmp_path / name, table))
    assert taken.inputs.tolist() == [[1.0, 2.0], [2.0, 3.0]]
    assert taken.inputs.is_floating_point()
    assert taken.labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", "a first line of different names"),
        ("scores,scores\n1,2\n", "a first line of different names"),
        ("scores,members\n", "at least one row"),
        ("scores,members\n1\n", "cells in row 2=1: expected 2"),
        ("scores,members\n,1\n2,0\n", "'scores' is empty in row 2"),
        ("scores,members\n1,2\n2,0\n", "true and false, or 1 and 0"),
        ("scores,members\n1,yes\n2,no\n", "true and false, or 1 and 0"),
        ("scores,members\nnan,1\n2,0\n", "finite numbers"),
        ("scores,members\nhigh,1\n2,0\n", "expected numbers"),
        ("scores,members\n1,1\n2,1\n", "some of both"),
        ("members\n1\n0\n", "'scores' or 'losses'"),
        ("scores,members,records_a\n1,1,x\n2,0,y\n", "column='records_a': expected numbers"),
    ],
)
def test_a_table_that_is_none_is_refused_in_one_line(tmp_path, text, wanted):
    (tmp_path / "bad.csv").write_text(text)
    result = CliRunner().invoke(app, ["audit", "scores", str(tmp_path / "bad.csv")])
    assert wanted in str(result.exception)
    assert exit_code(result.exception) == 2


@pytest.mark.parametrize("name", ["bad.csv", "bad.parquet", "bad.npz"])
def test_bytes_that_are_no_table_are_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"\xff\xfe\x00PAR1 no table")
    with pytest.raises(ValueError, match="expected"):
        read_scores(tmp_path / name)


def test_outputs_of_a_model_and_of_references_are_attacked_as_in_python():
    random = np.random.default_rng(0)
    logits, labels = random.standard_normal((5, 80, 3)), random.integers(0, 3, 80)
    included, members = random.random((4, 80)) < 0.5, np.arange(80) < 40
    evidence = Evidence(logits=logits[0], labels=labels, reference_logits=logits[1:], included=included)
    arrays = {"outputs": logits[0], "labels": labels, "reference_outputs": logits[1:], "included": included}
    found = audit_scores({**arrays, "members": members})
    assert [each.attack for each in found.attacks] == ["loss", "lira", "rmia"]
    assert found.attacks[1].auc == roc.auc(LiRA().statistic(evidence), members)
    with pytest.raises(ValueError, match=r"reference_outputs\.shape"):
        audit_scores({**arrays, "members": members, "reference_outputs": logits[1:, :, :2]})
    with pytest.raises(ValueError, match="'included' beside"):
        audit_scores({name: arrays[name] for name in arrays if name != "included"} | {"members": members})
