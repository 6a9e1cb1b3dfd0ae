# SPDX-License-Identifier: Apache-2.0
"""All marks of one claim in one classifier: triggers first, weights last, and both readings of a suspect.

No single mark covers every theft: triggers survive what a black box shows, weights survive what keeps the weights, and
a verdict takes the better of the two at the price of two tests.
"""

import contextlib
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import TypeAlias, final

import numpy as np
from numpy.typing import NDArray
from torch import nn

from privguard.attest import journal
from privguard.records import Verdict
from privguard.watermark.claims.challenge import Answerer
from privguard.watermark.claims.commitment import Standing
from privguard.watermark.claims.leaf import Leaf, Tree
from privguard.watermark.model import classifier, theft, triggers, weights
from privguard.watermark.model.classifier import Public
from privguard.watermark.model.embed import Lesson
from privguard.watermark.model.lay import beside
from privguard.watermark.statistics import tails

Tensors: TypeAlias = Mapping[str, NDArray[np.float32]]


@final
@dataclass(frozen=True, kw_only=True)
class Bundle:
    """The owner's view of a claim with the marks ``triggers`` and ``weights``: what to embed and what to look for.

    ``unmarked`` are the committed model's tensors. All leaves are used, so this is for embedding and for drills at
    home; a challenge opens a random part of them.
    """

    standing: Standing
    tree: Tree
    unmarked: Tensors

    @property
    def trigger_leaves(self) -> list[Leaf]:
        """Leaves of the mark ``triggers``."""
        return self.tree.leaves["triggers"]

    @property
    def queries(self) -> NDArray[np.float32]:
        """All triggers, (n, *shape)."""
        mark = self.standing.manifest.mark("triggers")
        return triggers.inputs(self.trigger_leaves, self.standing.pulse.output, mark.settings)

    @property
    def labels(self) -> NDArray[np.int64]:
        """All labels, (n,)."""
        mark = self.standing.manifest.mark("triggers")
        return triggers.labels(self.trigger_leaves, self.standing.pulse.output, mark.settings)

    def embed(
        self, model: nn.Module, *, public: Public, lesson: Lesson | None = None, margin: float = 2.0
    ) -> nn.Module:
        """A marked copy of the unmarked model; the weight carriers come last, so that no training blurs them.

        Args:
            model: a copy of the unmarked model.
            public: public or synthetic examples with labels, on which the model stays as it is; never private records.
            lesson: how the triggers are taught; None for the default.
            margin: by how much the right logit leads, in the unit of the logits.
        """
        with self._recorded("marked copy"):
            taught = classifier.embed(
                model, triggers=self.queries, labels=self.labels, public=public, margin=margin, lesson=lesson
            )
            return self.embed_weights(taught)

    def embed_weights(self, model: nn.Module) -> nn.Module:
        """A copy with the weight carriers only.

        Args:
            model: the network whose tensors are the unmarked ones.
        """
        return theft.load(model, self._carried(theft.tensors(model)))

    def embed_tensors(self) -> dict[str, NDArray[np.float32]]:
        """The unmarked tensors with the weight carriers added; what no network and no training is needed for."""
        with self._recorded("marked copy"):
            return self._carried(self.unmarked)

    def _carried(self, tensors: Tensors) -> dict[str, NDArray[np.float32]]:
        mark = self.standing.manifest.mark("weights")
        leaves, pulse = self.tree.leaves["weights"], self.standing.pulse.output
        return weights.embed(tensors, leaves, pulse=pulse, settings=mark.settings)

    def recipient_copy(self, marked: Tensors, recipient: int) -> dict[str, NDArray[np.float32]]:
        """The copy for one recipient: the marked tensors with that recipient's carrier on top.

        Args:
            marked: the marked model's tensors.
            recipient: the recipient's number, from 0.
        """
        mark, leaf = self.standing.manifest.mark("recipients"), self.tree.leaves["recipients"][recipient]
        with self._recorded(f"copy for recipient {recipient}"):
            return weights.embed_recipient(
                marked, leaf, unmarked=self.unmarked, pulse=self.standing.pulse.output, settings=mark.settings
            )

    def read_triggers(self, suspect: Answerer) -> Verdict:
        """The verdict on all triggers.

        Args:
            suspect: from queries (k, *shape) to k labels.
        """
        classes = int(self.standing.manifest.mark("triggers").settings["classes"])
        return triggers.verdict(suspect(self.queries), self.labels.tolist(), classes=classes)

    def read_weights(self, suspect: Tensors) -> Verdict | None:
        """The verdict on all carriers, the suspect laid beside the unmarked copy; ``None`` where no layer can be.

        Args:
            suspect: tensors by name.
        """
        mark = self.standing.manifest.mark("weights")
        laid = beside.lay(suspect, unmarked=self.unmarked, settings=mark.settings)
        if not any(layer.theirs for layer in laid.layers):
            return None
        leaves, pulse = self.tree.leaves["weights"], self.standing.pulse.output
        return weights.verdict(weights.read(laid.tensors, leaves, unmarked=self.unmarked, pulse=pulse, plan=mark))

    def together(self, verdicts: list[Verdict]) -> float:
        """log10 p of all marks of the claim: the smallest, times how many were committed.

        Args:
            verdicts: verdicts on single marks.
        """
        best = min((verdict.log10_p for verdict in verdicts), default=0.0)
        return float(tails.bonferroni(best, len(self.standing.manifest.marks)))

    @contextlib.contextmanager
    def _recorded(self, what: str) -> Generator[None]:
        """Where a journal is kept: an entry that names the claim."""
        with journal.acting("mark", f"{what}, claim {self.standing.digest}") as act:
            act.sha256 = self.standing.digest
            yield
