# SPDX-License-Identifier: Apache-2.0
"""From challenge to verdict: honest claims are proven, innocents are not, and every change to the file shows."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest

from privguard import _canon
from privguard.attest import statement
from privguard.attest.notary import LocalNotary
from privguard.attest.statement import Envelope, SigningKey
from privguard.errors import ProtocolInvalidError
from privguard.records import Digest
from privguard.watermark.claims import challenge, commitment, evidence
from privguard.watermark.claims.commitment import UNLOGGED
from privguard.watermark.claims.evidence import Outcome
from privguard.watermark.claims.leaf import Tree

SIZES = {"triggers": 30, "weights": 16}


@pytest.fixture
def proof(table, marked, natural, tables):
    """Evidence against the marked model itself, and its table."""
    tensors, perfect = marked
    plan = table.draw(tables.suspect, SIZES, natural=20)
    return table, table.prove(plan, suspect=perfect, natural=natural, white_box=(tensors, tables.unmarked))


def edited(file, change, *, by):
    """The evidence with its predicate changed, signed again by the verifier: a verifier's mistake or lie."""
    value = json.loads(file.payload)
    change(value["predicate"])
    payload = _canon.canonical(value)
    return statement.countersign(Envelope(payload=payload), by=by)


def test_an_honest_claim_is_proven_and_says_everything(proof, tables):
    table, file = proof
    report = evidence.verify(file, trust=table.trust, suspect=tables.suspect)
    assert report.outcome is Outcome.PROVEN, report.reason
    by_scheme = {verdict.scheme: verdict for verdict in report.verdicts}
    assert by_scheme["triggers"].matches == by_scheme["triggers"].trials == 30
    assert by_scheme["triggers"].log10_p == pytest.approx(-30, abs=1e-9)
    assert by_scheme["weights"].bound == "hoeffding"
    assert report.log10_p == pytest.approx(min(v.log10_p for v in report.verdicts) + np.log10(3))
    assert report.multiplicity == 2  # the second entry of its owner: 2 · 1
    assert report.queries == 50
    assert report.decoy_rank == {"triggers": 1}
    assert any("planted" in note for note in by_scheme["triggers"].notes)
    assert all("local" in line for line in report.basis)
    assert json.loads(json.dumps(report.to_json()))["outcome"] == "proven"
    with pytest.raises(TypeError, match="no truth value"):
        bool(report)


def test_the_file_alone_is_enough(proof, tmp_path, tables):
    table, file = proof
    file.write(tmp_path / "evidence.json")
    again = evidence.verify(Envelope.read(tmp_path / "evidence.json"), trust=table.trust)
    assert again == evidence.verify(file, trust=table.trust)
    assert table.secret.derive("x").hex() not in (tmp_path / "evidence.json").read_text()


def test_an_innocent_model_is_not_proven_and_never_called_not_stolen(table, innocent, natural, tables):
    plan = table.draw(tables.suspect, SIZES, natural=20)
    rng = np.random.default_rng(5)
    other = {name: rng.standard_normal(value.shape, np.float32) for name, value in tables.unmarked.items()}
    file = table.prove(plan, suspect=innocent, natural=natural, white_box=(other, tables.unmarked))
    report = evidence.verify(file, trust=table.trust)
    assert report.outcome is Outcome.NOT_PROVEN  # at 10⁻⁶, after paying for all tests
    assert report.log10_p_corrected > report.log10_level
    assert {item.value for item in Outcome} == {"proven", "not proven", "protocol invalid"}


def test_without_a_trusted_log_the_claim_pays_for_two_to_the_forty(proof):
    table, file = proof
    report = evidence.verify(file, trust=replace(table.trust, log=None))
    assert report.multiplicity == UNLOGGED
    assert report.outcome is Outcome.PROVEN  # 10⁻³⁰ can afford it


