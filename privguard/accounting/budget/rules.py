"""The rules of a budget book, apart from where it is kept: rows are replayed, and a row that breaks a rule is refused.

A *data set* is known by the digest of its content and, where it was derived, by its parent: all data sets with one
root are a *family*, and what was spent on one of them was spent on the family, because a derived data set may hold
every record of its parent. A *grant* signed by an officer sets the limit of a data set; a *cap* may only lower it. A
*run* reserves events before it uses them and settles what it used.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, final

from privguard import _canon, _check
from privguard.accounting import events
from privguard.accounting.calibrate import Budget
from privguard.attest.statement import PREDICATES, Envelope, Identity, SigningKey, Statement, sign, verify_any
from privguard.errors import LedgerError
from privguard.records import Digest, Record, Relation

if TYPE_CHECKING:
    from dp_accounting import DpEvent

FORMAT = "privguard book v1"
GRANT = PREDICATES + "budget-grant/v1"
FIRST_HEAD = hashlib.sha256(FORMAT.encode()).hexdigest()


@final
@dataclass(frozen=True, kw_only=True)
class DataSet(Record):
    """A data set by content and lineage; every field is public.

    ``sha256`` is the digest of its content, ``parent`` that of the data set it was made from by ``transformations``.
    ``version`` may be a DVC or lakeFS identifier.
    """

    sha256: str
    name: str
    source: str = ""
    version: str = ""
    parent: str | None = None
    transformations: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for label, value in (("sha256", self.sha256), ("parent", self.parent or self.sha256)):
            _check.require(_canon.is_digest(value), label, value, wanted="64 lower-case hexadecimal characters")
        _check.require(self.parent != self.sha256, "parent", self.parent, wanted="another data set")


@final
@dataclass(frozen=True, kw_only=True)
class Grant(Record):
    """An officer's word: ``budget`` for the data set ``sha256`` in the book ``book``; a later serial replaces it."""

    book: str
    sha256: str
    serial: int
    budget: Budget
    reason: str

    def sign(self, key: SigningKey) -> Envelope:
        """The grant as a signed statement about the data set."""
        subject = Digest(name="data set", sha256=self.sha256)
        return sign(Statement(subjects=(subject,), predicate_type=GRANT, predicate=self.to_json()), by=key)

    @classmethod
    def verify(cls, envelope: Envelope, officers: tuple[Identity, ...]) -> "Grant":
        """The grant inside, once one of the officers is known to have signed it; raises ``TamperedError``."""
        statement, _ = verify_any(envelope, by=officers)
        said = statement.predicate
        _check.require(statement.predicate_type == GRANT, "grant", statement.predicate_type, wanted=GRANT)
        given = said["budget"]
        budget = Budget(epsilon=given["epsilon"], delta=given["delta"], relation=Relation(given["relation"]))
        grant = cls(
            book=said["book"], sha256=said["sha256"], serial=said["serial"], budget=budget, reason=said["reason"]
        )
        _check.require(statement.subjects[0].sha256 == grant.sha256, "subject", grant.sha256, wanted="its data set")
        return grant


@final
@dataclass(frozen=True, kw_only=True)
class Balance(Record):
    """Events of a run: ``reserved`` = ``spent`` + ``open`` + ``returned``, always."""

    reserved: int
    spent: int
    open: int
    returned: int


@final
@dataclass
class Run:
    """What one run reserved: blocks of (first position, times, event JSON), and up to where it has settled.

    ``ledger`` is the newest head of the run's ledger that was noted here, with the number of lines it stands for.
    """

    data_set: str
    blocks: list[tuple[int, int, Mapping[str, Any]]] = field(default_factory=list[tuple[int, int, Mapping[str, Any]]])
    position: int = 0
    settled: int = 0
    reserved: int = 0
    returned: int = 0
    ledger: tuple[str, int] | None = None

    def spent(self) -> "list[tuple[DpEvent, int]]":
        """All that counts as spent: what was used, and what is still open."""
        return [(events.from_json(event), times) for _, times, event in self.blocks]

    def balance(self) -> Balance:
        """The run's events, by what became of them."""
        spent, still_open = self.settled, self.position - self.settled
        return Balance(reserved=self.reserved, spent=spent, open=still_open, returned=self.returned)


