"""Small networks in which every coupling occurs, and the trained demo checkpoint."""

from penjing.zoo.resnet import ResNet as ResNet
from penjing.zoo.resnet import resnet20 as resnet20
