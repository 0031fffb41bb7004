"""Arguments that do not fit are refused, by a message that names them, what was given and what was expected."""

import re
import warnings

import numpy as np
import pytest
import torch
from small_network import Net

import fastdiff
from fastdiff import CFG, Classifier, SamplingError, Threshold, pictures, sample
from fastdiff.models.autoencoder import AutoencoderConfig, AutoencoderKL
from fastdiff.models.ldm import LatentDiffusion
from fastdiff.schedules import EDM, SCHEDULES, RectifiedFlow, VPDiscrete

VP = VPDiscrete.linear()
COMMON = dict(schedule=VP, prediction="eps", steps=4, seed=0)
SHAPE = (2, 3, 8, 8)
X = torch.zeros(SHAPE)
WRONG = (TypeError, ValueError)


def flat(x, t, c=None):
    return 0.3 * torch.tanh(x) + (0 if c is None else c[:, :1, None, None])


def halves(batch=2):
    return dict(cond={"c": torch.ones(batch, 4)}, uncond={"c": torch.zeros(batch, 4)})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("guidance", "7.5", "guidance must be a number, one a sample, .*got '7.5' (str)"),
        ("guidance", True, "got True (bool)"),
        ("guidance", {}, "got {} (dict)"),
        ("guidance", CFG, "guidance must be"),
        ("guidance", 1j, "guidance must be"),
        ("guidance", torch.tensor(True), "guidance scale must be a finite number"),
        ("guidance", [7.5, "a"], "guidance scale[1] must be a finite number, got 'a' (str)"),
        ("guidance", [7.5, float("nan")], "guidance scale[1] must be a finite number, got nan"),
        ("guidance", [], "got none"),
        ("guidance", [1.0, 2.0, 3.0], "guidance must be one scale or one a sample (2), got 3"),
        ("guidance", torch.ones(2, 2), "got a tensor float32 (2, 2)"),
        ("guidance", np.ones(3), "one a sample (2), got 3"),
        ("threshold", "x", "threshold must be a number or fastdiff.Threshold, got 'x' (str)"),
        ("threshold", True, "got True (bool)"),
        ("threshold", torch.ones(2), "threshold must be a finite number, got a tensor float32 (2,)"),
        ("threshold", -1.0, "threshold limit must be positive"),
        ("steps", True, "steps must be a whole number >= 1, got True"),
        ("steps", "4", "steps must be a whole number >= 1, got '4'"),
        ("steps", 4.0, "steps must be a whole number"),
        ("steps", None, "steps must be a whole number"),
        ("solver", 3, "solver must be a name"),
        ("solver", ["ddim"], "solver must be a name"),
        ("prediction", 3, "prediction must be a name"),
        ("prediction", ["eps"], "prediction must be a name"),
        ("schedule", VPDiscrete, "schedule must be a fastdiff Schedule"),
        ("grid", ["a", "b"], "grid must be a name, a function or decreasing times"),
        ("grid", 3, "grid must hold at least two times"),
        ("grid", object(), "grid must"),
        ("start", "0.5", "start must be a finite number"),
        ("start", True, "start must be a finite number"),
        ("start", float("nan"), "start must be a finite number"),
        ("cond", torch.zeros(2, 4), "cond must hold the model's arguments by their names, .*got a tensor float32"),
        ("cond", [1], "cond must hold"),
        ("cond", "y", "cond must hold"),
        ("cond", {1: torch.zeros(2, 4)}, "cond must hold the model's arguments by their names, got the name 1"),
        ("cond", {"c": torch.zeros(3, 4)}, r"cond['c'] must be (2, ...), one row a sample, .* got (3, 4)"),
        ("cond", {"c": {"d": torch.zeros(4)}}, r"cond['c']['d'] must be (2, ...)"),
        ("uncond", torch.zeros(2, 4), "uncond must hold"),
        ("uncond", {"c": torch.zeros(3, 4)}, "uncond['c'] must be (2, ...)"),
        ("seed", "3", "seed must be a whole number, one a sample, or None, got '3' (str)"),
        ("seed", True, "seed must be whole numbers"),
        ("seed", [True, False], "seed must be whole numbers"),
        ("seed", torch.Generator(), "a torch.Generator goes to noise="),
        ("seed", torch.tensor([1.0, 2.0]), "seed must be whole numbers"),
        ("seed", np.array([[1, 2]]), "one a sample (2), got 1"),
        ("seed", np.arange(3), "one a sample (2), got 3"),
        ("seed", {1, 2}, "seed must be"),
        ("first_sample", -1, "first_sample must be a whole number >= 0, got -1"),
        ("first_sample", True, "first_sample must be"),
        ("first_sample", "a", "first_sample must be"),
        ("noise", 3, "noise must be a torch.Generator"),
        ("noise", "normal", "noise must be a torch.Generator"),
        ("noise", np.zeros((4, *SHAPE)), "noise must be a torch.Generator"),
        ("callback", 3, "callback must be a function callback(step, state), got 3 (int)"),
        ("progress", 1, "progress must be True or False"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("solver", ["ddpm", "rk45"])
def test_sample(solver, name, value, message):
    arguments = {**COMMON, "solver": solver, name: value}
    if name == "guidance":
        arguments |= halves()
    pattern = ".*".join(map(re.escape, message.split(".*")))
    with pytest.raises(WRONG, match=pattern):
        sample(flat, X, **arguments)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (8, "x_init_or_shape must be a tensor (B, ...), or the shape of the samples, like (4, 3, 32, 32), got 8 (int)"),
        (2.5, "got 2.5 (float)"),
        (None, "got None"),
        ("2x3", "got '2x3' (str)"),
        ({2: 3}, "x_init_or_shape must be"),
        (np.zeros(SHAPE), "got a NumPy array float64 (2, 3, 8, 8); torch.from_numpy makes a tensor of it"),
        (np.array(SHAPE), "torch.from_numpy"),
        ((True, 3), "positive whole numbers"),
        ((2, "3"), "positive whole numbers"),
        ([np.zeros((3, 8, 8)).tolist()], "positive whole numbers"),
        (torch.zeros(SHAPE, dtype=torch.bool), "x_init must be a floating-point tensor"),
        (torch.zeros(SHAPE, dtype=torch.complex64), "x_init must be a floating-point tensor"),
        (torch.zeros(0, 3), "x_init must be a floating-point tensor (B, ...), got torch.float32 (0, 3)"),
        (torch.tensor(1.0), "x_init must be a floating-point tensor"),
    ],
)
def test_what_is_neither_a_state_nor_a_shape(given, message):
    with pytest.raises(WRONG, match=re.escape(message)) as caught:
        sample(flat, given, **COMMON)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("emoji-unet-32", "got the name 'emoji-unet-32'; fastdiff.load(name) gives a bundled model"),
        (3, "model must be a function model(x, t, **cond), got 3 (int)"),
        (torch.zeros(3), "model must be a function"),
        (None, "model must be a function"),
    ],
)
def test_what_is_no_model(model, message):
    program = fastdiff.trace("ddim", VP, [1.0, 0.5], "eps")
    common = dict(schedule=VP, prediction="eps")
    for call in (
        lambda: sample(model, SHAPE, **COMMON),
        lambda: fastdiff.encode(model, X, **common),
        lambda: fastdiff.log_likelihood(model, X, **common),
        lambda: fastdiff.run(program, model, X),
        lambda: sample(model, SHAPE, solver=program, schedule=VP),
    ):
        with pytest.raises(TypeError, match=re.escape(message)):
            call()


