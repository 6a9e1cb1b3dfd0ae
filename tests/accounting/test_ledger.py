# SPDX-License-Identifier: Apache-2.0
"""The ledger: what is reserved is on disk, what is on disk is what was reserved, and nothing is handed out twice."""

import json
import os
from pathlib import Path

import dp_accounting as dp
import pytest

from privguard import _canon, _os
from privguard.accounting.ledger import Ledger
from privguard.attest.chain import ChainFile
from privguard.attest.merkle import Frontier, leaf_hash
from privguard.errors import LedgerError, ResumeError, UnknownEventError

STEP = dp.PoissonSampledDpEvent(0.01, dp.GaussianDpEvent(1.1))
FACTS = {"run": "r", "relation": "add-or-remove-one", "delta": 1e-5}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.jsonl"


def written(path, blocks=(3, 4)):
    with Ledger.create(path, FACTS) as ledger:
        for times in blocks:
            ledger.reserve(STEP, times)
    return path.read_bytes()


def test_what_was_reserved_is_read_back(path):
    with Ledger.create(path, FACTS) as ledger:
        assert ledger.reserve(STEP) == range(1)
        assert ledger.reserve(STEP, 5) == range(1, 6)
        assert ledger.reserve(dp.LaplaceDpEvent(2.0)) == range(6, 7)
        head = ledger.head
    history = Ledger.read(path)
    assert history.spent() == [(STEP, 6), (dp.LaplaceDpEvent(2.0), 1)]
    assert (history.facts, history.head, history.position, history.settled) == (FACTS, head, 7, False)


def test_a_clean_stop_gives_back_what_was_not_used(path):
    with Ledger.create(path, FACTS) as ledger:
        ledger.reserve(STEP, 10)
        ledger.settle(4)
        with pytest.raises(ValueError, match="used=3: expected a position between 4 and 4"):
            ledger.settle(3)
    assert Ledger.read(path).spent() == [(STEP, 4)]
    assert Ledger.read(path).settled
    with Ledger.open(path) as ledger:
        assert ledger.reserve(STEP, 2) == range(4, 6)
        with pytest.raises(ValueError, match="used=3: expected a position between 4 and 6"):
            ledger.settle(3)


def test_after_a_crash_all_that_was_reserved_is_spent_and_its_positions_are_gone(path):
    written(path)
    with Ledger.open(path) as ledger:
        with pytest.raises(ValueError, match="expected a position between 7 and 7"):
            ledger.settle(5)
        assert ledger.reserve(STEP, 2) == range(7, 9)
    assert sum(times for _, times in Ledger.read(path).spent()) == 9


def test_every_flipped_byte_is_found(path):
    good = written(path)
    for index in range(len(good)):
        for flip in (1, 0x80):
            bad = bytearray(good)
            bad[index] ^= flip
            path.write_bytes(bytes(bad))
            if good[index] == 10 and index == len(good) - 1:
                assert Ledger.read(path).size == 2  # without its newline the last line is unfinished
                continue
            with pytest.raises(LedgerError, match="line"):
                Ledger.read(path)


def test_lines_cannot_be_moved_doubled_or_left_out(path):
    lines = written(path, (1, 2, 3)).splitlines(keepends=True)
    for wrong in (
        lines[1:],
        [lines[0], *lines[2:]],
        [*lines, lines[-1]],
        [lines[0], lines[2], lines[1], lines[3]],
        [*lines[:2], b"\n", *lines[2:]],
    ):
        path.write_bytes(b"".join(wrong))
        with pytest.raises(LedgerError, match="line"):
            Ledger.read(path)
        with pytest.raises(LedgerError, match="line"):
            Ledger.open(path)


EVENT = {"GaussianDpEvent": {"noise_multiplier": 1}}
OPEN = {"kind": "open", "format": "privguard ledger v1", "id": "0" * 32, "facts": {}}
THREE = {"kind": "reserve", "event": EVENT, "times": 3, "first": 0, "span": 1}


