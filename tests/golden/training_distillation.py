"""Distillation: progressive, guided, and one step for a run of DDIM."""

import numpy as np
import torch
from training_bound import table
from training_case import columns, gradient

from fastdiff.process.prediction import get_prediction
from fastdiff.schedules import CosineLogSNR
from fastdiff.train.losses import guided, progressive, student
from fastdiff.train.process import Process

RNG = torch.Generator()


def process_of(meta):
    schedule = CosineLogSNR(meta.get("logsnr_min", -20.0), meta.get("logsnr_max", 20.0))
    kind = meta["prediction"]
    prediction = progressive.BOTH if kind == "both" else get_prediction("x0" if kind == "x" else kind)
    return Process(schedule, prediction)


def denoiser(case, toy, seen=None):
    def network(z, t):
        if seen is not None:
            seen.append(t)
        return toy(z, case.cond(logsnr=t))

    return network


def times(case):
    return {key: case[key] for key in ("u", "index") if key in case}


def progressive_distillation(case):
    meta, toy, seen = case.meta, case.network(), []
    teacher = denoiser(case, case.network("theta_teacher", "teacher")) if meta["distill"] else None
    found = progressive.progressive_terms(
        denoiser(case, toy, seen), process_of(meta), case["x0"], RNG, teacher=teacher, steps=meta["num_steps"],
        weight=meta["weight"], noise=case["noise"], **times(case))  # fmt: skip
    target = found.target
    return {"loss": found.loss, "grad": gradient(found.loss, toy.theta), "z_t": found.z, "logsnr": seen[-1],
            "x_target": target.x0, "eps_target": target.eps, "v_target": target.v}  # fmt: skip


def progressive_distillation_chain(case):
    meta, x0, noise, index = case.meta, case["x0"], case["noise"], case["index"]
    process, teacher, k = process_of(meta), case.leaf("theta_teacher"), 0
    losses, after = [], []
    for steps in meta["stages"]:
        theta = teacher.detach().clone().requires_grad_()
        for _ in range(meta["steps_per_stage"]):
            loss = progressive.progressive_loss(
                denoiser(case, case.network(theta)), process, x0[k], RNG, weight=meta["weight"], steps=steps,
                teacher=denoiser(case, case.network(teacher)), noise=noise[k], index=index[k])  # fmt: skip
            theta = (theta - meta["lr"] * gradient(loss, theta)).detach().requires_grad_()
            losses.append(loss.detach())
            k += 1
        teacher = theta
        after.append(theta.detach())
    return {"loss": torch.stack(losses), "theta_after": torch.stack(after)}


def logsnr_posterior(case):
    meta, process = case.meta, process_of(case.meta)
    t, s = (process.schedule.t_of_lam(np.asarray(case[key]) / 2) for key in ("logsnr_t", "logsnr_s"))
    step = progressive.reverse_step(denoiser(case, case.network()), process, case["z_t"], t, s, x0=case["x0"],
                                    variance=meta["logvar_type"], clip=meta["clip_x"])  # fmt: skip
    return {"mean": step.mean, "var": step.variance, "pred_x": step.found.x0, "pred_eps": step.found.eps,
            "kl_bits": step.kl_bits}  # fmt: skip


def guided_distillation(case):
    meta, seen, toy = case.meta, [], case.network()
    teacher_toy = case.network("theta_teacher", "teacher")
    label, w = case["label"].long(), case["w"]

    def onehot(_):
        return torch.nn.functional.one_hot(label, meta["classes"]).double()

    def student_network(z, t, w, label):
        seen.append(t)
        return toy(z, case.cond(logsnr=t, onehot=onehot, label=label, w=w))

    def teacher(z, t, label, w=None):
        w = torch.zeros(len(z)).double() if w is None else w
        given = onehot if label is not None else lambda _: torch.zeros(len(z), meta["classes"]).double()
        return teacher_toy(z, columns(meta["cond_teacher"], logsnr=t, onehot=given, label=0.0, w=w))

    found = guided.guided_terms(
        student_network, process_of(meta), case["x0"], RNG, teacher=teacher, w=w, label=label,
        uncond={"label": None} if meta["stage"] == 1 else None, steps=meta["num_steps"], weight=meta["weight"],
        noise=case["noise"], **times(case))  # fmt: skip
    return {"loss": found.loss, "grad": gradient(found.loss, toy.theta), "z_t": found.z, "logsnr": seen[-1],
            "x_target": found.target.x0}  # fmt: skip


def denoising_student(case):
    meta, noise, theta = case.meta, case["x_T"], case.leaf("theta")
    teacher = case.network("theta_teacher", "teacher")
    steps = student.teacher_steps(meta["progression"], meta["teacher_steps"])
    data = student.ddim_pairs(lambda x, n: teacher(x, case.cond(index=n)), table(meta["schedule"], 1000), noise, steps)
    x, y = student.as_stored(noise, data) if meta["storage"] == "float16-uint8" else (noise, data)
    results, losses = {"y": data, "x_used": x, "y_used": y}, []
    for k in range(max(meta["sgd_steps"], 1)):
        toy = case.network(theta)

        def network(x, n, toy=toy):
            return toy(x, case.cond(index=n))

        loss = student.one_shot_loss(network, x, y, kind=meta["loss"]).mean()
        step = gradient(loss, theta)
        if k == 0:
            results |= {"prediction": x - network(x, torch.full((len(x),), 999.0)), "grad": step}
        theta = (theta - meta["lr"] * step).detach().requires_grad_()
        losses.append(loss.detach())
    return {**results, "loss": torch.stack(losses), "theta_after": theta}