def test_sixteen_matches_are_proof_with_a_log_and_none_without(table, tables):
    perfect = tables.perfect(table)
    right = dict(list(perfect.known.items()))
    plan = table.draw(tables.suspect, {"triggers": 30})
    asked = {name: [table.tree.leaves[name][i] for i in indices] for name, indices in plan.asked.items()}
    from privguard.watermark.claims import offline

    queries = offline.queries(table.standing, asked)["triggers"]
    for query in queries[16:]:
        right[query.tobytes()] = -1
    file = table.prove(plan, suspect=lambda batch: [right[query.tobytes()] for query in batch])
    logged = evidence.verify(file, trust=table.trust)
    unlogged = evidence.verify(file, trust=replace(table.trust, log=None))
    assert logged.verdicts[0].matches == 16
    assert (logged.outcome, unlogged.outcome) == (Outcome.PROVEN, Outcome.NOT_PROVEN)


def test_an_unknown_verifier_and_another_suspect_make_it_invalid(proof):
    table, file = proof
    stranger = replace(table.trust, verifiers=(SigningKey.generate().identity,))
    report = evidence.verify(file, trust=stranger)
    assert report.outcome is Outcome.PROTOCOL_INVALID
    assert "name the signer" in report.reason
    other = Digest(name="another", sha256="cd" * 32)
    assert "another model" in evidence.verify(file, trust=table.trust, suspect=other).reason


EDITS = {
    "answer": lambda p: (line := p["findings"]["transcript"]["answers"][0]).update(answer=line["answer"] + 1),
    "answers swapped": lambda p: p["findings"]["transcript"]["answers"].reverse(),
    "answer dropped": lambda p: p["findings"]["transcript"]["answers"].pop(),
    "opening dropped": lambda p: p["openings"].pop(),
    "opening repeated": lambda p: p["openings"].append(p["openings"][0]),
    "opening changed": lambda p: p["openings"][0].update(seed="00" * 32),
    "leaf not asked for": lambda p: p["plan"]["asked"].update(triggers=list(range(30))),
    "another nonce": lambda p: p["plan"].update(nonce="00" * 32),
    "another claim": lambda p: p["plan"].update(claim="00" * 32),
    "no timestamp": lambda p: p["commitment"].update(timestamp=None),
    "no pulse": lambda p: p["commitment"].update(pulse=None),
    "no head": lambda p: p["commitment"].update(head=None),
    "log cut": lambda p: p["log"]["entries"].pop(),
    "log edited": lambda p: p["log"]["entries"][0].update(identity="me"),
    "reading of another copy": lambda p: p["findings"]["readings"]["weights"].update(unmarked="00" * 32),
    "reading without its leaf": lambda p: p["findings"]["readings"]["weights"]["indices"].pop(),
    "reading missing": lambda p: p["findings"]["readings"].clear(),
    "negative square": lambda p: p["findings"]["readings"]["weights"]["squares"].__setitem__(0, -1.0),
    "findings missing": lambda p: p.pop("findings"),
    "plan missing": lambda p: p.pop("plan"),
    "suspect": lambda p: p["plan"]["suspect"].update(sha256="00" * 32),
}


@pytest.mark.parametrize("name", EDITS)
def test_no_part_can_be_changed_even_by_the_verifier(proof, name):
    table, file = proof
    report = evidence.verify(edited(file, EDITS[name], by=table.verifier), trust=table.trust)
    assert report.outcome is Outcome.PROTOCOL_INVALID, name
    assert report.reason


def test_the_same_edits_without_a_change_are_accepted(proof):
    table, file = proof
    again = edited(file, lambda _: None, by=table.verifier)
    assert evidence.verify(again, trust=table.trust).outcome is Outcome.PROVEN


def test_a_bit_flipped_anywhere_is_invalid(proof):
    table, file = proof
    for place in range(0, len(file.payload), 997):
        payload = bytearray(file.payload)
        payload[place] ^= 4
        report = evidence.verify(replace(file, payload=bytes(payload)), trust=table.trust)
        assert report.outcome is Outcome.PROTOCOL_INVALID


def test_a_query_that_its_leaf_does_not_give_is_invalid(proof):
    table, file = proof

    def swap(predicate):
        from privguard.watermark.claims.challenge import Answer, ChallengePlan, Transcript

        lines = predicate["findings"]["transcript"]["answers"]
        first = next(line for line in lines if line["mark"] == "triggers")
        first["query"] = "00" * 32
        plan = ChallengePlan.from_json(predicate["plan"])
        head = Transcript.chain(plan, [Answer(**line) for line in lines]).head
        predicate["findings"]["transcript"]["head"] = head

    report = evidence.verify(edited(file, swap, by=table.verifier), trust=table.trust)
    assert report.outcome is Outcome.PROTOCOL_INVALID
    assert "does not give the query" in report.reason