@pytest.mark.parametrize("solver", ["ddim", "rk45"])
@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda x, t: x.long(), "the model returned torch.int64, expected floating-point numbers"),
        (lambda x, t: x > 0, "the model returned torch.bool"),
        (lambda x, t: x.to(torch.complex64), "the model returned torch.complex64"),
        (lambda x, t: x[:1], "the model returned shape (1, 3, 8, 8), expected (2, 3, 8, 8)"),
        (lambda x, t: x[:, :1], "the model returned shape (2, 1, 8, 8)"),
        (lambda x, t: x.numpy(), "the model returned ndarray, expected a tensor"),
        (lambda x, t: 3, "the model returned int"),
        (lambda x, t: None, "the model returned NoneType"),
        (lambda x, t: x.to("meta"), "the model returned a tensor on meta"),
        (lambda x, t: x * float("nan"), "NaN"),
    ],
)
def test_what_a_model_must_not_return(solver, model, message):
    with pytest.raises(SamplingError, match=re.escape(message)):
        sample(model, SHAPE, solver=solver, **COMMON)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_model_may_return_another_floating_type(backend, dtype):
    with fastdiff.use(backend):
        found = sample(lambda x, t: x.to(dtype), X + 1, **COMMON)
        torch.testing.assert_close(found, sample(lambda x, t: x.to(dtype).float(), X + 1, **COMMON))


