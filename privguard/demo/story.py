# SPDX-License-Identifier: Apache-2.0
"""The demonstration: train, seal, commit, mark, release, steal, challenge, audit, report, in this order."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias, final

from privguard.audit import Membership, OneRun
from privguard.checkpoint.keys.key import Key
from privguard.demo import chapters
from privguard.demo.chapters import Stage, Theft
from privguard.demo.digits import Digits
from privguard.demo.settings import Settings
from privguard.records import Claim, Finding, Record
from privguard.report import render
from privguard.report.assemble import Sources, assemble
from privguard.runs.audits.step import audit_step
from privguard.runs.folder import REPORT_PAGE, keep
from privguard.watermark.claims import evidence
from privguard.watermark.model import theft

Watch: TypeAlias = Callable[[str, float], None]

_OPENING, _MARKER = 0.02, "demo.json"


@final
@dataclass(frozen=True, kw_only=True)
class Demonstration(Record):
    """What the demonstration did: what it cost, what each attack found, and where everything lies.

    Accuracies are on 200 test images: of the private model, of the marked copy that was released, and of an ordinary
    one. ``run`` is the audit in the run itself; ``step`` is that of clip and noise on this machine, and ``failed``
    names its checks that did not hold; ``membership`` is the attack with reference models on the private model.
    """

    folder: str
    page: str
    claim: Claim
    private_accuracy: float
    released_accuracy: float
    ordinary_accuracy: float
    thefts: tuple[Theft, ...]
    run: OneRun
    step: Finding
    failed: tuple[str, ...]
    membership: Membership


def demo(
    folder: Path, settings: Settings | None = None, *, watch: Watch = lambda _chapter, _share: None
) -> Demonstration:
    """Tell the whole story on scikit-learn's digits; needs no network and no other data.

    ``watch`` hears the name of the chapter and the share of the story that is told, from 0 to 1. ``folder`` is made
    anew when it holds an earlier demonstration. Interrupted from the first private step on, it holds a run that
    ``privguard report`` prices and ``demo.key`` opens.

    Raises:
        FileExistsError: the folder holds something that is not a demonstration.
    """
    chosen = settings or Settings()
    _make_room(folder)
    stage, plan = Stage(folder, chosen, Digits.load()), chosen.plan()
    Key.generate().write(stage.key)
    coins = chosen.design().flip()
    coins.write(folder / "coins.json")  # secret until the audit; its commitment is for everybody, before training
    (folder / "coins-commitment.txt").write_text(coins.commitment + "\n", encoding="utf-8")

    watch("train under ε", _OPENING)
    seen, claim = chapters.train(
        stage,
        plan,
        stage.data.private,
        coins,
        folder=folder,
        done=lambda share: watch("train under ε", _OPENING + 0.33 * share),
    )
    watch("open the sealed checkpoint", 0.35)
    model = chapters.reopen(stage)
    watch("commit to a mark", 0.38)
    unmarked = theft.tensors(model)
    table = chapters.commit(stage, unmarked)
    watch("mark and release", 0.42)
    released = chapters.release(stage, model, table=table, unmarked=unmarked)
    watch("steal and challenge", 0.66)
    thefts = tuple(
        chapters.challenge(stage, name, suspect, table=table, unmarked=unmarked)
        for name, suspect in chapters.steal(stage, released).items()
    )
    watch("audit the run", 0.74)
    verdict = chapters.audit_run(stage, plan, seen)
    watch("audit clip and noise", 0.79)
    step, examination = audit_step(
        plan, canaries=chosen.canaries, confidence=chosen.confidence, level=chosen.false_alarm
    )
    keep([step], folder, name="audit")
    watch("attack the model", 0.88)
    membership = chapters.attack_membership(stage, model)
    ordinary = stage.accuracy(chapters.train_ordinarily(stage))
    watch("report", 0.95)
    sources = Sources(data_name="scikit-learn's digits", judge=partial(evidence.verify, trust=table.trust))
    render.write(assemble(folder, sources=sources), folder)
    told = Demonstration(
        folder=str(folder),
        page=str(folder / REPORT_PAGE),
        claim=claim,
        private_accuracy=stage.accuracy(model),
        released_accuracy=stage.accuracy(released),
        ordinary_accuracy=ordinary,
        thefts=thefts,
        run=verdict,
        step=step,
        failed=tuple(examination.failed),
        membership=membership,
    )
    (folder / _MARKER).write_text(json.dumps(told.to_json(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    watch("done", 1.0)
    return told


def _make_room(folder: Path) -> None:
    """A folder with nothing but the demonstration's marker; an earlier one is removed, anything else is left alone."""
    if folder.exists() and any(folder.iterdir()):
        if not (folder / _MARKER).exists():
            raise FileExistsError(f"out={folder}: holds something that is not a demonstration; name a new folder")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _MARKER).write_text('{"record": "Demonstration", "unfinished": true}\n', encoding="utf-8")
