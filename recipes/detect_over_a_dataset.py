# SPDX-License-Identifier: Apache-2.0
"""Detect a mark in every row of a data set, in several processes.

``detect_columns`` is a pure function of a batch and two file names, so Ray Data (``map_batches``) and Spark
(``mapInPandas``) can call it too. The secret is read inside each worker and never pickled.
"""

import argparse
import tempfile
from functools import cache, partial
from pathlib import Path

import numpy as np

from privguard.attest.statement import Identity, SigningKey
from privguard.watermark.secret import Secret
from privguard.watermark.text.profile import Profile
from privguard.watermark.text.reading.detect import Detector
from privguard.watermark.text.reading.ngrams import Documents


@cache
def detector(profile: str, trust: str, secret: str) -> Detector:
    """One detector per worker process."""
    return Detector(Profile.read(profile, by=Identity.read(Path(trust))), Secret.read(secret))


def detect_columns(batch: dict, *, profile: str, trust: str, secret: str) -> dict:
    """``{"tokens": [[…], …]}`` to the columns ``log10_p``, ``scored`` and ``subkey``."""
    found = detector(profile, trust, secret).detect(Documents.of_lists(batch["tokens"]))
    return {"log10_p": found.log10_p.tolist(), "scored": found.scored.tolist(), "subkey": found.subkey.tolist()}


def tiny_corpus(folder: Path) -> tuple[list[list[int]], dict[str, str]]:
    """Forty documents, every other one written under the mark (argmax of the keyed noise over 256 equal tokens)."""
    secret, key, rng = Secret.generate(), SigningKey.generate(), np.random.default_rng(0)
    profile = Profile(key_id=secret.key_id, vocabulary="tiny", logits_width=256)
    files = {name: str(folder / name) for name in ("profile", "trust", "secret")}
    secret.write(files["secret"])
    profile.write(files["profile"], by=key)
    key.identity.write(Path(files["trust"]))
    documents = [rng.integers(0, 256, 60).tolist() for _ in range(40)]
    for document in documents[::2]:
        stream = profile.stream(secret, subkey=int(rng.integers(profile.subkeys)))
        for t in range(4, len(document)):
            words = stream.vocabulary(np.array([document[t - 4 : t]]), 4 * 256).view(np.uint32)[0]
            document[t] = int(words.argmax())
    return documents, files


def main() -> None:
    from datasets import Dataset, load_from_disk

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--dataset", help="folder of a data set with a column of token ids, 'tokens'")
    parser.add_argument("--profile")
    parser.add_argument("--trust")
    parser.add_argument("--secret")
    parser.add_argument("--processes", type=int, default=2)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if chosen.tiny:
            documents, files = tiny_corpus(Path(folder))
            rows = Dataset.from_dict({"tokens": documents})
        else:
            rows, files = (
                load_from_disk(chosen.dataset),
                {n: getattr(chosen, n) for n in ("profile", "trust", "secret")},
            )
        found = rows.map(partial(detect_columns, **files), batched=True, batch_size=1000, num_proc=chosen.processes)
        marked = sum(p <= -6 - np.log10(len(found)) for p in found["log10_p"])
    print(f"{marked} of {len(found)} documents carry the mark at 1e-6 over all of them")


if __name__ == "__main__":
    main()
