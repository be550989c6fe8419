# # Compare runs
#
# Two algorithms on the same episodes, with W&B and without. The trainings here have four steps, to take seconds; leave
# out `SMALL` for real ones. Each of these is a command too:
#
# ```bash
# python -m lightning_meta fit --config maml_glyphs_5w1s
# python -m lightning_meta fit --config protonet_glyphs_5w1s
# python -m lightning_meta compare maml_glyphs_5w1s protonet_glyphs_5w1s
# ```

from pathlib import Path

from lightning_meta.cli import main
from lightning_meta.results.compare import main as compare

SMALL = ["--trainer.accelerator=cpu", "--trainer.max_steps=4", "--data.steps_per_epoch=4", "--data.meta_batch_size=2"]
SMALL += ["--data.val_episodes=10", "--data.test_episodes=40"]

# ## Without a server
#
# `--trainer.logger csv` keeps everything in files.

main(["fit", "--config", "maml_glyphs_5w1s", "--trainer.logger", "csv", *SMALL])

# ## With W&B
#
# The default logger is W&B with files beside it. Without an API key it writes offline, and nothing is asked. Runs of
# one algorithm on one data set are a group; its seeds are the group's runs. Every test leaves a table of its episodes
# with images and predictions.

main(["fit", "--config", "protonet_glyphs_5w1s", *SMALL])

# ```bash
# export WANDB_API_KEY=...              # once; without it, offline
# wandb sync runs/wandb/offline-run-*   # uploads what was written offline
# wandb leet runs/wandb                 # or look at offline runs in the terminal
# ```
#
# ## Either way
#
# `compare` reads the tests of both runs. Their episodes are the same, so it states the *paired* difference, whose
# interval is much narrower than those of the two means; and it draws a figure. Several seeds of one algorithm are
# pooled: `--seed_everything 1`, and give `compare` all of the runs.

compare(["maml_glyphs_5w1s", "protonet_glyphs_5w1s", "--out", "comparison"])
print(*sorted(path.name for path in Path("comparison").iterdir()))
