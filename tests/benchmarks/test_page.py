# SPDX-License-Identifier: Apache-2.0
"""The page of benchmarks is made from the results, and from nothing else."""

import json

from benchmarks import __main__ as bench
from benchmarks import page


def test_results_of_any_form_become_tables(tmp_path):
    (tmp_path / "step.md").write_text("# Steps\n\n| model | ratio |\n|---|---|\n| MLP | 1.46 [1.35] |\n")
    (tmp_path / "times.json").write_text(json.dumps([{"what": "bound", "ms": {"median": 0.52661, "least": 0.5}}]))
    (tmp_path / "trainer.json").write_text(json.dumps({"BERT": {"ratio": 1.149}, "GPT-2": {"ratio": 1.2}}))
    (tmp_path / "text.json").write_text(
        json.dumps({"tokens": 7, "power": [{"nats": 1.0}], "deep": {"rows": {"a|b": {"n": 1}}}})
    )
    (tmp_path / "runs.json").write_text(json.dumps({"step": {"ended": "now", "seconds": 3, **page.machine()}}))
    said = page.write(tmp_path)
    assert "## step\n\n*" in said
    assert "cores" in said.split("## text")[0].split("## step")[1]
    assert "### Steps" in said
    assert "| bound | 0.5266 | 0.5 |" in said
    assert "| BERT | 1.149 |" in said
    assert "* tokens: 7" in said
    assert "| a\\|b | 1 |" in said
    assert "*machine not noted*" in said.split("## trainer")[1]


def test_long_tables_are_cut_and_say_so():
    said = page.tables([{"row": number} for number in range(page.LONGEST + 5)])
    assert said.count("\n| ") == page.LONGEST
    assert "5 more rows" in said


def test_quick_settings_belong_to_benchmarks_that_exist():
    assert set(bench.QUICK) <= set(bench.names())
    assert "page" not in bench.names()


def test_the_page_in_the_documentation_is_that_of_the_results():
    kept = (bench.HERE.parent / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert kept == page.write(bench.HERE / "results"), "make it again: python -m benchmarks --page"
