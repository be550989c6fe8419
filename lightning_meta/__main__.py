"""Meta-learning on PyTorch Lightning.

usage: python -m lightning_meta COMMAND --config EXPERIMENT [--KEY VALUE ...]

commands:
  fit        meta-train, then test the best checkpoint on the frozen test episodes; several seeds: --seeds 0,1,2
  validate   evaluate a checkpoint (--ckpt_path FILE) on the validation episodes
  test       evaluate a checkpoint on the test episodes
  predict    classify your own images, or rows of a table: predict RUN --support PLACE --query PLACE
  serve      the same as a page in the browser, where images are dropped or drawn: serve RUN [--port N]
  play       let a trained policy adapt to tasks of its world, and watch it: play RUN [--world NAME] [--rounds R]
  export     write an adapted model for use without this package: export RUN --support PLACE --out FILE.pt2 | FILE.onnx
  reproduce  train and test every experiment that has no result yet: reproduce [NAME ...] [--jobs N] [--list]; what it
             has done on another machine: reproduce --export FILE there, reproduce --import FILE here
  sweep      try settings, chosen by the validation episodes: sweep FILE [--trials N], a file of W&B's format
  dashboard  save a W&B workspace and a report where runs are compared: dashboard --entity E --project P
  compare    put tested runs side by side: compare RUN [RUN ...], each the folder of a run
  results    write the tables of numbers in README and docs anew from the result files: results [--check]
  list       name what there is: list [algorithms | data | experiments | backbones | sweeps | 'protonet*']
  benchmark  measure: benchmark speed, outer steps against those of other libraries; benchmark growth, their time and
             memory against their sizes; benchmark fit, what the Trainer adds; benchmark precision, the meta-gradient
             under bf16-mixed against fp32; benchmark optimizer_cost EXPERIMENT, a learned optimizer against Adam;
             benchmark heads RUN, all heads for frozen features on one trained backbone; benchmark domains RUN ..., runs
             on the data sets that they were and were not trained on; benchmark cells, searches for an architecture on a
             table of all; benchmark outer_cost EXPERIMENT, an update of a bilevel problem against plain training;
             benchmark learners RUN ..., runs of any family on the same tasks: how good, how sure, how fast;
             benchmark world_steps, steps per second of worlds beside gymnasium; benchmark tables RUN, a TabPFN on few
             rows of real tables beside scikit-learn's classifiers

examples:
  python -m lightning_meta fit --config maml_glyphs_5w1s
  python -m lightning_meta fit --config maml_glyphs_5w1s --model.inner_steps 5 --data.n_way 20
  python -m lightning_meta fit --config maml_glyphs_5w1s --model protonet
  python -m lightning_meta test --config protonet_glyphs_5w1s --ckpt_path protonet_glyphs_5w1s --data omniglot

Names are those of the files in configs/, whose paths may be given too.

more help:
  python -m lightning_meta COMMAND --help                         the options of a command
  python -m lightning_meta fit --model.help maml                  the settings of an algorithm
  python -m lightning_meta fit --config EXPERIMENT --print_config  the resolved configuration
"""

import sys
from collections.abc import Sequence
from importlib import import_module

from lightning_meta.allocator import keep_freed_memory
from lightning_meta.cli.names import suggestion
from lightning_meta.cli.usage import PROGRAM, TRAINER, benchmark_help, unknown_command
from lightning_meta.errors import UsageError, in_one_line

TOOLS = {  # modules of lightning_meta
    ("predict",): "cli.predict",
    ("serve",): "cli.serve",
    ("play",): "cli.play",
    ("export",): "cli.export",
    ("reproduce",): "reproduce.command",
    ("sweep",): "sweep.command",
    ("dashboard",): "cli.dashboard",
    ("compare",): "results.compare",
    ("results",): "results.pages",
    ("list",): "cli.names",
    ("benchmark", "precision"): "benchmark.precision",
    ("benchmark", "speed"): "benchmark.speed",
    ("benchmark", "growth"): "benchmark.growth",
    ("benchmark", "fit"): "benchmark.fit",
    ("benchmark", "optimizer_cost"): "benchmark.optimizer_cost",
    ("benchmark", "heads"): "benchmark.heads",
    ("benchmark", "domains"): "benchmark.domains",
    ("benchmark", "cells"): "benchmark.cells",
    ("benchmark", "outer_cost"): "benchmark.outer_cost",
    ("benchmark", "learners"): "benchmark.learners",
    ("benchmark", "world_steps"): "benchmark.world_steps",
    ("benchmark", "tables"): "benchmark.tables",
}


def main(words: Sequence[str]) -> None:
    """Run a command line. What needs neither torch nor Lightning is answered at once: importing them takes seconds."""
    keep_freed_memory()  # whatever the command: most of them play episodes
    benchmarks = {tool[1]: module for tool, module in TOOLS.items() if tool[0] == "benchmark"}
    tool = next((tool for tool in TOOLS if tuple(words[: len(tool)]) == tool), None)
    if not words or words[0] in ("-h", "--help"):
        print((__doc__ or "").strip())
    elif words[0] == "fit" and any(word.partition("=")[0] == "--seeds" for word in words) and "--help" not in words:
        import_module("lightning_meta.cli.seeds").main(words)
    elif tool is not None:
        import_module(f"lightning_meta.{TOOLS[tool]}").main(words[len(tool) :])
    elif words[0] == "benchmark" and words[1:2] in ([], ["-h"], ["--help"]):
        print(benchmark_help(benchmarks))
    elif words[0] == "benchmark":
        raise UsageError(
            f"there is no benchmark {words[1]!r}.{suggestion(words[1], benchmarks)} There are: "
            f"{', '.join(benchmarks)}; {PROGRAM} benchmark --help says what they measure."
        )
    elif words[0] not in TRAINER and not words[0].startswith("-"):
        raise UsageError(unknown_command(words[0]))
    else:
        import_module("lightning_meta.cli").main()


if __name__ == "__main__":
    in_one_line(lambda: main(sys.argv[1:]))
