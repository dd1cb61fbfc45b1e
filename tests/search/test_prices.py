import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from penjing.errors import RecipeError
from penjing.graph import capture, find_channels
from penjing.graph.layers import Layer, layers
from penjing.prune import plan_widths, prune_channels
from penjing.prune.decide import allowed_widths
from penjing.quant import target_named
from penjing.score import Evidence, l2_norm
from penjing.search.ledger import Ledger
from penjing.search.price_fit import Coefficients, fit_geometry, fit_whole, layer_price, rows_of
from penjing.search.price_samples import Sample, Sampler, Site, cut_layers, draw_widths, site, structure
from penjing.search.prices import FEW, Prices, PriceSettings, Pricing, fit_prices, measure_prices
from penjing.zoo import ZOO, resnet20

LANES = 16
TRUE = {  # by precision and kind of layer: base, inputs, outputs, product
    "int8": {"wide": (0.02, 3e-4, 2e-4, 4e-6), "depthwise": (0.01, 0.0, 5e-4, 0.0), "head": (0.005, 1e-4, 0.0, 0.0)},
    "float": {"wide": (0.05, 6e-4, 4e-4, 9e-6), "depthwise": (0.02, 0.0, 1e-3, 0.0), "head": (0.01, 2e-4, 0.0, 0.0)},
}
CALL, VALUES = {"int8": 0.1, "float": 0.4}, 1e-6


def up(n: int) -> int:
    """Padded, written down another way."""
    return n if n % LANES == 0 else up(n + 1)


def kind(geometry: str) -> str:
    return "depthwise" if "depthwise" in geometry else "head" if geometry.startswith("linear") else "wide"


def taken(s: Site, precision: str) -> float:
    """What a layer takes in the graph."""
    base, inputs, outputs, product = TRUE[precision][kind(s.geometry)]
    i, o = (up(n) for n in s.widths)
    return base + inputs * i + outputs * o + product * i * o


def called(sites: Sequence[Site], precision: str) -> float:
    """What a whole call takes."""
    return CALL[precision] + sum(taken(s, precision) + VALUES * s.positions * up(s.widths[1]) for s in sites)


def run(sites: Sequence[Site], precision: str) -> Sample:
    return Sample(precision, called(sites, precision), tuple(sites), tuple(taken(s, precision) for s in sites))


def sites_of(widths: Sequence[int]) -> list[Site]:
    """A stem, two wide layers, a depthwise one between them, and a head."""
    a, b = widths
    return [
        Site("stem.weight", "conv 3x3 1 groups from 3 at 64", (3, a), 64),
        Site("one.weight", "conv 1x1 1 groups at 64", (a, b), 64),
        Site("between.weight", "conv 3x3 depthwise at 64", (b, b), 64),
        Site("two.weight", "conv 1x1 1 groups at 64", (b, a), 64),
        Site("head.weight", "linear  1 groups at 1", (a, 10), 1),
    ]


SEEN = [(64, 256), (16, 16), (16, 256), (64, 32), (48, 96), (32, 128), (32, 16), (48, 224)]


@pytest.fixture(scope="module")
def prices() -> Prices:
    samples = [run(sites_of(w), p) for w in SEEN for p in TRUE]
    return fit_prices(samples, rows_of(samples), LANES)


@pytest.fixture(scope="module")
def small() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return resnet20(width=32), torch.randn(1, 1, 28, 28)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Networks are not written and run, but take what the formulas say; how many were, call by call."""
    calls: list[int] = []

    def samples(self: Sampler, widths: Sequence[Mapping[str, int]], *_told: object) -> list[Sample]:
        calls.append(len(widths))
        return [run(self.sites(w), p) for w in widths for p in TRUE]

    monkeypatch.setattr(Sampler, "samples", samples)
    return calls


# The fit.


@pytest.mark.parametrize("precision", TRUE)
@pytest.mark.parametrize("widths", [(64, 256), (33, 17), (80, 512), (1, 1)])
def test_networks_that_were_not_seen_are_foretold(prices: Prices, precision: str, widths: tuple[int, int]) -> None:
    assert prices.of_sites(sites_of(widths), precision) == pytest.approx(called(sites_of(widths), precision), rel=1e-6)


def test_the_price_of_a_geometry_is_recovered() -> None:
    samples = [run(sites_of(w), "int8") for w in SEEN]
    by_geometry = rows_of(samples)["int8"]
    for geometry in ("conv 1x1 1 groups at 64", "conv 3x3 depthwise at 64"):
        found = fit_geometry(geometry, by_geometry[geometry], up)
        expected = TRUE["int8"][kind(geometry)]
        assert (found.base, found.inputs, found.outputs, found.product) == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_times_of_layers_count_where_values_would_do_as_well() -> None:
    """All layers grow together, so calls alone cannot tell the layers' own time from what goes with their values."""
    geometry = "conv 1x1 1 groups at 64"
    samples = []
    for width in (16, 32, 48, 64):
        one = Site("one.weight", geometry, (16, width), 64)
        samples.append(Sample("int8", 0.1 + 0.001 * width, (one,), (0.001 * width,)))
    whole = fit_whole(samples, {geometry: Coefficients(outputs=0.001)}, up)
    assert (whole.constant, whole.scale, whole.values) == pytest.approx((0.1, 1.0, 0.0), abs=1e-9)


