"""The music transformer: melodies of eight bars out of noise, one token a bar. Trains for half a minute at most."""

import torch
import torch.nn.functional as F

import fastdiff
from fastdiff.models.music_transformer import MusicTransformer, MusicTransformerConfig

NAMES = ["C", "D", "E", "F", "G", "A", "B", "c"]
CHORDS = torch.tensor([[0, 2, 4], [3, 5, 7], [4, 6, 1], [0, 2, 4]])  # C, F, G, C, one a bar, twice
BARS, BEATS, STEPS = 8, 4, 100
torch.manual_seed(0)


def melodies(count):
    """(count, 32) notes of the scale: a note of the bar's chord on the first and third beat, a step away after it."""
    chords = CHORDS[torch.arange(BARS) % 4].expand(count, BARS, 3)
    strong = chords.gather(2, torch.randint(3, (count, BARS, 2)))
    weak = (strong + 2 * torch.randint(2, strong.shape) - 1).clamp(0, 7)
    return torch.stack([strong, weak], dim=-1).flatten(1)


def in_chord(notes):
    """The share of strong beats whose note is of the bar's chord."""
    strong = notes.reshape(-1, BARS, BEATS)[:, :, ::2]
    chords = CHORDS[torch.arange(BARS) % 4]
    return (strong[..., None] == chords[None, :, None]).any(-1).float().mean().item()


def by_step(notes):
    """The share of weak beats whose note is a step away from the one before."""
    pairs = notes.reshape(-1, BARS * BEATS // 2, 2)
    return ((pairs[..., 1] - pairs[..., 0]).abs() <= 1).float().mean().item()


schedule = fastdiff.schedules.VPDiscrete.linear(STEPS, start=1e-4, end=0.1)
points = schedule.points((torch.arange(STEPS).numpy() + 1) / STEPS)
scales = torch.tensor([[point.alpha, point.sigma] for point in points]).float()
config = MusicTransformerConfig(BEATS * len(NAMES), num_layers=1, num_heads=4, num_mlp_layers=2, mlp_dims=256)
model = MusicTransformer(config)
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
slower = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 500)
for _ in range(500):
    x0 = 2 * F.one_hot(melodies(64), len(NAMES)).float().reshape(64, BARS, -1) - 1
    alpha, sigma = scales[torch.randint(STEPS, (64,))].T[:, :, None, None]
    eps = torch.randn_like(x0)
    loss = (model(alpha * x0 + sigma * eps, alpha) - eps).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    slower.step()

model.eval().requires_grad_(False)
x = fastdiff.sample(
    model, (32, BARS, BEATS * len(NAMES)), schedule=schedule, prediction=fastdiff.prediction.of_noise_level(),
    solver="dpmpp-2m", steps=25, seed=0,
)  # fmt: skip
notes, naive = x.reshape(32, BARS * BEATS, -1).argmax(-1), torch.randint(len(NAMES), (32, BARS * BEATS))
print(" | ".join(" ".join(NAMES[note] for note in bar) for bar in notes[0].reshape(BARS, BEATS)))
print(f"strong beats in the chord: {in_chord(notes):.0%}, of notes at random {in_chord(naive):.0%}")
print(f"weak beats by a step: {by_step(notes):.0%}, of notes at random {by_step(naive):.0%}")
assert in_chord(notes) > in_chord(naive) + 0.2
assert by_step(notes) > by_step(naive) + 0.2