@pytest.mark.parametrize("given", [torch.tensor(7.5), torch.tensor([7.5]), np.array(7.5), np.float32(7.5), [7.5],
                                   (7.5,), torch.tensor(7.5, dtype=torch.float16), CFG(torch.tensor(7.5))])  # fmt: skip
def test_one_scale_however_it_is_held_is_that_scale(given):
    expected = sample(flat, SHAPE, guidance=7.5, **halves(), **COMMON)
    assert not torch.equal(expected, sample(flat, SHAPE, guidance=1.0, **halves(), **COMMON))
    assert torch.equal(sample(flat, SHAPE, guidance=given, **halves(), **COMMON), expected)


def test_one_limit_however_it_is_held_is_that_limit():
    expected = sample(flat, SHAPE, threshold=0.5, **COMMON)
    for given in (torch.tensor(0.5), np.array([0.5]), Threshold(0.5), Threshold(np.float32(0.5))):
        assert torch.equal(sample(flat, SHAPE, threshold=given, **COMMON), expected)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("solver", ["ddim", "ddpm", "dpmpp-2m"])
@pytest.mark.parametrize("kind", [list, tuple, torch.tensor, np.array, lambda scales: CFG(scales, rescale=0.5)])
def test_one_scale_a_sample(backend, solver, kind):
    """Each sample as in a run of its own, whose seed and place in the batch it has."""
    scales, common = [7.5, 1.0, 0.0], dict(solver=solver, **COMMON)
    cond, uncond = 0.05 * torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1))
    guidance = kind(scales)
    with fastdiff.use(backend):
        found = sample(flat, (3, *SHAPE[1:]), guidance=guidance, cond={"c": cond}, uncond={"c": uncond}, **common)
        for k, scale in enumerate(scales):
            rescale = guidance.rescale if isinstance(guidance, CFG) else 0.0
            alone = sample(flat, (1, *SHAPE[1:]), guidance=CFG(scale, rescale=rescale), cond={"c": cond[k : k + 1]},
                           uncond={"c": uncond[k : k + 1]}, first_sample=k, **common)  # fmt: skip
            torch.testing.assert_close(found[k], alone[0], rtol=1e-4, atol=1e-4)


def test_one_scale_a_sample_of_adaptive_solvers_and_learned_variances():
    def variance(x, t, c):
        return torch.cat([flat(x, t, c), 0 * x + c[:, 1:2, None, None]], 1)

    cases = [(flat, "eps", "rk45"), (variance, "eps+variance", fastdiff.solvers.get_solver("ddpm", variance="learned"))]
    for model, prediction, solver in cases:
        common = {**COMMON, "prediction": prediction, "solver": solver}
        several = sample(model, SHAPE, guidance=[3.0, 3.0], **halves(), **common)
        one = sample(model, SHAPE, guidance=3.0, **halves(), **common)
        torch.testing.assert_close(several, one, rtol=1e-3, atol=1e-3)


def test_one_scale_a_sample_takes_no_interval_and_no_program():
    with pytest.raises(ValueError, match="takes no interval"):
        sample(flat, SHAPE, guidance=CFG([1.0, 2.0], interval=(-1, 1)), **halves(), **COMMON)
    with pytest.raises(ValueError, match=r"one guidance scale is needed here, got 2; fastdiff.sample takes several"):
        fastdiff.trace("ddim", VP, [1.0, 0.5], "eps", guidance=CFG([1.0, 2.0]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CFG("7"), "guidance scale must be a finite number, got '7' (str)"),
        (lambda: CFG(None), "guidance scale must be a finite number"),
        (lambda: CFG(True), "guidance scale must be a finite number"),
        (lambda: CFG(2.0, interval=5), "guidance interval must be (low, high) in lambda, got 5 (int)"),
        (lambda: CFG(2.0, interval=("a", 1.0)), "guidance interval must be"),
        (lambda: CFG(2.0, interval=(1.0, 2.0, 3.0)), "guidance interval must be"),
        (lambda: CFG(2.0, rescale="x"), "guidance rescale must be a finite number"),
        (lambda: Threshold("x"), "threshold limit must be a finite number, got 'x' (str)"),
        (lambda: Threshold(1.0, percentile="x"), "threshold percentile must be a finite number"),
        (lambda: Threshold(True), "threshold limit must be a finite number"),
        (lambda: Classifier(3), "gradient must be a function gradient(x, t), got 3 (int)"),
        (lambda: Classifier(flat, "x"), "classifier scale must be a finite number"),
    ],
)
def test_guidance(make, message):
    with pytest.raises(WRONG, match=re.escape(message)):
        make()


