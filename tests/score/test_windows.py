import pytest
import torch
from torch.nn import functional as F

from penjing.score.windows import padded, pads_of_spread, spread, unfolded

KERNEL, DILATION = (3, 2), (1, 2)


@pytest.mark.parametrize("stride", [(1, 1), (2, 3)])
def test_products_of_windows_are_convolutions(stride: tuple[int, int]) -> None:
    x, weight = torch.randn(2, 4, 9, 11), torch.randn(5, 4, *KERNEL)
    windows = unfolded(padded(x, ((1, 1), (2, 2))), KERNEL, stride, DILATION)
    found = torch.einsum("ncxyij,ocij->noxy", windows, weight)
    torch.testing.assert_close(found, F.conv2d(x, weight, None, stride, (1, 2), DILATION), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("padding", [(0, 1), (2, 3)], ids=["zeros around", "cut off"])  # (2, 3) is more than the kernel reaches
@pytest.mark.parametrize("stride", [(1, 1), (2, 3)])
def test_products_of_windows_over_what_is_spread_are_transposed_convolutions(
    stride: tuple[int, int], padding: tuple[int, int]
) -> None:
    x, weight, more = torch.randn(2, 4, 7, 6), torch.randn(4, 5, *KERNEL), tuple(s - 1 for s in stride)
    wide = padded(spread(x, stride), pads_of_spread(KERNEL, DILATION, padding, more))
    found = torch.einsum("ncxyij,coij->noxy", unfolded(wide, KERNEL, (1, 1), DILATION), weight.flip((2, 3)))
    expected = F.conv_transpose2d(x, weight, None, stride, padding, more, 1, DILATION)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
