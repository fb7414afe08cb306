import sys
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# With the importlib import mode, shared helpers need their folder named.
sys.path.insert(0, str(Path(__file__).resolve().parent))

settings.register_profile("dpeq", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("dpeq")


@pytest.fixture(autouse=True)
def _one_thread_and_a_fixed_start():
    """Timing noise and thread-dependent rounding stay out of the tests."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