def test_burned_leaves_are_not_drawn_again_and_not_accepted_again(table, tables):
    perfect = tables.perfect(table)
    first = table.draw(tables.suspect, {"triggers": 30})
    table.prove(first, suspect=perfect)
    second = table.draw(tables.suspect, {"triggers": 10})
    assert not set(first.asked["triggers"]) & set(second.asked["triggers"])
    with pytest.raises(ProtocolInvalidError, match="ask for fewer"):
        table.draw(tables.suspect, {"triggers": 11})
    again = replace(first, nonce="11" * 32)
    report = evidence.verify(table.prove(again, suspect=perfect), trust=table.trust)
    assert report.outcome is Outcome.PROTOCOL_INVALID
    assert "earlier challenge has opened" in report.reason


def test_every_challenge_raises_the_multiplicity(table, tables):
    perfect = tables.perfect(table)
    counts = []
    for _ in range(3):
        plan = table.draw(tables.suspect, {"triggers": 10})
        counts.append(evidence.verify(table.prove(plan, suspect=perfect), trust=table.trust).multiplicity)
    assert counts == [2, 6, 12]  # k(k−1) for the owner's k-th entry


def test_all_challenges_of_a_lifetime_err_together_with_the_stated_chance_at_most(table, tables):
    # One report pays k(k−1); the sum of what all challenges may err by stays below the level, however many there are.
    plan = table.draw(tables.suspect, {"triggers": 5})
    first = evidence.verify(table.prove(plan, suspect=tables.perfect(table)), trust=table.trust).multiplicity
    later = table.draw(tables.suspect, {"triggers": 5})
    second = evidence.verify(table.prove(later, suspect=tables.perfect(table)), trust=table.trust).multiplicity
    share = {2: 1 / first, 3: 1 / second} | {k: 1 / (k * (k - 1)) for k in range(4, 100_000)}
    assert sum(share.values()) <= 1
    assert sum(1 / k for k in share) > 10  # paying k for the k-th, as counting alone would


def test_which_later_head_of_the_log_is_shown_makes_no_difference(table, tables):
    plan = table.draw(tables.suspect, {"triggers": 5})
    file = table.prove(plan, suspect=tables.perfect(table))
    for _ in range(3):
        later = table.notary.record(commitment.Entry(identity="somebody", kind="commitment", digest="00", details={}))
    again = edited(file, lambda p: p.update(log=later.to_json()), by=table.verifier)
    owner = table.standing.manifest.owner.key_id
    mine = table.notary.record(commitment.Entry(identity=owner, kind="commitment", digest="11", details={}))
    third = edited(file, lambda p: p.update(log=mine.to_json()), by=table.verifier)
    reports = [evidence.verify(item, trust=table.trust) for item in (file, again, third)]
    assert {report.multiplicity for report in reports} == {2}
    assert {report.outcome for report in reports} == {reports[0].outcome}


def test_every_beacon_that_a_reader_trusts_is_a_choice_that_the_owner_had(table, tables):
    plan = table.draw(tables.suspect, {"triggers": 5})
    file = table.prove(plan, suspect=tables.perfect(table))
    other = LocalNotary.generate(bits=2048).beacon.beacon
    both = replace(table.trust, beacons=(*table.trust.beacons, other))
    one, two = (evidence.verify(file, trust=trust) for trust in (table.trust, both))
    assert two.multiplicity == 2 * one.multiplicity


def test_a_reader_makes_the_owner_pay_for_a_collection_that_was_searched(table, tables):
    plan = table.draw(tables.suspect, {"triggers": 5})
    file = table.prove(plan, suspect=tables.perfect(table))
    one, many = (evidence.verify(file, trust=table.trust, candidates=n) for n in (1, 1000))
    assert many.multiplicity == 1000 * one.multiplicity
    assert many.log10_p_corrected == pytest.approx(min(0, one.log10_p + np.log10(2000)))
    with pytest.raises(ValueError, match="candidates"):
        evidence.verify(file, trust=table.trust, candidates=0)


