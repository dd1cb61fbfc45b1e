"""Whether Penjing can work here, and what to do where it cannot: `penjing doctor`."""

import os
import platform
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import NamedTuple

import torch
import typer
from rich.markup import escape
from rich.table import Table
from torch import nn

from penjing.cli.app import Json, app, console, print_json
from penjing.data import fashion_sample
from penjing.errors import first_line
from penjing.export import RUNTIMES, Artifact, export, left_in_float
from penjing.measure import cores, machine
from penjing.measure.machine import version
from penjing.processor import overflows
from penjing.quant import quantize, target_named
from penjing.search.ledger import FOLDER, Ledger
from penjing.zoo import fashion_resnet20, two_convolutions

LEAST_PYTHON = (3, 11)
SHOWN = ("torch", "numpy", "onnx", "onnxruntime", "openvino")  # a line each, the other packages one together
EXTRAS = {"augment": "images changed while training", "tensorboard": "training curves in TensorBoard"}
REQUIREMENT = re.compile(r"([\w.-]+)\s*>=\s*([\d.]+)(?:.*extra\s*==\s*['\"](\w+)['\"])?")
VNNI = ("avx512_vnni", "avx_vnni", "asimddp")
FEATURES = (  # what it is, the flags of which one is enough, what is lost without
    (
        "int8 dot products (VNNI)",
        VNNI,
        "integers gain less here than with them",
    ),
    ("bfloat16 (AVX-512 BF16)", ("avx512_bf16", "amx_bf16", "bf16"), "what stays in float runs in float32 here"),
    ("matrix units (AMX)", ("amx_int8", "i8mm"), "large batches gain less from integers here"),
)
TOLERANCE = 0.05  # of the largest output: a file in int8 against its torch module


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    ok: bool
    found: str  # a version, a name, or what went wrong
    advice: str = ""  # what to do, or what it means that this is missing
    required: bool = True  # whether no run works without


class Need(NamedTuple):
    """A package that Penjing's own metadata names."""

    package: str
    least: str
    extra: str | None


@app.command("doctor")
def doctor_command(as_json: Json = False) -> None:
    """Say whether Penjing can work here: packages, runtimes that really run, processor, GPUs, cache; and what to do.

    The exit code is 0 where a run can work, 1 where something required is missing.

    Example: `penjing doctor`
    """
    checks = list(examine())
    works = all(c.ok for c in checks if c.required)
    if as_json:
        print_json({"works": works, "checks": [asdict(c) for c in checks]})
    else:
        _tell(checks, works)
    raise typer.Exit(0 if works else 1)


def examine() -> Iterator[Check]:
    """Look at everything; a part that fails is a check that is not ok, never an exception."""
    yield _python()
    yield from _packages()
    yield _guarded("embedded network and images", "install Penjing again: pip install --force-reinstall penjing", _embedded)
    yield from _runtimes()
    yield from _processor()
    yield _guarded("GPUs", "training runs on the processor; nothing has to be done", _gpus, required=False)
    yield _guarded("cache", f"let {FOLDER} name a folder that can be written", _cache)


def _tell(checks: list[Check], works: bool) -> None:
    table = Table(title="Penjing here", title_justify="left")
    for column in ("", " ", "found", "what to do, or what it means"):
        table.add_column(column, no_wrap=not column.strip())
    for c in checks:
        color = "green" if c.ok else "red" if c.required else "yellow"
        said = (escape(c.found), "" if c.ok else escape(c.advice))  # brackets are words here: penjing[augment]
        table.add_row(c.name, f"[{color}]{'ok' if c.ok else 'missing'}[/]", *said)
    console.print(table)
    if works:
        console.print("A run can work here.", style="bold green")
    else:
        console.print("Something required is missing: see the red lines.", style="bold red")


def _guarded(name: str, advice: str, look: Callable[[], str], *, required: bool = True) -> Check:
    """What ``look`` finds; what it raises is what is missing."""
    try:
        return Check(name, True, look(), advice, required)
    except Exception as e:  # whatever is broken, the other checks still have to be made
        return Check(name, False, first_line(e), advice, required)


def _python() -> Check:
    found, least = platform.python_version(), ".".join(map(str, LEAST_PYTHON))
    ok = tuple(int(n) for n in platform.python_version_tuple()[:2]) >= LEAST_PYTHON
    return Check("python", ok, found, f"install Python {least} or later")


