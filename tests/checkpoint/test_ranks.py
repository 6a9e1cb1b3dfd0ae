# SPDX-License-Identifier: Apache-2.0
"""Two processes under DDP, joined by gloo: what they seal together comes back to each, also after one of them died."""

import multiprocessing
import signal
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

from privguard.checkpoint import Key
from privguard.errors import TamperedError
from privguard.integrations.sealed.dcp import SealedReader
from tests.checkpoint import ranks

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is (un|dis)")

DIED = -signal.SIGKILL


@pytest.fixture(scope="module")
def start():
    """Processes that come from one server which has imported torch already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.checkpoint.ranks"])
    return context


@pytest.fixture
def together(start, tmp_path):
    Key.generate_symmetric().write(tmp_path / "team.key")

    def run(work: ranks.Work) -> list[int | None]:
        """The exit codes of both processes."""
        (tmp_path / "meeting").unlink(missing_ok=True)
        both = [start.Process(target=ranks.take_part, args=(work, rank, tmp_path)) for rank in (0, 1)]
        for one in both:
            one.start()
        for one in both:
            one.join(600)
            one.kill()
            one.join()
        return [one.exitcode for one in both]

    return run


def test_an_accelerate_state_of_two_ranks_goes_on_exactly_with_each_ranks_own_generators(together, tmp_path):
    assert together(ranks.accelerate_goes_on_exactly) == [0, 0]
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    assert torch.equal(first["weights"], second["weights"])
    assert not torch.equal(first["drawn"], second["drawn"])


def test_a_distributed_checkpoint_of_two_ranks_comes_back_to_both_and_to_one(together, tmp_path):
    assert together(ranks.dcp_comes_back) == [0, 0]
    assert {path.name.split("_")[2] for path in (tmp_path / "dcp").glob("__*")} == {"0", "1"}
    assert [float(values[-1]) for values in both_parts(tmp_path)] == [7.0, 8.0]


def both_parts(folder: Path) -> list[torch.Tensor]:
    """What both ranks wrote, read by this process alone."""
    into = {f"mine{rank}": torch.zeros(50_000) for rank in (0, 1)}
    dcp.load(into, storage_reader=SealedReader(folder / "dcp", key=ranks.key(folder)))
    assert all(len(values.unique()) == 1 for values in into.values())
    return list(into.values())


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("moment", ["write 1", "write 3", "rename 1", "rename 2"])
def test_a_rank_that_dies_while_saving_leaves_the_old_checkpoint_or_the_new_one(together, tmp_path, victim, moment):
    """Rank 0 renames its data and the metadata, rank 1 its data alone, so it lives through the last moment."""
    (tmp_path / "value").write_text("10")
    assert together(ranks.dcp_saves) == [0, 0]
    (tmp_path / "value").write_text("20")
    (tmp_path / "die").write_text(f"{victim} {moment}")
    codes = together(ranks.dcp_saves)
    found = [float(values[0]) for values in both_parts(tmp_path)]
    if (victim, moment) == (1, "rename 2"):
        assert codes == [0, 0]
        assert found == [20.0, 21.0]
        return
    assert codes[victim] == DIED
    assert codes[1 - victim] not in (0, DIED)  # the survivor says so instead of waiting for ever
    assert found == [10.0, 11.0]
    (tmp_path / "die").unlink()
    assert together(ranks.dcp_saves) == [0, 0]
    assert [float(values[0]) for values in both_parts(tmp_path)] == [20.0, 21.0]
    assert len(list((tmp_path / "dcp").iterdir())) == 3  # the dead save's files are gone


def test_an_accelerate_state_survives_each_rank_that_dies(together, tmp_path):
    (tmp_path / "value").write_text("10")
    assert together(ranks.accelerate_saves) == [0, 0]
    (tmp_path / "value").write_text("20")
    for victim, moment in ((1, "before 1"), (0, "write 4"), (0, "rename 1")):
        (tmp_path / "die").write_text(f"{victim} {moment}")
        codes = together(ranks.accelerate_saves)
        assert codes[victim] == DIED
        assert codes[1 - victim] not in (0, DIED)
        assert together(ranks.accelerate_loads) == [0, 0]
        for rank in (0, 1):
            assert set(torch.load(tmp_path / f"rank{rank}.pt").tolist()) == {10.0}
    (tmp_path / "die").unlink()
    assert together(ranks.accelerate_saves) == together(ranks.accelerate_loads) == [0, 0]
    assert set(torch.load(tmp_path / "rank0.pt").tolist()) == {20.0}


def test_metadata_is_authenticated_before_anything_of_it_is_parsed(together, tmp_path, monkeypatch):
    """A bit flipped at every 97th place of it: refused, and neither JSON nor a pickle was looked at."""
    (tmp_path / "value").write_text("10")
    assert together(ranks.dcp_saves) == [0, 0]
    place = tmp_path / "dcp" / ".metadata"
    content, reader = place.read_bytes(), SealedReader(tmp_path / "dcp", key=ranks.key(tmp_path))

    def parsed(*_: object, **__: object) -> object:
        raise AssertionError("parsed before it was authenticated")

    monkeypatch.setattr("privguard.integrations.sealed.dcp._from_json", parsed)
    monkeypatch.setattr("pickle.Unpickler", parsed)
    monkeypatch.setattr("pickle.load", parsed)
    idle = range(136 + (16 << 10), 136 + (32 << 10))  # a slot that no key opens
    places = [at for at in range(0, len(content), 97) if at not in idle]
    assert len(places) > 150
    for at in places:
        place.write_bytes(content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :])
        with pytest.raises(TamperedError) if at not in (16, 17) else pytest.raises(Exception, match="version"):
            reader.read_metadata()
    place.write_bytes(content)
    with pytest.raises(AssertionError, match="parsed before"):
        reader.read_metadata()