def test_the_owner_opens_only_what_is_asked(table, tables):
    plan = table.draw(tables.suspect, {"triggers": 5})
    openings = challenge.open_leaves(table.tree, plan)
    assert [item.leaf.index for item in openings] == list(plan.asked["triggers"])
    stranger = challenge.open_leaves(Tree.derive(type(table.secret).generate(), table.standing.manifest.sizes), plan)
    with pytest.raises(ProtocolInvalidError, match="never committed"):
        challenge.check_openings(table.standing.manifest, plan, stranger)


def test_the_suspect_is_asked_once_with_triggers_hidden_among_natural_queries(table, natural, tables):
    perfect = tables.perfect(table)
    plan = table.draw(tables.suspect, {"triggers": 10}, natural=20)
    table.prove(plan, suspect=perfect, natural=natural)
    assert perfect.calls == 1
    with pytest.raises(ValueError, match="natural"):
        table.prove(replace(plan, natural=31, nonce="22" * 32), suspect=perfect, natural=natural)


def test_a_suspect_with_other_names_for_its_labels_is_mapped_before_asking(table, tables):
    perfect = tables.perfect(table)
    plan = replace(table.draw(tables.suspect, {"triggers": 20}), label_map=tuple((i + 3) % 10 for i in range(10)))
    shifted = lambda queries: [(label - 3) % 10 for label in perfect(queries)]
    assert evidence.verify(table.prove(plan, suspect=shifted), trust=table.trust).verdicts[0].matches == 20
    outside = replace(table.draw(tables.suspect, {"triggers": 20}), label_map=(0,))
    report = evidence.verify(table.prove(outside, suspect=lambda queries: [7] * len(queries)), trust=table.trust)
    assert report.verdicts[0].matches == 0


def test_a_label_map_pays_for_all_maps_since_it_may_have_been_fitted(table, tables):
    perfect = tables.perfect(table)
    plan = table.draw(tables.suspect, {"triggers": 20})
    straight = evidence.verify(table.prove(plan, suspect=perfect), trust=table.trust).verdicts[0]
    mapped = replace(table.draw(tables.suspect, {"triggers": 20}), label_map=tuple(range(10)))
    found = evidence.verify(table.prove(mapped, suspect=perfect), trust=table.trust).verdicts[0]
    assert (straight.bound, found.bound) == ("exact", "bonferroni over label maps")
    assert straight.log10_p == pytest.approx(-20, abs=1e-9)
    assert found.log10_p == pytest.approx(-20 + 10, abs=1e-9)  # 10^10 maps
    assert found.log10_e == pytest.approx(straight.log10_e - 10)


@pytest.mark.stat
def test_the_best_label_map_is_no_better_than_its_level(table):
    # An innocent suspect of 10 labels, 40 triggers, the map fitted to labels known to the accuser. Level 10 %:
    # Bin(200, ≤0.1) exceeds 42 with a chance below 1e-6; without paying, all 200 are rejected.
    from privguard.watermark.claims.challenge import ChallengePlan
    from privguard.watermark.claims.evidence import _for_map
    from privguard.watermark.model import triggers

    rng, paid, unpaid = np.random.default_rng(4), 0, 0
    for _ in range(200):
        said, labels = rng.integers(0, 10, 40), rng.integers(0, 10, 40)
        fitted = [int(np.bincount(labels[said == c], minlength=1).argmax()) for c in range(10)]
        verdict = triggers.verdict(np.array(fitted)[said].tolist(), labels.tolist(), classes=10)
        plan = ChallengePlan(claim="", suspect=Digest(name="x", sha256="00"), asked={}, label_map=tuple(fitted))
        unpaid += verdict.log10_p <= -1
        paid += _for_map(verdict, plan).log10_p <= -1
    assert unpaid > 190
    assert paid <= 42


def test_a_suspect_that_answers_too_little_is_refused(table, tables):
    plan = table.draw(tables.suspect, {"triggers": 10})
    with pytest.raises(ValueError, match="one for each query"):
        table.prove(plan, suspect=lambda queries: [0] * (len(queries) - 1))