@pytest.mark.parametrize("guidance", [None, Classifier(lambda x, t: x)])
@pytest.mark.parametrize("solver", ["ddim", "rk45"])
def test_uncond_without_guidance_is_said(solver, guidance):
    with pytest.warns(UserWarning, match="uncond is not used, as there is no guidance") as said:
        sample(flat, SHAPE, solver=solver, guidance=guidance, **halves(), **COMMON)
    assert [warning.filename for warning in said] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sample(flat, SHAPE, solver=solver, guidance=2.0, **halves(), **COMMON)
        sample(flat, SHAPE, solver=solver, cond=halves()["cond"], **COMMON)


@pytest.mark.parametrize("guidance", [None, 2.0])
def test_a_condition_of_one_row_is_for_all_samples(guidance):
    one, all_ = halves(1), halves(2)
    if guidance is None:
        del one["uncond"], all_["uncond"]
    found = sample(flat, SHAPE, guidance=guidance, **one, **COMMON)
    assert torch.equal(found, sample(flat, SHAPE, guidance=guidance, **all_, **COMMON))


@pytest.mark.parametrize(
    "seeds",
    [
        np.array([3, 4]),
        np.array([3, 4], np.uint8),
        [np.int64(3), np.int64(4)],
        (3, np.uint64(4)),
        torch.tensor([3, 4]),
        [torch.tensor(3), torch.tensor(4)],
        [np.array(3), np.array([4])],
    ],
)
def test_seeds_of_numpy_and_tensors(seeds):
    expected = sample(flat, SHAPE, **{**COMMON, "seed": [3, 4]})
    assert torch.equal(sample(flat, SHAPE, **{**COMMON, "seed": seeds}), expected)
    assert torch.equal(fastdiff.diffuse(X, VP, 0.5, seed=seeds), fastdiff.diffuse(X, VP, 0.5, seed=[3, 4]))


@pytest.mark.parametrize("seed", [np.int64(3), np.array(3), torch.tensor(3), np.uint64(3)])
def test_a_seed_of_numpy_and_a_tensor(seed):
    expected = sample(flat, SHAPE, **{**COMMON, "seed": 3})
    assert torch.equal(sample(flat, SHAPE, **{**COMMON, "seed": seed}), expected)
    assert torch.equal(sample(flat, SHAPE, **{**COMMON, "seed": np.array([2**64 - 1, 0], np.uint64)}),
                       sample(flat, SHAPE, **{**COMMON, "seed": [2**64 - 1, 0]}))  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(x0=np.zeros(SHAPE)), "x0 must be a tensor (B, ...), got a NumPy array"),
        (dict(x0=X.long()), "x0 must be a floating-point tensor"),
        (dict(t="0.5"), "t must be a finite number"),
        (dict(t=1.5), "t must lie in"),
        (dict(schedule=3), "schedule must be"),
        (dict(schedule="linea"), "did you mean 'linear'"),
        (dict(seed="a"), "seed must be"),
    ],
)
def test_diffuse(change, message):
    with pytest.raises(WRONG, match=re.escape(message)):
        fastdiff.diffuse(**{"x0": X, "schedule": VP, "t": 0.5, "seed": 0, **change})


