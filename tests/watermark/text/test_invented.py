# SPDX-License-Identifier: Apache-2.0
"""Nothing is found that no key wrote: ids beyond the width, other models, what files and options may hold."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from privguard.cli import app
from privguard.cli.mark._text_files import log10_of, read_rows, tokens_of
from privguard.errors import ProfileMismatchError
from privguard.watermark.secret import Secret
from privguard.watermark.text.profile import Profile
from privguard.watermark.text.reading import message, radioactivity
from privguard.watermark.text.reading.detect import Detector, decoy_ranks
from privguard.watermark.text.reading.ngrams import Documents
from privguard.watermark.text.reading.page import report
from privguard.watermark.text.reading.trace import trace
from privguard.watermark.text.reading.window import find_windows
from privguard.watermark.text.scheme import Gumbel, Payload

BEYOND = [token for k in range(60) for token in (1, 2, 3, 4, 7 + 512 * k)]


def test_every_reader_refuses_ids_that_the_model_cannot_write(secret, profile_for):
    """A list of one residue of the width was read as one token many times, and a message found under any secret."""
    plain, carrier = profile_for(secret, Gumbel()), profile_for(secret, Payload(bits=8))
    strange, detector = Documents.of_lists([BEYOND]), Detector(profile_for(secret, Gumbel()), secret)
    readers = [
        lambda: detector.detect(strange),
        lambda: detector.detect_corpus(strange),
        lambda: decoy_ranks(plain, secret, strange, decoys=9),
        lambda: find_windows(detector, strange),
        lambda: report(detector, strange, words=["x"] * len(BEYOND)),
        lambda: trace(plain, secret, strange, users=["ann", "bob"]),
        lambda: message.read(carrier, secret, strange),
        lambda: message.expect(carrier, secret, strange, message=7),
        lambda: radioactivity.closed_access(plain, secret, strange),
        lambda: radioactivity.open_access(plain, secret, [BEYOND], predictions=[BEYOND]),
    ]
    for reader in readers:
        with pytest.raises(ProfileMismatchError, match=r"token id \d+"):
            reader()
    padded = np.array([[9_000_000, *range(1, 40)]])  # padding may hold anything
    assert detector.detect(Documents.of_batch(padded, mask=(padded < 512))).scored[0] == 35


class WideTokenizer:
    """Knows one word more than the model has logits for."""

    all_special_ids = ()

    def get_vocab(self):
        return {str(i): i for i in range(21)}

    def encode(self, text, *, add_special_tokens):
        return [int(word) for word in text.split()]


def test_a_word_that_the_model_cannot_write_breaks_a_window_and_stops_nobody(secret):
    profile = Profile.for_tokenizer(WideTokenizer(), secret, logits_width=20)
    words = [str(i % 19) for i in range(19)]
    detector = Detector(profile, secret)
    assert detector.detect_text([" ".join(words)], WideTokenizer()).scored[0] == 15
    broken = [*words[:9], "20", *words[9:]]
    assert detector.detect_text([" ".join(broken)], WideTokenizer()).scored[0] == 5 + 6


def test_one_secret_marks_two_models_that_never_read_alike(secret, profile_for):
    """Vocabulary, width and a name given to the model are part of every key."""
    changes = ({}, {"vocabulary": "other"}, {"logits_width": 513}, {"model": "sha256:ab"}, {"model": "sha256:cd"})
    streams = [profile_for(secret, **change).stream(secret, subkey=0) for change in changes]
    assert len({stream.vocabulary(np.array([[1, 2, 3, 4]]), 16).tobytes() for stream in streams}) == len(changes)


@pytest.mark.stat
def test_adversarial_lists_are_found_under_no_secret(profile_for):
    """Lists made to trip a reader, under secrets that their makers never saw: none at 1e-7 in 720 (chance 7e-5)."""
    rng, found = np.random.default_rng(0), 0
    for number in range(80):
        secret = Secret(rng.bytes(32))
        plain, carrier = profile_for(secret, Gumbel()), profile_for(secret, Payload(bits=8), subkeys=1)
        lists = [
            [1] * 300,
            [number % 512, 511] * 150,
            list(range(300)),
            rng.choice(3, 300).tolist(),
            np.repeat(rng.integers(0, 512, 30), 10).tolist(),
            [x for k in range(100) for x in (1, 2, 3, 4, k)],
            (np.arange(300) * 256 % 512).tolist(),
            rng.integers(0, 512, 300).tolist(),
        ]
        found += (Detector(plain, secret).detect(Documents.of_lists(lists)).log10_p <= -7).sum()
        found += message.read(carrier, secret, Documents.of_lists(lists[5:6]))[0].verdict.log10_p <= -7
    assert found == 0


@pytest.mark.parametrize("text", ["a\u0085b", "a\u2028b\u2029c", "a\x0bb\x0cc\x1cd", "a\r\nb"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_what_json_lines_hold_is_read_back(tmp_path, text, mark):
    """JSON ends a line at U+000A alone; a byte-order mark is no part of the first line."""
    path = tmp_path / "rows.jsonl"
    rows = [{"text": text}, {"text": "second"}]
    path.write_text(mark + "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8", newline="")
    assert list(read_rows([str(path)])) == rows
    plain = tmp_path / "plain.txt"
    plain.write_text(mark + text, "utf-8", newline="")
    assert [row["text"] for row in read_rows([str(plain)])] == [text]


def test_parquet_is_read_like_json_lines(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.table({"text": ["he", "it"], "other": [1, 2]}), tmp_path / "a.parquet")
    parquet.write_table(pa.table({"other": [1]}), tmp_path / "b.parquet")
    (tmp_path / "c.parquet").write_bytes(b"no parquet")
    assert list(read_rows([str(tmp_path / "a.parquet")])) == [{"text": "he"}, {"text": "it"}]
    for name in ("b", "c"):
        with pytest.raises(ValueError, match="expected"):
            list(read_rows([str(tmp_path / f"{name}.parquet")]))


@pytest.mark.parametrize("token", [1.7, 1.0, True, "1", -1, 512, 1 << 24, None, float("nan")])
def test_what_is_no_id_of_the_model_is_refused(token):
    with pytest.raises(ValueError, match="token="):
        tokens_of({"tokens": [1, token]}, None, width=512)


@pytest.mark.parametrize("row", [{"tokens": 5}, {"text": 5}, {"text": "a\ud800"}, {"prompt": "a"}])
def test_rows_that_hold_no_text_are_refused(row):
    with pytest.raises(ValueError, match="expected"):
        tokens_of(row, None)


@pytest.mark.parametrize("level", [0.0, -1.0, 1.0, 2.0, float("nan"), float("inf")])
def test_a_level_is_a_probability(level):
    with pytest.raises(ValueError, match="level="):
        log10_of(level)


def test_setup_never_replaces_a_profile(tmp_path):
    """Under the old profile texts may be marked; nothing of it, of the secret or of the keys changes."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="a").save_pretrained(tmp_path / "t")

    def setup(name):
        files = {"profile": "p.json", "secret": f"{name}.secret", "sign-with": f"{name}.key", "tokenizer": "t"}
        options = [f"--{option}={tmp_path / file}" for option, file in files.items()]
        return CliRunner().invoke(app, ["mark", "text", "setup", *options, "--logits-width=2"])

    assert setup("first").exit_code == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    again = setup("second")
    assert isinstance(again.exception, ValueError)
    assert "exists" in str(again.exception)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
