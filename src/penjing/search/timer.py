"""Files timed fairly and once: beside a reference that is always the same, and looked up where they were timed before."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from penjing.export import Artifact
from penjing.measure import Measurement, compare, machine
from penjing.progress import Progress, silent
from penjing.search.ledger import Ledger

Contender = tuple[Artifact, str | None]  # a file, and the precision that it is loaded in
REFERENCE = "the reference"
MOMENTS = 3  # at which a file is timed that much hangs on


class Timer:
    """Times files at one batch, in their runtime.

    With a ledger, a file that was timed on this machine before has the time of then. With a reference, files that are timed at
    different moments can be compared: each time is in proportion to the reference's, which is timed along.
    """

    def __init__(
        self,
        inputs: Sequence[Tensor],
        *,
        threads: int | None,
        seconds: float,
        ledger: Ledger | None = None,
        fresh: bool = False,
        progress: Progress = silent,
    ) -> None:
        self.inputs, self.threads, self.seconds = tuple(inputs), threads, seconds
        self.ledger, self.fresh, self.progress = ledger, fresh, progress
        self.known: dict[str, Any] = {}
        self.reference: Contender | None = None

    def refer(self, artifact: Artifact, precision: str | None) -> Measurement:
        """Take a file as the reference, from now on."""
        found = self({REFERENCE: (artifact, precision)})[REFERENCE]
        self.reference = artifact, precision
        return found

    def __call__(self, contenders: Mapping[str, Contender], moment: str = "") -> dict[str, Measurement]:
        """One call's time of each.

        Args:
            moment: What to call another moment, at which files that were timed before are timed anew.
        """
        keys = {name: self._key(c) + moment for name, c in contenders.items()}
        new = {name: c for name, c in contenders.items() if keys[name] not in self._shelf(c, keys[name])}
        if new:
            found = self._timed(new)
            for name, m in found.items():
                self._keep(new[name], keys[name], m)
        self.known |= {keys[name]: self._shelf(c, keys[name])[keys[name]] for name, c in contenders.items()}
        return {name: Measurement(**self.known[key]) for name, key in keys.items()}

    def surely(self, contender: Contender) -> Measurement:
        """One call's time, the median of several moments: for when much hangs on it. It stays what is known of the file."""
        found = sorted((self._timed({"it": contender})["it"] for _ in range(MOMENTS)), key=lambda m: m.value)[MOMENTS // 2]
        self._keep(contender, self._key(contender), found, instead=True)
        return found

    def _timed(self, contenders: Mapping[str, Contender]) -> dict[str, Measurement]:
        beside = {REFERENCE: self.reference} if self.reference else {}
        runs = {name: a.load(self.threads, precision) for name, (a, precision) in {**contenders, **beside}.items()}
        found = compare(runs, *self.inputs, seconds=self.seconds, progress=self.progress)
        if self.reference is None:
            return found
        key = self._key(self.reference)
        usual = Measurement(**self._shelf(self.reference, key)[key]).value
        share = usual / found.pop(REFERENCE).value
        return {name: _scaled(m, share) for name, m in found.items()}

    def _key(self, contender: Contender) -> str:
        artifact, precision = contender
        return f"{artifact.runtime} {artifact.digest} {precision or 'default'}"

    def _shelf(self, contender: Contender, key: str) -> Mapping[str, Any]:
        """What is known: of this timer, and unless all is to be fresh, of the ledger."""
        if self.ledger is None or self.fresh or key in self.known:
            return self.known
        return self.ledger.read(self._conditions(contender))

    def _keep(self, contender: Contender, key: str, found: Measurement, *, instead: bool = False) -> None:
        self.known[key] = found.to_json()
        if self.ledger is not None:
            self.ledger.write(self._conditions(contender), {key: self.known[key]}, fresh=self.fresh or instead)

    def _conditions(self, contender: Contender) -> dict[str, Any]:
        here, runtime = machine(), contender[0].runtime
        shapes = [list(x.shape) for x in self.inputs]
        kept = {"cpu": here["cpu"], "features": here["features"], runtime: here.get(runtime, "of the user's")}
        return {"what": "time of a call", **kept, "threads": self.threads, "inputs": shapes}


def _scaled(m: Measurement, by: float) -> Measurement:
    return Measurement(m.value * by, m.unit, m.low * by, m.high * by, m.samples, m.where)
