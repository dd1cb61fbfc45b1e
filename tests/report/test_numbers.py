"""Numbers as text: few digits, never a wrong power of ten at the edges."""

import pytest

from penjing.report.numbers import amount, duration, milliseconds, percent, points, times


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (amount(1_084_010), "1.08 M"),
        (amount(390_000, "B"), "390 kB"),
        (amount(66_000_000), "66.0 M"),
        (amount(999_600), "1.00 M"),
        (amount(999, "B"), "999 B"),
        (amount(10), "10"),
        (amount(None), "\u2013"),
        (percent(0.9445), "94.45 %"),
        (percent(None), "\u2013"),
        (points(-0.002), "\u22120.20"),
        (points(0.0035), "0.35"),
        (points(-0.0), "0.00"),
        (milliseconds(0.62), "0.620 ms"),
        (milliseconds(99.96), "100 ms"),
        (milliseconds(1340.4, "us"), "1340 us"),
        (milliseconds(8.4, ""), "8.40"),
        (times(6.1), "6.1\u00d7"),
        (times(0.82), "0.82\u00d7"),
        (duration(4.2), "4.2 s"),
        (duration(59.97), "1 min 0 s"),
        (duration(185), "3 min 5 s"),
        (duration(7620), "2 h 7 min"),
    ],
)
def test_numbers_as_text(written: str, expected: str) -> None:
    assert written.replace("\u00a0", " ") == expected