def test_profiles_that_take_longer_than_calls_shorten_the_bases() -> None:
    geometry = "conv 1x1 1 groups at 64"
    sites = [[Site(f"{n}.weight", geometry, (16, w), 64) for n in "abc"] for w in (16, 32, 48, 64)]
    samples = [Sample("int8", 0.06 + 3 * 0.001 * s[0].widths[1], tuple(s), (0.0,) * 3) for s in sites]
    whole = fit_whole(samples, {geometry: Coefficients(base=0.05, outputs=0.001)}, up)
    assert (whole.constant, whole.scale) == pytest.approx((0.0, 1.0), abs=1e-9)
    price = layer_price(sites[0][0], Coefficients(base=0.05, outputs=0.001), whole)
    assert (price.base, price.outputs) == pytest.approx((0.02, 0.001))


def test_layers_that_the_runtime_tells_nothing_of_do_not_count() -> None:
    sample = run(sites_of((64, 256)), "int8")
    silent = replace(sample, times=(0.0,) * len(sample.times))
    rows = rows_of([silent])["int8"]["conv 1x1 1 groups at 64"]
    assert fit_geometry("conv 1x1 1 groups at 64", rows, up) == Coefficients()


def test_equal_layers_of_a_network_are_one_row_with_their_median() -> None:
    twice = [Site(f"{n}.weight", "conv 1x1 1 groups at 64", (16, 32), 64) for n in "abc"]
    (row,) = rows_of([Sample("int8", 1.0, tuple(twice), (3.0, 1.0, 2.0))])["int8"]["conv 1x1 1 groups at 64"]
    assert (row.widths, row.ms) == ((16, 32), 2.0)


def test_no_price_is_negative_where_times_are_noisy() -> None:
    generator = torch.Generator().manual_seed(0)
    samples = [run(sites_of(w), p) for w in SEEN for p in TRUE]
    noisy = [
        replace(s, times=tuple(t * (1 + 0.3 * float(torch.randn((), generator=generator))) for t in s.times)) for s in samples
    ]
    found = fit_prices(noisy, rows_of(noisy), LANES)
    every = [v for held in found.coefficients.values() for c in held.values() for v in (c.base, c.inputs, c.outputs, c.product)]
    assert min(every) >= 0 and min(found.constant.values()) >= 0
    assert 0 < found.error < 0.1


# What prices offer.


def test_widths_are_padded_to_lanes(prices: Prices) -> None:
    assert [prices.padded(n) for n in (1, 15, 16, 17, 32, 33)] == [16, 16, 16, 32, 32, 48]
    assert prices.of_sites(sites_of((17, 33)), "int8") == prices.of_sites(sites_of((32, 48)), "int8")
    assert prices.of_sites(sites_of((17, 33)), "int8") < prices.of_sites(sites_of((33, 33)), "int8")


def test_a_network_costs_the_constant_and_its_layers_in_any_precisions(
    small: tuple[nn.Module, Tensor], watched: list[int], tmp_path: Path
) -> None:
    model, x = small
    found = measure_prices(model, x, target="openvino", ledger=Ledger(tmp_path), settings=PriceSettings(threads=1))
    assert watched == [8]
    every = layers(capture(model, x))
    precision = {layer.weight: ("int8", "float")[n % 2] for n, layer in enumerate(every)}
    expected = found.constant["int8"]
    for layer in every:
        c = found.coefficients[precision[layer.weight]][layer.weight]
        i, o = (up(n) for n in layer.widths)
        expected += c.base + c.inputs * i + c.outputs * o + c.product * i * o
    assert found.predict(every, precision) == pytest.approx(expected)
    assert found.predict(every) == pytest.approx(called([site(layer) for layer in every], "int8"), rel=1e-6)
    assert found.predict(every) < found.predict(every, precision)
    assert found.constant["int8"] == found.constant["float"]  # so that one number serves every mix


