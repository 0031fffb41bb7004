"""The passes over a captured graph, in the order in which they run. Each is a module with NAME and `apply(graph,
notes)`, and each can be turned off by its name."""

from fastdiff.compiler.passes import (
    ada_layer_norm,
    add_group_norm_silu,
    attention,
    condition,
    constant_folding,
    conv2d,
    group_norm_silu,
    invariants,
    joined,
    layout,
    linear,
    precision,
    residual_ada_layer_norm,
    side_by_side,
    weight_budget,
)

PASSES = {
    module.NAME: module.apply
    for module in (
        constant_folding,
        attention,
        group_norm_silu,
        ada_layer_norm,
        residual_ada_layer_norm,
        condition,
        joined,
        conv2d,
        add_group_norm_silu,
        side_by_side,
        weight_budget,
        linear,
        precision,
        layout,
        invariants,
    )
}

__all__ = ["PASSES"]
