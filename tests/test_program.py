"""Programs: tracing, buffers, validation, JSON."""

from itertools import pairwise

import pytest

from fastdiff import CFG
from fastdiff.grids import make_grid
from fastdiff.prediction import get_prediction
from fastdiff.program import Apply, Call, Combine, Output, Program
from fastdiff.program.tracing import LinearForm, trace
from fastdiff.schedules import Point, VPDiscrete
from fastdiff.solvers import SOLVERS, get_solver
from fastdiff.solvers.registry import Solver

SCHEDULE = VPDiscrete.scaled_linear()
FIXED = [name for name, s in SOLVERS.items() if not s.adaptive]


def program(solver="dpmpp-2m", steps=8, prediction="eps", **options):
    return trace(solver, SCHEDULE, make_grid("uniform", SCHEDULE, steps), get_prediction(prediction), **options)


def made_with(step, **fields):
    return Solver("mine", step, **{"order": 1, "evaluations": 1, "history": 0, "grid": "uniform", "source": "",
                                   "stochastic": False, **fields})  # fmt: skip


@pytest.mark.parametrize("name", FIXED)
@pytest.mark.parametrize("guidance", [None, CFG(3.0), CFG(3.0, interval=(-1.0, 1.0))])
def test_json_gives_the_program_back(name, guidance):
    original = program(name, guidance=guidance, keep_states=True)
    assert Program.from_json(original.to_json()) == original


@pytest.mark.parametrize("name", FIXED)
def test_one_combine_a_call(name):
    """What is not linear comes between, but no two passes over memory follow each other."""
    kinds = [type(i) for i in program(name).instructions]
    assert (Combine, Combine) not in pairwise(kinds)
    if Apply not in kinds:
        assert kinds == [Call, Combine] * (len(kinds) // 2)


def test_other_json_is_refused():
    for text in ("{}", '{"instructions": [{"kind": "call"}]}', "[]"):
        with pytest.raises(ValueError, match="not a Program"):
            Program.from_json(text)


@pytest.mark.parametrize(("name", "buffers"), [("ddim", 1), ("ddpm", 1), ("dpmpp-2m", 2), ("heun", 3)])
def test_buffers_are_reused(name, buffers):
    """DDIM works in place, 2M also keeps the last x0, Heun the state and the first slope beside its input."""
    assert program(name, steps=20).num_slots == buffers


def test_guidance_is_in_the_coefficients():
    plain, guided = program("ddim"), program("ddim", guidance=CFG(3.0))
    for a, b in zip(plain.instructions[1::2], guided.instructions[1::2]):
        of, also = dict(a.outputs[0].terms), dict(b.outputs[0].terms)
        assert also["cond", 0] == pytest.approx(3 * of["cond", 0])
        assert also["uncond", 0] == pytest.approx(-2 * of["cond", 0])
    assert guided.nfe == 2 * plain.nfe == 16


def test_guidance_outside_its_interval_costs_nothing():
    guided = program("ddim", steps=10, guidance=CFG(3.0, interval=(-1.0, 1.0)))
    inside = [call.guided for call in guided.calls]
    assert inside == [-1.0 <= call.point.lam <= 1.0 for call in guided.calls]
    assert 0 < sum(inside) < 10
    assert guided.nfe == 10 + sum(inside)


def test_unused_noise_is_not_drawn():
    assert program("ddim").num_noises == 0
    assert program(get_solver("ddim", eta=0.5), steps=8).num_noises == 7  # the last step, to the data, has none


def test_printing_shows_every_call_and_sum():
    text = str(program("dpmpp-2m", steps=3))
    assert text.count("call b") == 3
    assert "+1 z" not in text
    assert text.splitlines()[0] == "dpmpp-2m: 3 calls, 2 buffers, 0 noises"


def test_a_step_must_be_linear():
    def squares(model, x, s, t, history):
        return x * model.x0(x, s)

    with pytest.raises(TypeError, match="linear"):
        program(made_with(squares))


def test_a_step_must_not_look_at_values():
    def looks(model, x, s, t, history):
        return x if model.x0(x, s) > 0 else -x

    with pytest.raises(TypeError):
        program(made_with(looks))
    for question in (bool, lambda form: form == 0):
        with pytest.raises(TypeError, match="not known when it is traced"):
            question(LinearForm({0: 1.0}))


def test_a_step_may_ignore_the_model_call():
    def scales(model, x, s, t, history):
        model.x0(x, s)
        return x / 2

    assert len(program(made_with(scales)).calls) == 8


def test_division_by_zero_names_the_step():
    def divides(model, x, s, t, history):
        return model.x0(x, s) / t.sigma

    with pytest.raises(ValueError, match=r"'mine' cannot step from t=0.001 to t=0"):
        program(made_with(divides))


def test_sums_and_signs_of_linear_forms():
    a, b = LinearForm({0: 1.0}), LinearForm({1: 2.0})
    assert sum([a, b]).terms == {0: 1.0, 1: 2.0}
    assert (-(a - b) / 2 * 4).terms == {0: -2.0, 1: 4.0}
    with pytest.raises(TypeError):
        a + 1.5


POINT = Point(0.5, 0.8, 0.6, 0.29)
CALL = Call(0, POINT, 499.0, False, 0)


@pytest.mark.parametrize(
    ("instructions", "result", "message"),
    [
        ((Call(1, POINT, 0.0, False, 0),), 0, "reads buffer 1 before"),
        ((Combine((Output(0, ((("cond", 0), 1.0),)),)),), 0, "reads cond 0"),
        ((CALL, Combine((Output(0, ((("uncond", 0), 1.0),)),))), 0, "reads uncond 0"),
        ((CALL, Combine((Output(0, ((("noise", 0), 1.0),)),))), 0, "reads noise 0"),
        ((CALL, Combine((Output(0, ((("cond", 0), float("inf")),)),))), 0, "coefficient inf"),
        ((CALL, Combine((Output(5, ((("cond", 0), 1.0),)),))), 0, "more than 2 buffers"),
        ((CALL,), 1, "never writes its result"),
    ],
)
def test_invalid_programs_are_refused(instructions, result, message):
    with pytest.raises(ValueError, match=message):
        Program("bad", instructions, num_slots=2, result=result, num_noises=0)
