"""examples/serve.py, asked over HTTP as its users ask it."""

import io
import json
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import penjing as pj
from penjing.data.fashion import CLASSES, MEAN, STD

SERVE = Path(__file__).parents[2] / "examples/serve.py"


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's network as a file, without any of our formats around it."""
    path = tmp_path_factory.mktemp("served") / "net.onnx"
    (path.parent / "classes.txt").write_text("\n".join(CLASSES))
    pj.export(pj.zoo.fashion_resnet20(), (torch.zeros(1, 1, 28, 28),), path)
    return path


@pytest.fixture(scope="module", params=["onnxruntime", "openvino"])
def url(net: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    words = ["--runtime", request.param, "--threads", "1", "--mean", str(MEAN), "--std", str(STD)]
    words += ["--labels", str(net.parent / "classes.txt"), "--port", "0"]
    server = subprocess.Popen(
        [sys.executable, "-I", str(SERVE), str(net), *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        said = re.search(r"http://\S+", server.stdout.readline())
        assert said, server.communicate()[1]
        yield said.group()
    finally:
        server.terminate()
        server.communicate()


def ask(url: str, body: bytes | None, **headers: str) -> tuple[int, dict[str, Any]]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as e:
        with e:
            return e.code, json.load(e)


def npy(array: np.ndarray) -> bytes:
    held = io.BytesIO()
    np.save(held, array)
    return held.getvalue()


def png(image: Image.Image, **rest: Any) -> bytes:
    held = io.BytesIO()
    image.save(held, "PNG", **rest)
    return held.getvalue()


def test_it_answers_what_the_network_says(url: str) -> None:
    images = pj.data.fashion_sample().confirm.images[:3]
    batch = (images.float() / 255 - MEAN) / STD
    with torch.no_grad():
        expected = pj.zoo.fashion_resnet20()(batch)
    status, said = ask(url, npy(batch.numpy()))
    assert status == 200
    np.testing.assert_allclose(said["outputs"], expected.numpy(), rtol=0.02, atol=0.2)  # OpenVINO's default may be bfloat16
    assert said["classes"] == expected.argmax(1).tolist()
    assert said["names"] == [CLASSES[c] for c in said["classes"]]
    assert ask(url, npy(batch[0].numpy()))[1]["classes"] == said["classes"][:1]
    for i, image in enumerate(images):
        status, one = ask(url, png(Image.fromarray(image[0].numpy())))
        assert (status, one["classes"]) == (200, said["classes"][i : i + 1])
        np.testing.assert_allclose(one["outputs"][0], said["outputs"][i], rtol=0.02, atol=0.2)


def test_it_says_what_it_takes(url: str) -> None:
    assert ask(url, None)[1]["shape"] == [1, 28, 28]


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"shirt", 415, "neither an .npy file nor a PNG"),
        (npy(np.zeros((1, 32, 32), np.float32)), 400, "of shape (1, 28, 28)"),
        (npy(np.full((1, 28, 28), np.nan, np.float32)), 400, "finite"),
        (npy(np.zeros((1, 28, 28), "S1")), 400, "send numbers"),
        (npy(np.array([print])), 400, "cannot be read"),  # a pickle
        (npy(np.zeros((1, 28, 28), np.float32))[:-9], 400, "cannot be read"),
        (png(Image.new("RGB", (28, 28))), 400, "these are (1, 3, 28, 28)"),
        (png(Image.new("P", (28, 28))), 415, "without palette"),
        (png(Image.effect_noise((28, 28), 90))[:-300], 400, "the PNG is damaged"),
        (b"\x89PNG\r\n\x1a\n", 400, "the PNG is damaged"),
    ],
)
def test_what_is_wrong_is_said(body: bytes, status: int, said: str, url: str) -> None:
    code, answer = ask(url, body)
    assert (code, answer.keys()) == (status, {"error"})
    assert said in answer["error"]


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_pngs_are_read_as_pillow_reads_them(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SERVE.parent))
    from serve import read_png

    smooth = np.add.outer(np.arange(40), np.arange(30))[..., None] * np.arange(1, 4) // 2 % 256
    noise = np.random.default_rng(0).integers(0, 256, (40, 30, 3))
    for pixels in (smooth, noise):  # other filters are chosen for each
        image = Image.fromarray(pixels.astype(np.uint8)).convert(mode)
        kept = np.asarray(image).reshape(40, 30, -1)[..., : 1 if mode in ("L", "LA") else 3]
        np.testing.assert_array_equal(np.round(read_png(png(image, optimize=True)) * 255), kept.transpose(2, 0, 1))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-I", str(SERVE), str(tmp_path / "no.onnx")], capture_output=True, text=True)
    assert done.returncode == 2
    assert "give the net.onnx of a run" in done.stderr