def _packages() -> Iterator[Check]:
    """The packages that ours needs, by its own metadata, and its extras."""
    try:
        found = [Need(*m.groups()) for text in requires("penjing") or () if (m := REQUIREMENT.match(text))]
        yield Check("penjing", True, version("penjing"))
    except PackageNotFoundError:
        yield Check(
            "penjing", False, "its sources, but not installed", "pip install penjing, or pip install -e . in its repository"
        )
        return
    checks = {need: _package(need) for need in found if need.extra is None or need.extra in EXTRAS}
    yield from (c for need, c in checks.items() if need.extra is None and (need.package in SHOWN or not c.ok))
    fine = [need.package for need, c in checks.items() if need.extra is None and need.package not in SHOWN and c.ok]
    yield Check("other packages", True, f"{len(fine)} more that it needs")
    yield from (c for need, c in checks.items() if need.extra is not None)


def _package(need: Need) -> Check:
    name = f"extra {need.extra}: {need.package}" if need.extra else need.package
    what = f"; for {EXTRAS[need.extra]}" if need.extra else ""
    advice = f"pip install '{f'penjing[{need.extra}]' if need.extra else f'{need.package}>={need.least}'}'{what}"
    try:
        found = version(need.package)
    except PackageNotFoundError:
        return Check(name, False, "not installed", advice, need.extra is None)
    ok = _numbers(found) >= _numbers(need.least)
    return Check(name, ok, found if ok else f"{found}, older than {need.least}", advice, need.extra is None)


def _numbers(text: str) -> tuple[int, ...]:
    """``"2.13.0+cpu"`` as ``(2, 13, 0)``."""
    parts = re.match(r"[\d.]*", text)
    return tuple(int(n) for n in parts.group().split(".") if n) if parts else ()


def _embedded() -> str:
    images = sum(len(split) for split in fashion_sample())
    parameters = sum(p.numel() for p in fashion_resnet20().parameters())
    return f"{parameters:,} parameters, {images:,} images"


def _runtimes() -> Iterator[Check]:
    """Quantize a tiny network, write it, and run it in each runtime."""
    with tempfile.TemporaryDirectory() as folder:
        made: list[tuple[nn.Module, Artifact]] = []
        yield _guarded("quantize and export", "install torch, onnx and onnxscript again", partial(_export, Path(folder), made))
        for name in RUNTIMES:
            if made:
                run = partial(_runs, name, *made[0])
                yield _guarded(f"{name} runs", f"pip install --force-reinstall {name}", run)
            else:
                yield Check(f"{name} runs", False, "not tried: there is no file to run", "mend the line above")


def _export(folder: Path, made: list[tuple[nn.Module, Artifact]]) -> str:
    example = (torch.randn(4, 1, 32, 32, generator=torch.Generator().manual_seed(0)),)
    tiny = quantize(two_convolutions(width=16, channels=1), example, [example])
    artifact = export(tiny, example, folder / "tiny.onnx")
    made.append((tiny, artifact))
    return f"a tiny network in int8, {artifact.path.stat().st_size:,} bytes"


def _runs(name: str, module: nn.Module, artifact: Artifact) -> str:
    """Run the file, and compare with torch.

    Raises:
        RuntimeError: It gives something else.
    """
    x = torch.randn(4, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    file = artifact.on(name)
    with torch.no_grad():
        expected, got = module.eval()(x), file.load(cores())(x)
    error = float((got - expected).abs().max() / expected.abs().max())
    if not error <= TOLERANCE:
        raise RuntimeError(f"it runs, but its outputs are off by {error:.0%} of the largest")
    layers = [k for k in file.kernels() if k.weighted]
    return f"{len(layers) - len(left_in_float(layers))} of {len(layers)} layers in int8; outputs as torch's to {error:.1%}"


def _processor() -> Iterator[Check]:
    here = machine()
    threads = f"threads of torch: {torch.get_num_threads()}, of runtimes: {cores()} if --threads does not say"
    yield Check("cores", True, f"{cores()} of {os.cpu_count()}; {threads}")
    yield Check("processor", True, here["cpu"])
    known, flags = here["system"] == "Linux", here["features"]
    for name, enough, without in FEATURES:
        has = [f for f in enough if f in flags]
        if enough is VNNI and overflows():
            without += f", and weights get {target_named('openvino').weight_bits} bits"
        yield Check(name, bool(has), ", ".join(has) or ("no" if known else f"not known on {here['system']}"), without, False)


def _gpus() -> str:
    """The names of what torch sees.

    Raises:
        RuntimeError: It sees none.
    """
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        names.append("Apple MPS")
    if not names:
        raise RuntimeError("none")
    return ", ".join(names)


def _cache() -> str:
    folder = Ledger().folder
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as f:
        f.write(b"penjing")
    return f"{folder}, {len(list(folder.glob('*.json')))} measured conditions"
