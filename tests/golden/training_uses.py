"""What the losses are used for: compression, MCMC, time series, prompts that are learned."""

import numpy as np
import torch
from training_bound import table
from training_case import gradient

from fastdiff.schedules import VPDiscrete
from fastdiff.train import compression, mcmc, rates
from fastdiff.train.losses import denoising_loss, trajectories
from fastdiff.train.process import Process

RNG = torch.Generator()


def lossy_compression(case):
    meta, toy, x0 = case.meta, case.network(), case["x0"]
    schedule = VPDiscrete.linear(meta["steps"], start=meta["beta_start"], end=meta["beta_end"])

    def network(z, time):
        return toy(z, case.cond(t=time + 1))

    sent = compression.encode(network, schedule, x0, RNG, timesteps=meta["timesteps"], start=case["z_T"],
                              noise=case["noise"])  # fmt: skip
    stop = meta["timesteps"].index(meta["stop"])
    out = compression.decode(network, schedule, sent.states[stop], meta["stop"], timesteps=meta["flow_timesteps"])
    return {"z": sent.states, "kl_bits": sent.bits[:, 0], "kl_first_bits": sent.first_bits[0],
            "rate_bits": sent.rate(stop + 1)[0], "x_out": out, "mse": (out - x0).square().mean()}  # fmt: skip


def denoising_mcmc(case):
    meta = case.meta
    means, stds, weights = case["gmm_means"], case["gmm_stds"], case["gmm_weights"]

    def score(x, sigma):
        v = stds**2 + sigma[:, None] ** 2
        away = means - x.flatten(1)[:, None]
        logits = weights.log() - away.square().sum(-1) / (2 * v) - means.shape[1] / 2 * v.log()
        return (logits.softmax(1)[..., None] * away / v[..., None]).sum(1).view(x.shape)

    levels = mcmc.noise_levels(meta["sigma_min"], meta["sigma_max"], count=meta["levels"])
    chains = mcmc.gibbs(score, mcmc.gaussian_classifier(levels, meta["data_variance"]), case["x"], case["sigma"], RNG,
                        steps=meta["gibbs_steps"], eta=meta["eta"], noise=case["noise_langevin"])  # fmt: skip
    churn = {key.lower(): meta[key] for key in ("S_churn", "S_tmin", "S_tmax", "S_noise") if key in meta}
    x = mcmc.denoise(score, chains.x_lowest, chains.sigma_lowest, RNG, steps=meta["steps"],
                     integrator=meta["integrator"], sigma_min=meta["sigma_min"], tweedie=meta["tweedie"],
                     noise=case.optional("noise_integrator"), **churn)  # fmt: skip
    return {"x_chain": chains.x, "sigma_chain": chains.sigma, "sigma_trace": chains.trace,
            "x_lowest": chains.x_lowest, "sigma_lowest": chains.sigma_lowest, "x_out": x}  # fmt: skip


def denoising_mcmc_classifier(case):
    meta, toy, x0, noise, seen = case.meta, case.network(), case["x0"], case["noise"], []
    levels = mcmc.noise_levels(meta["sigma_min"], meta["sigma_max"], count=meta["levels"])

    def network(x):
        seen.append(x)
        return toy(x)

    loss = mcmc.classifier_loss(network, levels, x0, RNG, label=case["label"].long(), noise=noise).mean()
    return {"sigmas": levels, "x_t": seen[0], "loss": loss, "grad": gradient(loss, toy.theta)}


def betas_of(meta):
    n, end = meta["diff_steps"], meta["beta_end"]
    return {
        "linear": lambda: np.linspace(1e-4, end, n),
        "quad": lambda: np.linspace(0.01, end**0.5, n) ** 2,
        "const": lambda: np.full(n, end),
        "sigmoid": lambda: (end - 1e-4) / (1 + np.exp(-np.linspace(-6, 6, n))) + 1e-4,
        "jsd": lambda: 1 / np.linspace(n, 1, n),
        "cosine": lambda: table("cosine", n).betas,
    }[meta["schedule"]]()


def timegrad_loss(case):
    meta, toy, t = case.meta, case.network(), case["t"].double()
    x = case["x"] / case["scale"] if meta["scaled"] else case["x"]
    condition = case["condition"].flatten(0, 1)
    process = Process.of(VPDiscrete(betas_of(meta)), "eps")
    loss = denoising_loss(
        lambda x, time: toy(x, case.cond(t=time, diff_steps=meta["diff_steps"], condition=condition)), process,
        x.flatten(0, 1)[:, None], RNG, norm=meta["loss"], noise=case["noise"],
        times=(t + 1) / meta["diff_steps"])  # fmt: skip
    return {"loss_per_sample": loss, "loss": loss.mean(), "grad": gradient(loss, toy.theta)}