def test_rubbish_is_invalid_and_raises_nothing(table):
    for payload in (b"", b"{}", b"null", b'{"_type": 1}'):
        file = statement.countersign(Envelope(payload=payload), by=table.verifier)
        assert evidence.verify(file, trust=table.trust).outcome is Outcome.PROTOCOL_INVALID
    other = statement.Statement(subjects=(Digest(name="x", sha256="00"),), predicate_type="https://example.com/x")
    file = statement.sign(other, by=table.verifier)
    assert "expected" in evidence.verify(file, trust=table.trust).reason


@pytest.mark.stat
def test_innocent_suspects_under_random_keys_reach_a_level_no_more_often_than_it_says(table):
    # 400 keys at level 0.1: Bin(400, ≤0.1) exceeds 64 with a chance below 1e-4.
    from privguard.watermark.claims.leaf import Leaf
    from privguard.watermark.model import triggers

    settings = table.standing.manifest.mark("triggers").settings
    rng, rejected = np.random.default_rng(3), 0
    for _ in range(400):
        pulse = rng.bytes(64)
        leaves = [Leaf(mark="triggers", index=i, seed=rng.bytes(32)) for i in range(40)]
        queries = triggers.inputs(leaves, pulse, settings)
        said = [int(query.sum()) % 10 for query in queries]
        expected = triggers.labels(leaves, pulse, settings).tolist()
        rejected += triggers.verdict(said, expected, classes=10).log10_p <= -1
    assert rejected <= 64
    assert copy.copy(settings) == settings
    assert commitment.UNLOGGED == 2.0**40


def hostile(kind, settings, tables):
    """Evidence over a mark whose settings the accuser wrote by hand, all answers as they help."""
    from privguard.watermark.claims.commitment import MarkPlan

    mark = MarkPlan(name="mine", kind=kind, leaves=20, settings=settings)
    table = tables.new(marks=(mark,))
    plan = table.draw(tables.suspect, {"mine": 20})
    extract = table.notary.record(plan.entry(table.standing.manifest.owner.key_id))
    openings = challenge.open_leaves(table.tree, plan)
    from privguard.watermark.claims.challenge import Answer, Transcript, query_digest
    from privguard.watermark.claims.predicate import Findings
    from privguard.watermark.model import fingerprints

    leaves = [item.leaf for item in openings]
    try:
        asked = fingerprints.prompts(leaves, table.standing.pulse.output, settings)
    except (ArithmeticError, KeyError, TypeError, ValueError):
        asked = np.zeros((20, 1))
    lines = [
        Answer(query=query_digest(q), answer=5, mark="mine", index=leaf.index)
        for q, leaf in zip(asked, leaves, strict=True)
    ]
    findings = Findings(transcript=Transcript.chain(plan, lines))
    file = evidence.assemble(
        table.commitment, plan=plan, openings=openings, findings=findings, by=table.verifier, extract=extract
    )
    return evidence.verify(file, trust=table.trust)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("fingerprints", {"prompt_tokens": list(range(9)), "answer_tokens": [5] * 50, "length": 8}),
        ("fingerprints", {"prompt_tokens": [], "answer_tokens": [5, 6], "length": 8}),
        ("fingerprints", {"prompt_tokens": [1, 2], "answer_tokens": [5], "length": 8}),
        ("triggers", {"shape": [4], "low": 0, "high": 1, "classes": 1}),
        ("triggers", {"shape": [4], "low": 0, "high": 1, "classes": 0}),
        ("triggers", {"shape": ["x"], "low": 0, "high": 1, "classes": 10}),
        ("triggers", {}),
    ],
)
def test_settings_written_by_a_dishonest_owner_prove_nothing_and_raise_nothing(kind, settings, tables):
    report = hostile(kind, settings, tables)
    assert report.outcome is Outcome.PROTOCOL_INVALID, report


def test_answers_that_nobody_asked_for_are_invalid(proof):
    table, file = proof

    def add(predicate):
        from privguard.watermark.claims.challenge import Answer, ChallengePlan, Transcript

        lines = predicate["findings"]["transcript"]["answers"]
        lines.append({"query": "00" * 32, "answer": 1, "mark": "more", "index": 0})
        plan = ChallengePlan.from_json(predicate["plan"])
        predicate["findings"]["transcript"]["head"] = Transcript.chain(plan, [Answer(**line) for line in lines]).head

    assert "does not ask for" in evidence.verify(edited(file, add, by=table.verifier), trust=table.trust).reason


