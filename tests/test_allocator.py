import resource
import sys

import pytest
import torch

from lightning_meta.allocator import keep_freed_memory, return_freed_memory, trim


def page_faults() -> int:
    """Of making and freeing a tensor of 64 MiB eight times."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        torch.ones(64 * 2**18)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's setting")
def test_a_freed_tensor_is_reused_and_not_returned() -> None:
    try:
        keep_freed_memory()
        torch.ones(64 * 2**18)
        kept = page_faults()
    finally:
        return_freed_memory()
        trim()  # what was kept would serve the next tensors still
    assert kept < page_faults() / 4
