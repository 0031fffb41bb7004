"""google/prompt-to-prompt, LocalBlend of both notebooks, which agree where both can be used."""

from prompts import prompts_of

from fastdiff.editing.prompt_control import LocalBlend


def run(case):
    prompts, r = prompts_of(case), case.resolution
    assert case.version == "v2" or len(prompts) == 2
    options = dict(threshold=case.threshold, start=case.start_blend)
    if case.subtract_words is not None:
        options |= dict(subtract=case.subtract_words, subtract_threshold=case.subtract_threshold)
    blend = LocalBlend.of(prompts, case.blend_words, case.max_words, (r, r), **options)
    assert blend.first_step(case.num_steps) + 1 == case.first_active_call
    maps = case["maps"]
    maps = maps.reshape(len(maps), len(prompts), -1, *maps.shape[2:])
    return {"x_out": blend(case["x"], maps)}