def test_diffuse_takes_the_name_of_a_schedule():
    assert torch.equal(fastdiff.diffuse(X, "linear", 0.5, seed=0), fastdiff.diffuse(X, VP, 0.5, seed=0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(x0=np.zeros(SHAPE)), "x0 must be a tensor (B, ...), got a NumPy array"),
        (dict(x0=SHAPE), "x0 must be a tensor"),
        (dict(steps=True), "steps must be"),
        (dict(to="x"), "to must be a finite number"),
        (dict(cond=X), "cond must hold"),
        (dict(cond={"c": torch.zeros(3, 4)}), "cond['c'] must be (2, ...)"),
        (dict(solver=3), "solver must be"),
    ],
)
def test_encode(change, message):
    with pytest.raises(WRONG, match=re.escape(message)):
        fastdiff.encode(flat, **{"x0": X, "schedule": VP, "prediction": "eps", **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(x=np.zeros(SHAPE)), "x must be a tensor (B, ...), got a NumPy array"),
        (dict(x=SHAPE), "x must be a tensor"),
        (dict(probes=True), "probes must be a whole number >= 1, got True"),
        (dict(max_steps="x"), "max_steps must be a whole number >= 1, got 'x'"),
        (dict(rtol="x"), "rtol must be a finite number"),
        (dict(atol=-1.0), "rtol and atol must not be negative"),
        (dict(cond=X), "cond must hold"),
        (dict(cond={"c": torch.zeros(3, 4)}), "cond['c'] must be (2, ...)"),
        (dict(seed=torch.Generator()), "a torch.Generator goes to noise="),
    ],
)
def test_log_likelihood(change, message):
    with pytest.raises(WRONG, match=re.escape(message)):
        fastdiff.log_likelihood(flat, **{"x": X, "schedule": VP, "prediction": "eps", **change})


@pytest.mark.parametrize("name", ["emoji-unet-32", "emoji-ldm-64"])
def test_condition(name):
    info = fastdiff.load(name).info
    what = "prompts" if "ldm" in name else "classes"
    cases = [(3, 2, f"{what} must be a name, a list of one a sample, or None, got 3 (int)"),
             ([3, 4], 2, f"{what} must be names or None, got 3 (int)"), (torch.tensor([1, 2]), 2, "must be names"),
             (b"dog", 2, f"{what} must be"), (None, "2", "batch must be a whole number"), (None, True, "batch must be"),
             (None, 0, "batch must be"), ([None], 2, f"{what} must be one, or one a sample (2), got 1")]  # fmt: skip
    for classes, batch, message in cases:
        with pytest.raises(WRONG, match=re.escape(message)):
            info.condition(classes, batch)


def test_loading(tmp_path):
    for name in (str(tmp_path), "/a/path", "folder/model.safetensors", tmp_path, 3):
        with pytest.raises(ValueError, match=r"fastdiff.models.load reads a checkpoint or a folder"):
            fastdiff.load(name)
    with pytest.raises(ValueError, match="did you mean 'emoji-unet-32'"):
        fastdiff.load("emoji-unet")
    with pytest.raises(fastdiff.WeightsError, match=r"No such file or folder; fastdiff.load\(name\) gives a bundled"):
        fastdiff.models.load("emoji-unet-32")
    with pytest.raises(TypeError, match="source must be a path or a state dict, got 3"):
        fastdiff.models.load(3)
    with pytest.raises(fastdiff.WeightsError, match=r"cannot read .*config\.json.* holds nothing") as caught:
        fastdiff.models.load(tmp_path)
    assert str(caught.value).count(str(tmp_path)) == 1
    (tmp_path / "notes.txt").touch()
    with pytest.raises(fastdiff.WeightsError, match=r"the folder holds notes.txt"):
        fastdiff.models.load(tmp_path)


