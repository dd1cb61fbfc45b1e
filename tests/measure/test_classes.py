import numpy as np
import pytest
import torch

from penjing.measure.classes import Flips, Forgotten, classified, expected_calibration_error, flips, forgotten


def test_calibration_by_hand() -> None:
    shares = np.array([[0.9, 0.1], [0.92, 0.08], [0.3, 0.7], [0.69, 0.31]])
    labels = np.array([0, 1, 1, 1])
    # Bins of a fifteenth: {0.9, 0.92} half right, {0.7, 0.69} half right.
    assert expected_calibration_error(shares, labels) == pytest.approx(0.5 * (0.91 - 0.5) + 0.5 * (0.695 - 0.5))
    assert expected_calibration_error(np.array([[1.0, 0.0]]), np.array([0])) == 0


def test_what_only_the_first_network_knew_is_listed_the_surest_first() -> None:
    labels = torch.tensor([0, 1, 1, 0])
    before = torch.eye(2, dtype=torch.float64)[torch.tensor([0, 1, 1, 1])]  # the last is wrong before as well
    after = torch.tensor([[0.4, 0.6], [0.9, 0.1], [0.2, 0.8], [0.1, 0.9]], dtype=torch.float64)
    found = classified([before], [after], [labels])
    assert found is not None
    assert forgotten(found) == (Forgotten(1, label=1, now=0, confidence=0.9), Forgotten(0, label=0, now=1, confidence=0.6))
    assert flips(found) == Flips(0.5, worse=2, better=0)
