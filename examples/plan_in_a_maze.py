"""Decision Diffuser's network: a way through a maze as a plan that is denoised. Trains for half a minute."""

import torch

import fastdiff
from fastdiff.models.temporal_unet import TemporalUnet, TemporalUnetConfig

MAZE = ["#########", "#...#...#", "#.#.#.#.#", "#.#...#.#", "#.#####.#", "#.......#", "#########"]
FREE = torch.tensor([[cell == "." for cell in row] for row in MAZE])
HORIZON, STEPS = 32, 100
torch.manual_seed(0)


def distances(goal):
    """Steps from each free cell to the goal, by breadth."""
    found, edge = {goal: 0}, [goal]
    for row, column in edge:
        for cell in ((row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)):
            if FREE[cell] and cell not in found:
                found[cell] = found[row, column] + 1
                edge.append(cell)
    return found


def walk(start, goal):
    """A shortest way, (HORIZON, 2), that waits at the goal; coordinates in [-1, 1]."""
    near, way = distances(goal), [start]
    while way[-1] != goal:
        row, column = way[-1]
        beside = [(row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)]
        way.append(min((cell for cell in beside if cell in near), key=near.__getitem__))
    places = torch.tensor(way + [goal] * HORIZON)[:HORIZON].float()
    return places / (torch.tensor(FREE.shape) - 1) * 2 - 1


def to_cells(plan):
    """The cells that a plan (..., 2) passes, as whole numbers."""
    size = torch.tensor(FREE.shape) - 1
    return ((plan + 1) / 2 * size).round().long().clamp(torch.zeros(2, dtype=torch.long), size)


def collisions(plan):
    """The share of a plan's places, and of those halfway between them, that lie in a wall."""
    halfway = (plan[:, 1:] + plan[:, :-1]) / 2
    cells = torch.cat([to_cells(plan), to_cells(halfway)], dim=1)
    return 1 - FREE[cells[..., 0], cells[..., 1]].float().mean().item()


class Fixed(torch.nn.Module):
    """The network with the ends of each plan in place of what is noisy there, as the original fixes its first state."""

    def __init__(self, model, schedule):
        super().__init__()
        self.model, self.schedule = model, schedule

    def forward(self, x, t, first, last):
        x0 = self.model(torch.cat([first[:, None], x[:, 1:-1], last[:, None]], dim=1), t)
        return torch.cat([first[:, None], x0[:, 1:-1], last[:, None]], dim=1)


cells = [tuple(cell) for cell in FREE.nonzero().tolist()]
walks = torch.stack([walk(a, b) for a in cells for b in cells if a != b])
order = torch.randperm(len(walks))
trained, new = walks[order[:-40]], walks[order[-40:]]  # 40 pairs of ends are never seen in training
schedule = fastdiff.schedules.VPDiscrete.cosine(STEPS)
points = schedule.points((torch.arange(STEPS).numpy() + 1) / STEPS)
scales = torch.tensor([[point.alpha, point.sigma] for point in points]).float()
network = TemporalUnet(TemporalUnetConfig(horizon=HORIZON, transition_dim=2, cond_dim=2, dim=16, dim_mults=(1, 2, 4)))
model = Fixed(network, schedule)
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
for _ in range(500):
    x0, step = trained[torch.randint(len(trained), (32,))], torch.randint(STEPS, (32,))
    alpha, sigma = scales[step].T[:, :, None, None]
    x = alpha * x0 + sigma * torch.randn_like(x0)
    loss = (model(x, step.float(), x0[:, 0], x0[:, -1]) - x0).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

model.eval().requires_grad_(False)
plans = fastdiff.sample(
    model, (40, HORIZON, 2), schedule=schedule, prediction="x0", solver="ddim", steps=20, seed=0,
    cond={"first": new[:, 0], "last": new[:, -1]},
)  # fmt: skip
line = torch.linspace(0, 1, HORIZON)[:, None]
naive = new[:, :1] + (new[:, -1:] - new[:, :1]) * line
print(f"in a wall: {collisions(plans):.1%} of the plans, {collisions(naive):.1%} of straight lines")
picture = [list(row) for row in MAZE]
for row, column in to_cells(plans[0]).tolist():
    picture[row][column] = "o"
print("\n".join("".join(row) for row in picture))
assert collisions(plans) < 0.5 * collisions(naive)