def test_a_pickle_with_code_is_refused_without_advice_to_run_it(tmp_path):
    torch.save({"model": Net(), "run": print}, tmp_path / "all.pt")
    with pytest.raises(fastdiff.WeightsError, match="no code from a checkpoint is run") as caught:
        fastdiff.models.load(tmp_path / "all.pt")
    assert "weights_only" not in str(caught.value)
    assert "small_network.Net" in str(caught.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda path: pictures.save_png(pictures.grid(X, 1), path), "save_png takes the path, then the pixels"),
        (lambda path: pictures.save_png(path, X), "as pictures.grid(samples, columns) gives, got a tensor"),
        (lambda path: pictures.save_png(path, np.zeros((4, 4, 3))), "got a NumPy array float64 (4, 4, 3)"),
        (lambda path: pictures.save_png(path, np.zeros((4, 4), np.uint8)), "pixels must be (H, W, 3) uint8"),
        (lambda path: pictures.save_png(path, pictures.grid(X, 1), zoom=0), "zoom must be a whole number >= 1"),
        (lambda path: pictures.grid(X, 0), "columns must be a whole number >= 1"),
        (lambda path: pictures.grid(X.numpy(), 2), "pictures must be a tensor (B, 3, H, W)"),
        (lambda path: pictures.grid(X[0], 2), "pictures must be (B, 3, H, W), got (3, 8, 8)"),
    ],
)
def test_pictures(tmp_path, call, message):
    with pytest.raises(WRONG, match=re.escape(message)):
        call(tmp_path / "x.png")
    assert list(tmp_path.iterdir()) == []


def latent_model():
    torch.manual_seed(0)
    config = AutoencoderConfig(
        ch=32, out_ch=3, in_channels=3, z_channels=4, num_res_blocks=1, ch_mult=(1, 2), embed_dim=4
    )
    return LatentDiffusion(Net(), AutoencoderKL(config), 0.5)


def test_decoded_pictures_are_in_range():
    model = latent_model()
    z = 100 * torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        raw, x = model.autoencoder.decode(z / 0.5), model.decode(z)
    assert raw.abs().max() > 1
    assert torch.equal(x, raw.clamp(-1, 1))


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (4, 4, 4), (2, 4, 16), (2, 4, 4, 4, 4)])
def test_latents_of_another_shape(shape):
    with pytest.raises(ValueError, match=re.escape(f"z must be (B, 4, h, w), got {shape}")):
        latent_model().decode(torch.zeros(shape))


def test_schedules_print_what_they_are():
    assert repr(VPDiscrete.linear()) == "VPDiscrete(betas=1000 from 0.0001 to 0.02, name='linear')"
    assert repr(EDM()) == "EDM(sigma_min=0.002, sigma_max=80.0)"
    assert repr(RectifiedFlow(3.0)) == "RectifiedFlow(shift=3.0, time_scale=1.0, t_min=0.001)"
    for make in SCHEDULES.values():
        assert "object at" not in repr(make())
    table = fastdiff.edm_table.EDMTable("vp", "none")
    assert repr(table).startswith("EDMTable(noise='vp', scaling='none', sigma_min=")
    assert repr(fastdiff.prediction.get_prediction("v")) == "Prediction('v')"
    assert "object at" not in repr(fastdiff.load("emoji-unet-32").info)


@pytest.mark.parametrize("wrong", ["model", np.zeros(3), {}], ids=["text", "array", "dictionary"])
def test_what_is_no_model_is_named(wrong):
    kind = type(wrong).__name__
    net = Net()
    with pytest.raises(TypeError, match=f"verify.. compares two of torch.nn.Module, got {kind}"):
        fastdiff.verify(wrong, net, (X,))
    with pytest.raises(TypeError, match=f"verify.. compares two of torch.nn.Module, got {kind}"):
        fastdiff.verify(net, wrong, (X,))
    with pytest.raises(TypeError, match=f"explain.. takes a model or a pipeline of diffusers, got {kind}"):
        fastdiff.explain(wrong)


def test_an_array_among_tensors_is_named():
    row, array = torch.zeros(1, 2, 3), np.zeros((1, 2, 3), dtype=np.float32)
    for given, name in (((row, array, row), "scale"), ((row, row, array), "shift")):
        with pytest.raises(TypeError, match=f"{name} must be a tensor, got ndarray"):
            fastdiff.ops.ada_layer_norm(*given)


