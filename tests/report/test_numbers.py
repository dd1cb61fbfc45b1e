"""Numbers as text: few digits, never a wrong power of ten at the edges."""

import pytest

from penjing.report.numbers import Metric, amount, duration, milliseconds, percent, points, times

TOP1, PSNR, LOSS = Metric("top1"), Metric("PSNR", False, "dB"), Metric("negative loss", False)


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
        (TOP1.score(0.9445), "94.45 %"),
        (TOP1.changed(-0.002), "\u22120.20 points"),
        (TOP1.amount, "points of accuracy"),
        (TOP1.axis, "accuracy in %"),
        (Metric("mIoU").amount, "points of mIoU"),
        (PSNR.score(31.274), "31.27 dB"),
        (PSNR.score(None), "\u2013"),
        (PSNR.changed(0.31), "0.31 dB"),
        (PSNR.change(0.00123), "0.0012"),
        (PSNR.change(None), "\u2013"),
        (PSNR.amount, "dB of PSNR"),
        (PSNR.axis, "PSNR in dB"),
        (LOSS.score(-0.0123), "\u22120.0123"),
        (LOSS.changed(0.5), "0.50"),
        (LOSS.amount, "negative loss"),
        (LOSS.axis, "negative loss"),
    ],
)
def test_numbers_as_text(written: str, expected: str) -> None:
    assert written.replace("\u00a0", " ") == expected
