"""The same VAEs in eager PyTorch, the usual way. Only imported where torch is installed; it is no dependency."""

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


def make_epoch(model: nn.Module, pixels, batch: int, *, channels_last: bool = False):
    """A function that trains one epoch with Adam on uint8 pixels (n, 28, 28) and returns the last loss in nats."""
    torch.manual_seed(0)
    data = torch.tensor(pixels)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def epoch() -> float:
        order = torch.randperm(len(data))
        for start in range(0, len(data) - batch + 1, batch):
            ys = torch.bernoulli(data[order[start : start + batch]].float() / 255)[:, None]
            if channels_last:
                ys = ys.contiguous(memory_format=torch.channels_last)
            mean, log_std = model.encoder(ys).chunk(2, dim=1)
            z = mean + log_std.exp() * torch.randn_like(mean)
            logits = model.decoder(z).flatten(1)
            distortion = F.binary_cross_entropy_with_logits(logits, ys.flatten(1), reduction="none").sum(1)
            rate = (0.5 * (z**2 - ((z - mean) / log_std.exp()) ** 2) - log_std).sum(1)
            loss = (distortion + rate).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        return loss.item()

    return epoch