def calls_of_operators():
    """Each operator's name with arguments that it takes."""
    x, row = torch.zeros(2, 4, 64), torch.zeros(2, 1, 64)
    image, heads = torch.zeros(2, 64, 4, 4), torch.zeros(2, 4, 8, 16)
    vector, pixel = {"weight": torch.zeros(64), "bias": torch.zeros(64)}, image[..., 0, 0]
    modulation = {"scale": row, "shift": row}
    return {
        "ada_layer_norm": {"x": x, **modulation, **vector},
        "residual_ada_layer_norm": {"y": x, "residual": x, "gate": row, **modulation, **vector},
        "group_norm_silu": {"x": image, "num_groups": 8, **vector, "scale": pixel, "shift": pixel},
        "add_group_norm_silu": {
            "x": image, "num_groups": 8, "conv_bias": torch.zeros(64), "channel_bias": pixel,
            "residual": image, **vector,
        },
        "attention": {"q": heads, "k": heads, "v": heads, "mask": torch.zeros(8, 8)},
        "linear": {
            "x": x, "weight": torch.zeros(8, 64), "bias": torch.zeros(8), "gate": row[..., :8], "residual": x[..., :8]
        },
        "conv2d": {
            "x": image, "weight": torch.zeros(64, 64, 3, 3), "bias": torch.zeros(64), "residual": image,
            "channel_bias": pixel,
        },
    }  # fmt: skip


@pytest.mark.parametrize("wrong", [3, 2.5, "x", {}, object(), [[1.0]], np.float32(1), np.zeros((2, 64)), (1.0,)])
def test_operators_name_what_is_no_tensor(wrong):
    calls = calls_of_operators()
    assert {*calls, "linear_combine"} == {*fastdiff.ops.OPS}
    for op, given in calls.items():
        fastdiff.ops.OPS[op](**given)
        for name in [name for name, value in given.items() if isinstance(value, torch.Tensor)]:
            with pytest.raises(TypeError, match=rf"^{name}(\[0\])? must be a tensor.*, got "):
                fastdiff.ops.OPS[op](**{**given, name: wrong})


def test_operators_name_which_of_several_is_no_tensor():
    x, image, array = torch.zeros(2, 4, 64), torch.zeros(2, 64, 4, 4), np.zeros((2, 64, 4, 4), dtype=np.float32)
    weight, ops = torch.zeros(64, 64, 3, 3), fastdiff.ops
    for call, message in (
        (lambda: ops.conv2d([image, array], weight), "x[1] must be a tensor, got ndarray"),
        (lambda: ops.conv2d(None, weight), "x must be a tensor or several of them, got NoneType"),
        (lambda: ops.group_norm_silu((array, image), 8), "x[0] must be a tensor, got ndarray"),
        (lambda: ops.linear(x, [torch.zeros(8, 64), None]), "weight[1] must be a tensor, got NoneType"),
        (lambda: ops.linear(x, [torch.zeros(8, 64)], [array]), "bias[0] must be a tensor or None, got ndarray"),
        (lambda: ops.linear(x, [torch.zeros(8, 64)], 3), "bias must be as many tensors or None as weights, 1, got int"),
        (lambda: ops.linear_combine([[1.0, 2.0]], [x, x.numpy()]), "inputs[1] must be a tensor, got ndarray"),
        (lambda: ops.linear_combine([[1.0, 2.0]], None), "inputs must be a tensor or several of them, got NoneType"),
        (lambda: ops.linear_combine([[1.0, 2.0]], [3]), "inputs[0] must be a tensor, got int"),
        (lambda: ops.linear_combine(2.0, [x]), "coefficients must be rows of numbers, got 2.0"),
        (lambda: ops.linear_combine([["a"]], [x]), "coefficients must be rows of numbers, got [['a']]"),
    ):
        with pytest.raises(TypeError, match=re.escape(message)):
            call()


def test_states_are_dense():
    sparse, network = X.to_sparse(), Net()
    linear = VPDiscrete.linear()
    for call in (
        lambda: fastdiff.sample(network, sparse, schedule=linear, prediction="eps", solver="ddim", steps=2),
        lambda: fastdiff.diffuse(sparse, linear, 0.5),
        lambda: fastdiff.encode(network, sparse, schedule=linear, prediction="eps", steps=2),
        lambda: fastdiff.log_likelihood(network, sparse, schedule=linear, prediction="eps"),
    ):
        with pytest.raises(ValueError, match=r"must be a dense tensor, got torch\.sparse_coo"):
            call()


def test_what_a_model_returns_is_dense():
    with pytest.raises(
        fastdiff.SamplingError, match=r"the model returned a torch\.sparse_coo tensor, expected a dense one"
    ):
        fastdiff.sample(
            lambda x, t: x.to_sparse(), SHAPE, schedule=VPDiscrete.linear(), prediction="eps", solver="ddim", steps=2
        )