def test_a_layer_or_a_precision_without_a_price_is_refused(prices: Prices, small: tuple[nn.Module, Tensor]) -> None:
    model, x = small
    every = layers(capture(model, x))
    with pytest.raises(RecipeError, match=r"priced layer 'conv\.weight' is not known"):
        prices.predict(every)
    with pytest.raises(RecipeError, match="precision 'int4' is not known"):
        prices.predict(every[:1], {"conv.weight": "int4"})


def test_prices_come_back_from_json(prices: Prices) -> None:
    assert Prices.from_json(prices.to_json()) == prices
    with pytest.raises(RecipeError, match="these are not prices"):
        Prices.from_json({"constant": {}})


def test_samples_come_back_from_json() -> None:
    sample = run(sites_of((64, 256)), "int8")
    assert Sample.from_json(sample.to_json()) == sample


def test_fewer_samples_than_unknowns_are_refused() -> None:
    with pytest.raises(RecipeError, match="samples is 3"):
        PriceSettings(samples=3)


# The ledger.


@pytest.fixture
def pricing(tmp_path: Path, watched: list[int]) -> Iterator[Callable[..., Pricing]]:
    def made(model: nn.Module, x: Tensor, *, fresh: bool = False, target: str = "openvino", batch: int = 1) -> Pricing:
        settings = PriceSettings(batch=batch, threads=1)
        return Pricing(model, x, target=target, settings=settings, ledger=Ledger(tmp_path), fresh=fresh)

    assert watched == []
    yield made


def test_what_is_known_is_not_measured_again(
    small: tuple[nn.Module, Tensor], pricing: Callable[..., Pricing], watched: list[int]
) -> None:
    model, x = small
    first = pricing(model, x)
    assert first.cost.networks == 8 and first.cost.seconds > 0
    found = first.prices()
    again = pricing(copy.deepcopy(model).requires_grad_(False), x)
    assert again.cost.networks == 0 and again.cost.seconds == 0
    assert again.prices() == found
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(2)
    assert pricing(model, x).prices() == found  # weights do not change what a layer costs
    assert watched == [8]


def test_other_conditions_and_fresh_prices_are_measured(
    small: tuple[nn.Module, Tensor], pricing: Callable[..., Pricing], watched: list[int]
) -> None:
    model, x = small
    pricing(model, x).prices()
    pricing(model, x, batch=2).prices()
    pricing(model, x, target="onnxruntime").prices()
    assert watched == [8, 8, 8]
    pricing(model, x, fresh=True).prices()
    assert watched == [8, 8, 8, 8]
    pricing(model, x).prices()
    assert watched == [8, 8, 8, 8]


