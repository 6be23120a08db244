"""Images from files, upright and in RGB."""

import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from efficient_vits.cli._errors import UserError

# What Pillow's decoders raise on damaged files, and on such as would fill the memory.
_UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    struct.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


def check_image(path: Path) -> None:
    """Raise UserError unless the file is an image, as far as its first bytes tell."""
    with _opened(path) as image:
        # Pillow would clip these to 0 ... 255, which leaves a white picture.
        if image.mode.startswith(("I", "F")):
            raise UserError(
                f"image {path} has more than 8 bits a channel (mode {image.mode}); accepted are "
                f"8-bit images"
            )


def read_image(path: Path) -> Image.Image:
    """The image in RGB, turned the way its EXIF orientation says."""
    with _opened(path) as image:
        return ImageOps.exif_transpose(image).convert("RGB")


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        if not path.is_file():
            raise UserError(f"no image file {path}")
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                yield image
    except UnidentifiedImageError as error:
        raise UserError(f"{path} is not an image; accepted are JPEG and PNG files") from error
    except _UNREADABLE as error:
        raise UserError(f"cannot read image {path}: {error}") from error
