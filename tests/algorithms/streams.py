"""What all classifiers that read a stream promise of their queries."""

import torch
from torch.nn import functional as F

from lightning_meta.core import Batch, Episode
from lightning_meta.modules import StreamClassifierModule


def check_query_is_the_next_row(module: StreamClassifierModule, episodes: Episode) -> None:
    """Its logits are those of the last row of one stream, read row by row, whatever other queries there are."""
    support, query = (Batch(*(leaf[0] for leaf in part)) for part in episodes)
    features = Batch(module.backbone(support.x), support.y)
    queries = Batch(module.backbone(query.x), query.y)
    preds = module.head_loss(module.adapt_head(features), queries).preds
    labelled = torch.cat([features.x, F.one_hot(support.y, module.n_way)], dim=1)
    for i, alone in enumerate(queries.x):
        rows = module.project(torch.cat([labelled, F.pad(alone, (0, module.n_way))[None]]))
        memory = module.reader.start(rows)
        for row in rows:
            output, write = module.reader(row[None], memory)
            memory = module.reader.written(memory, write)
        torch.testing.assert_close(preds[i], module.classifier(output)[0], rtol=1e-10, atol=1e-12)
