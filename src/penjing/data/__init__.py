"""Data: the embedded sample, Fashion-MNIST, and labelled images in memory."""

from penjing.data.augment import AUGMENTATIONS as AUGMENTATIONS
from penjing.data.augment import augmentation as augmentation
from penjing.data.fashion import CLASSES as CLASSES
from penjing.data.fashion import FashionMNIST as FashionMNIST
from penjing.data.fashion import fashion_batches as fashion_batches
from penjing.data.fashion import fashion_mnist as fashion_mnist
from penjing.data.images import ImageBatches as ImageBatches
from penjing.data.images import LabelledImages as LabelledImages
from penjing.data.sample import FashionSample as FashionSample
from penjing.data.sample import fashion_sample as fashion_sample
