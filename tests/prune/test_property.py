"""Networks put together by lot, cut by lot: whatever is cut, what is handed back is right."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from penjing.errors import NotEquivalent
from penjing.graph import capture, find_channels
from penjing.prune import prune_channels
from penjing.prune.rewrite import with_rewritten_forward
from penjing.prune.verify import verify_against
from tests.nets import IMAGE, STEPS, chain
from tests.oracle import absent, chosen, difference, inputs, randomized


@settings(max_examples=40)
@given(st.lists(st.sampled_from(sorted(STEPS)), min_size=2, max_size=4), st.integers(0, 10**6))
def test_networks_put_together_by_lot_are_cut_rightly(steps: list[str], seed: int) -> None:
    model = randomized(chain(*steps)(), seed).double()
    graph = capture(model, inputs(IMAGE, dtype=torch.float64))
    channels = find_channels(graph)
    plan = chosen(channels, None, seed=seed)
    small = prune_channels(model, plan, graph.example, verify=False)
    try:
        verify_against(graph, channels, small, plan)
    except NotEquivalent:
        assert any("written" in step for step in steps), "only sizes written into forward need another one"
        small = with_rewritten_forward(small, graph, channels, plan)
        verify_against(graph, channels, small, plan)
    x = inputs(IMAGE, 3, torch.float64)
    with torch.no_grad():
        assert difference(small(*x), absent(model, plan)(*x)) < 1e-9
