"""Paints a picture as PNG, with Pillow. Pillow is an extra, since a daemon needs no pictures."""

import io
from types import ModuleType

from bentpipe.daemon.errors import BentpipeError, Source
from bentpipe.daemon.report.picture import Label, Picture, Rect
from bentpipe.daemon.report.svg import FONT_PX

SCALE = 2
"""Pixels for each unit of the picture: modern screens have more pixels than the picture has units."""
ANCHORS = {"start": "ls", "middle": "ms", "end": "rs"}
"""On the base line, as in SVG (pillow.readthedocs.io, "Text anchors")."""


class NoPainter(BentpipeError):
    """Pillow is not installed."""

    source = Source.OPERATOR


def find_pillow() -> tuple[ModuleType, ModuleType, ModuleType]:
    """Return Pillow's Image, ImageDraw and ImageFont. Raises NoPainter, with the remedy."""
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError as exc:
        raise NoPainter("PNG needs Pillow: pip install 'bentpipe[picture]', or use --svg") from exc
    return Image, ImageDraw, ImageFont


def to_png(picture: Picture) -> bytes:
    """The picture as a PNG file's bytes. Raises NoPainter."""
    image_module, draw_module, font_module = find_pillow()
    image = image_module.new("RGB", (picture.width * SCALE, picture.height * SCALE))
    draw = draw_module.Draw(image)
    font = font_module.load_default(FONT_PX * SCALE)
    for shape in picture.shapes:
        match shape:
            case Rect(x, y, width, height, colour):
                # Pillow's second corner is inside the rectangle.
                far = (max(x, x + width - 1 / SCALE) * SCALE, max(y, y + height - 1 / SCALE) * SCALE)
                draw.rectangle(((x * SCALE, y * SCALE), far), fill=colour)
            case Label(x, y, text, colour, anchor):
                draw.text((x * SCALE, y * SCALE), text, fill=colour, font=font, anchor=ANCHORS[anchor])
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return file.getvalue()
