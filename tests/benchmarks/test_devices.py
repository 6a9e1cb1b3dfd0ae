# SPDX-License-Identifier: Apache-2.0
"""Benchmarks of training on the device that was asked for: measured there, or refused in one line."""

import argparse
import json
import subprocess
import sys

import pytest
import torch

from benchmarks import __main__ as bench
from benchmarks import clock as clocks
from benchmarks import page, step
from benchmarks.models import CASES, LARGE
from benchmarks.ways import MODES, Setting, ways_of

without = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
CPU = torch.device("cpu")


def run(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", *options], capture_output=True, text=True, check=False)


def test_the_step_is_measured_on_the_cpu_when_asked(tmp_path):
    options = ("--device", "cpu", "--rounds", "1", "--model", "MLP", "--skip-opacus", "--skip-memory")
    done = run("benchmarks.step", *options, "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "step.json").read_text())["results"]["float32"]["MLP"]["time"]
    ours = ["privguard", "privguard, no noise", "privguard, checked", "privguard, unchecked"]
    assert list(found) == ["ordinary", *ours]
    assert found["ordinary"]["seconds"] > 0
    assert found["privguard"]["ratio"] == pytest.approx(found["privguard"]["seconds"] / found["ordinary"]["seconds"])
    assert "| MLP | 1.80 |" in (tmp_path / "step.md").read_text()


def test_what_was_not_measured_again_stays(tmp_path):
    path = tmp_path / "step.json"
    old = {"BERT": {"time": {"privguard": 1}}, "MLP": {"time": {"privguard": 2, "Opacus hooks": 3}, "peak": 4}}
    path.write_text(json.dumps({"results": {"float32": old}}))
    merged = step.beside(path, {"float32": {"MLP": {"time": {"privguard": 5}}}})
    rows = {"BERT": old["BERT"], "MLP": {"time": {"privguard": 5, "Opacus hooks": 3}, "peak": 4}}
    assert merged == {"float32": rows}
    assert step.beside(tmp_path / "none.json", merged) == merged


@without
@pytest.mark.parametrize("name", ["step", "trainer"])
def test_a_device_that_is_not_there_is_refused_in_one_line(name):
    done = run(f"benchmarks.{name}", "--device", "cuda", "--rounds", "1", "--tiny")
    assert done.returncode == 2
    assert f"--device cuda: torch {torch.__version__} sees no CUDA device" in done.stderr
    assert "Traceback" not in done.stderr


@without
def test_without_a_device_the_cpu_is_the_default():
    parser = argparse.ArgumentParser()
    clocks.add_option(parser)
    assert isinstance(clocks.chosen(parser, parser.parse_args([]).device), clocks.HostClock)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.compile's own imports
def test_every_mode_trains_on_the_cpu_and_what_is_refused_is_said_in_its_own_words():
    torch.compiler.reset()
    mode = MODES["bf16"]
    found = step.measure(Setting(CASES[0], mode, CPU), clocks.HostClock(), ways_of(mode, opacus=False), rounds=1)
    refused, said = step.ready(Setting(CASES[0], MODES["compile"], CPU), ["privguard, torch.compile"])
    assert refused == {}
    by_case = {"MLP": {"time": found | said}}
    text = step.table(
        {"bf16": by_case, "compile": {"MLP": {"time": {"ordinary": {"failed": "OutOfMemoryError"}}}}}, CASES
    )
    assert {"ordinary", "privguard", "privguard, no noise"} <= set(found)
    assert "| refused |" in text
    assert "* MLP: privguard, torch.compile, refused: model=OptimizedModule: compiled before it was tapped" in text
    assert "| MLP | 1.80 | failed |" in text
    assert "* MLP: ordinary, failed: OutOfMemoryError" in text


def test_a_clock_times_its_number_of_calls_between_two_marks_from_rest():
    class Counting(clocks.HostClock):
        steps = 4

        def __init__(self):
            self.happened = []

        def settle(self):
            self.happened.append("settle")

        def mark(self):
            self.happened.append("mark")
            return float(len(self.happened))

    clock = Counting()
    assert clocks.timed(clock, lambda: clock.happened.append("call")) == (7 - 2) / 4
    assert clock.happened == ["settle", "mark", *["call"] * 4, "mark"]


def test_a_result_from_a_gpu_says_on_which_and_takes_no_other_machines_note(tmp_path):
    made = {"device": "NVIDIA X", "memory": "80 GiB", "driver": "570.1", "cuda": "12.8", "torch": "2.13"}
    (tmp_path / "step_cuda.json").write_text(json.dumps({**made, "results": {}}))
    (tmp_path / "step_cuda.md").write_text("| model |\n|---|\n| MLP |\n")
    (tmp_path / "runs.json").write_text(json.dumps({"step": {"ended": "now", "seconds": 3, **page.machine()}}))
    said = page.write(tmp_path)
    assert "## step cuda\n\n*NVIDIA X, 80 GiB; driver 570.1, CUDA 12.8, torch 2.13*\n\n| model |" in said
    assert "Python" not in said.split("## step cuda")[1]


@pytest.mark.parametrize("there", [False, True])
def test_all_benchmarks_run_training_on_each_device_that_there_is(monkeypatch, there):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    runs = [result for name in ("seal", "step") for _, (result, _) in bench._with_devices(name)]
    assert runs == ["seal", "step", *["step_cuda"] * there]
    assert list(bench._with_devices("trainer"))[-1][1][1] == ["--device", "cuda" if there else "cpu"]


def test_the_models_for_a_gpu_are_the_same_six_by_name():
    assert [case.name for case in LARGE] == [case.name for case in CASES]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", ["step", "trainer"])
def test_the_small_models_are_measured_on_the_gpu(name):
    options = ["--model", "MLP", "--model", "GPT-2 tied"] if name == "step" else []
    done = run(f"benchmarks.{name}", "--device", "cuda", "--rounds", "2", "--tiny", *options)
    assert done.returncode == 0, done.stderr
    assert ("privguard, torch.compile, refused" if name == "step" else "PrivateTrainer, refused") in done.stdout
    assert "failed" not in done.stdout.replace("Opacus ghost, failed", "").replace("Opacus hooks, failed", "")