def test_fresh_prices_take_the_place_of_the_old(
    small: tuple[nn.Module, Tensor], pricing: Callable[..., Pricing], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = small
    old = pricing(model, x).prices()
    monkeypatch.setitem(CALL, "int8", 0.3)
    assert pricing(model, x).prices() == old
    new = pricing(model, x, fresh=True).prices()
    assert new.constant["int8"] == pytest.approx(old.constant["int8"] + 0.2)
    assert pricing(model, x).prices() == new


def test_a_network_of_layers_that_are_known_needs_few_runs(
    small: tuple[nn.Module, Tensor], pricing: Callable[..., Pricing], watched: list[int]
) -> None:
    model, x = small
    pricing(model, x).prices()
    shorter = copy.deepcopy(model)
    shorter.stage1 = nn.Sequential(*list(shorter.stage1)[:2])  # type: ignore[arg-type]
    found = pricing(shorter, x)
    assert found.cost.networks == FEW
    every = layers(capture(shorter, x))
    assert found.prices().predict(every) == pytest.approx(called([site(layer) for layer in every], "int8"), rel=1e-6)
    assert watched == [8, FEW]


# Networks of other widths.


@pytest.mark.parametrize("net", ZOO)
def test_layers_of_a_cut_network_are_foretold(net: str) -> None:
    factory, shape = ZOO[net]
    model, x = factory().eval(), torch.randn(1, *shape)
    graph = capture(model, x)
    channels = find_channels(graph)
    chosen = draw_widths(channels, 4, 8)[3]
    small = prune_channels(model, plan_widths(channels, l2_norm(Evidence(graph, channels)), chosen), x, verify=False)
    found = cut_layers(layers(graph), {n: tuple(p.shape) for n, p in small.named_parameters()})
    assert found == layers(capture(small, x))
    assert found != layers(graph)


def test_the_first_layer_is_priced_by_itself() -> None:
    model, x = resnet20(width=16).eval(), torch.randn(1, 1, 28, 28)
    first, second = (site(layer) for layer in layers(capture(model, x))[:2])
    assert first.geometry != second.geometry and first.positions == second.positions
    wider = resnet20(width=16, channels=8).eval()
    assert site(layers(capture(wider, torch.randn(1, 8, 28, 28)))[0]).geometry == second.geometry


def test_transposed_and_depthwise_layers_of_a_cut_network_are_foretold() -> None:
    def net(hidden: int) -> tuple[nn.Module, Tensor]:
        up, each = nn.ConvTranspose2d(8, hidden, 2, 2), nn.Conv2d(hidden, hidden, 3, groups=hidden)
        model = nn.Sequential(nn.Conv2d(3, 8, 1), up, each, nn.ConvTranspose2d(hidden, 6, 2, groups=2))
        return model.eval(), torch.randn(1, 3, 9, 9)

    (wide, x), (narrow, _) = net(24), net(8)
    shapes = {n: tuple(p.shape) for n, p in narrow.named_parameters()}
    assert cut_layers(layers(capture(wide, x)), shapes) == layers(capture(narrow, x))


@pytest.mark.parametrize(
    "make",
    [
        lambda n: nn.Conv2d(n, 2 * n, 3, groups=n),
        lambda n: nn.ConvTranspose2d(n, 2 * n, 3, groups=n),
        lambda n: nn.ConvTranspose2d(2 * n, n, 3, groups=8),
    ],
    ids=["twice as many outputs", "transposed", "transposed, as many groups as outputs"],
)
def test_layers_in_many_groups_are_foretold(make: Callable[[int], nn.Module]) -> None:
    def found(n: int) -> list[Layer]:
        net = make(n).eval()
        return layers(capture(net, torch.randn(1, net.in_channels, 9, 9)))  # type: ignore[arg-type]

    (whole,) = found(8)
    assert cut_layers([whole], {}) == [whole]
    if whole.groups == whole.widths[0]:
        (narrow,) = found(4)
        assert cut_layers([whole], {whole.weight: narrow.shape}) == [narrow]


def test_widths_are_drawn_so_that_every_group_is_seen_narrow_and_wide() -> None:
    model = ZOO["mobilenet"][0](width=64).eval()  # type: ignore[call-arg]
    channels = find_channels(capture(model, torch.randn(1, 1, 28, 28)))
    drawn = draw_widths(channels, 8, 16)
    assert len(drawn) == 8 and drawn == draw_widths(channels, 8, 16) != draw_widths(channels, 8, 16, seed=1)
    for g in channels.groups:
        options = allowed_widths(g.channels, 16)
        seen = [d[g.name] for d in drawn]
        assert set(seen) <= set(options) and seen[0] == options[0] and seen[1] == options[-1]
        assert min(seen[2:]) < g.channels / 2 < max(seen[2:])
        assert len(set(seen)) >= min(3, len(options))


def test_widths_of_groups_with_blocks_leave_them_equal() -> None:
    model = nn.Sequential(nn.Conv2d(3, 48, 1), nn.ReLU(), nn.Conv2d(48, 96, 3, groups=3), nn.ReLU(), nn.Conv2d(96, 4, 1)).eval()
    channels = find_channels(capture(model, torch.randn(1, 3, 8, 8)))
    blocks = {g.name: len(g.blocks) for g in channels.groups if g.blocks is not None}
    assert set(blocks.values()) == {3}
    drawn = draw_widths(channels, 6, 8)
    assert all(d[name] % n == 0 for d in drawn for name, n in blocks.items())
    assert all(len({d[name] for d in drawn}) > 1 for name in blocks)


def test_structure_is_what_is_computed_not_with_which_weights() -> None:
    x = torch.randn(1, 1, 28, 28)
    one, two = (structure(capture(resnet20(width=8), x)) for _ in range(2))
    assert one == two
    assert one != structure(capture(resnet20(width=16), x))
    assert one != structure(capture(resnet20(width=8), torch.randn(1, 1, 32, 32)))


def test_a_real_network_is_written_and_watched() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(32, 64, 3, padding=1)
    model = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), layer, nn.ReLU(), nn.Conv2d(64, 4, 1)).eval()
    sampler = Sampler(model, torch.randn(1, 3, 16, 16), target=target_named("openvino"), batch=2, threads=1, seconds=0.01)
    found = sampler.samples([{g.name: 16 for g in sampler.channels.groups}])
    assert [s.precision for s in found] == ["int8", "float"]
    for sample in found:
        assert [s.widths for s in sample.sites] == [(3, 16), (16, 16), (16, 4)]
        assert all(t > 0 for t in sample.times) and sample.wall > 0
