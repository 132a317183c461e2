"""Paints a picture as SVG: plain rectangles and text, no scripts, no fonts of its own."""

import html

from bentpipe.daemon.report.picture import Label, Picture, Rect

FONT_PX = 12


def to_svg(picture: Picture) -> str:
    """The picture as an SVG document."""
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{picture.width}" height="{picture.height}"'
        f' viewBox="0 0 {picture.width} {picture.height}" font-family="sans-serif" font-size="{FONT_PX}">',
        *map(_element, picture.shapes),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _element(shape: Rect | Label) -> str:
    match shape:
        case Rect(x, y, width, height, colour):
            return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" fill="{colour}"/>'
        case Label(x, y, text, colour, anchor):
            words = html.escape(text, quote=False)
            return f'<text x="{x:g}" y="{y:g}" fill="{colour}" text-anchor="{anchor}">{words}</text>'
