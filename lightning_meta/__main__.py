"""Meta-learning on PyTorch Lightning.

usage: python -m lightning_meta COMMAND --config configs/experiment/EXPERIMENT.yaml [--KEY VALUE ...]

commands:
  fit        meta-train, then test the best checkpoint on the frozen test episodes
  validate   evaluate a checkpoint (--ckpt_path FILE) on the validation episodes
  test       evaluate a checkpoint on the test episodes
  predict    write a checkpoint's predictions for the test episodes
  compare    put tested runs side by side: compare RUN [RUN ...], each the folder of a run

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

if __name__ == "__main__":
    if sys.argv[1:] in ([], ["-h"], ["--help"]):
        print(__doc__.strip())  # at once: importing torch and Lightning takes seconds
    elif sys.argv[1] == "compare":
        from lightning_meta.benchmark.compare import main as compare
        from lightning_meta.errors import UserError

        try:
            compare(sys.argv[2:])
        except UserError as error:
            sys.exit(f"error: {error}")
    else:
        from lightning_meta.cli import main

        main()
