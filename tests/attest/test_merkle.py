# SPDX-License-Identifier: Apache-2.0
"""The tree against RFC 6962's own recursive definition, and its proofs against every wrong neighbour."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privguard.attest import merkle


def by_definition(leaves: list[bytes]) -> bytes:
    """RFC 6962, 2.1, as it is written."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return hashlib.sha256(b"\1" + by_definition(leaves[:k]) + by_definition(leaves[k:])).digest()


LEAVES = [merkle.leaf_hash(bytes([i])) for i in range(40)]


@pytest.mark.parametrize("size", range(40))
def test_root_equals_the_definition(size):
    assert merkle.root(LEAVES[:size]) == by_definition(LEAVES[:size])


@given(st.integers(1, 40), st.data())
def test_inclusion_proof_holds_for_its_leaf_and_no_other(size, data):
    leaves = LEAVES[:size]
    index = data.draw(st.integers(0, size - 1))
    other = data.draw(st.integers(0, size - 1))
    proof, head = merkle.inclusion_proof(leaves, index), merkle.root(leaves)
    assert merkle.verify_inclusion(leaves[index], index=index, size=size, proof=proof, head=head)
    if other != index:
        assert not merkle.verify_inclusion(leaves[other], index=index, size=size, proof=proof, head=head)
        assert not merkle.verify_inclusion(leaves[index], index=other, size=size, proof=proof, head=head)
    assert not merkle.verify_inclusion(leaves[index], index=index, size=size, proof=[*proof, head], head=head)


@given(st.integers(1, 40), st.data())
def test_consistency_proof_holds_and_a_rewritten_past_does_not(size, data):
    earlier = data.draw(st.integers(1, size))
    changed = data.draw(st.integers(0, earlier - 1))
    leaves = LEAVES[:size]
    rewritten = [merkle.leaf_hash(b"other") if i == changed else leaf for i, leaf in enumerate(leaves)]
    facts = {"earlier": earlier, "size": size, "proof": merkle.consistency_proof(leaves, earlier)}
    assert merkle.verify_consistency(earlier_head=merkle.root(leaves[:earlier]), head=merkle.root(leaves), **facts)
    assert not merkle.verify_consistency(
        earlier_head=merkle.root(rewritten[:earlier]), head=merkle.root(leaves), **facts
    )
    assert not merkle.verify_consistency(
        earlier_head=merkle.root(leaves[:earlier]), head=merkle.root(rewritten), **facts
    )


def test_a_node_cannot_pass_for_a_leaf():
    assert merkle.root(LEAVES[:2]) != merkle.leaf_hash(LEAVES[0] + LEAVES[1])
