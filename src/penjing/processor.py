"""The processor of this machine, and which vector features it has that int8 needs."""

import platform
from functools import cache
from pathlib import Path

FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimddp", "i8mm", "bf16")


@cache
def processor() -> tuple[str, frozenset[str]]:
    """Its name, and which of ``FEATURES`` it has; none are known outside of Linux."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine(), frozenset()
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    flags = fields.get("flags", fields.get("Features", "")).split()
    return fields.get("model name", platform.machine()), frozenset(FEATURES).intersection(flags)


def overflows() -> bool:
    """Whether pairs of 8-bit products overflow 16 bits here: x86 that has AVX2 and no VNNI."""
    _, features = processor()
    return "avx2" in features and not features & {"avx512_vnni", "avx_vnni"}
