"""The Neural Statistician: a variational autoencoder of data sets, told apart by what a few of their images show.

Edwards, Storkey: "Towards a Neural Statistician" (2017), arXiv:1606.02185.

A data set is a class of images. A latent c stands for it, p(c) = N(0, 1). Each image has a latent z of its own,
p(z | c), and is painted by p(x | z, c). The statistic network reads the mean code of some images and says q(c | D).
Training maximises the evidence lower bound of a data set D, divided by its images:

    log p(D) >= E_q(c|D) [ sum_x E_q(z|x,c) log p(x | z, c) - KL(q(z | x, c) || p(z | c)) ] - KL(q(c | D) || p(c))

Here D is the support set and the query set of a class together. Which of its images are queries is drawn at random, so
the mean over queries of what stands in brackets is an unbiased estimate of the mean over all of D.

An evaluation asks what the support set S says of further images: p(x | S) is the mean of p(x | c) over q(c | S), a
distribution over images that sums to 1. Its logarithm is bounded from below by importance weights (Burda, Grosse,
Salakhutdinov 2016, arXiv:1509.00519), the closer the more draws there are. By Bayes' rule these are the logits of a
classifier, where an episode has several classes; the paper classifies by the divergence between statistics.

Deviations: one layer of z, not three; no normalisation, and smaller networks; no weight on the reconstruction that is
lowered in training. Images are made black and white at 0.5, in training too, so that nats are those of a distribution.
"""

from math import log
from typing import Any, NamedTuple
from warnings import catch_warnings, filterwarnings

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_meta.algorithms.processes.cnp import perceptron
from lightning_meta.core import Batch, TaskOutput
from lightning_meta.core.gaussian import Gaussian, kl_divergence, log_density
from lightning_meta.core.image_networks import image_reader
from lightning_meta.core.sampling import episode_keys, normal
from lightning_meta.errors import ConfigError, require_at_least
from lightning_meta.metrics import EpisodicNats
from lightning_meta.modules import BatchedModule


class Codes(NamedTuple):
    """Sums `(C, H)` of the codes of the images of each class slot, and their numbers `(C, 1)`."""

    total: Tensor
    images: Tensor


