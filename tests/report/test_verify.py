# SPDX-License-Identifier: Apache-2.0
"""A signed report: whatever is altered afterwards is found, and named."""

import json
import os
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from reported import finding, keep, sign_report

from privguard.attest import statement
from privguard.attest.statement import Envelope, SigningKey, Statement
from privguard.checkpoint import Key, rewrap, seal
from privguard.checkpoint.envelope import PREAMBLE_BYTES, Preamble
from privguard.errors import TamperedError
from privguard.records import Digest, Outcome
from privguard.report import holdings, render
from privguard.report.assemble import Sources, assemble
from privguard.report.signed import sign
from privguard.report.signed.verify import changes, verify
from privguard.runs.folder import REPORT_JSON

FILES = ("run.json", "ledger.jsonl", "evidence/audit.json", *sign.PAGES)
CHECKPOINT = "checkpoints/step-00000006.sealed"


def test_what_was_signed_holds_and_says_what_it_holds(signed, officer):
    held = verify(signed, signers=[officer.identity])
    assert held.named
    assert held.notes == ()
    assert held.files == len(holdings.covered(signed)) + 3
    assert verify(signed / "report.html", signers=[officer.identity]) == held
    assert "nobody was named" in verify(signed).notes[0]
    assert "without an access journal" in verify(signed, signers=[officer.identity], journal="any").notes[0]


@pytest.mark.parametrize("name", ["report.html", "report.md"])
def test_a_page_says_itself_whether_it_was_signed_and_by_whom(folder, officer, name):
    report = assemble(folder)
    render.write(report, folder)
    assert "No signature was made with this page" in (folder / name).read_text()
    sign.sign(report, folder, by=officer).write(folder / sign.SIGNED)
    said = (folder / name).read_text()
    assert f"in report.dsse.json, with the key {verify(folder, signers=[officer.identity]).signer}." in said
    assert "proves nothing, since anybody can write it; only the command privguard report verify proves it" in said
    assert "No signature was made" not in said


def test_a_page_that_only_says_that_it_was_signed_proves_nothing(signed, officer):
    lie = render.to_html(assemble(signed), signer=str(SigningKey.generate().identity))
    (signed / "report.html").write_text(lie)
    with pytest.raises(TamperedError, match=r"report\.html: is not the page that was signed"):
        verify(signed, signers=[officer.identity])


def test_a_p256_key_signs_as_well(folder):
    by = SigningKey.generate_p256()
    assert verify(sign_report(folder, by), signers=[by.identity]).signer.startswith("ecdsa-p256")


@pytest.fixture
def named_by(signed, officer):
    """What is found after some bytes of one file were put in the place of its own, which come back afterwards."""
    said, report, _ = sign.check(sign.read(signed / sign.SIGNED), by=[officer.identity])

    def found(name, content):
        path = signed / name
        before = path.read_bytes()
        path.write_bytes(content)
        try:
            changed, notes = changes(said, report, signed, pages=signed)
            assert notes == []
            return [change.name for change in changed]
        finally:
            path.write_bytes(before)

    return found


@pytest.mark.parametrize("name", FILES)
def test_one_altered_byte_is_named(signed, named_by, name):
    content = (signed / name).read_bytes()
    for at in _places(len(content), 40):
        assert named_by(name, _flipped(content, at)) == [name]


def test_one_altered_byte_of_a_checkpoint_is_named_wherever_it_is(signed, named_by):
    """Both slots too, the idle one among them: nobody without a key can say that it does no harm."""
    content = (signed / CHECKPOINT).read_bytes()
    head = Preamble.unpack(content).head_bytes
    slot = Preamble.unpack(content).slot_bytes
    edges = [0, 15, 16, 18, 20, 24, 40, 48, 56, 64, 72, 104, 135]
    for start in (PREAMBLE_BYTES, PREAMBLE_BYTES + slot):
        edges += [start, start + 7, start + 9, start + 40, start + slot - 97, start + slot - 33, start + slot - 1]
    for at in {*edges, head, len(content) - 1, *_places(len(content), 40)}:
        assert named_by(CHECKPOINT, _flipped(content, at)) == [CHECKPOINT], at


