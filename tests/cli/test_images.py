import struct
from pathlib import Path

import pytest
from PIL import Image, ImageOps

from efficient_vits.cli._errors import UserError
from efficient_vits.cli._images import read_image


@pytest.mark.parametrize("damage", [OSError, SyntaxError, ValueError, struct.error])
def test_whatever_a_decoder_raises_is_said(
    damage: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(image: Image.Image) -> None:
        raise damage("broken chunk")

    path = tmp_path / "a.png"
    Image.new("RGB", (8, 8)).save(path)
    monkeypatch.setattr(ImageOps, "exif_transpose", fail)
    with pytest.raises(UserError, match=r"cannot read image .*a\.png: broken chunk"):
        read_image(path)
