"""The demo's teacher: ResNet-20 of width 32, trained on Fashion-MNIST by ``recipes/fashion_teacher.py``."""

from importlib.resources import as_file, files

from penjing.files import read_tensors
from penjing.zoo.resnet import ResNet, resnet20


def fashion_resnet20() -> ResNet:
    """The trained network, from its 16-bit weights, in eval mode: ``(N, 1, 28, 28)`` normalized -> ``(N, 10)`` logits."""
    with as_file(files("penjing.zoo").joinpath("fashion_resnet20.safetensors")) as path:
        tensors, _ = read_tensors(path)
    model = resnet20()
    model.load_state_dict({name: t.float() if t.is_floating_point() else t for name, t in tensors.items()})
    return model.eval()