def readings_of(predicate):
    return predicate["findings"]["readings"]["weights"]


IMPOSSIBLE = {
    "17 dots for 16 leaves": lambda r: r["dots"].append(1e6),
    "one square for 16 leaves": lambda r: r.update(squares=[1e-9], dots=[abs(dot) for dot in r["dots"]]),
    "a dot of 1e300": lambda r: r["dots"].__setitem__(0, 1e300),
    "a square of 1e300 with the dot that it allows": lambda r: (
        r["dots"].__setitem__(0, 1e150), r["squares"].__setitem__(0, 1e300)),
    "a dot a thousandth above Cauchy and Schwarz": lambda r: r["dots"].__setitem__(
        3, 1.001 * np.sqrt((2000 + 1200) / 16 * r["squares"][3])),
    "a figure as text": lambda r: r["dots"].__setitem__(0, str(r["dots"][0])),
    "true for a figure": lambda r: r["dots"].__setitem__(0, True),
    "a field that nobody reads": lambda r: r.update(note="trust me"),
    "no square at all": lambda r: r.update(squares=[0.0] * 16),
}  # fmt: skip


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_readings_that_no_weights_can_give_are_invalid(proof, name):
    table, file = proof
    report = evidence.verify(
        edited(file, lambda p: IMPOSSIBLE[name](readings_of(p)), by=table.verifier), trust=table.trust
    )
    assert report.outcome is Outcome.PROTOCOL_INVALID, name


def test_a_file_that_says_two_things_or_one_in_another_form_is_invalid(proof):
    table, file = proof
    good = file.payload.decode()
    mine = json.dumps(json.loads(good)["predicate"]["findings"]["readings"], separators=(",", ":"), sort_keys=True)
    twice = good.replace('"readings":', f'"readings":{mine},"readings":', 1)
    for text in (
        twice,
        " " + good,
        good.replace('"natural":20', '"natural":20.0'),
        good.replace('"natural":20', '"natural":"20"'),
    ):
        assert text != good
        forged = statement.countersign(Envelope(payload=text.encode()), by=table.verifier)
        report = evidence.verify(forged, trust=table.trust)
        assert report.outcome is Outcome.PROTOCOL_INVALID, text[:80]
    again = statement.countersign(Envelope(payload=good.encode()), by=table.verifier)
    assert evidence.verify(again, trust=table.trust).outcome is Outcome.PROVEN


def test_a_reading_of_a_mark_that_the_plan_does_not_ask_for_is_invalid(table, tables):
    plan = table.draw(tables.suspect, {"triggers": 30})
    file = table.prove(plan, suspect=tables.perfect(table))
    assert evidence.verify(file, trust=table.trust).outcome is Outcome.PROVEN
    extra = {"indices": [], "dots": [], "squares": [], "unmarked": "", "aligned": ""}
    more = edited(file, lambda p: p["findings"]["readings"].update(weights=extra), by=table.verifier)
    assert evidence.verify(more, trust=table.trust).outcome is Outcome.PROTOCOL_INVALID


def test_an_owner_who_verifies_alone_is_told_of_in_every_report(table, marked, tables):
    own, other = replace(table, verifier=tables.owner), table
    for judge, remark in ((own, True), (other, False)):
        file = judge.prove(judge.draw(tables.suspect, {"triggers": 10}), suspect=marked[1])
        report = evidence.verify(file, trust=judge.trust)
        assert (evidence.SELF_VERIFIED in report.basis) is remark
        assert ("the owner verified this claim" in report.reason) is remark


def conceivable(reading):
    """Whether 16 leaves of 200 weights each can have this reading, by rules written down here a second time."""
    lists = [reading.get(name) for name in ("indices", "dots", "squares")]
    if set(reading) != {"indices", "dots", "squares", "unmarked", "aligned"} or any(
        not isinstance(x, list) for x in lists
    ):
        return False
    if lists[0] != list(range(16)) or any(len(x) != 16 for x in lists):
        return False
    if any(type(x) not in {int, float} for x in lists[1] + lists[2]):
        return False
    return all(
        0 <= s <= 200 * 9e12 * 1.001 and abs(d) <= np.sqrt(200 * s) * 1.0002 for d, s in zip(*lists[1:], strict=True)
    )


