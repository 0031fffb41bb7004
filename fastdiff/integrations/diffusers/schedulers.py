"""Schedulers for diffusers' pipelines whose steps are the project's solvers: a Program, one call of `step` at a
time."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from fastdiff.engine import Inputs, cpu
from fastdiff.engine.cpu import CpuEngine
from fastdiff.engine.reference import ReferenceEngine
from fastdiff.errors import expect, unknown
from fastdiff.guidance import Threshold
from fastdiff.integrations.diffusers.spacing import training_steps
from fastdiff.process.noise import CounterNoise
from fastdiff.process.schedules import VPDiscrete
from fastdiff.program import Call, Combine, Program
from fastdiff.sampling import traced
from fastdiff.solvers import get_solver

_PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
_ENDS = {"dpmpp-2m", "dpmpp-3m", "unipc-2", "unipc-3"}  # spaced by one step more, see `training_steps`


class SolverScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]  # diffusers mixes them so itself
    """A solver of the project as a scheduler of diffusers, for the variance-preserving process.

    solver: a name in fastdiff.solvers.SOLVERS whose steps call the model once. The others are diffusers' names and
    mean what they mean there: num_train_timesteps, beta_start, beta_end, beta_schedule ("linear", "scaled_linear",
    "squaredcos_cap_v2"), trained_betas, prediction_type ("epsilon", "sample", "v_prediction"), timestep_spacing,
    steps_offset, set_alpha_to_one, clip_sample with clip_sample_range (of x0).
    """

    order = 1
    init_noise_sigma = 1.0
    config: Any  # of diffusers: a dictionary whose entries are attributes too

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: list[float] | None = None,
        prediction_type: str = "epsilon",
        timestep_spacing: str = "leading",
        steps_offset: int = 0,
        set_alpha_to_one: bool = True,
        clip_sample: bool = False,
        clip_sample_range: float = 1.0,
        solver: str = "dpmpp-2m",
    ) -> None:
        if prediction_type not in _PREDICTIONS:
            raise unknown("prediction_type", prediction_type, _PREDICTIONS)
        self.betas = _betas(num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas)
        self.schedule = VPDiscrete(self.betas)
        self.alphas_cumprod = torch.from_numpy(np.cumprod(1 - self.betas)).float()
        self._solver = get_solver(solver)
        expect(not self._solver.adaptive, f"{solver!r} chooses its own steps, which a scheduler cannot")
        self._begin: int | None = None
        self._run: _Run | None = None
        self.num_inference_steps: int | None = None
        self.timesteps = torch.arange(num_train_timesteps - 1, -1, -1, dtype=torch.int64, device="cpu")

    def __len__(self) -> int:
        return self.config.num_train_timesteps

    def set_timesteps(self, num_inference_steps: int, device: Any = None, **ignored: Any) -> None:
        """Choose the training steps to visit. Raises ValueError where they do not fit, or for `timesteps` and others
        that only some schedulers know."""
        expect(not ignored, f"this scheduler has no {', '.join(ignored)}")
        config = self.config
        steps = training_steps(
            config.timestep_spacing,
            config.num_train_timesteps,
            num_inference_steps,
            config.steps_offset,
            ends=config.solver in _ENDS,
        )
        self.num_inference_steps = num_inference_steps
        self.timesteps = torch.from_numpy(steps).to(device)
        last = 0.0 if config.set_alpha_to_one else 1 / config.num_train_timesteps
        self._times = (*((steps + 1) / config.num_train_timesteps).tolist(), last)
        self._begin, self._run = None, None

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Start at this place of the timesteps, as pipelines do that begin with an image."""
        self._begin = begin_index

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """The sample itself: the process keeps its variance."""
        return sample

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """alpha x + sigma noise at these training steps, (B,)."""
        alpha = self.alphas_cumprod.to(original_samples)[timesteps.to(original_samples.device)]
        alpha = alpha.reshape(-1, *[1] * (original_samples.ndim - 1))
        return alpha.sqrt() * original_samples + (1 - alpha).sqrt() * noise

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
        **options: Any,
    ) -> SchedulerOutput | tuple[Tensor]:
        """The sample at the next timestep. model_output, sample: (B, ...). generator: of the noise, if there is one.

        Raises ValueError before `set_timesteps`, for a timestep that is not the next one, and for options that this
        solver does not have.
        """
        unused = {name: value for name, value in options.items() if value not in (None, 0, 0.0, False)}
        expect(not unused, f"solver {self.config.solver!r} has no {', '.join(unused)}")
        expect(self.num_inference_steps is not None, "set_timesteps must be called before step")
        if model_output.shape[1] == 2 * sample.shape[1]:
            model_output = model_output[:, : sample.shape[1]]  # the rest is a learned variance
        if self._run is None:
            begin = self._begin if self._begin is not None else self._place(timestep)
            self._run = _Run(self._program(begin), self.timesteps[begin:].tolist(), sample)
        previous = self._run.step(model_output, int(timestep), sample, generator)
        if self._run.done:
            self._run = None
        return SchedulerOutput(prev_sample=previous) if return_dict else (previous,)

    def _place(self, timestep: Any) -> int:
        found = (self.timesteps == int(timestep)).nonzero()
        expect(len(found) > 0, f"timestep {int(timestep)} is not one of {self.timesteps.tolist()}")
        return int(found[0])

    def _program(self, begin: int) -> Program:
        config = self.config
        threshold = Threshold(config.clip_sample_range) if config.clip_sample else None
        program = traced(self._solver, self.schedule, self._times[begin:], _prediction(config), None, threshold, False)
        expect(
            len(program.calls) == len(self._times) - 1 - begin,
            f"solver {config.solver!r} calls the model {len(program.calls)} times in {len(self._times) - 1 - begin} "
            "steps, and a scheduler can only once a step",
        )
        return program


