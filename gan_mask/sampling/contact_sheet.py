"""Pictures for people to look at."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from gan_mask import files
from gan_mask.sampling.verdicts import Verdict

TILE = 256  # pixels: side of one face
KEPT = 512  # pixels: longest side of a picture that is kept
LINE = 17  # pixels: height of one line of a caption
BAR = 150  # pixels: width of a verdict's bar
GOOD, BAD, TRACK = "#0a7d72", "#b8470f", "#dfe4ea"  # as in assets/page/verdicts.css

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass
class Pair:
    """A face before and after; larger pictures are shrunk at once, so that some hundreds fit into memory."""

    unmasked: Image.Image
    masked: Image.Image
    caption: Sequence[str]  # lines under the two
    verdicts: Sequence[Verdict] = ()  # and below them a line with a bar for each
    outcome: str = ""  # of `verdicts.OUTCOMES`

    def __post_init__(self) -> None:
        self.unmasked, self.masked = (_shrunk(picture) for picture in (self.unmasked, self.masked))


def _shrunk(picture: Image.Image) -> Image.Image:
    small = picture.copy()
    small.thumbnail((KEPT, KEPT), Image.Resampling.LANCZOS, reducing_gap=3.0)
    return small


def contact_sheet(pairs: Sequence[Pair], title: str, path: Path, columns: int = 3) -> None:
    """A PNG of unmasked | masked pairs with captions."""
    font = ImageFont.load_default(13)
    lines = max(len(pair.caption) + len(pair.verdicts) for pair in pairs)
    width, height = 2 * TILE + 12, TILE + 8 + lines * LINE + 8
    columns = min(columns, len(pairs))
    rows = -(-len(pairs) // columns)
    sheet = Image.new("RGB", (columns * width + 12, rows * height + 40), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text(
        (12, 12),
        _fitting(draw, title, ImageFont.load_default(15), sheet.width - 24),
        "black",
        ImageFont.load_default(15),
    )
    for index, pair in enumerate(pairs):
        x, y = 12 + index % columns * width, 40 + index // columns * height
        sheet.paste(pair.unmasked.resize((TILE, TILE), Image.Resampling.LANCZOS), (x, y))
        sheet.paste(pair.masked.resize((TILE, TILE), Image.Resampling.LANCZOS), (x + TILE, y))
        for line, text in enumerate(pair.caption):
            draw.text((x, y + TILE + 4 + line * LINE), _fitting(draw, text, font, 2 * TILE), "black", font)
        for line, verdict in enumerate(pair.verdicts, len(pair.caption)):
            _draw(draw, verdict, x, y + TILE + 4 + line * LINE, font)
    with files.replacing(path) as temporary:
        sheet.save(temporary, format="PNG", compress_level=3)  # a third of the time of 6


def _draw(draw: ImageDraw.ImageDraw, verdict: Verdict, x: int, y: int, font: Font) -> None:
    """A line of text, and on its right a bar with a tick at the threshold, in its middle."""
    colour = BAD if verdict.failed else GOOD
    text = f"{verdict.network}: {verdict.words} ({verdict.value}, threshold {verdict.threshold})"
    draw.text((x, y), _fitting(draw, text, font, 2 * TILE - BAR - 12), colour, font)
    left, top = x + 2 * TILE - BAR, y + 5
    draw.rounded_rectangle((left, top, left + BAR, top + 7), 3, TRACK)
    draw.rounded_rectangle((left, top, left + max(4, round(BAR * verdict.share)), top + 7), 3, colour)
    draw.line((left + BAR // 2, top - 3, left + BAR // 2, top + 10), "black", 2)


def _fitting(draw: ImageDraw.ImageDraw, text: str, font: Font, width: int) -> str:
    """`text`, its beginning replaced by dots where it is too long. Pillow's own font has ASCII only."""
    text = unicodedata.normalize("NFKD", text)
    text = "".join(c if c.isprintable() else "?" for c in text if not unicodedata.combining(c))
    text = text.encode("ascii", "replace").decode()
    if draw.textlength(text, font) <= width:
        return text
    while draw.textlength(f"...{text}", font) > width:
        text = text[1:]
    return f"...{text}"
