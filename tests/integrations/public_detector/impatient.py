# SPDX-License-Identifier: Apache-2.0
"""A detector with little patience: half a second for a head, one for a body, two answers a minute."""

import sys
from pathlib import Path

from privguard.attest.journal import Journal
from privguard.attest.statement import SigningKey
from privguard.integrations.public_detector.answers import PictureReader
from privguard.integrations.public_detector.app import Bounds, PublicDetector
from privguard.integrations.public_detector.server import serve
from privguard.integrations.public_detector.tokens import Tokens
from privguard.watermark.image.detect import ImageDetector
from privguard.watermark.image.profile import ImageProfile
from privguard.watermark.secret import Secret


def main(home: Path) -> None:
    key = SigningKey.read(home / "signer.key")
    profile = ImageProfile.read(home / "p.json", by=key.identity)
    reader = PictureReader(ImageDetector(profile, Secret.read(home / "s")), -8.0)
    bounds = Bounds(rate="2/minute", head_seconds=0.5, body_seconds=1.0)
    public = PublicDetector({"image": reader}, key, Tokens(home / "few.db"), Journal(home / "few.log", by=key), bounds)
    serve(public, port=0, ready=lambda port: print(f"http://127.0.0.1:{port}/v1", file=sys.stderr, flush=True))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
