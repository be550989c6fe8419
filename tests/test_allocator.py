import subprocess
import sys

import pytest

# In a process of its own: in one that has run other tests, small blocks lie between the large ones.
PAGE_FAULTS = """
import resource
import torch
from lightning_meta.allocator import keep_freed_memory, return_freed_memory, trim

def page_faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        torch.ones(64 * 2**18)  # 64 MiB, freed at once
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

keep_freed_memory()
page_faults()  # until there is a block that fits with the space that its alignment takes
kept = page_faults()
return_freed_memory()
trim()  # what was kept would serve the next tensors still
print(kept, page_faults())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's setting")
def test_a_freed_tensor_is_reused_and_not_returned() -> None:
    printed = subprocess.run([sys.executable, "-c", PAGE_FAULTS], check=True, capture_output=True, text=True).stdout
    kept, returned = map(int, printed.split())
    assert kept < returned / 4
