"""Flow matching, rectified flow, and flows of minimal curvature."""

import torch
from training_case import gradient

from fastdiff.train.losses import flow

RNG = torch.Generator()
OPTIONS = {"polynomial": ("n",), "vp": ("beta_min", "beta_max"), "cond-ot-sigma-min": ("sigma_min",)}


def flow_matching(case):
    meta, name = case.meta, case.meta["path"]
    make = flow.cond_ot if name == "cond-ot-sigma-min" else flow.PATHS[name]
    path = make(**{key: meta[key] for key in OPTIONS.get(name, ())})
    toy, x1, x0, t = case.network(), case["x1"], case["x0"], case["t"]
    loss = flow.flow_matching_loss(lambda x, t: toy(x, case.cond(t=t)), path, x1, RNG, times=t, noise=x0)
    x, velocity = path.sample(x1, x0, t)
    results = {"x_t": x, "velocity": velocity, "loss": loss, "grad": gradient(loss, toy.theta),
               "target_to_velocity": path.target_to_velocity(x1, x, t),
               "epsilon_to_velocity": path.epsilon_to_velocity(x0, x, t)}  # fmt: skip
    if "velocity_in" in case:
        given = case["velocity_in"]
        results["velocity_to_target"] = path.velocity_to_target(given, x, t)
        results["velocity_to_epsilon"] = path.velocity_to_epsilon(given, x, t)
    return results


def rectified_flow(case):
    meta, toy, first = case.meta, case.network(), case.meta["eps"]
    z0, results = meta["noise_scale"] * case["noise"], {}
    if meta["reflow"]:
        teacher = case.network("theta_teacher", "teacher")
        data = flow.euler_pairs(lambda x, t: teacher(x, case.cond(t=t)), z0, meta["teacher_euler_steps"], first=first)
        results["z1"] = data
    else:
        data = case["x0"]
    u = case["u"] if "u" in case else case["index"].double() if "index" in case else torch.zeros(len(z0)).double()
    t = flow.flow_times(u, meta["t_schedule"], first=first)
    reduction = "mean" if meta["reduce_mean"] else "half-sum"
    loss = flow.flow_matching_loss(lambda x, t: toy(x, case.cond(t=t)), "cond-ot", data, RNG, times=t, noise=z0,
                                   reduction=reduction)  # fmt: skip
    return {**results, "t": t, "loss_per_sample": loss, "loss": loss.mean(), "grad": gradient(loss, toy.theta)}


def minimal_curvature_flow(case):
    meta, x0, noise, u = case.meta, case["x0"], case["noise"], case["u"]
    theta, encoder_theta = case.leaf("theta"), None if meta["independent"] else case.leaf("theta_encoder")
    leaves = [theta] if encoder_theta is None else [theta, encoder_theta]
    results, seen = {}, []
    for k in range(len(x0)):
        toy = case.network(theta)
        encoder = None
        if encoder_theta is not None:
            net = case.network(encoder_theta, "encoder")

            def encoder(x, one, net=net):
                return net(x, torch.ones(len(x), 1).double())

        t = u[k] * (1 - meta["eps"]) + meta["eps"]
        fm, prior = flow.curvature_loss(lambda x, t, toy=toy: toy(x, case.cond(t=t)), encoder, x0[k], RNG, times=t,
                                        noise=noise[k])  # fmt: skip
        fm, prior = fm.mean(), prior.mean()
        loss = fm + meta["weight_prior"] * prior
        gradients = torch.autograd.grad(loss, leaves)
        if k == 0:
            results["grad"] = gradients[0]
            if encoder is not None:
                mean, log_variance = encoder(x0[0], None).chunk(2, 1)
                results |= {"grad_encoder": gradients[1], "mu": mean, "logvar": log_variance,
                            "z1": mean + (log_variance / 2).exp() * noise[0]}  # fmt: skip
        leaves = [(leaf - meta["lr"] * g).detach().requires_grad_() for leaf, g in zip(leaves, gradients)]
        theta, encoder_theta = leaves[0], None if encoder_theta is None else leaves[1]
        seen.append(torch.stack([loss, fm, prior]).detach())
    rows = torch.stack(seen, 1)
    return {**results, "loss": rows[0], "loss_fm": rows[1], "loss_prior": rows[2], "theta_after": theta,
            "theta_encoder_after": encoder_theta}  # fmt: skip


def minimal_curvature_terms(case):
    mean, log_variance = case["mu"], case["logvar"]

    def kl(*prior):
        return flow.kl_of_normals(mean, log_variance, *prior).sum(1).mean() / 2

    wide = case["wide_prior_var"]
    betas = {"beta_min": case.meta["beta_min"], "beta_max": case.meta["beta_max"]}
    x, velocity = flow.vp_pair(case["x0"], case["z1"], case["t"], **betas)
    return {"kl_standard": kl(), "kl_wide": kl(0.0, wide), "kl_general": kl(case["prior_mean"], case["prior_var"]),
            "kl_wide_original": kl(0.0, wide) + wide.log().max() / 4,  # as the original counts it in both dimensions
            "straightness": flow.straightness(case["trajectory"]), "z_t_vp": x, "target_vp": velocity}  # fmt: skip


def minimal_curvature_distillation(case):
    toy, z1 = case.network(), case["z1"]
    loss = flow.one_step_loss(lambda x, t: toy(x, case.cond(t=t)), case["x0"], z1).mean()
    return {"loss": loss, "grad": gradient(loss, toy.theta)}