def decision_diffuser(case):
    meta, toy, actions = case.meta, case.network(), case.meta["action_dim"]
    states, theta = case["x"][..., actions:], case.leaf("theta_inverse")
    process = Process.of(table("cosine", meta["n_timesteps"]), "eps" if meta["predict_epsilon"] else "x0")
    cond, uncond = {}, None
    if meta["returns_condition"]:
        returns = case["returns"]
        cond = {"mask": case["mask"][:, None]}
        guided, uncond = {"mask": 1.0}, {"mask": 0.0}

    def network(x, t, mask=None):
        given = {} if mask is None else {"mask": mask, "returns": returns}
        return toy(x, case.cond(t=t, n=meta["n_timesteps"], **given))

    diffusion = trajectories.trajectory_loss(network, process, states, RNG, discount=meta["loss_discount"],
                                             steps=case["t"].long(), noise=case["noise"], **cond)  # fmt: skip

    h, o, a = meta["inverse_hidden"], 2 * meta["observation_dim"], actions
    parts = theta.split([h * o, h, h * h, h, a * h, a])

    def inverse(pairs):
        first = (pairs @ parts[0].view(h, o).T + parts[1]).relu()
        return (first @ parts[2].view(h, h).T + parts[3]).relu() @ parts[4].view(a, h).T + parts[5]

    action = trajectories.inverse_dynamics_loss(inverse, states, case["x"][..., :actions])
    loss = (diffusion.mean() + action.mean()) / 2
    options = {"clip": meta["clip_denoised"], "guidance": meta["guidance_w"]}
    options |= {"uncond": uncond, **guided} if uncond else {}
    results = {"loss": loss, "loss_diffusion": diffusion.mean(), "loss_inverse": action.mean(),
               "grad": gradient(loss, toy.theta), "grad_inverse": gradient(loss, theta)}  # fmt: skip
    if "step_x" in case:
        mean, spread = trajectories.trajectory_step(network, process, case["step_x"], case["step_t"].long(), **options)
        results |= {"step_mean": mean, "step_logvar": spread.flatten()}
    if "sample_init" in case:
        results["sample"] = trajectories.sample_trajectories(
            network, process, states[:, 0], RNG, horizon=meta["horizon"], start=case["sample_init"],
            noise=case["sample_noise"], **options)  # fmt: skip
    return results


def prompt_process(meta):
    return Process.of(VPDiscrete.scaled_linear(meta["N"]), "eps")


def prompt_loss(case, toy, embedding, tokens):
    """The loss of each sample with a prompt whose tokens are rows of `embedding`."""
    t, meta = case["t"].double(), case.meta

    def network(x, time):
        return toy(x, case.cond(t=time, N=meta["N"], embeddings=embedding[tokens].mean(1)))

    return denoising_loss(network, prompt_process(meta), case["x0"], RNG, times=(t + 1) / meta["N"],
                          noise=case["noise"])  # fmt: skip


def optimizer_of(meta, parameters):
    if meta["optimizer"] == "sgd":
        return torch.optim.SGD(parameters, lr=meta["lr"])
    return torch.optim.AdamW(parameters, lr=meta["lr"], betas=tuple(meta["betas"]), eps=meta["eps"],
                             weight_decay=meta["weight_decay"])  # fmt: skip


def textual_inversion(case):
    meta, toy, tokens, before = case.meta, case.network(), case["tokens"].long(), case["embedding"]
    embedding = before.clone().requires_grad_()
    rows, losses, first = meta["placeholder"], [], None
    others = [k for k in range(len(before)) if k not in rows]
    optimizer = optimizer_of(meta, [embedding])
    for _ in range(meta["steps"]):
        loss = prompt_loss(case, toy, embedding, tokens).mean()
        optimizer.zero_grad()
        loss.backward()
        first = embedding.grad[rows].clone() if first is None else first
        optimizer.step()
        with torch.no_grad():
            embedding[others] = before[others]
        losses.append(loss.detach())
    return {"loss": torch.stack(losses), "grad_placeholder": first, "embedding_after": embedding}


def dreambooth(case):
    meta, theta, tokens = case.meta, case.leaf("theta"), case["tokens"].long()
    embedding = case.leaf("embedding")
    trained = [theta, embedding] if meta["train_text_encoder"] else [theta]
    optimizer, losses, results = optimizer_of(meta, trained), [], {}
    half = len(tokens) // 2
    for k in range(meta["steps"]):
        each = prompt_loss(case, case.network(theta), embedding, tokens)
        instance, prior = each[:half].mean(), each[half:].mean()
        loss = instance + meta["prior_loss_weight"] * prior
        theta.grad = embedding.grad = None
        loss.backward()
        if k == 0:
            results = {"grad": theta.grad.clone(), "grad_embedding": embedding.grad.clone()}
        norm = torch.stack([p.grad.norm() for p in trained]).norm()
        for p in trained:
            p.grad *= rates.clip_factor(norm, meta["max_grad_norm"])
        optimizer.step()
        losses.append(torch.stack([loss, instance, prior]).detach())
    columns = torch.stack(losses, 1)
    return {**results, "loss": columns[0], "loss_instance": columns[1], "loss_prior": columns[2],
            "theta_after": theta, "embedding_after": embedding}  # fmt: skip
