"""Pruning: decide which channels stay, cut the others, prove that nothing else changed."""

from penjing.prune.blocks import Block as Block
from penjing.prune.blocks import block_effects as block_effects
from penjing.prune.blocks import drop_blocks as drop_blocks
from penjing.prune.blocks import find_blocks as find_blocks
from penjing.prune.blocks import plan_blocks as plan_blocks
from penjing.prune.channels import RewrittenWarning as RewrittenWarning
from penjing.prune.channels import prune_channels as prune_channels
from penjing.prune.channels import prune_to_look as prune_to_look
from penjing.prune.decide import Selection as Selection
from penjing.prune.decide import allowed_widths as allowed_widths
from penjing.prune.decide import plan_channels as plan_channels
from penjing.prune.decide import plan_widths as plan_widths
from penjing.prune.iterate import gentler as gentler
from penjing.prune.iterate import prune as prune
from penjing.prune.iterate import prune_iteratively as prune_iteratively
from penjing.prune.refit import refit as refit
from penjing.prune.renorm import reestimate as reestimate
from penjing.prune.renorm import repair as repair
from penjing.prune.renorm import rescale as rescale
from penjing.prune.sparsify import sparsify as sparsify
from penjing.prune.store import load as load
from penjing.prune.store import plan_of as plan_of
from penjing.prune.store import save as save
from penjing.prune.textbook import sparsify_textbook as sparsify_textbook
from penjing.prune.verify import verify_pruned as verify_pruned
