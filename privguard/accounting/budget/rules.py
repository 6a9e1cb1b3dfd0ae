# SPDX-License-Identifier: Apache-2.0
"""The rules of a budget book, apart from where it is kept: rows are replayed, and a row that breaks a rule is refused.

All data sets with one root are a *family*, and what was spent on one of them was spent on the family, because a derived
data set may hold every record of its parent. A *grant* signed by officers sets the limit of a data set; a *cap* may
only lower it. A *run* reserves events, says which of them it begins, and settles what it used; its rows are signed by
its key. Nobody, not even an officer, settles below what was begun.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, final

from privguard import _canon, _check
from privguard.accounting import events
from privguard.accounting.budget import parallel, signed_rows
from privguard.accounting.budget.grants import DataSet, Grant, Partition, Release
from privguard.accounting.budget.tally import Block, Run
from privguard.accounting.calibrate import Budget
from privguard.attest import merkle
from privguard.attest.statement import Envelope, Identity
from privguard.errors import LedgerError, PrivacyError, UnrecognisedError
from privguard.records import Relation

if TYPE_CHECKING:
    from dp_accounting import DpEvent

FORMAT = "privguard book v2"
FIRST_HEAD = hashlib.sha256(FORMAT.encode()).hexdigest()


@final
class Account:
    """The state of a book after some rows, which ``apply`` takes in one by one.

    Attributes:
        id: the book's own random name, from its first row.
        officers: whose signatures make a grant or a release.
        quorum: how many of them have to sign.
        data_sets: every data set that was entered, by its SHA-256.
        grants: the grant in force for each data set and team ("" for all of them), lowered by caps.
        serials: the number of the last grant for each data set.
        partitions: the parts of a data set that officers declared to share no person.
        runs: what each run reserved and settled, by the run's name.
        heads: the hash chain, one head after each row.
        time: when the last row was written.
        priced: the head after the last row that changed what is spent, or a limit.
    """

    def __init__(self) -> None:
        self.id = ""
        self.officers: tuple[Identity, ...] = ()
        self.quorum = 1
        self.data_sets: dict[str, DataSet] = {}
        self.grants: dict[tuple[str, str], Grant] = {}
        self.serials: dict[str, int] = {}
        self.partitions: dict[str, tuple[str, ...]] = {}
        self.runs: dict[str, Run] = {}
        self.heads: list[str] = []
        self.time = ""
        self.priced = ""

    @property
    def size(self) -> int:
        """Number of rows."""
        return len(self.heads)

    @property
    def head(self) -> str:
        """The chain over all rows; keep it elsewhere, and a cut at the end shows too."""
        return self.heads[-1] if self.heads else FIRST_HEAD

    def next_head(self, body: bytes) -> str:
        """The head that the next row must carry: a chain over all rows before it.

        Args:
            body: the row's canonical JSON, without its head.
        """
        return hashlib.sha256(bytes.fromhex(self.head) + hashlib.sha256(body).digest()).hexdigest()

    def apply(self, body: bytes, row: Mapping[str, Any]) -> None:
        """Take in the next row, or raise ``ValueError`` or a refusal and change nothing.

        Args:
            body: the row's canonical JSON, without its head.
            row: the row's fields.
        """
        kinds = {
            "open": self._open,
            "data set": self._data_set,
            "grant": self._grant,
            "cap": self._cap,
            "partition": self._partition,
            "reserve": self._reserve,
            "begin": self._begin,
            "note": self._note,
            "settle": self._settle,
        }
        if self.size == 0 and row.get("format") != FORMAT:
            raise UnrecognisedError(
                f"format={row.get('format')!r}: expected {FORMAT!r}, in which rows are signed; open a new book and "
                "bring each run in (privguard ledger budget import)"
            )
        if (row["kind"] == "open") != (self.size == 0):
            raise ValueError("a book opens once, on its first row")
        signed_rows.check(row, after=self.time)
        kinds[row["kind"]](row)
        self.heads.append(self.next_head(body))
        self.time = row["time"]
        if row["kind"] not in {"begin", "note"}:
            self.priced = self.head

    def known(self, sha256: str) -> DataSet:
        """The data set of this digest; raises ``ValueError`` when the book does not know it.

        Args:
            sha256: digest of the data set, in hexadecimal.
        """
        _check.require(
            sha256 in self.data_sets, "data set", sha256, wanted="one of this book", remedy="add it to the book first"
        )
        return self.data_sets[sha256]

    def run(self, name: str) -> Run:
        """The run of this name; raises ``ValueError`` when the book does not know it.

        Args:
            name: the run's identity.
        """
        _check.require(name in self.runs, "run", name, wanted="one of this book")
        return self.runs[name]

    def ancestors(self, sha256: str) -> list[str]:
        """The data set, its parent, and so on up to the root.

        Args:
            sha256: digest of the data set, in hexadecimal.
        """
        line = [sha256]
        while (parent := self.data_sets[line[-1]].parent) is not None:
            line.append(parent)
        return line

    def family(self, sha256: str) -> list[str]:
        """All data sets with the same root, this one among them.

        Args:
            sha256: digest of the data set, in hexadecimal.
        """
        root = self.ancestors(sha256)[-1]
        return [other for other in self.data_sets if self.ancestors(other)[-1] == root]

    def children(self, sha256: str) -> list[str]:
        """The data sets that were made from this one.

        Args:
            sha256: digest of the data set, in hexadecimal.
        """
        return [other for other, data_set in self.data_sets.items() if data_set.parent == sha256]

    def population(self, sha256: str) -> str:
        """The population that the data set declares, or else its nearest ancestor's; "" where none does.

        Args:
            sha256: digest of the data set, in hexadecimal.
        """
        return next(filter(None, (self.data_sets[line].population for line in self.ancestors(sha256))), "")

    def runs_on(self, data_sets: "set[str]") -> list[Run]:
        """All runs on any of these data sets.

        Args:
            data_sets: digests of data sets.
        """
        return [run for run in self.runs.values() if run.data_set in data_sets]

    def spent(self, sha256: str) -> "list[tuple[DpEvent, int]]":
        """Everything spent or reserved by any run on the family of this data set.

        Args:
            sha256: digest of the data set, in hexadecimal.
        """
        return [pair for run in self.runs_on(set(self.family(sha256))) for pair in run.spent()]

    def limit(self, sha256: str) -> Grant | None:
        """The grant for all teams that holds for a data set: its own, or its nearest granted ancestor's.

        Args:
            sha256: digest of the data set, in hexadecimal.
        """
        granted = (self.grants.get((line, "")) for line in self.ancestors(sha256))
        return next((grant for grant in granted if grant is not None), None)

    def _open(self, row: Mapping[str, Any]) -> None:
        officers = tuple(map(Identity.from_json, row["officers"]))
        quorum = _check.count("quorum", row["quorum"])
        distinct = len({officer.key_id for officer in officers})
        _check.require(distinct == len(officers), "officers", len(officers), wanted="each key once")
        _check.require(quorum <= distinct, "quorum", quorum, wanted=f"at most the {distinct} officers")
        self.officers, self.quorum, self.id = officers, quorum, row["id"]

    def _data_set(self, row: Mapping[str, Any]) -> None:
        given: dict[str, Any] = {key: value for key, value in row["data_set"].items() if key != "record"}
        given["transformations"] = tuple(given["transformations"])
        one = DataSet(**given)
        if one.sha256 in self.data_sets:
            raise ValueError(f"data set={one.sha256}: already in this book")
        if one.parent is not None:
            self.known(one.parent)
        self.data_sets[one.sha256] = one

    def _grant(self, row: Mapping[str, Any]) -> None:
        grant = Grant.verify(Envelope.from_json(row["envelope"]), self.officers, quorum=self.quorum)
        self.known(grant.sha256)
        due = self.serials.get(grant.sha256, 0) + 1
        if (grant.book, grant.serial) != (self.id, due):
            raise LedgerError(f"grant: signed for book {grant.book} as number {grant.serial}; this is {self.id}, {due}")
        if any(one in self.partitions for one in self.family(grant.sha256)):
            _require_removal(grant.budget)
        self.grants[grant.sha256, grant.terms.team], self.serials[grant.sha256] = grant, due

    def _cap(self, row: Mapping[str, Any]) -> None:
        place = row["data_set"], ""
        grant = self.grants.get(place)
        if grant is None or not 0 < row["epsilon"] <= grant.budget.epsilon:
            raise ValueError("a cap only lowers a limit that was granted")
        lower = Budget(epsilon=row["epsilon"], delta=grant.budget.delta, relation=grant.budget.relation)
        self.grants[place] = replace(grant, budget=lower)

    def _partition(self, row: Mapping[str, Any]) -> None:
        partition = Partition.verify(Envelope.from_json(row["envelope"]), self.officers, quorum=self.quorum)
        self.known(partition.parent)
        if partition.book != self.id:
            raise LedgerError(f"partition: signed for book {partition.book}; this is {self.id}")
        before = self.partitions.get(partition.parent, ())
        strangers = {part for part in partition.parts if self.known(part).parent != partition.parent}
        gone = set(before) - set(partition.parts)
        if strangers or gone:
            raise ValueError(f"parts={sorted(strangers | gone)}: expected all earlier parts, each made from the parent")
        for part in set(partition.parts) - set(before):
            self._require_unspent(part)
        for place, grant in self.grants.items():
            if place[0] in self.family(partition.parent):
                _require_removal(grant.budget)
        after, root = {**self.partitions, partition.parent: partition.parts}, self.ancestors(partition.parent)[-1]
        combinations = parallel.count(self, root, after)
        _check.require(
            combinations <= parallel.MOST, "parts", combinations, wanted=f"{parallel.MOST} combinations at most"
        )
        self.partitions = after

    def _require_unspent(self, part: str) -> None:
        """What was spent adds up as it did: a partition only says how the rest will."""
        spent = [name for name, run in self.runs.items() if part in self.ancestors(run.data_set)]
        if spent:
            raise ValueError(
                f"part={part}: {len(spent)} runs spent on it already, {spent[0]!r} among them; a total never falls, so "
                "declare parts before anything is spent on them"
            )

    def _reserve(self, row: Mapping[str, Any]) -> None:
        self.known(row["data_set"])
        by, new = signed_rows.signer(row, self.head), row["run"] not in self.runs
        run = Run(row["data_set"], key=by, team=row["team"]) if new else self.runs[row["run"]]
        _require_key(row["run"], run, by)
        times = _check.count("times", row["times"])
        same = (run.data_set, run.position, run.team) == (row["data_set"], row["first"], row["team"])
        if not same:
            raise ValueError(
                f"run={row['run']}: expected position {run.position} on data set {run.data_set}, team {run.team!r}"
            )
        run.add(Block(run.position, times, events.check_json(row["event"]), row["time"]))
        run.begun = run.position if by is None else run.begun  # without a key nobody could say later what was begun
        run.rows += 1
        self.runs[row["run"]] = run

    def _begin(self, row: Mapping[str, Any]) -> None:
        run, upto = self.run(row["run"]), row["upto"]
        _require_key(row["run"], run, signed_rows.signer(row, self.head))
        if type(upto) is not int or not run.begun <= upto <= run.position:
            raise ValueError(f"upto={upto}: expected between {run.begun} and {run.position}")
        self._anchor(row["run"], row["ledger"])
        run.begun = upto
        run.rows += 1

    def _note(self, row: Mapping[str, Any]) -> None:
        run = self.run(row["run"])
        _require_key(row["run"], run, signed_rows.signer(row, self.head))
        self._anchor(row["run"], row["ledger"])
        run.rows += 1

    def _settle(self, row: Mapping[str, Any]) -> None:
        run, used = self.run(row["run"]), row["used"]
        if type(used) is not int or not run.floor <= used <= run.position:
            raise ValueError(
                f"used={used}: expected between {run.floor} and {run.position}; what was begun, or settled before, "
                "stays spent"
            )
        if used < run.position:
            self._require_word(row, run)
        if row["ledger"] is not None:
            _require_key(row["run"], run, signed_rows.signer(row, self.head))
            self._anchor(row["run"], row["ledger"])
        run.settle(used)
        run.rows += 1

    def _require_word(self, row: Mapping[str, Any], run: Run) -> None:
        """Who gives something back: officers, or the run's key with the ledger of what was begun."""
        if row["release"] is not None:
            release = Release.verify(Envelope.from_json(row["release"]), self.officers, quorum=self.quorum)
            given = (release.book, release.run, release.serial, release.used)
            if given != (self.id, row["run"], run.rows, row["used"]):
                raise LedgerError(f"release: signed for {given}; this is {(self.id, row['run'], run.rows)}")
            return
        by = signed_rows.signer(row, self.head)
        if run.key is None or by != run.key:
            raise PrivacyError(
                f"run={row['run']}: only the run's own key, or an officer, settles below the {run.position} events "
                f"that it reserved; settle it from its folder, or ask for a release"
            )
        if run.begun and (row["ledger"] is None or run.ledger is None):
            raise PrivacyError(
                f"run={row['run']}: it began {run.begun} events; only its ledger shows what it used, and without one "
                "all that it reserved counts as spent"
            )

    def _anchor(self, name: str, ledger: Mapping[str, Any]) -> None:
        """Take in a newer head of a run's ledger, which has to prove that it only grew from the one noted before."""
        run, head, size = self.runs[name], ledger["head"], _check.count("size", ledger["size"])
        _check.require(_canon.is_digest(head), "head", head, wanted="64 hexadecimal characters")
        if run.ledger is not None and not merkle.verify_consistency(
            earlier=run.ledger[1],
            earlier_head=bytes.fromhex(run.ledger[0]),
            size=size,
            head=bytes.fromhex(head),
            proof=[bytes.fromhex(node) for node in ledger["proof"]],
        ):
            raise LedgerError(
                f"run={name}: the budget book knows a later ledger of this run than the one here, so this folder is a "
                "copy or was put back from a backup, and what it no longer counts was spent: find the newest one"
            )
        run.ledger = head, size


def _require_removal(budget: Budget) -> None:
    if budget.relation is not Relation.ADD_OR_REMOVE_ONE:
        raise ValueError(
            f"relation={budget.relation.value}: expected {Relation.ADD_OR_REMOVE_ONE.value} in a family with declared "
            "parts, since a replaced record may leave one part and enter another"
        )


def _require_key(name: str, run: Run, by: Identity | None) -> None:
    if run.key is not None and by != run.key:
        raise PrivacyError(f"run={name}: expected a row signed by the run's own key; another's run takes another name")
