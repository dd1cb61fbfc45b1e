"""Small networks in which every coupling occurs, and the trained demo checkpoint."""

from collections.abc import Callable

from torch import nn

from penjing.zoo.fashion import fashion_resnet20 as fashion_resnet20
from penjing.zoo.resnet import ResNet as ResNet
from penjing.zoo.resnet import resnet20 as resnet20
from penjing.zoo.small import DenseNet as DenseNet
from penjing.zoo.small import MobileNet as MobileNet
from penjing.zoo.small import two_convolutions as two_convolutions

# Every network of the zoo, with the shape of one input (without the batch).
ZOO: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet20": (resnet20, (1, 28, 28)),
    "two_convolutions": (two_convolutions, (3, 32, 32)),
    "mobilenet": (MobileNet, (1, 28, 28)),
    "densenet": (DenseNet, (1, 28, 28)),
}
