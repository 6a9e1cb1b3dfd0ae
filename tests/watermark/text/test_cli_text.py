# SPDX-License-Identifier: Apache-2.0
"""``privguard mark text`` from end to end with a real tokenizer and a tiny model on disk."""

import json
from random import Random

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from privguard.attest import journal
from privguard.attest.statement import SigningKey
from privguard.cli import app
from privguard.errors import ProfileMismatchError, TamperedError
from privguard.watermark.secret import Secret
from privguard.watermark.text.reading.detect import Detections
from privguard.watermark.text.writing import generate

TEXT = "the a of and to in is it that was he for on are with as his they be at one have this from had by hot but"
WORDS = TEXT.split()


@pytest.fixture(scope="module")
def home(tmp_path_factory, tiny_gpt2):
    """A folder with model, tokenizer, prompts, a secret that is no chance, and everything that setup makes."""
    folder = tmp_path_factory.mktemp("cli")
    Secret(bytes(range(32))).write(folder / "mark.secret")
    chance = generate._chance
    generate._chance = Random(0)
    bpe = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["<end>", "<unk>", *WORDS])}, unk_token="<unk>"))
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<end>", unk_token="<unk>", pad_token="<end>")
    fast.save_pretrained(folder / "model")
    size = len(WORDS) + 2
    model = tiny_gpt2(vocabulary=size, width=16, layers=1)
    model.generation_config.suppress_tokens = [0, 1]
    model.save_pretrained(folder / "model")
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": p}) + "\n" for p in ("he was the", "it is")))
    (folder / "plain.txt").write_text(" ".join(WORDS * 60))
    run(
        folder,
        "setup",
        "--sign-with",
        folder / "signer.key",
        "--tokenizer",
        folder / "model",
        "--logits-width",
        size,
        trust=False,
    )
    run(
        folder,
        "write",
        folder / "prompts.jsonl",
        "--model",
        folder / "model",
        "-o",
        folder / "marked.jsonl",
        "--tokens",
        150,
    )
    generate._chance = chance
    return folder


def run(folder, command, *arguments, trust=True, code=0, stdin=None):
    files = ["--profile", folder / "profile.json", "--secret", folder / "mark.secret"]
    files += ["--trust", folder / "profile.pem"] if trust else []
    result = CliRunner().invoke(app, ["mark", "text", command, *map(str, [*arguments, *files])], input=stdin)
    if code is not None:
        assert result.exit_code == code, result.output + str(result.exception)
    return result


def test_writing_is_recorded_or_does_not_happen(home, monkeypatch):
    SigningKey.generate().write(home / "journal.pem")
    monkeypatch.setenv("PRIVGUARD_JOURNAL", str(home / "access.jsonl"))
    monkeypatch.setenv("PRIVGUARD_JOURNAL_KEY", str(home / "journal.pem"))
    write = ("write", home / "prompts.jsonl", "--model", home / "model", "--tokens", 3, "-o", home / "few.jsonl")
    run(home, *write)
    told = [(one.action, one.subject, one.result) for one in journal.read(home / "access.jsonl")]
    subject = f"text, {home / 'few.jsonl'}"
    assert told == [("mark", subject, "begun"), ("mark", subject, "done")]
    (home / "few.jsonl").unlink()
    monkeypatch.setenv("PRIVGUARD_JOURNAL", str(home))
    assert isinstance(run(home, *write, code=None).exception, OSError)
    assert not (home / "few.jsonl").exists()


def test_what_is_written_is_detected_from_tokens_and_from_text(home):
    found = json.loads(run(home, "detect", home / "marked.jsonl", "--json").stdout)
    assert [row["found"] for row in found] == [True, True]
    rows = [json.loads(line) for line in (home / "marked.jsonl").read_text().splitlines()]
    texts = "".join(json.dumps({"text": row["text"]}) + "\n" for row in rows)
    piped = run(home, "detect", "-", "--tokenizer", home / "model", "--json", stdin=texts)
    assert [row["found"] for row in json.loads(piped.stdout)] == [True, True]
    assert run(home, "detect", home / "marked.jsonl").stdout.startswith("found")


