"""What torch says about itself, where nobody can do anything about it."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# torch warns of itself whenever a graph whose outputs are a dictionary is copied, wherever that happens.
DEPRECATED = "`isinstance\\(treespec, LeafSpec\\)` is deprecated"
warnings.filterwarnings("ignore", DEPRECATED, FutureWarning)


@contextmanager
def without_torchs_own_noise() -> Iterator[None]:
    """Silence a deprecation inside torch, which no caller can mend, and tracebacks of what is raised anyway."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", DEPRECATED, FutureWarning)
            yield
    finally:
        logger.setLevel(level)
