"""Variational diffusion, truncated diffusion, scheduled sampling, and what slim networks need."""

from math import log

import torch
from training_case import gradient

from fastdiff.schedules import VPDiscrete
from fastdiff.train import rates
from fastdiff.train.losses import scheduled, spectral, truncated, variational

RNG = torch.Generator()
GAMMAS = {"fixed": variational.FixedGamma, "learnable_scalar": variational.ScalarGamma,
          "learnable_nnet": variational.MonotoneGamma}  # fmt: skip


def linear(meta):
    """Betas in a line from beta_start to beta_end."""
    return VPDiscrete.linear(meta["steps"], start=meta["beta_start"], end=meta["beta_end"])


def variational_diffusion(case):
    meta, toy = case.meta, case.network()
    gamma = GAMMAS[meta["gamma"]](meta["gamma_min"], meta["gamma_max"]).double()
    for name, _ in list(gamma.named_parameters()):
        setattr(gamma, name, torch.nn.Parameter(case[f"gamma_{name}"].clone()))
    x = case["x"]
    t = variational.variational_times(case["u"], len(x), steps=meta["T"], antithetic=meta["antithetic"])
    terms = variational.variational_terms(
        lambda z, g: toy(z, case.cond(gamma_t=g)), gamma, x, RNG, vocabulary=meta["vocab"], steps=meta["T"], times=t,
        noise=case["noise"], noise_0=case["noise_0"])  # fmt: skip
    prior = terms.prior.expand(len(x))
    bits = torch.stack([part.mean() for part in (terms.reconstruction, prior, terms.diffusion)])
    bits = bits / (x[0].numel() * log(2))
    loss = terms.bits_per_dim(x[0].numel()).mean()
    return {"t": t, "loss_recon": terms.reconstruction, "loss_prior": prior, "loss_diffusion": terms.diffusion,
            "gamma_t": terms.gamma, "bits_per_dim": bits, "loss": loss, "grad": gradient(loss, toy.theta),
            **{f"grad_gamma_{name}": gradient(loss, value) for name, value in gamma.named_parameters()}}  # fmt: skip


def truncated_diffusion(case):
    meta, schedule, x0, t_max = case.meta, linear(case.meta), case["x0"], case.meta["truncated_timestep"]

    def network(theta):
        toy = case.network(theta)
        return lambda x, t: toy(x, case.cond(t=t, steps=meta["steps"]))

    theta, discriminator_theta = case.leaf("theta"), case.leaf("theta_discriminator")
    discriminator = case.network(discriminator_theta, "discriminator")
    steps = truncated.mirrored_steps(case["half"].long(), t_max, len(x0))
    loss = truncated.truncated_loss(network(theta), schedule, x0, RNG, truncated=t_max, steps=steps,
                                    noise=case["noise"])  # fmt: skip
    grad = gradient(loss, theta)
    grad = grad * rates.clip_factor(grad.norm(), meta["grad_clip"])
    after = (theta - meta["lr"] * grad).detach().requires_grad_()
    made = truncated.generator_loss(network(after), discriminator, case["z_generator"], truncated=t_max).mean()
    made_grad = gradient(made, after)
    generator = after - meta["lr_generator"] * made_grad
    fake = truncated.generated(network(generator), case["z_discriminator"], t_max)
    found = truncated.discriminator_loss(discriminator, schedule, x0, fake, RNG, truncated=t_max,
                                         r1_gamma=meta["r1_gamma"] if meta["r1"] else 0.0,
                                         noise=case["noise_real"])  # fmt: skip
    step = gradient(found.loss, discriminator_theta)
    return {"t": steps, "loss_per_sample": loss, "loss_denoise": loss.mean(), "grad_denoise": grad,
            "theta_after_denoise": after, "loss_generator": made, "grad_generator": made_grad,
            "theta_after_generator": generator, "loss_discriminator": found.loss.mean(),
            "loss_real": found.real.mean(), "loss_fake": found.fake.mean(), "loss_r1": found.r1.mean(),
            "grad_discriminator": step,
            "theta_discriminator_after": discriminator_theta - meta["lr_discriminator"] * step}  # fmt: skip


def scheduled_sampling(case):
    meta, toy = case.meta, case.network()
    terms = scheduled.scheduled_terms(lambda x, t: toy(x, case.cond(t=t, N=meta["steps"])), linear(meta), case["x0"],
                                      RNG, rolled=meta["m_drawn"], steps=case["t"].long(),
                                      noise=case["noise"])  # fmt: skip
    assert terms.rolled == meta["m_used"]
    chances = scheduled.roll_probabilities(meta["weights_start"], meta["weights_end"],
                                           meta["global_step"] / meta["total_steps"])  # fmt: skip
    return {"m_probabilities": chances, "x_t": terms.x, "target": terms.target, "loss_per_sample": terms.loss,
            "loss": terms.loss.mean(), "grad": gradient(terms.loss, toy.theta),
            "rollback_inputs": terms.states}  # fmt: skip


def spectral_diffusion(case):
    meta = case.meta
    if meta["mode"] == "spectrum-aware-distillation":
        student = case.leaf("student")
        terms = spectral.spectral_loss(
            student, case["teacher"], case["x0"], case["noise"], noise_student=case["noise_student"],
            alpha=meta["alpha"], norm=meta["norm"], spatial=meta["lambda_s"], frequency=meta["lambda_f"])  # fmt: skip
        loss = terms.loss.mean()
        return {"weight": terms.weight, "loss_ddpm": terms.ddpm, "loss_spatial": terms.spatial,
                "loss_frequency": terms.frequency, "loss": loss, "grad_student": gradient(loss, student)}  # fmt: skip
    x, up = case.leaf("x"), meta["mode"].endswith("up")
    gating = spectral.WaveletGating(len(case["gate_bias"]) // 4, up=up).double()
    gating.linear.weight = torch.nn.Parameter(case["gate_weight"].clone())
    gating.linear.bias = torch.nn.Parameter(case["gate_bias"].clone())
    y = gating(x)
    loss = (y - case["target"]).square().mean()
    return {"gate": gating.gate(x), "y": y, "loss": loss, "grad_x": gradient(loss, x),
            "grad_gate_weight": gradient(loss, gating.linear.weight)}  # fmt: skip