@pytest.mark.parametrize(
    "records",
    [
        [OPEN | {"format": "another"}],
        [OPEN, OPEN],
        [THREE],
        [OPEN, THREE | {"first": 1}],
        [OPEN, THREE | {"times": 0}],
        [OPEN, THREE | {"times": 1.5}],
        [OPEN, THREE | {"event": {"ZCDpEvent": {"rho": 1, "xi": 0}}}],
        [OPEN, THREE, {"kind": "settle", "used": 4}],
        [OPEN, THREE, {"kind": "settle", "used": 2}, {"kind": "settle", "used": 1}],
        [OPEN, THREE, {"kind": "resume", "position": 3, "torn": 0, "id": ""}, {"kind": "settle", "used": 2}],
        [OPEN, THREE, {"kind": "resume", "position": 2, "torn": 0, "id": ""}],
        [OPEN, {"kind": "forget"}],
        [OPEN, {"kind": "settle"}],
    ],
)
def test_a_ledger_with_true_heads_must_still_make_sense(path, records):
    """Who edits the file can compute heads too; what they stand for still has to be a possible history."""
    heads, lines = Frontier(), []
    for record in records:
        heads.append(leaf_hash(_canon.canonical(record)))
        lines.append(_canon.canonical({**record, "head": heads.root().hex()}) + b"\n")
    path.write_bytes(b"".join(lines))
    with pytest.raises((LedgerError, UnknownEventError), match=rf"line {len(records)}|does not begin as a ledger does"):
        Ledger.read(path)


def test_a_cut_at_the_end_shows_against_a_kept_head(path):
    written(path)
    history = Ledger.read(path)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    assert not Ledger.read(path).extends(history.head, history.size)
    assert history.extends(Ledger.read(path).head, 2)
    assert not history.extends(history.head, 2)


def test_an_unfinished_last_line_is_left_aside_and_recorded(path):
    good = written(path)
    for cut in range(1, 40):
        path.write_bytes(good[:-cut])
        history = Ledger.read(path)
        assert (history.size, history.position) == (2, 3)
        assert history.torn > 0
        assert path.read_bytes() == good[:-cut]
    with Ledger.open(path) as ledger:
        assert ledger.reserve(STEP) == range(3, 4)
    assert json.loads(path.read_bytes().splitlines()[2])["torn"] == history.torn
    assert Ledger.read(path).torn == 0


def test_one_writer_at_a_time(path):
    with Ledger.create(path, FACTS), pytest.raises(ResumeError, match="another process"):
        Ledger.open(path)
    Ledger.open(path).close()
    with pytest.raises(FileExistsError):
        Ledger.create(path, FACTS)


def test_a_forked_child_neither_writes_nor_keeps_the_lock(path):
    ledger = Ledger.create(path, FACTS)
    told, tell = os.pipe()
    asked, ask = os.pipe()
    child = os.fork()
    if child == 0:  # the child outlives the parent's ledger
        os.close(ask)
        try:
            ledger.reserve(STEP)
        except ValueError:
            os.write(tell, b"closed here")
        else:
            os.write(tell, b"wrote")
        os.read(asked, 1)
        os._exit(0)
    try:
        assert os.read(told, 99) == b"closed here"
        ledger.close()
        Ledger.open(path).close()
    finally:
        os.close(ask)
        os.waitpid(child, 0)


def test_a_file_replaced_under_the_writer_is_found(path):
    ledger = Ledger.create(path, FACTS)
    path.rename(path.with_suffix(".moved"))
    with pytest.raises(LedgerError, match="removed, replaced or changed"):
        ledger.reserve(STEP)
    path.with_suffix(".moved").rename(path)
    ledger.reserve(STEP)
    with path.open("ab") as file:
        file.write(b"x")
    with pytest.raises(LedgerError, match="removed, replaced or changed"):
        ledger.reserve(STEP)
    ledger.close()


def test_events_that_cannot_be_priced_are_refused_by_name(path):
    with Ledger.create(path, FACTS) as ledger:
        before = path.read_bytes()
        for event, name in [
            (dp.UnsupportedDpEvent(), "UnsupportedDpEvent"),
            (dp.SingleEpochTreeAggregationDpEvent(1.0, 3), "SingleEpochTree"),
            (dp.PoissonSampledDpEvent(0.1, dp.ComposedDpEvent([])), "PoissonSampledDpEvent of ComposedDpEvent"),
            (dp.ComposedDpEvent([STEP, dp.ZCDpEvent(1.0)]), "ZCDpEvent"),
            ("step", "str"),
        ]:
            with pytest.raises(UnknownEventError, match=name):
                ledger.reserve(event)
        for event in (dp.GaussianDpEvent(float("nan")), dp.PoissonSampledDpEvent(1.5, dp.GaussianDpEvent(1.0))):
            with pytest.raises(ValueError, match="expected"):
                ledger.reserve(event)
        assert path.read_bytes() == before


def test_a_missing_or_empty_ledger_is_named(path):
    with pytest.raises(LedgerError, match="missing"):
        Ledger.read(path)
    with pytest.raises(LedgerError, match="missing"):
        Ledger.open(path)
    path.write_bytes(b"")
    with pytest.raises(LedgerError, match="nothing was recorded"):
        Ledger.open(path)