class _Run:
    """A Program between two calls of the model."""

    def __init__(self, program: Program, timesteps: list[int], sample: Tensor) -> None:
        dtype = torch.promote_types(sample.dtype, torch.float32)
        self.program, self.timesteps = program, timesteps
        self.buffers = [torch.zeros_like(sample, dtype=dtype) for _ in range(program.num_slots)]
        self.buffers = [buffer.contiguous() for buffer in self.buffers]
        self.place, self.count = 0, 0
        self._generator: Any = None
        batch = len(sample)
        inputs = Inputs(CounterNoise.of(0, batch), self._draw)
        self.engine: Any
        if cpu.supports(program, sample.device, dtype) is None:
            self.engine = CpuEngine(program, self.buffers, batch, inputs)
        else:
            self.engine = ReferenceEngine(program, self.buffers, batch, inputs, deferred=True)
        self.buffers[0].copy_(sample)
        self._until_call(None)

    @property
    def done(self) -> bool:
        """Whether all calls have been answered."""
        return self.place >= len(self.program.instructions)

    @torch.no_grad()
    def step(self, output: Tensor, timestep: int, sample: Tensor, generator: Any) -> Tensor:
        """The next state."""
        expected = self.timesteps[self.count]
        expect(timestep == expected, f"timestep {timestep} is out of order: the next one is {expected}")
        call = self.program.instructions[self.place]
        assert isinstance(call, Call)
        self.buffers[call.input].copy_(sample)  # which the pipeline may have changed
        self._generator = generator
        self.place, self.count = self.place + 1, self.count + 1
        self._until_call(output.to(self.buffers[0].dtype).contiguous())
        following = self.program.instructions[self.place] if not self.done else None
        slot = following.input if isinstance(following, Call) else self.program.result
        return self.buffers[slot].to(sample.dtype, copy=True)

    def _until_call(self, output: Tensor | None) -> None:
        instructions = self.program.instructions
        while not self.done and not isinstance(instructions[self.place], Call):
            instruction = instructions[self.place]
            if isinstance(instruction, Combine):
                self.engine.combine(self.place, output, None)
            else:
                output = instruction_result(instruction, self.buffers)
            self.place += 1

    def _draw(self, number: int) -> Tensor:
        shape, like = self.buffers[0].shape, self.buffers[0]
        return randn_tensor(shape, generator=self._generator, device=like.device, dtype=like.dtype)


