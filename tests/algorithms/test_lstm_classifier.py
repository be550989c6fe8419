"""The LSTM as a few-shot learner, against PyTorch's own on whole sequences."""

import torch
from torch import nn
from torch.nn import functional as F

from lightning_meta.algorithms import LSTMClassifier
from lightning_meta.core import Batch, Episode
from tests.algorithms.streams import check_query_is_the_next_row
from tests.conftest import Make, conv4

CASES: dict[str, Make] = {"lstm_classifier": lambda: LSTMClassifier(conv4(), n_way=3, width=8)}


def small() -> LSTMClassifier:
    torch.manual_seed(0)
    return LSTMClassifier(conv4("inductive"), n_way=3, width=8).double()


def test_a_query_is_the_next_row_of_the_stream(episodes: Episode) -> None:
    check_query_is_the_next_row(small(), episodes)


def test_it_is_the_lstm_of_torch_on_the_support_set_and_one_query(episodes: Episode) -> None:
    module, (support, query) = small(), (Batch(*(leaf[0] for leaf in part)) for part in episodes)
    lstm = nn.LSTM(8, 8).double()
    lstm.load_state_dict({f"{name}_l0": value for name, value in module.reader.cell.state_dict().items()})
    labelled = torch.cat([module.backbone(support.x), F.one_hot(support.y, 3)], dim=1)
    adapted = module.adapt(support)
    preds = module.head_loss(adapted.head, Batch(module.backbone(query.x), query.y)).preds
    for i, features in enumerate(module.backbone(query.x)):
        rows = module.project(torch.cat([labelled, F.pad(features, (0, 3))[None]]))
        torch.testing.assert_close(preds[i], module.classifier(lstm(rows)[0][-1]), rtol=1e-10, atol=1e-12)