def test_a_crash_is_remembered_after_a_later_clean_stop(path):
    with Ledger.create(path, FACTS) as ledger:
        ledger.reserve(STEP, 5)
        ledger.settle(3)
    with Ledger.open(path) as ledger:
        ledger.reserve(STEP, 4)
        assert not ledger.history.crashed
    with Ledger.open(path) as ledger:  # the one before ended without settling its four
        ledger.reserve(STEP, 2)
        ledger.settle(9)
    history = Ledger.read(path)
    assert history.settled
    assert history.crashed


VECTORS = Path(__file__).parents[1] / "vectors" / "ledger-v1"
EXPECTED = json.loads((VECTORS / "expected.json").read_text())


@pytest.mark.parametrize("name", EXPECTED)
def test_vectors(name):
    """What docs/spec/ledger-v1.md says about keys, other data and events that cover several positions."""
    expected, path = EXPECTED[name], VECTORS / f"{name}.jsonl"
    if "line" in expected:
        with pytest.raises(LedgerError, match=f"line {expected['line']}:"):
            Ledger.read(path)
        return
    history = Ledger.read(path)
    assert [[e.first, e.times, e.span, e.event] for e in history.entries] == expected["entries"]
    assert [[key.first, key.nonce] for key in history.streams] == expected["streams"]
    assert [[data.first, data.reason] for data in history.other_data] == expected["other_data"]
    facts = ("position", "events", "head", "crashed", "settled")
    assert {name: getattr(history, name) for name in facts} == {name: expected[name] for name in facts}


def test_a_block_is_paid_once_and_its_positions_are_begun_one_by_one(path):
    with Ledger.create(path, FACTS) as ledger:
        assert ledger.reserve(STEP, span=4) == range(4)
        with pytest.raises(ValueError, match="begin what is paid for"):
            ledger.reserve(STEP)
        assert ledger.begin() == 1
    with Ledger.open(path) as ledger:  # a crash inside the block: position 1 is gone, 2 and 3 are still paid for
        assert (ledger.begin(), ledger.begin()) == (2, 3)
        with pytest.raises(ValueError, match="reserve first"):
            ledger.begin()
        ledger.settle(3)
    assert Ledger.read(path).spent() == [(STEP, 1)]


def test_a_key_stands_in_a_ledger_once(path):
    with Ledger.create(path, FACTS) as ledger:
        ledger.key("m", "0" * 64)
        before = path.read_bytes()
        with pytest.raises(ValueError, match="never used"):
            ledger.key("m", "0" * 64)
        assert path.read_bytes() == before


def records_of(path):
    return [{k: v for k, v in json.loads(line).items() if k != "head"} for line in path.read_bytes().splitlines()]


def test_every_kind_of_record_is_written_as_specified_and_read_back(path):
    with Ledger.create(path, FACTS) as ledger:
        ledger.key("mechanism 1", "a" * 64)
        ledger.reserve(STEP, 2)
        ledger.data("b" * 64, "a record was deleted")
        ledger.note_checks(1)
        ledger.note_checks(1)
        ledger.void("a seed was given")
        ledger.settle(2)
    opened, key, _, data, *notes, void, settle = records_of(path)
    assert (opened["kind"], opened["format"], opened["facts"]) == ("open", "privguard ledger v1", FACTS)
    assert bytes.fromhex(opened["id"]).hex() == opened["id"]
    assert len(opened["id"]) == 32
    assert key == {"kind": "stream", "label": "mechanism 1", "nonce": "a" * 64, "first": 0}
    assert data == {"kind": "data", "commitment": "b" * 64, "reason": "a record was deleted", "first": 2}
    assert notes == [{"kind": "checks", "checked": 1}] * 2
    assert (void, settle) == ({"kind": "void", "reason": "a seed was given"}, {"kind": "settle", "used": 2})
    history = Ledger.read(path)
    assert (history.void, history.checked) == (("a seed was given",), 2)
    ((first, commitment, reason),) = [(d.first, d.commitment, d.reason) for d in history.other_data]
    assert (first, commitment, reason) == (2, "b" * 64, "a record was deleted")


def test_two_ledgers_and_two_resumes_of_equal_facts_have_heads_of_their_own(path):
    with Ledger.create(path, FACTS) as one, Ledger.create(path.with_suffix(".other"), FACTS) as other:
        assert one.head != other.head
    for _ in range(2):
        Ledger.open(path).close()
    first, second = records_of(path)[1:]
    assert first["position"] == second["position"] == first["torn"] == second["torn"] == 0
    assert first["id"] != second["id"]
    assert {len(first["id"]), len(second["id"])} == {32}