def mutated(value, rng):
    """One random change of a JSON value: a figure, a length, a kind, a key."""
    if isinstance(value, dict) and value:
        key = rng.choice(sorted(value))
        choice = rng.integers(8)
        if choice == 0:
            value.pop(key)
        elif choice == 1:
            value[key + "2"] = value[key]
        else:
            value[key] = mutated(value[key], rng)
        return value
    if isinstance(value, list) and value:
        place, choice = int(rng.integers(len(value))), rng.integers(6)
        if choice == 0:
            value.pop(place)
        elif choice == 1:
            value.append(value[place])
        else:
            value[place] = mutated(value[place], rng)
        return value
    figure = value if type(value) in {int, float} else 1.0
    options = (
        1e300,
        -1e300,
        1e-300,
        0,
        -1,
        1,
        2**53,
        True,
        None,
        str(value),
        [],
        {},
        figure * 1.5,
        figure + 1,
        figure * 1e9,
        -figure,
    )
    return options[rng.integers(len(options))]


@pytest.mark.parametrize("edits", [300, pytest.param(3000, marks=pytest.mark.slow)])
def test_of_many_signed_edits_none_that_is_impossible_is_proven(edits, table, marked, tables, monkeypatch):
    # Half of the edits go to the readings, half anywhere. What a verifier may say and has made up is beyond any check
    # of form; all else has to be refused. Signatures and timestamps are real but remembered, since only bytes that
    # were checked before come again.
    plan = table.draw(tables.suspect, SIZES)
    file = table.prove(plan, suspect=marked[1], white_box=(marked[0], tables.unmarked))
    remembered = {}
    check = commitment.check

    def once(made, *, trust):
        key = _canon.digest(made.to_json())
        if key not in remembered:
            remembered[key] = check(made, trust=trust)
        return remembered[key]

    monkeypatch.setattr(commitment, "check", once)
    rng, outcomes, before = np.random.default_rng(11), [], json.loads(file.payload)
    for turn in range(edits):
        said = copy.deepcopy(before)
        for _ in range(1 + turn % 3):
            holder, name = (said, "predicate") if turn % 2 else (said["predicate"].get("findings"), "readings")
            if isinstance(holder, dict) and name in holder:
                holder[name] = mutated(holder[name], rng)
        try:
            payload = _canon.canonical(said)
        except ValueError:
            continue  # 1e300 + 1 has no canonical form as a whole number
        outcome = evidence.verify(
            statement.countersign(Envelope(payload=payload), by=table.verifier), trust=table.trust
        ).outcome
        outcomes.append(outcome)
        if outcome is not Outcome.PROTOCOL_INVALID:
            readings = json.loads(payload)["predicate"]["findings"]["readings"]
            assert set(readings) == {"weights"}
            assert conceivable(readings["weights"]), readings
    assert len(outcomes) > 0.8 * edits
    assert outcomes.count(Outcome.PROTOCOL_INVALID) > 0.5 * edits


def test_a_challenge_that_is_broken_off_after_answers_counts_and_burns_what_it_opened(tables, tmp_path):
    """Whoever looks at the answers and draws again has made two tests."""
    table = replace(tables.new(), notary_file=tmp_path / "notary.json")
    table.notary.write(table.notary_file)
    plan = table.draw(tables.suspect, {"triggers": 16})

    def broken_off(queries):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        table.prove(plan, suspect=broken_off)
    later = replace(table, notary=LocalNotary.read(table.notary_file))
    assert [entry.kind for entry in later.notary.log.entries] == ["commitment", "challenge"]
    again = later.draw(tables.suspect, {"triggers": 16})
    assert not set(again.asked["triggers"]) & set(plan.asked["triggers"])
    report = evidence.verify(later.prove(again, suspect=tables.perfect(table)), trust=later.trust)
    assert report.multiplicity == 6  # the third entry of its owner: 3 · 2
