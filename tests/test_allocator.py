import subprocess
import sys

import pytest

# In a process of its own: in one that has run other tests, small blocks lie between the large ones. A command whose
# work is to make tensors.
PAGE_FAULTS = """
import resource
import sys
from types import SimpleNamespace
import torch
from lightning_meta.__main__ import TOOLS, main

def page_faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(64 * 2**18)  # 64 MiB, freed at once
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(min(page_faults() for _ in range(8)))

def work(words):
    for _ in range(32):  # until there is a block that fits with the space that its alignment takes
        page_faults()
    print(max(page_faults() for _ in range(8)))

tool = tuple(sys.argv[1:])
sys.modules[f"lightning_meta.{TOOLS[tool]}"] = SimpleNamespace(main=work)
main(tool)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's setting")
def test_in_a_command_a_freed_tensor_is_reused_and_not_returned() -> None:
    command = [sys.executable, "-c", PAGE_FAULTS, "benchmark", "domains"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    returned, kept = map(int, printed.split())
    assert kept < returned / 4