@pytest.mark.parametrize("name", [*FILES, CHECKPOINT])
def test_a_file_that_is_longer_shorter_empty_or_another_is_named(signed, named_by, name):
    content = (signed / name).read_bytes()
    for other in (content[:-1], content[: len(content) // 2], b"", content + b"\n", content + b"\0", os.urandom(64)):
        assert named_by(name, other) == [name]


def test_every_altered_byte_of_the_signed_file_fails_by_its_name(signed, officer):
    path = signed / sign.SIGNED
    content = path.read_bytes()
    for at in {*range(24), *range(len(content) - 240, len(content), 2), *_places(len(content), 90)}:
        path.write_bytes(_flipped(content, at))
        with pytest.raises(TamperedError, match=r"^report\.dsse\.json: "):
            verify(signed, signers=[officer.identity])
        with pytest.raises(TamperedError, match=r"^report\.dsse\.json: "):
            verify(signed)


@pytest.mark.parametrize("name", [*FILES, CHECKPOINT])
def test_a_missing_file_is_named(signed, officer, name):
    (signed / name).unlink()
    with pytest.raises(TamperedError, match=rf"^{name}: is missing$"):
        verify(signed, signers=[officer.identity])


def test_files_that_were_swapped_are_both_named(signed, officer):
    one, two = (signed / "checkpoints" / f"step-0000000{step}.sealed" for step in (5, 6))
    content = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(content)
    with pytest.raises(TamperedError) as refused:
        verify(signed, signers=[officer.identity])
    assert [line.split(":")[0] for line in str(refused.value).splitlines()] == [
        "checkpoints/step-00000005.sealed",
        CHECKPOINT,
    ]


def test_evidence_and_checkpoints_that_came_later_are_named(signed, officer):
    keep(signed, finding(50.0, outcome=Outcome.REFUTED, cap=60.0), "late.json")
    (signed / "checkpoints" / "copy").write_bytes(b"weights in clear")
    with pytest.raises(TamperedError) as refused:
        verify(signed, signers=[officer.identity])
    assert "checkpoints/copy: is not in the report" in str(refused.value)
    assert "evidence/late.json: is not in the report" in str(refused.value)


def test_another_signer_is_refused(signed):
    stranger = SigningKey.generate()
    with pytest.raises(TamperedError, match="expected a signature of"):
        verify(signed, signers=[stranger.identity])


def test_whoever_signs_anew_is_not_the_named_signer(signed, officer):
    (signed / "run.json").touch()
    sign_report(signed, SigningKey.generate())
    verify(signed)
    with pytest.raises(TamperedError, match=r"report\.dsse\.json"):
        verify(signed, signers=[officer.identity])


def test_a_second_signature_in_the_file_is_refused(signed, officer):
    envelope = statement.countersign(sign.read(signed / sign.SIGNED), by=SigningKey.generate())
    envelope.write(signed / sign.SIGNED)
    with pytest.raises(TamperedError, match="signatures=2"):
        verify(signed, signers=[officer.identity])


def test_a_run_that_was_rolled_back_whole_is_found_by_the_report_kept_elsewhere(signed, officer, tmp_path):
    """An older copy of everything, its own signature included, is whole in itself; only the newer report tells."""
    older = Path(shutil.copytree(signed, tmp_path / "older"))
    lines = (older / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    (older / "ledger.jsonl").write_bytes(b"".join(lines[:2]))
    for name in ("step-00000005.sealed", "step-00000006.sealed"):
        (older / "checkpoints" / name).unlink()
    sign_report(older, officer)
    verify(older, signers=[officer.identity])
    with pytest.raises(
        TamperedError, match=rf"ledger\.jsonl: has 2 lines where {len(lines)} lines with head"
    ) as refused:
        verify(signed, run=older, signers=[officer.identity])
    assert f"{CHECKPOINT}: is missing" in str(refused.value)


def test_a_run_that_went_on_is_not_what_was_signed(signed, officer, trained):
    from privguard.accounting.ledger import Ledger

    with Ledger.open(signed / "ledger.jsonl"):
        pass
    with pytest.raises(TamperedError, match=r"ledger\.jsonl: has 1 lines more than were signed"):
        verify(signed, signers=[officer.identity])


def test_another_runs_ledger_is_named(signed, officer, tmp_path):
    from small import SmallRun, small_plan

    other = SmallRun(tmp_path / "other")
    other.go(other.start(small_plan(steps=20, examples=100)))
    shutil.copy(tmp_path / "other" / "ledger.jsonl", signed / "ledger.jsonl")
    with pytest.raises(TamperedError, match=r"^ledger\.jsonl: (is not the signed one|has \d+ lines where)"):
        verify(signed, signers=[officer.identity])


def test_a_rewrap_is_noted_and_anything_beside_it_refused(signed, officer, trained):
    reader = Key.generate_x25519()
    rewrap(signed / CHECKPOINT, Key.read(trained / "key"), add=[reader.recipient()])
    held = verify(signed, signers=[officer.identity])
    assert held.notes[0].startswith(f"{CHECKPOINT}: re-wrapped since, the content is the same")
    assert reader.recipient().id in held.notes[0]
    content = (signed / CHECKPOINT).read_bytes()
    for at in (5, PREAMBLE_BYTES + 4, len(content) - 1):
        (signed / CHECKPOINT).write_bytes(_flipped(content, at))
        if at != PREAMBLE_BYTES + 4:  # the idle slot, emptied: the format lets a crash leave anything there
            with pytest.raises(TamperedError, match=CHECKPOINT):
                verify(signed, signers=[officer.identity])


def test_a_sealed_folder_holds_file_by_file_and_through_a_rewrap(folder, officer, trained, tmp_path):
    (tmp_path / "plain").mkdir()
    for name in ("a", "b"):
        (tmp_path / "plain" / name).write_bytes(os.urandom(900))
    key = Key.read(trained / "key")
    seal(tmp_path / "plain", folder / "checkpoint-6", to=[key])
    sign_report(folder, officer)
    report = json.loads((folder / REPORT_JSON).read_text())
    assert ("checkpoint-6", "folder") in [(each["name"], each["form"]) for each in report["checkpoints"]]
    rewrap(folder / "checkpoint-6", key, add=[Key.generate_x25519().recipient()])
    assert "checkpoint-6: re-wrapped since" in verify(folder, signers=[officer.identity]).notes[0]
    part = next(path for path in (folder / "checkpoint-6").iterdir() if path.name.endswith(".1"))
    part.write_bytes(_flipped(part.read_bytes(), 100))
    with pytest.raises(TamperedError, match=rf"checkpoint-6/{part.name}: was changed"):
        verify(folder, signers=[officer.identity])


def test_a_journal_may_grow_and_not_shrink(folder, officer, trained, tmp_path):
    journal = Path(shutil.copy(trained / "journal", tmp_path / "journal"))
    sign_report(folder, officer, journal=journal)
    assert verify(folder, signers=[officer.identity], journal=journal).notes == ()
    assert "journal was not checked" in verify(folder, signers=[officer.identity]).notes[0]
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:-1]))
    with pytest.raises(TamperedError, match="is not the journal that was signed, or was cut"):
        verify(folder, signers=[officer.identity], journal=journal)


