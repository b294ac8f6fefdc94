"""The same VAEs in PyTorch, the usual way. Only imported where torch is installed; it is no dependency."""

import contextlib
import io
import tempfile
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F


class FullyConnected(nn.Module):
    """784-500-20 and back."""

    def __init__(self, data: int = 784, hidden: int = 500, latent: int = 20):
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(data, hidden), nn.ReLU(), nn.Linear(hidden, 2 * latent))
        self.decoder = nn.Sequential(nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, data))


class Convolutional(nn.Module):
    """Channels 32-64-128, kernel 3, stride 2, on 28x28 images; transposed convolutions back."""

    def __init__(self, channels: tuple[int, ...] = (32, 64, 128), latent: int = 20):
        super().__init__()
        ins = (1, *channels[:-1])
        down = [m for i, o in zip(ins, channels, strict=True) for m in (nn.Conv2d(i, o, 3, 2, 1), nn.ReLU())]
        self.encoder = nn.Sequential(*down, nn.Flatten(), nn.Linear(channels[-1] * 16, 2 * latent))
        c1, c2, c3 = channels
        self.decoder = nn.Sequential(
            nn.Linear(latent, c3 * 16),
            nn.ReLU(),
            nn.Unflatten(1, (c3, 4, 4)),
            nn.ConvTranspose2d(c3, c2, 3, 2, 1),  # 4 -> 7
            nn.ReLU(),
            nn.ConvTranspose2d(c2, c1, 3, 2, 1, 1),  # 7 -> 14
            nn.ReLU(),
            nn.ConvTranspose2d(c1, 1, 3, 2, 1, 1),  # 14 -> 28
        )


def loss_of(model: nn.Module, ys: torch.Tensor) -> torch.Tensor:
    """Mean -ELBO of 0/1 images (n, 1, 28, 28), in nats, by one draw of z."""
    mean, log_std = model.encoder(ys).chunk(2, dim=1)
    z = mean + log_std.exp() * torch.randn_like(mean)
    logits = model.decoder(z).flatten(1)
    distortion = F.binary_cross_entropy_with_logits(logits, ys.flatten(1), reduction="none").sum(1)
    rate = (0.5 * (z**2 - ((z - mean) / log_std.exp()) ** 2) - log_std).sum(1)
    return (distortion + rate).mean()


def make_epoch(
    model: nn.Module, pixels, batch: int, *, channels_last: bool = False, compiled: bool = False
) -> Callable[[], float]:
    """A function that trains one epoch with Adam on uint8 pixels (n, 28, 28) and returns the last loss in nats."""
    torch.manual_seed(0)
    data = torch.tensor(pixels)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    loss_in_use = torch.compile(loss_of) if compiled else loss_of

    def epoch() -> float:
        order = torch.randperm(len(data))
        for start in range(0, len(data) - batch + 1, batch):
            ys = torch.bernoulli(data[order[start : start + batch]].float() / 255)[:, None]
            if channels_last:
                ys = ys.contiguous(memory_format=torch.channels_last)
            loss = loss_in_use(model, ys)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        return loss.item()

    return epoch


def make_pythae_epoch(pixels, batch: int) -> Callable[[], float]:
    """The epoch of pythae's trainer on its own VAE with the layers above; returns the epoch's mean loss in nats."""
    from pythae.data.datasets import BaseDataset
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    layers = FullyConnected()

    class Encoder(BaseEncoder):
        def __init__(self):
            super().__init__()
            self.layers = layers.encoder

        def forward(self, x):
            mean, log_variance = self.layers(x).chunk(2, dim=1)
            return ModelOutput(embedding=mean, log_covariance=log_variance)

    class Decoder(BaseDecoder):
        def __init__(self):
            super().__init__()
            self.layers = layers.decoder

        def forward(self, z):
            return ModelOutput(reconstruction=torch.sigmoid(self.layers(z)).reshape(-1, 1, 28, 28))

    torch.manual_seed(0)
    config = VAEConfig(input_dim=(1, 28, 28), latent_dim=20, reconstruction_loss="bce")
    ys = torch.bernoulli(torch.tensor(pixels[:, None]).float() / 255)
    trainer = BaseTrainer(
        VAE(config, Encoder(), Decoder()),
        BaseDataset(ys, torch.zeros(len(ys))),
        training_config=BaseTrainerConfig(
            output_dir=tempfile.mkdtemp(),
            num_epochs=1,
            learning_rate=1e-3,
            per_device_train_batch_size=batch,
            optimizer_cls="Adam",
            no_cuda=True,
        ),
    )
    trainer.prepare_training()

    def epoch() -> float:
        with contextlib.redirect_stderr(io.StringIO()):  # its progress bars
            return float(trainer.train_step(1))

    return epoch