class NeuralStatistician(BatchedModule[Codes]):
    """Summarise the images of a class in a distribution of c; model further images given c.

    Shapes of one task: `S` support and `Q` query images, `H` numbers of an image's code, `L` of c, `Z` of z; `C` class
    slots, as many as support images, of which the first N are the classes of the episode; `R` draws.

    Args:
        image_size, channels: of the images.
        hidden: channels of the first convolution.
        width: H, and hidden units of the networks between latents and of the decoder.
        c_size: L. 0: nothing is known of a class, which leaves a variational autoencoder of all images (Kingma and
            Welling 2014, arXiv:1312.6114): what the support set is worth, is worth beyond it.
        z_size: Z.
        draws: R of (c, z) for each image in evaluation, fixed once for all; even.
        **kwargs: of `BatchedModule`.
    """

    noise_RL: Tensor
    noise_RZ: Tensor

    def __init__(
        self,
        image_size: int = 28,
        channels: int = 1,
        hidden: int = 16,
        width: int = 256,
        c_size: int = 64,
        z_size: int = 16,
        draws: int = 8,
        **kwargs: Any,
    ) -> None:
        super().__init__(metric=EpisodicNats(), **kwargs)
        require_at_least(1, width=width, z_size=z_size)
        require_at_least(0, c_size=c_size)
        if draws < 2 or draws % 2:
            raise ConfigError(f"draws={draws} must be even and at least 2: half of them mirror the others.")
        self.image_shape = (channels, image_size, image_size)
        self.encoder = nn.Sequential(image_reader(image_size, channels, hidden, width), nn.ReLU())
        with catch_warnings():
            filterwarnings("ignore", "Initializing zero-element tensors")  # where c has no elements
            self.statistic_network = perceptron(width, width, 1, 2 * c_size)
            self.prior_network = perceptron(c_size, width, 1, 2 * z_size)
        self.posterior_network = perceptron(width + c_size, width, 1, 2 * z_size)
        self.decoder = perceptron(c_size + z_size, width, 2, channels * image_size**2)
        for name, size in (("noise_RL", c_size), ("noise_RZ", z_size)):
            half = torch.randn(draws // 2, size, generator=torch.Generator().manual_seed(0))
            self.register_buffer(name, torch.cat([half, -half]), persistent=False)  # a test may take more

    # ---- the two hooks ------------------------------------------------------------------------------------------

    def adapt(self, support: Batch) -> Codes:
        x, slots = black_and_white(support.x), support.y.shape[-1]
        return self.codes(self.encode(x), support.y, slots)

    def query_loss(self, codes: Codes, query: Batch) -> TaskOutput:
        """In training minus the bound for a data set, per image; in evaluation minus that of log p(x | S)."""
        x = black_and_white(query.x)
        return self.bound(codes, x, query.y) if self.training else self.evaluation(codes, x, query.y)

    # ---- the bounds ---------------------------------------------------------------------------------------------

    def bound(self, codes: Codes, x: Tensor, y_Q: Tensor) -> TaskOutput:
        h_QH = self.encode(x)
        posterior, images_C = self.inferred(codes, self.codes(h_QH, y_Q, codes.total.shape[-2]))
        c_QL = of_class(self.drawn(posterior, torch.randn_like(posterior.mean)), y_Q)
        q_z, p_z = self.posterior_z(h_QH, c_QL), self.prior_z(c_QL)
        z_QZ = q_z.mean + q_z.std * torch.randn_like(q_z.mean)
        kl_z_Q = kl_divergence(q_z, p_z).sum(-1)
        prior = Gaussian(torch.zeros_like(posterior.mean), torch.ones_like(posterior.std))
        kl_c_C = kl_divergence(posterior, prior).sum(-1) / images_C
        kl_c_Q = of_class(kl_c_C[..., None], y_Q)[..., 0]
        bound_Q = self.log_likelihood(x, z_QZ, c_QL) - kl_z_Q - kl_c_Q
        slots = torch.arange(kl_c_C.shape[-1], device=y_Q.device)
        preds_QC = torch.where(y_Q[..., None] == slots, bound_Q[..., None], -torch.inf)
        return TaskOutput(-bound_Q.mean(-1), preds_QC, {"kl_c": kl_c_Q.mean(-1), "kl_z": kl_z_Q.mean(-1)})

    def evaluation(self, codes: Codes, x: Tensor, y_Q: Tensor) -> TaskOutput:
        h_QH, n_way = self.encode(x), classes(codes)
        belief = self.statistic(codes)
        x_Q1, h_Q1H = x.unsqueeze(-4), h_QH.unsqueeze(-2)
        weights = []
        for noise_L, noise_Z in zip(self.noise_RL, self.noise_RZ, strict=True):  # one by one, for memory
            c_CL = self.drawn(belief, noise_L)[..., :n_way, :]
            weights.append(self.log_weights(x_Q1, h_Q1H, c_CL.unsqueeze(-3), noise_Z))
        weights_RQC = torch.stack(weights)
        preds_QC = weights_RQC.logsumexp(0) - log(len(weights))
        own_QC = y_Q[..., None] == torch.arange(n_way, device=y_Q.device)
        loss = -torch.where(own_QC, weights_RQC.mean(0), 0).sum(-1).mean(-1)
        if n_way == 1:
            return TaskOutput(loss, preds_QC)
        others = torch.where(own_QC, 0, preds_QC).sum(-1).mean(-1) / (n_way - 1)
        return TaskOutput(loss, preds_QC, {"nats_of_another_class": -others})

    def log_weights(self, x: Tensor, h: Tensor, c: Tensor, noise_Z: Tensor) -> Tensor:
        """log p(x, z | c) - log q(z | x, c) at one z for each x and c, whose leading axes are broadcast."""
        rows = torch.broadcast_shapes(h.shape[:-1], c.shape[:-1])
        h, c = h.expand(*rows, -1), c.expand(*rows, -1)
        q_z, p_z = self.posterior_z(h, c), self.prior_z(c)
        z = q_z.mean + q_z.std * noise_Z
        return self.log_likelihood(x, z, c) + (log_density(z, p_z) - log_density(z, q_z)).sum(-1)

    # ---- the model ----------------------------------------------------------------------------------------------

    def inferred(self, support: Codes, query: Codes) -> tuple[Gaussian, Tensor]:
        """q(c | D) of each class slot in training, and over how many images `(C,)` its divergence is spread."""
        both = Codes(support.total + query.total, support.images + query.images)
        return self.statistic(both), both.images[..., 0].clamp_min(1)

    def codes(self, h_SH: Tensor, y_S: Tensor, slots: int) -> Codes:
        own_CS = (torch.arange(slots, device=y_S.device)[:, None] == y_S.unsqueeze(-2)).to(h_SH.dtype)
        return Codes(own_CS @ h_SH, own_CS.sum(-1, keepdim=True))

    def statistic(self, codes: Codes) -> Gaussian:
        """q(c | D) of each class slot: the network reads the mean code."""
        return normal_of(self.statistic_network(codes.total / codes.images.clamp_min(1)))

    def drawn(self, c: Gaussian, noise: Tensor) -> Tensor:
        return c.mean + c.std * noise

    def encode(self, x: Tensor) -> Tensor:
        """Codes `(..., H)` of images."""
        return self.encoder(x.flatten(0, -4)).unflatten(0, x.shape[:-3])

    def prior_z(self, c: Tensor) -> Gaussian:
        return normal_of(self.prior_network(c))

    def posterior_z(self, h: Tensor, c: Tensor) -> Gaussian:
        return normal_of(self.posterior_network(torch.cat([h, c], -1)))

    def log_likelihood(self, x: Tensor, z: Tensor, c: Tensor) -> Tensor:
        """log p(x | z, c), the pixels being independent."""
        logits = self.paint(z, c)
        # x log p + (1 - x) log (1 - p), without a copy of x for each c
        return (x * logits - F.softplus(logits)).flatten(-3).sum(-1)

    def paint(self, z: Tensor, c: Tensor) -> Tensor:
        """Logits `(..., channels, size, size)` of the pixels."""
        return self.decoder(torch.cat([z, c], -1)).unflatten(-1, self.image_shape)

    # ---- for use after training ---------------------------------------------------------------------------------

    @torch.no_grad()
    def generate(self, codes: Codes, count: int) -> Tensor:
        """New images `(N, count, channels, size, size)` of each class of one task: probabilities of ink.

        c is the mean of q(c | S); each image has a z of its own.
        """
        belief, n_way = self.statistic(codes), classes(codes)
        c_NL = self.drawn(belief, torch.zeros_like(belief.mean))[:n_way]
        prior = self.prior_z(c_NL)
        noise = torch.from_numpy(normal(episode_keys(0, 0, range(count)), prior.mean.shape[-1])).to(c_NL)
        z_NMZ = prior.mean[:, None] + prior.std[:, None] * noise
        return self.paint(z_NMZ, c_NL[:, None].expand(-1, count, -1)).sigmoid()

    def unknown_targets(self, x: Tensor, outputs: int) -> Tensor:
        return x.new_zeros(x.shape[0], dtype=torch.long)

    def check_input_shape(self, shape: Any, source: str) -> None:
        check_images(self, self.image_shape, shape, source)


def check_images(module: nn.Module, own: tuple[int, ...], shape: Any, source: str) -> None:
    """Raise `ConfigError` unless inputs have the module's own shape."""
    if tuple(shape) != own:
        raise ConfigError(
            f"{type(module).__name__} models images of the shape {own}, but the inputs of {source} have the shape "
            f"{tuple(shape)}; set model.image_size and model.channels to match."
        )


def black_and_white(x: Tensor) -> Tensor:
    return (x > 0.5).to(x.dtype)


def normal_of(numbers: Tensor) -> Gaussian:
    mean, spread = numbers.chunk(2, -1)
    return Gaussian(mean, 1e-3 + F.softplus(spread))


def of_class(values_CL: Tensor, y_Q: Tensor) -> Tensor:
    """The row `(Q, L)` of each query's class."""
    return values_CL.gather(-2, y_Q[..., None].expand(*y_Q.shape, values_CL.shape[-1]))


def classes(codes: Codes) -> int:
    """How many class slots have images: those of the labels 0..N-1."""
    return int((codes.images[..., 0] > 0).sum(-1).max())