def test_a_mark_that_many_subkeys_agree_with_is_found_but_not_attributed(home, monkeypatch):
    monkeypatch.setattr(Detections, "accepted", lambda self, *, log10_level: self.log10_p > log10_level)
    found = json.loads(run(home, "detect", home / "marked.jsonl", "--json").stdout)
    assert [(row["found"], row["attributed"]) for row in found] == [(True, False)] * 2
    assert "not attributed" in run(home, "detect", home / "marked.jsonl").stdout


def test_plain_text_is_not_found_and_the_exit_code_says_so(home):
    result = run(home, "detect", home / "plain.txt", "--tokenizer", home / "model", code=1)
    assert "not found" in result.stdout


def test_reports_and_drill_leave_files_for_people(home, tmp_path):
    run(home, "detect", home / "marked.jsonl", "--tokenizer", home / "model", "--report", tmp_path / "r")
    assert "The mark was found" in (tmp_path / "r" / "document-0.html").read_text()
    verdict = json.loads((tmp_path / "r" / "document-1.json").read_text())["verdict"]
    assert verdict["log10_p"] < -20
    drilled = run(
        home,
        "drill",
        home / "marked.jsonl",
        "--plain",
        home / "plain.txt",
        "--tokenizer",
        home / "model",
        "--picture",
        tmp_path / "s.svg",
        "--json",
    )
    table = {row["attack"]: row for row in json.loads(drilled.stdout)}
    assert table["none"]["accepted"] == 1.0
    assert table["decode and encode"]["accepted"] == 1.0
    assert (tmp_path / "s.svg").stat().st_size > 1000


