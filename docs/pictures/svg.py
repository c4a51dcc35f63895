"""The few shapes that the pictures of the documentation are made of."""

from dataclasses import dataclass, field

INK, PALE, LINE = "#1f2937", "#6b7280", "#94a3b8"
BLUE, GREEN, AMBER, GREY, ROSE = (
    ("#eff6ff", "#2563eb"),
    ("#ecfdf5", "#059669"),
    ("#fef3c7", "#d97706"),
    ("#f8fafc", "#94a3b8"),
    ("#fff1f2", "#e11d48"),
)
Colour = tuple[str, str]  # fill, stroke


@dataclass
class Picture:
    """An SVG of a width and a height in pixels, on white so that it is read on a dark page too."""

    width: int
    height: int
    title: str
    parts: list[str] = field(default_factory=list)

    def box(
        self, x: float, y: float, w: float, h: float, text: str = "", colour: Colour = GREY, size: int = 14
    ) -> None:
        """A rectangle with centred lines of text."""
        fill, stroke = colour
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="6" fill="{fill}" stroke="{stroke}"/>'
        )
        lines = text.split("\n")
        for number, line in enumerate(lines):
            middle = y + h / 2 + size * 0.35 + (number - (len(lines) - 1) / 2) * size * 1.3
            self.text(x + w / 2, middle, line, size=size)

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: int = 14,
        colour: str = INK,
        at: str = "middle",
        bold: bool = False,
    ) -> None:
        """One line of text; `at` is start, middle or end."""
        weight = ' font-weight="600"' if bold else ""
        text = text.replace("&", "&amp;").replace("<", "&lt;")
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{at}" fill="{colour}"{weight}>{text}</text>'
        )

    def arrow(self, *points: tuple[float, float], colour: str = LINE, width: float = 1.6, dashed: bool = False) -> None:
        """A line through the points, with a head at the last."""
        path = " ".join(f"{'M' if i == 0 else 'L'}{x:g} {y:g}" for i, (x, y) in enumerate(points))
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self.parts.append(
            f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="{width:g}"{dash} '
            f'marker-end="url(#head-{colour[1:]})"/>'
        )

    def svg(self) -> str:
        """The whole file."""
        strokes = (LINE, INK, *(stroke for _, stroke in (BLUE, GREEN, AMBER, ROSE)))
        body = "\n".join(self.parts)
        heads = "".join(
            f'<marker id="head-{c[1:]}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
            f'orient="auto-start-reverse"><path d="M0 0L8 4L0 8z" fill="{c}"/></marker>'
            for c in strokes
            if f"#head-{c[1:]}" in body
        )
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" role="img" '
            f'font-family="Inter,Helvetica,Arial,DejaVu Sans,sans-serif">\n<title>{self.title}</title>\n'
            f"<defs>{heads}</defs>\n"
            f'<rect width="{self.width}" height="{self.height}" rx="10" fill="#fff"/>\n{body}\n</svg>\n'
        )
