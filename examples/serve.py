"""Serve a compressed network over HTTP: python serve.py net.onnx [--runtime openvino] [--mean 0.286 --std 0.353]

It needs numpy and one runtime, onnxruntime or openvino; neither torch nor Penjing. Send one image, or a batch:

    curl --data-binary @shirt.png http://127.0.0.1:8000/
    curl --data-binary @batch.npy http://127.0.0.1:8000/

A PNG has 8 bits a channel; its values are divided by 255, then --mean is taken away and the rest divided by --std. What is in
an .npy file goes to the network as it is: float32, (channels, height, width) or several of these. The answer is JSON: the
outputs, the number of the largest of each row and, with --labels, its name. GET / tells what the network takes.
"""

import argparse
import functools
import io
import json
import struct
import sys
import time
import zlib
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np

PNG, NPY = b"\x89PNG\r\n\x1a\n", b"\x93NUMPY"
CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}  # of a PNG's kinds: grey, color, and both with opacity, which is left out
LARGEST = 64 * 2**20  # bytes of one request
Run = Callable[[np.ndarray], np.ndarray]


class Refused(Exception):
    """What is wrong with a request, and the HTTP status that says so."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Network:
    """A loaded file of one input, whose first dimension is the batch."""

    def __init__(self, path: Path, runtime: str, threads: int) -> None:
        self.runtime = runtime
        self.run, self.shape = LOADERS[runtime](path, threads)

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        """Outputs for a batch.

        Raises:
            Refused: It is not of the network's shape, or not finite.
        """
        if batch.ndim == len(self.shape):
            batch = batch[None]
        if batch.shape[1:] != self.shape or not len(batch):
            raise Refused(400, f"the network takes images of shape {self.shape}, alone or in a batch; these are {batch.shape}")
        if batch.dtype.kind not in "fiu":
            raise Refused(400, f"the values are {batch.dtype}; send numbers, best float32")
        batch = np.ascontiguousarray(batch, np.float32)
        if not np.isfinite(batch).all():
            raise Refused(400, "the values are not all finite")
        return self.run(batch)


def load_onnxruntime(path: Path, threads: int) -> tuple[Run, tuple[int, ...]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    taken = session.get_inputs()[0]
    return lambda batch: session.run(None, {taken.name: batch})[0], tuple(taken.shape[1:])


def load_openvino(path: Path, threads: int) -> tuple[Run, tuple[int, ...]]:
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    settings = {"PERFORMANCE_HINT": "LATENCY", **({"INFERENCE_NUM_THREADS": threads} if threads else {})}

    @functools.lru_cache(maxsize=8)  # fixed sizes let the runtime choose better kernels
    def compiled(shape: tuple[int, ...]) -> Any:
        fixed = model.clone()
        fixed.reshape(list(shape))
        return core.compile_model(fixed, "CPU", settings)

    def run(batch: np.ndarray) -> np.ndarray:
        outputs = compiled(batch.shape).create_infer_request().infer([batch])
        return np.array(next(iter(outputs.values())))

    return run, tuple(d.get_length() for d in list(model.input().get_partial_shape())[1:])


LOADERS = {"onnxruntime": load_onnxruntime, "openvino": load_openvino}


def read_npy(body: bytes) -> np.ndarray:
    """An array; pickles, which could run code, are refused."""
    try:
        return np.asarray(np.load(io.BytesIO(body), allow_pickle=False))
    except (ValueError, EOFError, OSError) as e:
        raise Refused(400, f"the .npy file cannot be read: {e}") from e


def read_png(body: bytes) -> np.ndarray:
    """A PNG as (channels, height, width), from 0 to 1."""
    try:
        wide, high, depth, kind, _, _, interlaced = struct.unpack(">IIBBBBB", body[16:29])
        if depth != 8 or kind not in CHANNELS or interlaced:
            raise Refused(415, "the PNG must be grey or in color with 8 bits a channel, without palette or interlacing")
        if not (wide and high) or high * (wide * CHANNELS[kind] + 1) > LARGEST:
            raise Refused(413, f"the image is {wide} x {high}; that is too large, or nothing")
        packed, at = b"", 8
        while at < len(body):
            size, name = struct.unpack(">I4s", body[at : at + 8])
            packed += body[at + 8 : at + 8 + size] if name == b"IDAT" else b""
            at += size + 12
        unpacker = zlib.decompressobj()
        rows = np.frombuffer(unpacker.decompress(packed, high * (wide * CHANNELS[kind] + 1)), np.uint8)
        pixels = _unfiltered(rows.reshape(high, wide * CHANNELS[kind] + 1), CHANNELS[kind])
    except (struct.error, zlib.error, ValueError) as e:
        raise Refused(400, f"the PNG is damaged: {e}") from e
    shown = pixels.reshape(high, wide, CHANNELS[kind])[..., : 1 if kind in (0, 4) else 3]
    return shown.transpose(2, 0, 1).astype(np.float32) / 255


def _unfiltered(rows: np.ndarray, step: int) -> np.ndarray:
    """The bytes of the pixels: a PNG's rows say what to add to what is to the left (``step`` bytes) and above."""
    if rows[:, 0].max() > 4:
        raise ValueError("a row is packed in a way that PNG does not know")
    above, pixels = bytearray(rows.shape[1] - 1 + step), []  # zeros above the first row, and to the left of each
    for how, *row in rows.tolist():
        now = bytearray(step)
        for x, value in enumerate(row):
            left, up, corner = now[x], above[x + step], above[x]
            guess = (0, left, up, (left + up) // 2)[how] if how < 4 else _nearest(left, up, corner)
            now.append((value + guess) % 256)
        above = now
        pixels.append(now[step:])
    return np.frombuffer(b"".join(pixels), np.uint8)


def _nearest(left: int, above: int, corner: int) -> int:
    """Paeth's guess: the neighbor that is nearest to left + above - corner."""
    guess = left + above - corner
    to_left, to_above, to_corner = abs(guess - left), abs(guess - above), abs(guess - corner)
    if to_left <= to_above and to_left <= to_corner:
        return left
    return above if to_above <= to_corner else corner


class Handler(BaseHTTPRequestHandler):
    """GET tells what the network takes, POST asks it."""

    network: Network
    options: argparse.Namespace
    timeout = 30  # seconds that a silent client is waited for

    def do_GET(self) -> None:
        self.answer(200, {"runtime": self.network.runtime, "shape": list(self.network.shape), "send": "POST .npy or PNG"})

    def do_POST(self) -> None:
        try:
            self.answer(200, self.asked(self.body()))
        except Refused as e:
            self.answer(e.status, {"error": str(e)})
        except Exception as e:  # one bad request must not end the server
            print(f"error: {e!r}", file=sys.stderr)
            self.answer(500, {"error": "the network could not be run; the server's log says why"})

    def body(self) -> bytes:
        length = self.headers.get("Content-Length", "")
        if not length.isdigit():
            raise Refused(411, "send a Content-Length")
        if int(length) > LARGEST:
            self.close_connection = True
            raise Refused(413, f"{int(length)} bytes are too many; send at most {LARGEST}")
        return self.rfile.read(int(length))

    def asked(self, body: bytes) -> dict[str, Any]:
        if body.startswith(NPY):
            batch = read_npy(body)
        elif body.startswith(PNG):
            batch = (read_png(body) - self.options.mean) / self.options.std
        else:
            raise Refused(415, "the body is neither an .npy file nor a PNG")
        began = time.perf_counter()
        outputs = self.network(batch)
        told: dict[str, Any] = {"outputs": outputs.tolist(), "milliseconds": (time.perf_counter() - began) * 1e3}
        if outputs.ndim == 2:
            told["classes"] = outputs.argmax(1).tolist()
            if self.options.names:
                told["names"] = [self.options.names[c] for c in told["classes"]]
        return told

    def answer(self, status: int, value: dict[str, Any]) -> None:
        text = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve a compressed network over HTTP.")
    parser.add_argument("file", type=Path, help="the ONNX file")
    parser.add_argument("--runtime", choices=LOADERS, default="onnxruntime")
    parser.add_argument("--threads", type=int, default=0, help="of the runtime; 0: all cores")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 to be reached from other machines")
    parser.add_argument("--port", type=int, default=8000, help="0: a free one")
    parser.add_argument("--mean", type=float, default=0.0, help="taken from a PNG's values, which are from 0 to 1")
    parser.add_argument("--std", type=float, default=1.0, help="a PNG's values are divided by it afterwards")
    parser.add_argument("--labels", type=Path, help="a text file with the name of one class a line")
    options = parser.parse_args()
    if not options.file.is_file():
        parser.error(f"{options.file} is not there; give the net.onnx of a run")
    options.names = options.labels.read_text(encoding="utf-8").splitlines() if options.labels else []
    Handler.network, Handler.options = Network(options.file, options.runtime, options.threads), options
    server = ThreadingHTTPServer((options.host, options.port), Handler)
    print(f"{options.file} in {options.runtime} on http://{options.host}:{server.server_address[1]}/", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        server.server_close()


if __name__ == "__main__":
    main()
