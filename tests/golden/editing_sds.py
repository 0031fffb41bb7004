"""ashawkey/stable-dreamfusion and threestudio: one gradient of score distillation."""

from distilled import loss_of


def run(case):
    theta = case["theta"].requires_grad_()
    loss = loss_of(case, theta, case["timesteps"], case["noise"])
    loss.backward()
    return {"loss": loss.detach(), "theta_grad": theta.grad}