def instruction_result(instruction: Any, buffers: list[Tensor]) -> Tensor:
    """What an Apply gives, which the next combine reads."""
    from fastdiff.program.transforms import TRANSFORMS

    inputs = [buffers[slot] for slot in instruction.inputs]
    return TRANSFORMS[instruction.function](*inputs, **dict(instruction.parameters)).contiguous()


def _prediction(config: Any) -> Any:
    from fastdiff.process.prediction import get_prediction

    return get_prediction(_PREDICTIONS[config.prediction_type])


def _betas(total: int, start: float, end: float, kind: str, trained: Any) -> Any:
    if trained is not None:
        return np.asarray(trained, dtype=np.float64)
    if kind == "linear":
        return np.linspace(start, end, total)
    if kind == "scaled_linear":
        return np.linspace(start**0.5, end**0.5, total) ** 2
    if kind == "squaredcos_cap_v2":
        return VPDiscrete.cosine(total, max_beta=0.999).betas
    raise unknown("beta_schedule", kind, ("linear", "scaled_linear", "squaredcos_cap_v2"))


@dataclass(frozen=True)
class _Twin:
    """Our solver for one of diffusers' schedulers. required: its configuration where both take the same steps."""

    solver: str
    required: dict[str, Any]


_MULTISTEP = {"thresholding": False, "use_karras_sigmas": False, "final_sigmas_type": "zero", "solver_order": 2,
              "use_exponential_sigmas": False, "use_beta_sigmas": False, "use_flow_sigmas": False,
              "use_lu_lambdas": False, "rescale_betas_zero_snr": False}  # fmt: skip
_TWINS = {
    "DDIMScheduler": _Twin("ddim", {"thresholding": False, "clip_sample": False, "rescale_betas_zero_snr": False}),
    "DDPMScheduler": _Twin(
        "ddpm", {"thresholding": False, "variance_type": "fixed_small", "rescale_betas_zero_snr": False}
    ),
    "DPMSolverMultistepScheduler": _Twin(
        "dpmpp-2m", {**_MULTISTEP, "algorithm_type": "dpmsolver++", "solver_type": "midpoint", "variance_type": None}
    ),
    "UniPCMultistepScheduler": _Twin(
        "unipc-2", {**_MULTISTEP, "predict_x0": True, "solver_type": "bh2", "disable_corrector": []}
    ),
}


def scheduler_for(scheduler: Any) -> tuple[SolverScheduler | None, str]:
    """Our scheduler that takes the same steps as one of diffusers', or None; and its name, or why there is none."""
    name = type(scheduler).__name__
    twin = _TWINS.get(name)
    if twin is None:
        return None, f"{name} has no counterpart of the same numbers"
    config = scheduler.config
    for key, wanted in twin.required.items():
        if key in config and config[key] != wanted:
            return None, f"{name} with {key}={config[key]!r}"
    if config.get("beta_schedule") not in ("linear", "scaled_linear", "squaredcos_cap_v2"):
        return None, f"{name} with beta_schedule={config.get('beta_schedule')!r}"
    if config.get("prediction_type") not in _PREDICTIONS:
        return None, f"{name} with prediction_type={config.get('prediction_type')!r}"
    # not from_config, which leaves out what the other class has by default
    known = inspect.signature(SolverScheduler).parameters
    options = {key: value for key, value in config.items() if key in known}
    if "trained_betas" in options and options["trained_betas"] is not None:
        options["trained_betas"] = [float(beta) for beta in options["trained_betas"]]
    return SolverScheduler(**{**options, "solver": twin.solver}), twin.solver
