# SPDX-License-Identifier: Apache-2.0
"""The order of a claim: what is missing, late, early or vouched for by nobody makes it invalid."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from privguard.attest import timestamp
from privguard.attest.statement import SigningKey
from privguard.errors import ProtocolInvalidError, TamperedError
from privguard.records import Digest
from privguard.watermark.claims import commitment, offline
from privguard.watermark.claims.commitment import Commitment, Manifest, Trust
from privguard.watermark.claims.leaf import Leaf, Opening, Tree
from privguard.watermark.secret import Secret

THEN = datetime(2026, 5, 6, 7, 8, 9, tzinfo=UTC)


def test_a_commitment_in_order_stands_and_survives_its_file(table, tmp_path):
    standing = table.standing
    assert standing.logged
    assert standing.stamped + commitment.WAIT < standing.pulse.time
    assert all("local" in line for line in standing.basis)
    table.commitment.write(tmp_path / "commitment.json")
    assert commitment.check(Commitment.read(tmp_path / "commitment.json"), trust=table.trust) == standing
    assert Trust.from_json(json.loads(json.dumps(table.trust.to_json()))) == table.trust


def test_the_secret_is_nowhere_in_the_commitment(table):
    text = json.dumps(table.commitment.to_json())
    for leaves in table.tree.leaves.values():
        for leaf in leaves:
            assert leaf.seed.hex() not in text
            assert leaf.seed.hex() not in repr(leaf)


def test_without_timestamp_or_pulse_or_with_unknown_authorities_it_is_invalid(table):
    trust = table.trust
    for broken in (replace(table.commitment, timestamp=None), replace(table.commitment, pulse=None)):
        with pytest.raises(ProtocolInvalidError, match="without timestamp and later pulse"):
            commitment.check(broken, trust=trust)
    with pytest.raises(ProtocolInvalidError, match="timestamp: not over this commitment"):
        commitment.check(table.commitment, trust=replace(trust, authorities=()))
    with pytest.raises(ProtocolInvalidError, match="not a genuine pulse"):
        commitment.check(table.commitment, trust=replace(trust, beacons=()))


@pytest.mark.parametrize("minutes", [-60, -1, 0, 1, 4, 6, 7, 60])
def test_only_the_first_pulse_after_the_wait_counts(tables, minutes):
    table = tables.new(at=THEN)
    moved = table.commitment.with_pulse(table.notary.pulse_after(THEN + timedelta(minutes=minutes)))
    with pytest.raises(ProtocolInvalidError, match="only the first one"):
        commitment.check(moved, trust=table.trust)
    assert commitment.check(table.commitment, trust=table.trust).pulse.time > THEN + commitment.WAIT


def test_a_timestamp_cannot_be_moved_to_another_head_or_another_commitment(tables):
    first, second = tables.new(), tables.new()
    for broken in (
        replace(first.commitment, timestamp=second.commitment.timestamp),
        replace(first.commitment, head=None, proof=()),
        replace(first.commitment, envelope=second.commitment.envelope),
    ):
        with pytest.raises((ProtocolInvalidError, TamperedError)):
            commitment.check(broken, trust=first.trust)


def test_a_head_that_does_not_end_with_the_commitment_is_no_anchor(tables):
    table = tables.new(at=THEN)
    extract = table.notary.record(replace(table.commitment.entry(table.standing.manifest.owner), digest="00"), at=THEN)
    late = replace(table.commitment, head=extract.head)
    late = late.stamped(table.notary.stamp(timestamp.request(late.message()), at=THEN))
    with pytest.raises(ProtocolInvalidError, match="does not end with this commitment"):
        commitment.check(late, trust=table.trust)


def test_stamping_again_later_does_not_buy_another_pulse(tables):
    table = tables.new(at=THEN)
    later = THEN + timedelta(hours=3)
    again = table.commitment.stamped(table.notary.stamp(timestamp.request(table.commitment.message()), at=later))
    with pytest.raises(ProtocolInvalidError, match="does not precede the pulse"):
        commitment.check(again, trust=table.trust)
    moved = again.with_pulse(table.notary.pulse_after(later + commitment.WAIT))
    with pytest.raises(ProtocolInvalidError, match="only the first one"):
        commitment.check(moved, trust=table.trust)


def test_without_a_trusted_log_the_timestamp_is_the_anchor(tables):
    table = tables.new(at=THEN)
    standing = commitment.check(table.commitment, trust=replace(table.trust, log=None))
    assert not standing.logged


def test_a_manifest_is_believed_only_from_the_owner_it_names(table):
    manifest = commitment.read_manifest(table.commitment)
    assert Manifest.from_json(json.loads(json.dumps(manifest.to_json()))) == manifest
    stranger = SigningKey.generate()
    forged = commitment.sign_root(b"\0" * 32, model=manifest.model, marks=manifest.marks, by=stranger)
    envelope = replace(forged.envelope, signatures=table.commitment.envelope.signatures)
    with pytest.raises(TamperedError):
        commitment.read_manifest(replace(forged, envelope=envelope))
    with pytest.raises(TamperedError, match="names no owner"):
        commitment.read_manifest(replace(forged, envelope=replace(forged.envelope, payload=b"{}")))


def test_the_level_of_proof_cannot_be_softened():
    with pytest.raises(ValueError, match="log10_level"):
        Manifest(
            owner=SigningKey.generate().identity,
            model=Digest(name="m", sha256="00"),
            marks=(commitment.MarkPlan(name="t", kind="triggers", leaves=1),),
            root=b"",
            log10_level=-3.0,
        )


def test_every_leaf_opens_under_the_root_and_no_other_does(table):
    manifest, tree = table.standing.manifest, table.tree
    for name, leaves in tree.leaves.items():
        for leaf in leaves:
            opening = tree.open(name, leaf.index)
            assert manifest.holds(Opening.from_json(json.loads(json.dumps(opening.to_json()))))
    opening = tree.open("triggers", 3)
    for wrong in (
        Leaf(mark="triggers", index=3, seed=bytes(32)),
        Leaf(mark="triggers", index=4, seed=opening.leaf.seed),
        Leaf(mark="triggers", index=40, seed=opening.leaf.seed),
        Leaf(mark="weights", index=3, seed=opening.leaf.seed),
        Leaf(mark="nothing", index=3, seed=opening.leaf.seed),
    ):
        assert not manifest.holds(replace(opening, leaf=wrong))
    assert not manifest.holds(replace(opening, path=opening.path[:-1]))


def test_one_secret_gives_one_tree_and_another_another():
    secret = Secret.generate()
    sizes = [("a", 3), ("b", 2)]
    assert Tree.derive(secret, sizes).root == Tree.derive(secret, sizes).root
    assert Tree.derive(secret, sizes).root != Tree.derive(Secret.generate(), sizes).root
    assert Tree.derive(secret, sizes).root != Tree.derive(secret, sizes[::-1]).root
    with pytest.raises(ValueError, match="every mark once"):
        Tree.derive(secret, [("a", 3), ("a", 2)])


def test_the_content_of_a_leaf_is_fixed_by_the_specification():
    # docs/spec/claim-v1.md, section 9: computed there with hashlib alone.
    import hashlib

    leaf = Leaf(mark="triggers", index=7, seed=bytes(range(32)))
    pulse = bytes(64)
    domain = b"privguard claim v1\0"
    assert leaf.expand(pulse, "input", 8) == hashlib.shake_256(domain + b"input\0" + leaf.seed + pulse).digest(8)
    inner = domain + b"leaf\0triggers\0" + (7).to_bytes(8, "big") + leaf.seed
    assert leaf.hash() == hashlib.sha256(b"\0" + inner).digest()
    wide = int.from_bytes(hashlib.shake_256(domain + b"label\0" + leaf.seed + pulse).digest(16), "big")
    assert leaf.below(10, pulse, "label") == wide % 10


def test_broken_files_are_refused(tmp_path):
    for text in ("nothing", "{}", '{"envelope": {}, "head": null, "proof": [], "timestamp": null, "pulse": null}'):
        (tmp_path / "broken.json").write_text(text)
        with pytest.raises(TamperedError):
            Commitment.read(tmp_path / "broken.json")
        with pytest.raises(ValueError, match="trust file"):
            Trust.read(tmp_path / "broken.json")
    for broken in ({}, {"mark": "a", "index": 0, "seed": "00", "path": []}):
        with pytest.raises(TamperedError):
            Opening.from_json(broken)


def test_a_model_digest_depends_on_names_shapes_and_values():
    import numpy as np

    base = {"a": np.zeros((2, 3), np.float32)}
    digests = [
        offline.tensors_digest("m", state).sha256
        for state in (
            base,
            {"b": base["a"]},
            {"a": np.zeros((3, 2), np.float32)},
            {"a": np.full((2, 3), 1e-38, np.float32)},
        )
    ]
    assert len(set(digests)) == 4
    assert offline.tensors_digest("other name", base).sha256 == digests[0]