def test_a_ledger_that_is_open_knows_which_heads_it_extends(path):
    """What a resumed run asks before it trains on: a snapshot's head has to stand where the snapshot says."""
    with Ledger.create(path, FACTS) as ledger:
        heads = [ledger.head]
        for _ in range(3):
            ledger.reserve(STEP)
            heads.append(ledger.head)
        for size in range(-1, 6):
            for at, head in enumerate(heads, start=1):
                assert ledger.extends(head, size) is (size == at), (size, at)
        assert not ledger.extends("0" * 64, 2)


def test_nothing_is_torn_once_a_torn_ledger_is_taken_up(path):
    path.write_bytes(written(path)[:-3])
    with Ledger.open(path) as ledger:
        assert ledger.history.torn == 0


def test_a_last_writer_may_settle_all_that_it_reserved_and_none(path):
    with Ledger.create(path, FACTS) as ledger:
        ledger.settle(0)
        ledger.reserve(STEP, 2)
        ledger.settle(0)
        assert (ledger.position, ledger.spent()) == (0, [])


def test_advance_begins_what_is_paid_for_and_then_pays_for_the_next_block(path):
    with Ledger.create(path, FACTS) as ledger:
        places = [(ledger.advance(STEP, span=3), ledger.position, ledger.paid)[1:] for _ in range(5)]
    assert places == [(1, 3), (2, 3), (3, 3), (4, 6), (5, 6)]
    assert Ledger.read(path).spent() == [(STEP, 1), (STEP, 1)]


def refused(call, *arguments, **named):
    with pytest.raises(ValueError, match=r"expected|closed") as error:
        call(*arguments, **named)
    return str(error.value)


def test_a_refusal_names_the_argument_its_value_and_what_to_do(path):
    digest = "expected 64 hexadecimal characters"
    with Ledger.create(path, FACTS) as ledger:
        before = path.read_bytes()
        assert refused(ledger.key, "m", "00") == f"nonce='00': {digest}, never used"
        assert refused(ledger.data, "B" * 64, "why") == f"commitment='{'B' * 64}': {digest}"
        assert refused(ledger.reserve, STEP, 0) == "times=0: expected a whole number, 1 or above"
        assert refused(ledger.reserve, STEP, span=0) == "span=0: expected a whole number, 1 or above"
        assert refused(ledger.begin) == "position=0: expected a paid one; reserve first"
        assert path.read_bytes() == before
        ledger.reserve(STEP, span=2)
        assert refused(ledger.reserve, STEP) == "position=1: expected 2; begin what is paid for"
        assert repr(ledger) == f"Ledger({str(path)!r}, size=2, position=1)"
    assert refused(ledger.begin) == f"ledger={path}: closed; open it again with Ledger.open"


def test_a_ledger_in_use_is_named(path):
    with Ledger.create(path, FACTS), pytest.raises(ResumeError) as error:
        Ledger.open(path)
    wanted = f"ledger={path}: another process is writing to it; stop that run, or start one in its own folder"
    assert str(error.value) == wanted


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (BlockingIOError, "another process is writing to it; stop that run, or start one in its own folder"),
        (
            _os.LocksUnsupportedError,
            (
                "this file system has no working lock, so two runs could spend one budget; put the run folder on "
                "a local disk"
            ),
        ),
    ],
)
def test_a_new_ledger_that_cannot_be_locked_is_named(path, monkeypatch, error, message):
    def create(*_, **__):
        raise error

    monkeypatch.setattr(ChainFile, "create", create)
    with pytest.raises(ResumeError) as refusal:
        Ledger.create(path, FACTS)
    assert str(refusal.value) == f"ledger={path}: {message}"


def test_a_full_disk_is_named_with_its_number_and_closes_the_ledger(path, monkeypatch):
    with Ledger.create(path, FACTS) as ledger:

        def full(line):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(ledger._file, "append", full)
        with pytest.raises(OSError, match="No space left") as error:
            ledger.reserve(STEP)
        assert error.value.errno == 28
        assert error.value.filename == str(path)
        assert error.value.strerror == (
            "No space left on device; nothing was reserved, and the ledger is closed: make room and resume"
        )
        assert "closed" in refused(ledger.reserve, STEP)
    assert Ledger.read(path).position == 0


@pytest.mark.skipif(not hasattr(os, "umask"), reason="permissions are POSIX's")
def test_a_ledger_is_a_public_file_that_its_owner_alone_writes(path):
    mask = os.umask(0)
    try:
        Ledger.create(path, FACTS).close()
    finally:
        os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o644