def test_a_signer_who_writes_less_than_the_ledger_costs_is_found(folder, officer):
    report = assemble(folder)
    lie = replace(report, claim=replace(report.claim, epsilon=report.claim.epsilon / 2))
    render.write(lie, folder)
    sign.sign(lie, folder, by=officer).write(folder / sign.SIGNED)
    with pytest.raises(TamperedError, match=r"report\.dsse\.json: signs ε=.*; this ledger costs ε="):
        verify(folder, signers=[officer.identity])


def test_a_signer_who_leaves_a_contradiction_out_is_found(folder, officer):
    keep(folder, finding(50.0, outcome=Outcome.REFUTED, cap=60.0), "loud.json")
    report = replace(assemble(folder), contradictions=())
    render.write(report, folder)
    sign.sign(report, folder, by=officer).write(folder / sign.SIGNED)
    with pytest.raises(TamperedError, match="leaves out an audit that contradicts the claim"):
        verify(folder, signers=[officer.identity])


def test_a_signer_who_leaves_files_out_is_found(folder, officer):
    report = assemble(folder)
    render.write(report, folder)
    said = Statement(
        subjects=(Digest(name="run.json", sha256=holdings.sha256(folder / "run.json")),),
        predicate_type=sign.PREDICATE_TYPE,
        predicate={"report": report.to_json(), "signer": officer.identity.to_json()},
    )
    statement.sign(said, by=officer).write(folder / sign.SIGNED)
    with pytest.raises(TamperedError) as refused:
        verify(folder, signers=[officer.identity])
    for name in ("ledger.jsonl", CHECKPOINT, "report.html"):
        assert f"{name}: is not among what was signed" in str(refused.value)


def test_names_outside_of_the_run_folder_are_refused(signed, officer):
    said, report, _ = sign.check(sign.read(signed / sign.SIGNED), by=[officer.identity])
    for name in ("../run.json", "/etc/hostname", said.subjects[0].name):
        more = Statement(
            subjects=(*said.subjects, Digest(name=name, sha256="0" * 64)),
            predicate_type=said.predicate_type,
            predicate=said.predicate,
        )
        assert "names a file twice, or one outside" in str(changes(more, report, signed, pages=signed)[0][0])


def test_a_statement_about_something_else_is_no_report(signed, officer):
    other = Statement(subjects=(Digest(name="x", sha256="0" * 64),), predicate_type="https://example.com/other/v1")
    statement.sign(other, by=officer).write(signed / sign.SIGNED)
    with pytest.raises(TamperedError, match=r"expected https://privguard\.dev/epsilon-report/v1"):
        verify(signed, signers=[officer.identity])
    Envelope(payload=b"{").write(signed / sign.SIGNED)
    with pytest.raises(TamperedError, match=r"report\.dsse\.json"):
        verify(signed)


def test_without_a_signature_there_is_nothing_to_verify(folder):
    render.write(assemble(folder), folder)
    with pytest.raises(FileNotFoundError, match="make one with"):
        verify(folder)


def test_a_report_of_another_moment_is_not_signed(folder, officer):
    report = assemble(folder)
    render.write(assemble(folder, sources=Sources(data_name="other words")), folder)
    with pytest.raises(TamperedError, match=r"report\.json: is not this report"):
        sign.sign(report, folder, by=officer)


def _places(size, count):
    """A fixed choice of places, spread over the whole file."""
    return random.Random(size).sample(range(size), min(count, size))


def _flipped(content, at):
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
