"""The curve of a study's quality by round, as numbers for a server-rendered SVG: no script, and a table beside it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import floor, sqrt

from protocol.metrics import roc_points, sensitivity_specificity

WIDTH, HEIGHT = 640, 280
LEFT, RIGHT, TOP, BOTTOM = 48, 96, 14, 36
# Two-sided 95 % quantiles of Student's t for 1 to 30 degrees of freedom (any statistics table).
_T95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


@dataclass(frozen=True)
class Point:
    """One round's quality. `std`: spread across hospitals. `silos`: own AUC by silo name, only where it is shared."""

    number: int
    mean: float
    std: float | None = None
    count: int = 0
    pooled: float | None = None
    silos: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Tick:
    at: str
    label: str


@dataclass(frozen=True)
class Line:
    """A silo's own curve; `path` in SVG's path language."""

    label: str
    path: str
    end_y: str


@dataclass(frozen=True)
class Curve:
    """All that `federation/_curve.html` draws. Coordinates are text, in units of the viewBox."""

    mean: str
    pooled: str
    band: str
    silos: list[Line]
    xs: list[Tick]
    ys: list[Tick]
    last_x: str
    last_y: str
    last_label: str
    right: int = WIDTH - RIGHT
    bottom: int = HEIGHT - BOTTOM
    left: int = LEFT
    top: int = TOP
    width: int = WIDTH
    height: int = HEIGHT


def interval(mean: float | None, std: float | None, count: int) -> tuple[float, float] | None:
    """95 % interval of the mean over `count` hospitals (Student's t), cut to 0..1; None with fewer than two.

    `std` is the population spread over hospitals, as the sums give it; the estimate of the mean's error needs n - 1.
    """
    if mean is None or std is None or count < 2:
        return None
    quantile = _T95[min(count - 1, len(_T95)) - 1]
    half = quantile * std / sqrt(count - 1)
    return max(mean - half, 0.0), min(mean + half, 1.0)


def auc_curve(points: Sequence[Point]) -> Curve | None:
    """AUC by round; None with no point. The y axis reaches from a round tenth below the lowest value to 1."""
    if not points:
        return None
    lowest = min(
        min([p.mean - (p.std or 0), *([p.pooled] if p.pooled is not None else []), *p.silos.values()]) for p in points
    )
    low = max(min(floor((lowest - 0.02) * 10) / 10, 0.5), 0.0)
    if low < 0.4 and round((1 - low) * 10) % 2:
        low -= 0.1  # so that the marks, two tenths apart, end at 1
    first, last = points[0].number, max(points[-1].number, points[0].number + 1)

    def x(number: float) -> float:
        return LEFT + (number - first) / (last - first) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return TOP + (1 - (value - low) / (1 - low)) * (HEIGHT - TOP - BOTTOM)

    def path(pairs: Sequence[tuple[int, float]]) -> str:
        return "".join(f"{'L' if i else 'M'}{x(n):.1f} {y(v):.1f}" for i, (n, v) in enumerate(pairs))

    spread = [(p.number, min(p.mean + p.std, 1.0), max(p.mean - p.std, low)) for p in points if p.std is not None]
    band = ""
    if len(spread) > 1:
        upper = path([(n, above) for n, above, _ in spread])
        band = upper + "".join(f"L{x(n):.1f} {y(below):.1f}" for n, _, below in reversed(spread)) + "Z"
    names = sorted({name for p in points for name in p.silos})
    silos = []
    for name in names:
        own = [(p.number, p.silos[name]) for p in points if name in p.silos]
        silos.append(Line(name, path(own), f"{y(own[-1][1]):.1f}"))
    step = _step(last - first)
    xs = [Tick(f"{x(n):.1f}", str(n)) for n in range(first, last + 1) if (n - first) % step == 0]
    count = round((1 - low) / 0.1)
    every = 1 if count <= 6 else 2
    ys = [Tick(f"{y(low + i * 0.1):.1f}", f"{low + i * 0.1:.1f}") for i in range(0, count + 1, every)]
    end = points[-1]
    return Curve(
        mean=path([(p.number, p.mean) for p in points]),
        pooled=path([(p.number, p.pooled) for p in points if p.pooled is not None]),
        band=band,
        silos=silos,
        xs=xs,
        ys=ys,
        last_x=f"{x(end.number):.1f}",
        last_y=f"{y(end.mean):.1f}",
        last_label=f"{end.mean:.3f}",
    )


def _step(extent: int) -> int:
    return next(step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 10**9) if extent / step <= 8)


@dataclass(frozen=True)
class Dot:
    """One hospital on the strip: its name, its own AUC in text, and where it stands (0 to 1000)."""

    label: str
    value: str
    x: str


@dataclass(frozen=True)
class Strip:
    """Hospitals' own values on one line from `low` to 1, with the mean."""

    dots: list[Dot]
    mean_x: str | None
    low: str


def strip(shared: Mapping[str, float | None], hospitals: Mapping[str, str], mean: float | None) -> Strip | None:
    """The spread of the values that hospitals share; None where none does."""
    known = {name: value for name, value in shared.items() if value is not None}
    if not known:
        return None
    low = max(min(floor((min(known.values()) - 0.02) * 10) / 10, 0.5), 0.0)

    def x(value: float) -> str:
        return f"{(value - low) / (1 - low) * 1000:.1f}"

    dots = [Dot(hospitals.get(name, name), f"{value:.3f}", x(value)) for name, value in known.items()]
    return Strip(dots, x(mean) if mean is not None and mean >= low else None, f"{low:.1f}")


@dataclass(frozen=True)
class Roc:
    """The ROC curve of all scores together in a square of 260 by 260, and the working point at the threshold 0.5."""

    path: str
    at_x: str
    at_y: str
    sensitivity: float
    specificity: float


def roc(histograms: Sequence[Sequence[int]]) -> Roc | None:
    """From the summed histograms [2, bins] of a round's evaluation; None where a class is missing."""
    if not histograms:
        return None
    sensitivity, specificity = sensitivity_specificity(histograms)
    points = roc_points(histograms)
    if sensitivity is None or specificity is None or not points:
        return None

    def place(false: float, true: float) -> tuple[str, str]:
        return f"{false * 260:.1f}", f"{(1 - true) * 260:.1f}"

    path = "".join(f"{'L' if i else 'M'}{' '.join(place(x, y))}" for i, (x, y) in enumerate(points))
    return Roc(path, *place(1 - specificity, sensitivity), sensitivity, specificity)