@final
class Account:
    """The state of a book after some rows, which :meth:`apply` takes in one by one.

    Attributes:
        id: the book's own random name, from its first row.
        officers: whose signatures make a grant.
        data_sets: every data set that was entered, by its SHA-256.
        limits: the limit in force for each data set that has one, by SHA-256.
        serials: the number of the last grant for each data set.
        runs: what each run reserved and settled, by the run's name.
        heads: the hash chain, one head after each row.
    """

    def __init__(self) -> None:
        self.id = ""
        self.officers: tuple[Identity, ...] = ()
        self.data_sets: dict[str, DataSet] = {}
        self.limits: dict[str, Budget] = {}
        self.serials: dict[str, int] = {}
        self.runs: dict[str, Run] = {}
        self.heads: list[str] = []

    @property
    def size(self) -> int:
        """Number of rows."""
        return len(self.heads)

    @property
    def head(self) -> str:
        """The chain over all rows; keep it elsewhere, and a cut at the end shows too."""
        return self.heads[-1] if self.heads else FIRST_HEAD

    def next_head(self, body: bytes) -> str:
        """The head that the next row must carry: a chain over all rows before it."""
        return hashlib.sha256(bytes.fromhex(self.head) + hashlib.sha256(body).digest()).hexdigest()

    def apply(self, body: bytes, row: Mapping[str, Any]) -> None:
        """Take in the next row, or raise ``ValueError`` or a refusal and change nothing."""
        kinds = {
            "open": self._open,
            "data set": self._data_set,
            "grant": self._grant,
            "cap": self._cap,
            "reserve": self._reserve,
            "note": self._note,
            "settle": self._settle,
        }
        if (row["kind"] == "open") != (self.size == 0):
            raise ValueError("a book opens once, on its first row")
        kinds[row["kind"]](row)
        self.heads.append(self.next_head(body))

    def known(self, sha256: str) -> DataSet:
        """The data set of this digest; raises ``ValueError`` when the book does not know it."""
        _check.require(
            sha256 in self.data_sets, "data set", sha256, wanted="one of this book", remedy="add it to the book first"
        )
        return self.data_sets[sha256]

    def ancestors(self, sha256: str) -> list[str]:
        """The data set, its parent, and so on up to the root."""
        line = [sha256]
        while (parent := self.data_sets[line[-1]].parent) is not None:
            line.append(parent)
        return line

    def family(self, sha256: str) -> list[str]:
        """All data sets with the same root, this one among them."""
        root = self.ancestors(sha256)[-1]
        return [other for other in self.data_sets if self.ancestors(other)[-1] == root]

    def spent(self, sha256: str) -> "list[tuple[DpEvent, int]]":
        """Everything spent or reserved by any run on the family of this data set."""
        family = set(self.family(sha256))
        return [pair for run in self.runs.values() if run.data_set in family for pair in run.spent()]

    def limits_of(self, sha256: str) -> dict[str, Budget]:
        """The limits that a run on this data set has to keep: all of its family, since all may share its records.

        Empty unless the data set or one of its ancestors was granted anything.
        """
        granted = any(one in self.limits for one in self.ancestors(sha256))
        return {one: self.limits[one] for one in self.family(sha256) if one in self.limits and granted}

    def _open(self, row: Mapping[str, Any]) -> None:
        if row["format"] != FORMAT:
            raise ValueError(f"format={row['format']!r}: expected {FORMAT!r}")
        self.officers = tuple(map(Identity.from_json, row["officers"]))
        self.id = row["id"]

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
        grant = Grant.verify(Envelope.from_json(row["envelope"]), self.officers)
        self.known(grant.sha256)
        due = self.serials.get(grant.sha256, 0) + 1
        if (grant.book, grant.serial) != (self.id, due):
            raise LedgerError(f"grant: signed for book {grant.book} as number {grant.serial}; this is {self.id}, {due}")
        self.limits[grant.sha256], self.serials[grant.sha256] = grant.budget, due

    def _cap(self, row: Mapping[str, Any]) -> None:
        sha256, limit = row["data_set"], self.limits.get(row["data_set"])
        if limit is None or not 0 < row["epsilon"] <= limit.epsilon:
            raise ValueError("a cap only lowers a limit that was granted")
        self.limits[sha256] = Budget(epsilon=row["epsilon"], delta=limit.delta, relation=limit.relation)

    def _reserve(self, row: Mapping[str, Any]) -> None:
        self.known(row["data_set"])
        run = self.runs.get(row["run"]) or Run(row["data_set"])
        times = _check.count("times", row["times"])
        if (run.data_set, run.position) != (row["data_set"], row["first"]):
            raise ValueError(f"run={row['run']}: expected position {run.position} on data set {run.data_set}")
        run.blocks.append((run.position, times, events.check_json(row["event"])))
        run.position += times
        run.reserved += times
        self.runs[row["run"]] = run

    def _note(self, row: Mapping[str, Any]) -> None:
        head, size = row["ledger"]["head"], row["ledger"]["size"]
        _check.require(_canon.is_digest(head), "head", head, wanted="64 hexadecimal characters")
        self.runs[row["run"]].ledger = head, _check.count("size", size)

    def _settle(self, row: Mapping[str, Any]) -> None:
        run, used = self.runs[row["run"]], row["used"]
        if type(used) is not int or not run.settled <= used <= run.position:
            raise ValueError(f"used={used}: expected between {run.settled} and {run.position}")
        run.blocks = [(first, min(times, used - first), event) for first, times, event in run.blocks if first < used]
        run.returned += run.position - used
        run.position = run.settled = used
        if row["ledger"] is not None:
            run.ledger = row["ledger"]["head"], row["ledger"]["size"]
