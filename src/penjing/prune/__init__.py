"""Pruning: decide which channels stay, cut the others, prove that nothing else changed."""

from penjing.prune.channels import prune as prune
from penjing.prune.channels import prune_channels as prune_channels
from penjing.prune.decide import choose_widths as choose_widths
from penjing.prune.decide import plan_channels as plan_channels
from penjing.prune.decide import plan_widths as plan_widths
from penjing.prune.verify import verify_pruned as verify_pruned
