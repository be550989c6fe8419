"""Meta-learning on PyTorch Lightning.

usage: python -m lightning_meta COMMAND --config configs/experiment/EXPERIMENT.yaml [--KEY VALUE ...]

commands:
  fit        meta-train, then test the best checkpoint on the frozen test episodes
  validate   evaluate a checkpoint (--ckpt_path FILE) on the validation episodes
  test       evaluate a checkpoint on the test episodes
  predict    classify your own images: predict RUN --support FOLDER --query FOLDER, RUN being the folder of a run
  reproduce  train and test every experiment that has no result yet: reproduce [NAME ...] [--jobs N] [--list]; what it
             has done on another machine: reproduce --export FILE there, reproduce --import FILE here
  compare    put tested runs side by side: compare RUN [RUN ...], each the folder of a run
  results    write the tables of numbers in README and docs anew from the result files: results [--check]
  benchmark  measure: benchmark speed, outer steps against those of other libraries; benchmark growth, their time and
             memory against their sizes; benchmark fit, what the Trainer adds; benchmark precision, the meta-gradient
             under bf16-mixed against fp32; benchmark optimizer_cost EXPERIMENT, a learned optimizer against Adam

examples:
  python -m lightning_meta fit --config configs/experiment/maml_glyphs_5w1s.yaml
  python -m lightning_meta fit --config configs/experiment/maml_glyphs_5w1s.yaml --model.inner_steps 5 --data.n_way 20
  python -m lightning_meta fit --config configs/experiment/maml_glyphs_5w1s.yaml --model configs/model/protonet.yaml

more help:
  python -m lightning_meta fit --help                                       every option
  python -m lightning_meta fit --model.help MAML                            the options of one class
  python -m lightning_meta fit --config configs/experiment/... --print_config  the resolved configuration
"""

import sys
from importlib import import_module

TOOLS = {  # modules of lightning_meta
    ("predict",): "predict",
    ("reproduce",): "reproduce.command",
    ("compare",): "benchmark.compare",
    ("results",): "results.pages",
    ("benchmark", "precision"): "benchmark.precision",
    ("benchmark", "speed"): "benchmark.speed",
    ("benchmark", "growth"): "benchmark.growth",
    ("benchmark", "fit"): "benchmark.fit",
    ("benchmark", "optimizer_cost"): "benchmark.optimizer_cost",
}

if __name__ == "__main__":
    if sys.argv[1:] in ([], ["-h"], ["--help"]):
        print(__doc__.strip())  # at once: importing torch and Lightning takes seconds
    elif words := next((words for words in TOOLS if sys.argv[1 : len(words) + 1] == list(words)), None):
        from lightning_meta.errors import in_one_line

        in_one_line(lambda: import_module(f"lightning_meta.{TOOLS[words]}").main(sys.argv[len(words) + 1 :]))
    elif sys.argv[1] == "benchmark":
        sys.exit(f"error: benchmark is one of: {', '.join(words[1] for words in TOOLS if words[0] == 'benchmark')}.")
    else:
        from lightning_meta.cli import main

        main()
