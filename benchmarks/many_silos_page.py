"""The table and the picture of `benchmarks.many_silos` for docs/many-silos.md."""

from __future__ import annotations

from typing import Any

BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 360, 64, 64, 40, 48


def table(cases: list[dict[str, Any]]) -> str:
    """A Markdown table, one row a case."""
    head = ("silos", "drawn h", "shares t", "neighbours k", "lost", "a silo's seconds: median", "max", "sent, MB")
    head += ("received, MB", "check of the sum, s", "received for it, MB", "coordinator, s", "peak memory, MB")
    lines = ["| " + " | ".join(head) + " |", "|" + "---:|" * len(head)]
    for case in cases:
        cells = [case["n"], case["h"], case["t"], round(case["k"]), case["lost"]]
        cells += [f"{case['silo_seconds_median']:.3f}", f"{case['silo_seconds_max']:.3f}"]
        cells += [f"{case['bytes_sent'] / 1e6:.2f}", f"{case['bytes_received'] / 1e6:.2f}"]
        cells += [f"{case['check_seconds_median']:.3f}", f"{case['check_bytes_received'] / 1e6:.2f}"]
        cells += [f"{case['coordinator_seconds']:.1f}", f"{case['peak_rss_mb']:.0f}"]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def with_table(page: str, cases: list[dict[str, Any]]) -> str:
    """The page with its figures replaced. Raises: ValueError where the marks are missing."""
    before, found, rest = page.partition(BEGIN)
    _, also, after = rest.partition(END)
    if not (found and also):
        raise ValueError(f"the page has no {BEGIN} .. {END}")
    return f"{before}{BEGIN}\n{table(cases)}\n{END}{after}"


def plot(cases: list[dict[str, Any]]) -> str:
    """An SVG: a silo's median seconds (left axis) and its neighbours k (right axis) against the number of silos."""
    most_n = max(case["n"] for case in cases)
    seconds = [(case["n"], case["silo_seconds_median"]) for case in cases]
    near = [(case["n"], case["k"]) for case in cases]
    most_seconds, most_near = _round_up(max(y for _, y in seconds)), _round_up(max(y for _, y in near))

    def x(n: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * n / most_n

    def y(value: float, most: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / most

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="20" fill="#1f4e8c">seconds of one silo (median)</text>',
        f'<text x="{WIDTH - RIGHT}" y="20" text-anchor="end" fill="#a03c00">its neighbours k</text>',
        f'<text x="{WIDTH / 2:.0f}" y="{HEIGHT - 8}" text-anchor="middle">silos</text>',
    ]
    for step in range(5):
        height = y(step, 4)
        parts += [
            f'<line x1="{LEFT}" y1="{height:.1f}" x2="{WIDTH - RIGHT}" y2="{height:.1f}" stroke="#dddddd"/>',
            f'<text x="{LEFT - 6}" y="{height + 4:.1f}" text-anchor="end" fill="#1f4e8c">{most_seconds * step / 4:g}</text>',
            f'<text x="{WIDTH - RIGHT + 6}" y="{height + 4:.1f}" fill="#a03c00">{most_near * step / 4:g}</text>',
        ]
    for n, _ in seconds:
        parts.append(f'<text x="{x(n):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{n}</text>')
    for points, most, colour, dash in (
        (seconds, most_seconds, "#1f4e8c", ""),
        (near, most_near, "#a03c00", ' stroke-dasharray="6 4"'),
    ):
        places = [(x(n), y(value, most)) for n, value in points]
        line = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
        parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3.5" fill="{colour}"/>' for a, b in places]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _round_up(value: float) -> float:
    """The next of 1, 2, 4, 8 times a power of ten."""
    power = 10.0**-3
    while True:
        for factor in (1, 2, 4, 8):
            if factor * power >= value:
                return factor * power
        power *= 10
