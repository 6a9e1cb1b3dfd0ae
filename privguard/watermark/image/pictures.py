# SPDX-License-Identifier: Apache-2.0
"""Picture files in and out, with everything that is not the mark left as it was: transparency, profile, EXIF, text.

A file appears under its name whole or not at all, so a run that was stopped goes on where it was.
"""

import io
import os
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from privguard import _os
from privguard.errors import MarkError

SUFFIXES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".tif": "TIFF", ".tiff": "TIFF"}
_KEPT = ("icc_profile", "exif", "dpi", "xmp", "comment", "transparency")
_QUALITY = 95  # of JPEG and WebP: the mark is written once, and what follows will compress it anyway
_MODES = {"RGB", "RGBA", "L", "LA", "P", "PA", "1"}


@final
@dataclass(frozen=True)
class Picture:
    """One picture and what else its file said.

    ``rgb`` (H, W, 3); ``alpha`` (H, W) where it has one; ``grey`` where all colours are one.
    """

    rgb: NDArray[np.uint8]
    alpha: NDArray[np.uint8] | None = None
    grey: bool = False
    info: dict[str, Any] = field(default_factory=dict[str, Any])

    def seen(self, rgb: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        """What people see: the pixels on white where they are transparent, (H, W, 3). Marks are read in this.

        Under clear pixels a marked picture could lie that nobody sees, below another one.

        Args:
            rgb: pixels (H, W, 3) in this picture's place; None for its own.
        """
        shown = self.rgb if rgb is None else rgb
        if self.alpha is None:
            return shown
        share = (self.alpha.astype(np.float32) / 255)[..., None]
        return np.rint(shown * share + 255 * (1 - share)).astype(np.uint8)

    def encoded(self, rgb: NDArray[np.uint8], suffix: str) -> bytes:
        """The file of other pixels of the same size in this picture's place.

        Args:
            rgb: pixels (H, W, 3), uint8.
            suffix: the ending that names the format, such as ``.png``.

        Raises:
            MarkError: a suffix that is not written here, or transparency in a format that has none.
        """
        kind = SUFFIXES.get(suffix.lower())
        if kind is None:
            raise MarkError(f"suffix={suffix!r}: expected one of {', '.join(SUFFIXES)}; name another place for it")
        if self.alpha is not None and kind == "JPEG":
            raise MarkError("suffix='.jpg': JPEG has no transparency, and this picture has; write it as .png or .webp")
        colours = rgb[..., :1] if self.grey else rgb
        layers = colours if self.alpha is None else np.concatenate([colours, self.alpha[..., None]], axis=2)
        image = Image.fromarray(layers.squeeze(2) if layers.shape[2] == 1 else layers)
        file = io.BytesIO()
        image.save(file, kind, **self._options(kind))
        return file.getvalue()

    def _options(self, kind: str) -> dict[str, Any]:
        options = {key: value for key, value in self.info.items() if key in _KEPT and key != "transparency"}
        if kind == "PNG":
            text = PngInfo()
            for key, value in self.info.get("text", {}).items():
                text.add_itxt(key, str(value))
            options["pnginfo"] = text
        if kind in ("JPEG", "WEBP"):
            options["quality"] = _QUALITY
        if kind == "JPEG":
            options["subsampling"] = 0
        if kind == "WEBP":
            options["exact"] = True
        return {key: value for key, value in options.items() if value is not None}


def read_picture(
    file: str | os.PathLike[str] | io.BytesIO,
    *,
    name: str = "",
    formats: tuple[str, ...] | None = None,
    most_pixels: int | None = None,
) -> Picture:
    """Read a picture file.

    Args:
        file: the picture file, or its bytes.
        name: what messages call it; the path where none is given.
        formats: Pillow's names of the formats that are read; None for all.
        most_pixels: the largest picture that is decoded; None for what Pillow opens without danger.

    Raises:
        ValueError: it is none, is cut short, or is larger than that.
        MarkError: a kind of picture that cannot be marked and kept as it was: 16 bits, CMYK, or moving.
    """
    named = name or str(file)
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(file, formats=formats) as image:
                if most_pixels is not None and image.width * image.height > most_pixels:
                    raise ValueError(f"{named}: expected at most {most_pixels} pixels; cut it or make it smaller first")
                image.load()
                return _picture(image, named)
        except UnidentifiedImageError:
            known = "that Pillow knows" if formats is None else f"of {', '.join(formats)}"
            raise ValueError(f"{named}: expected a picture; it is none {known}") from None
        except (Image.DecompressionBombWarning, Image.DecompressionBombError):
            raise ValueError(f"{named}: expected at most {Image.MAX_IMAGE_PIXELS} pixels; cut it first") from None
        except (SyntaxError, EOFError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise ValueError(f"{named}: expected a whole picture; {error}") from None


def _picture(image: Image.Image, name: str) -> Picture:
    if getattr(image, "n_frames", 1) > 1:
        raise MarkError(f"{name}: a moving picture; mark its frames before they are put together")
    if image.mode not in _MODES:
        raise MarkError(f"{name}: mode {image.mode}; expected 8 bits of grey or RGB, with or without transparency")
    clear = image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
    grey = image.mode in ("L", "LA", "1")
    layers = np.asarray(image.convert("RGBA" if clear else "RGB"))
    info = {key: image.info[key] for key in _KEPT if key in image.info}
    text = dict(getattr(image, "text", {}))
    text.pop("XML:com.adobe.xmp", None)
    return Picture(
        rgb=np.ascontiguousarray(layers[..., :3]),
        alpha=np.ascontiguousarray(layers[..., 3]) if clear else None,
        grey=grey,
        info={**info, "text": text} if text else info,
    )


def write_new(path: Path, content: bytes) -> None:
    """Write a file that appears whole under a free name.

    Args:
        path: the picture file.
        content: the file's bytes.

    Raises:
        FileExistsError: the name is taken; nothing is replaced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{_os.fresh_token()}"
    try:
        temporary.write_bytes(content)
        _os.publish(temporary.name, path.name, directory=path.parent, dir_fd=None)
    finally:
        temporary.unlink(missing_ok=True)


def find_pictures(inputs: Iterable[str]) -> list[tuple[Path, Path]]:
    """Each picture that files, folders and patterns name, with its place below the folder it was found in.

    Args:
        inputs: files, folders and patterns.

    Raises:
        ValueError: an input that names nothing.
    """
    out: dict[Path, Path] = {}
    for text in inputs:
        pairs = list(_found(text))
        if not pairs:
            raise ValueError(f"{text}: expected a picture, a folder with pictures, or a pattern that matches some")
        for path, place in pairs:
            out.setdefault(path, place)
    return list(out.items())


def require_own_places(pairs: Iterable[tuple[Path, Path]]) -> None:
    """Refuse two pictures that would get one place in a folder.

    Args:
        pairs: pictures with their places.

    Raises:
        ValueError: they would.
    """
    taken: dict[Path, Path] = {}
    for path, place in pairs:
        if taken.setdefault(place, path) != path:
            raise ValueError(f"{path}: {taken[place]} has the same name; give their folder instead")


def _found(text: str) -> Iterator[tuple[Path, Path]]:
    path = Path(text)
    if path.is_dir():
        files = sorted(each for each in path.rglob("*") if each.is_file())
        yield from ((each, each.relative_to(path)) for each in files if _is_picture(each))
    elif path.exists():
        yield path, Path(path.name)
    elif any(sign in text for sign in "*?["):
        for each in sorted(Path(path.anchor or ".").glob(str(path.relative_to(path.anchor) if path.anchor else path))):
            if each.is_file() and _is_picture(each):
                yield each, Path(each.name)


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