def test_text_without_a_tokenizer_and_a_foreign_secret_are_refused(home, tmp_path):
    assert isinstance(run(home, "detect", home / "plain.txt", code=None).exception, ValueError)
    Secret.generate().write(tmp_path / "other")
    arguments = [
        "mark",
        "text",
        "detect",
        home / "marked.jsonl",
        "--profile",
        home / "profile.json",
        "--trust",
        home / "profile.pem",
    ]
    result = CliRunner().invoke(app, [*map(str, arguments), "--secret", str(tmp_path / "other")])
    assert isinstance(result.exception, ProfileMismatchError)
    forged = home / "forged.json"
    forged.write_bytes((home / "profile.json").read_bytes().replace(b"A", b"B", 1))
    arguments[arguments.index(home / "profile.json")] = forged
    result = CliRunner().invoke(app, [*map(str, arguments), "--secret", str(home / "mark.secret")])
    assert isinstance(result.exception, TamperedError)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"text": "he was', "rows.jsonl, line 2: expected one JSON object"),
        ("[1, 2]", "rows.jsonl, line 2: expected a JSON object with 'text', 'tokens' or 'prompt'"),
        ('{"words": "he was"}', "rows.jsonl, line 2: expected a JSON object with 'text', 'tokens' or 'prompt'"),
        ('{"prompt": "he was"}', "row=['prompt']: expected 'text' or 'tokens'"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(home, tmp_path, line, said):
    (tmp_path / "rows.jsonl").write_text('{"text": "it is"}\n' + line + "\n")
    found = run(home, "detect", tmp_path / "rows.jsonl", "--tokenizer", home / "model", code=None)
    assert isinstance(found.exception, ValueError)
    assert said in str(found.exception)


def test_what_is_no_text_and_no_tokenizer_is_named(home, tmp_path):
    (tmp_path / "picture").write_bytes(b"\xff\xd8\xff")
    for words in ((tmp_path / "picture", "--tokenizer", home / "model"), (home / "plain.txt", "--tokenizer", tmp_path)):
        found = run(home, "detect", *words, code=None)
        assert isinstance(found.exception, ValueError)
        assert f"{tmp_path}" in str(found.exception)
        assert "expected" in str(found.exception)


def test_a_quoted_text_is_found_in_its_variant(home, tmp_path):
    row = json.loads((home / "marked.jsonl").read_text().splitlines()[0])
    quoted = row["text"].replace(" ", "\u200b ").replace("a", "a\u00ad")
    (tmp_path / "mail.jsonl").write_text(json.dumps({"text": quoted}) + "\n")
    found = json.loads(run(home, "detect", tmp_path / "mail.jsonl", "--tokenizer", home / "model", "--json").stdout)[0]
    assert found["details"]["variant"] == "clean"
    assert found["multiplicity"] == found["details"]["variants_tried"] == 2
    run(home, "detect", tmp_path / "mail.jsonl", "--tokenizer", home / "model", "--as-written", code=1)


def test_users_are_traced_and_nobody_is_named_for_plain_text(home, tmp_path):
    run(home, "write", home / "prompts.jsonl", "--model", home / "model", "-o", tmp_path / "m.jsonl", "--user", "ann")
    (tmp_path / "users").write_text("bob\nann\ncy\n")
    found = json.loads(run(home, "trace", tmp_path / "m.jsonl", "--users", tmp_path / "users", "--json").stdout)
    assert [row["user"] for row in found] == ["ann", "ann"]
    run(home, "trace", home / "plain.txt", "--users", tmp_path / "users", "--tokenizer", home / "model", code=1)


def test_decoys_rank_the_true_key_first_on_marked_text_alone(home):
    ranks = json.loads(run(home, "decoys", home / "marked.jsonl", "--decoys", 49, "--json").stdout)
    assert ranks == [0.02, 0.02]
    plain = run(home, "decoys", home / "plain.txt", "--tokenizer", home / "model", "--decoys", 49, "--json")
    assert json.loads(plain.stdout)[0] > 0.02


def test_what_a_model_wrote_is_read_for_traces(home):
    assert "found" in run(home, "radioactivity", home / "marked.jsonl").stdout
    run(home, "radioactivity", home / "plain.txt", "--tokenizer", home / "model", code=1)


def test_messages_are_written_and_read(home, tmp_path):
    (tmp_path / "mark.secret").write_bytes((home / "mark.secret").read_bytes())
    (tmp_path / "mark.secret").chmod(0o600)
    options = ("--sign-with", tmp_path / "signer.key", "--tokenizer", home / "model", "--logits-width", len(WORDS) + 2)
    run(tmp_path, "setup", *options, "--scheme", "gumbel-payload", "--subkeys", 1, trust=False)
    written = ("--model", home / "model", "-o", tmp_path / "m.jsonl", "--tokens", 200, "--message", 77)
    run(tmp_path, "write", home / "prompts.jsonl", *written)
    found = json.loads(run(tmp_path, "message", tmp_path / "m.jsonl", "--json").stdout)
    assert [row["value"] for row in found] == [77, 77]
    assert run(tmp_path, "message", tmp_path / "m.jsonl", "--expect", 77).stdout.startswith("found")
    run(tmp_path, "message", home / "plain.txt", "--tokenizer", home / "model", code=1)


def test_other_tools_marks_are_read(tmp_path):
    """vLLM's Gumbel mark: the token that a key likes best, one after the other."""
    import numpy as np

    from privguard.watermark.text.prf.philox import vllm_words

    words = [7, 8]
    for _ in range(60):
        context = np.tile(np.array([words[-2:]]), (300, 1))
        words.append(int(vllm_words(context, np.arange(300), key=42).argmax()))
    (tmp_path / "rows.jsonl").write_text(json.dumps({"tokens": words}) + "\n")

    def read(scheme, **numbers):
        (tmp_path / "key.json").write_text(json.dumps(numbers))
        files = [tmp_path / "rows.jsonl", "--config", tmp_path / "key.json"]
        return CliRunner().invoke(app, ["mark", "text", "detect", "--scheme", scheme, *map(str, files)])

    assert read("vllm-gumbel", key=42, context_width=2).exit_code == 0
    assert read("vllm-gumbel", key=43, context_width=2).exit_code == 1
    assert read("vllm-dual-key", key=42, context_width=2).exit_code == 1
    assert read("vllm-synthid", key=43, context_width=2).exit_code == 1
    assert read("transformers-synthid", keys=[1, 2, 3], ngram_len=5).exit_code == 1
    assert read("transformers-green-list", hashing_key=7, vocabulary_size=300).exit_code == 1
    for wrong in (read("vllm-gumbel", kee=42), read("transformers-green-list", hashing_key=7)):
        assert isinstance(wrong.exception, ValueError)
