"""Numbers as people read them."""

from collections.abc import Sequence


def short(value: float | None, unit: str = "") -> str:
    """A number in three digits, with a prefix.

    >>> short(1_234_567), short(999_999), short(2_516_582, "B"), short(0), short(None)
    ('1.23 M', '1 M', '2.4 MiB', '0', '')
    """
    if value is None:
        return ""
    step, prefixes = (1024, ("", "Ki", "Mi", "Gi", "Ti")) if unit == "B" else (1000, ("", "k", "M", "G", "T"))
    power = 0
    while abs(value) >= 999.5 and power < len(prefixes) - 1:  # in three digits that is a thousand
        value, power = value / step, power + 1
    return f"{value:.3g} {prefixes[power]}{unit}".strip()


def sizes(shape: Sequence[int]) -> str:
    """A shape as people write it: 64×3×7×7."""
    return "×".join(map(str, shape))


def percent(before: float, after: float) -> str:
    """How much less or more it is: −50 %; "" where that is less than half a percent."""
    change = round(100 * (after - before) / before) if before else 0
    return f"{'−' if change < 0 else '+'}{abs(change)} %" if change else ""


def ratio_text(ratio: float | None) -> str:
    """What a model of a sweep is called, by the share of its channels that was removed.

    >>> [ratio_text(ratio) for ratio in (None, 0.0, 0.25)]
    ['as it came', '0 %', '25 %']
    """
    return "as it came" if ratio is None else f"{100 * ratio:.3g} %"
