# SPDX-License-Identifier: Apache-2.0
"""The whole protocol in one process: for tests, recipes, and teams that start without outside authorities.

Every step is the real one and every check runs; only the authorities are local, and the report names them so.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Self, final

import numpy as np
from numpy.typing import NDArray

from privguard import _canon
from privguard.attest import merkle, timestamp
from privguard.attest.notary import LocalNotary
from privguard.attest.statement import Envelope, Identity, SigningKey
from privguard.records import Digest
from privguard.watermark.claims import challenge, evidence, kinds
from privguard.watermark.claims import commitment as claim
from privguard.watermark.claims.challenge import Answerer, ChallengePlan, Queries
from privguard.watermark.claims.commitment import Commitment, MarkPlan, Standing, Trust
from privguard.watermark.claims.leaf import Leaf, Tree
from privguard.watermark.claims.predicate import Findings
from privguard.watermark.model import weights
from privguard.watermark.model.lay import beside
from privguard.watermark.model.weights import Reading, Tensors
from privguard.watermark.secret import Secret


def tensors_digest(name: str, tensors: Mapping[str, NDArray[np.float32]]) -> Digest:
    """The digest of a model's tensors: SHA-256 over names, shapes and the SHA-256 of float32 little-endian bytes.

    Args:
        name: the model's name.
        tensors: float32 arrays by name.
    """
    listed = {
        key: [list(value.shape), challenge.query_digest(np.asarray(value, np.float32))]
        for key, value in tensors.items()
    }
    return Digest(name=name, sha256=_canon.digest(listed))


def notarise(commitment: Commitment, notary: LocalNotary, *, at: datetime | None = None) -> Commitment:
    """Log, timestamp and pulse from a local notary, in this order, without waiting for the pulse's minute.

    Args:
        commitment: a fresh commitment.
        notary: local log, timestamp server and beacon.
        at: the time; None for now.
    """
    moment = (at or datetime.now(UTC)).replace(microsecond=0)
    owner = claim.read_manifest(commitment).owner
    extract = notary.record(commitment.entry(owner), at=moment)
    leaves = [entry.leaf() for entry in extract.entries]
    logged = commitment.logged(extract.head, proof=merkle.inclusion_proof(leaves, len(leaves) - 1))
    stamped = logged.stamped(notary.stamp(timestamp.request(logged.message()), at=moment))
    return stamped.with_pulse(notary.pulse_after(moment + claim.WAIT))


def trust(notary: LocalNotary, *verifiers: Identity) -> Trust:
    """A trust file that believes this notary and these verifiers.

    Args:
        notary: local log, timestamp server and beacon.
        *verifiers: whose evidence is believed.
    """
    return Trust(
        authorities=(notary.server.authority,), beacons=(notary.beacon.beacon,), verifiers=verifiers, log=notary.trusted
    )


def queries(standing: Standing, opened: Mapping[str, list[Leaf]]) -> dict[str, Queries]:
    """The queries of the opened leaves, for every mark that is asked through the front door.

    Args:
        standing: a checked commitment.
        opened: opened leaves by mark.
    """
    marks = {name: standing.manifest.mark(name) for name in opened}
    return {
        name: kinds.ANSWERED[mark.kind].queries(opened[name], pulse=standing.pulse.output, settings=mark.settings)
        for name, mark in marks.items()
        if mark.kind in kinds.ANSWERED
    }


def read_weights(
    standing: Standing, leaves: list[Leaf], *, suspect: Tensors, unmarked: Tensors, aligned: str = "not at all"
) -> Reading:
    """The verifier's reading of the weight mark; the unmarked copy must be the committed one.

    Args:
        standing: a checked commitment.
        leaves: opened leaves of one mark.
        suspect: the suspect's tensors, in the unmarked copy's frame.
        unmarked: the committed model's tensors.
        aligned: how the suspect was laid beside the copy, in words.

    Raises:
        ProtocolInvalidError: through ``evidence.verify``, when its digest is another.
    """
    mark = standing.manifest.mark(leaves[0].mark)
    reading = weights.read(suspect, leaves, unmarked=unmarked, pulse=standing.pulse.output, plan=mark)
    return replace(reading, unmarked=tensors_digest("", unmarked).sha256, aligned=aligned)


@final
@dataclass(frozen=True, kw_only=True)
class Table:
    """Owner, verifier and local notary in one process: the commitment with its secret, and who signs.

    With ``notary_file`` a challenge stands there before its first query: one that was broken off counts, and what it
    opened is burned.
    """

    commitment: Commitment
    secret: Secret
    notary: LocalNotary
    verifier: SigningKey
    notary_file: Path | None = None

    @classmethod
    def commit(cls, name: str, tensors: Mapping[str, NDArray[np.float32]], *, marks: tuple[MarkPlan, ...]) -> Self:
        """Fresh keys and a fresh secret, and a commitment to ``marks`` in the model of these tensors, notarised now.

        Args:
            name: the model's name.
            tensors: float32 arrays by name.
            marks: the marks to commit to.
        """
        secret, notary = Secret.generate(), LocalNotary.generate()
        made = claim.commit(secret, model=tensors_digest(name, tensors), marks=marks, by=SigningKey.generate())
        return cls(commitment=notarise(made, notary), secret=secret, notary=notary, verifier=SigningKey.generate())

    def write(self, folder: Path) -> None:
        """Write the claim's folder, as ``privguard mark`` reads it, with notary, verifier's key and trust file.

        ``secret``, ``notary.json`` and ``verifier.key`` are private (mode 0600); ``commitment.json`` and ``trust.json``
        are for everybody.

        Args:
            folder: a new folder.

        Raises:
            FileExistsError: the folder is there already; a secret is never replaced.
        """
        folder.mkdir(parents=True)
        self.secret.write(folder / "secret")
        self.commitment.write(folder / "commitment.json")
        self.verifier.write(folder / "verifier.key")
        (folder / "trust.json").write_text(json.dumps(self.trust.to_json(), indent=2) + "\n", encoding="utf-8")
        self.notary.write(folder / "notary.json")

    @property
    def trust(self) -> Trust:
        """What a reader has to believe in order to believe this table."""
        return trust(self.notary, self.verifier.identity)

    @property
    def standing(self) -> Standing:
        """The commitment, checked against the table's own authorities."""
        return claim.check(self.commitment, trust=self.trust)

    @property
    def tree(self) -> Tree:
        """The owner's leaves, derived from the secret."""
        return Tree.derive(self.secret, self.standing.manifest.sizes)

    def draw(self, suspect: Digest, sizes: Mapping[str, int], *, natural: int = 0) -> ChallengePlan:
        """A plan over leaves that this notary's log does not know as burned.

        Args:
            suspect: digest of the suspect.
            sizes: how many leaves of each mark are opened, and burned.
            natural: how many ordinary queries are mixed in.
        """
        entries = self.notary.log.entries
        return challenge.draw(self.standing, suspect=suspect, sizes=sizes, burned=entries, natural=natural)

    def prove(
        self,
        plan: ChallengePlan,
        *,
        suspect: Answerer,
        natural: Queries | None = None,
        white_box: tuple[Tensors, Tensors] | None = None,
    ) -> Envelope:
        """Run a drawn plan to its evidence: log it, open the leaves, ask the suspect, read the weights, sign.

        ``white_box`` is (suspect, unmarked copy); the suspect is laid beside the copy as the manifest says.

        Args:
            plan: the drawn plan.
            suspect: from queries (k, *shape) to k answers.
            natural: ordinary queries, (m, *shape); None for none.
            white_box: (suspect, unmarked copy), tensors by name; None where weights are not read.
        """
        standing = self.standing
        extract = self.notary.record(plan.entry(standing.manifest.owner.key_id))
        if self.notary_file is not None:
            self.notary.write(self.notary_file)
        openings = challenge.open_leaves(self.tree, plan)
        opened = challenge.check_openings(standing.manifest, plan, openings)
        transcript = challenge.run(plan, triggers=queries(standing, opened), natural=natural, suspect=suspect)
        readings: dict[str, Reading] = {}
        for name, leaves in opened.items():
            if standing.manifest.mark(name).kind == "weights" and white_box is not None:
                suspected, unmarked = white_box
                settings = standing.manifest.mark(name).settings
                laid = beside.lay(suspected, unmarked=unmarked, settings=settings)
                readings[name] = read_weights(
                    standing, leaves, suspect=laid.tensors, unmarked=unmarked, aligned=laid.summary
                )
        findings = Findings(transcript=transcript, readings=readings)
        return evidence.assemble(
            self.commitment, plan=plan, openings=openings, findings=findings, by=self.verifier, extract=extract
        )

    def challenge(
        self,
        name: str,
        suspect: Answerer,
        *,
        tensors: Tensors,
        unmarked: Tensors,
        sizes: Mapping[str, int],
        natural: Queries,
    ) -> tuple[Envelope, evidence.Report]:
        """A whole challenge: draw leaves, ask the suspect among ``natural`` queries, read its weights, sign, verify.

        ``tensors`` are the suspect's, which ``privguard.watermark.model.lay`` lays beside ``unmarked``. ``sizes``
        says how many leaves of each mark are opened, and burned. The report is what anybody gets from the file with
        ``trust``.

        Args:
            name: the model's name.
            suspect: from queries (k, *shape) to k answers.
            tensors: the suspect's tensors.
            unmarked: the committed model's tensors.
            sizes: how many leaves of each mark are opened, and burned.
            natural: ordinary queries, (m, *shape); None for none.
        """
        digest = tensors_digest(name, tensors)
        plan = self.draw(digest, sizes, natural=len(natural))
        file = self.prove(plan, suspect=suspect, natural=natural, white_box=(tensors, unmarked))
        return file, evidence.verify(file, trust=self.trust, suspect=digest)
