# SPDX-License-Identifier: Apache-2.0
"""What the public detector says of pictures and texts: one of a few words, and nothing that helps to come nearer.

*Marked* is what the owner signs, so it is the rule for attribution and not the p-value alone: a forgery learnt from
many marked works is found, but not attributed. No p-value, identifier, sub-key or place leaves this module.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol, final

from privguard.watermark.image import registry
from privguard.watermark.image.detect import EVERYWHERE, ImageDetector
from privguard.watermark.image.pictures import read_picture
from privguard.watermark.image.registry import Attributed, Logged
from privguard.watermark.image.sync import Search
from privguard.watermark.image.write import SMALLEST
from privguard.watermark.text.reading.detect import Detector
from privguard.watermark.text.reading.variants import detect_variants

FORMATS = ("PNG", "JPEG", "WEBP")  # fewer decoders than Pillow has: each is code that strangers reach
MOST_PIXELS = 1 << 23
MOST_CHARACTERS = 50_000
LEAST_TOKENS = 200  # scored n-grams: the shortest text for which "not marked" says anything


class Answer(StrEnum):
    """All that is ever said."""

    MARKED = "marked"
    NOT_MARKED = "not marked"
    TOO_SHORT = "too short"
    TOO_SMALL = "too small"


MEANING = {
    Answer.MARKED: "it, or most of it, was written under the owner's secret, or copied from what was",
    Answer.NOT_MARKED: "no mark was attributed; editing and regeneration remove marks, so this proves nothing",
    Answer.TOO_SHORT: "a text of so few words is not judged",
    Answer.TOO_SMALL: "a picture of so few pixels is not judged",
}


class Reader(Protocol):
    """Reads one kind of content."""

    @property
    def kind(self) -> str:
        """Its name in addresses and receipts."""
        ...

    @property
    def most_bytes(self) -> int:
        """The longest content that is read."""
        ...

    @property
    def log10_level(self) -> float:
        """log10 of the probability that content made without the secret is called marked."""
        ...

    @property
    def profile(self) -> Any:
        """The signed profile, with ``digest()`` and ``key_id``."""
        ...

    def answer(self, content: bytes) -> Answer:
        """The answer on one picture or text.

        Args:
            content: the file's bytes.

        Raises:
            ValueError: it is no content of this kind, or too much of it.
            MarkError: a kind of content that cannot carry a mark.
        """
        ...


@final
@dataclass(frozen=True)
class PictureReader:
    """Answers on pictures.

    With the ``log`` a picture is marked where it looks like its entry and carries the mark all over, or carries an
    attributed mark that no entry of its identifier contradicts; without it, where the mark is attributed, which misses
    5 % of honest pictures by chance.

    Attributes:
        detector: the detector of profile and secret.
        log10_level: log10 of the error probability of one answer.
        search: which sizes, turns and shifts are tried.
        log: the pictures of the signed log; empty for none.
        most_pixels: the largest picture that is decoded.
    """

    detector: ImageDetector
    log10_level: float
    search: Search = Search.GRID
    log: Sequence[Logged] = ()
    most_pixels: int = MOST_PIXELS
    kind: str = "image"
    most_bytes: int = 16 << 20

    @property
    def profile(self) -> Any:
        """The image mark's profile."""
        return self.detector.profile

    def answer(self, content: bytes) -> Answer:
        """See ``Reader.answer``."""
        picture = read_picture(io.BytesIO(content), name="picture", formats=FORMATS, most_pixels=self.most_pixels)
        rgb = picture.seen()
        if min(rgb.shape[:2]) < SMALLEST:
            return Answer.TOO_SMALL
        found = self.detector.detect([rgb], search=self.search)
        told = registry.attribute(rgb, found, self.log, log10_level=self.log10_level)
        logged = (
            told.answer is Attributed.FOUND and found.log10_p_elsewhere[0] <= EVERYWHERE
        )  # not in a part of it only
        own = logged or (told.accepted and told.answer is not Attributed.COPIED)
        return Answer.MARKED if own else Answer.NOT_MARKED


@final
@dataclass(frozen=True)
class TextReader:
    """Answers on texts in UTF-8, read with the profile's tokenizer; 5 % of honest texts are missed by chance.

    Attributes:
        detector: the detector of profile and secret.
        tokenizer: the profile's tokenizer.
        log10_level: log10 of the error probability of one answer.
        least_tokens: the fewest scored n-grams that are judged.
        most_characters: the longest text that is read.
    """

    detector: Detector
    tokenizer: Any
    log10_level: float
    least_tokens: int = LEAST_TOKENS
    most_characters: int = MOST_CHARACTERS
    kind: str = "text"

    @property
    def most_bytes(self) -> int:
        """Four bytes for each character, as UTF-8 has at most."""
        return 4 * self.most_characters

    @property
    def profile(self) -> Any:
        """The text mark's profile."""
        return self.detector.profile

    def answer(self, content: bytes) -> Answer:
        """See ``Reader.answer``."""
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise ValueError("text: expected UTF-8") from None
        if len(text) > self.most_characters:
            raise ValueError(f"text={len(text)} characters: expected at most {self.most_characters}; send a part of it")
        reading = detect_variants(self.detector, [text], self.tokenizer)[0]
        if reading.found.scored[0] < self.least_tokens:  # of the text as written, whatever the key
            return Answer.TOO_SHORT
        found = reading.verdict().log10_p_corrected <= self.log10_level
        own = found and bool(reading.found.accepted(log10_level=self.log10_level)[reading.row])
        return Answer.MARKED if own else Answer.NOT_MARKED
