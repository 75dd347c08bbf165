"""What must hold of the hand-over between stages."""

from collections import Counter

import pytest
import torch
from torch.testing import assert_close

from zerosmooth.bus import BusError, Correction, HiddenStateBus
from zerosmooth.operators import A1, A2, S


def h(frames: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(1, frames, 2, 3, generator=torch.Generator().manual_seed(seed))


def test_states_are_corrected_published_and_freed():
    bus = HiddenStateBus(4, (2, 2))
    first, second, third = h(4), h(8, 1), h(16, 2)
    assert bus.stage(0).exchange("m", "temporal", h=(first, S(1))) is None
    assert bus.held_bytes == first.numel() * 4
    corrected = bus.stage(1).exchange("m", "temporal", h=(second, S(2)))
    assert torch.equal(corrected["h"][:, ::2], first)
    assert torch.equal(corrected["h"][:, 1::2], second[:, 1::2])
    assert bus.held_bytes == second.numel() * 4  # the first stage's are gone
    last = bus.stage(2).exchange("m", "temporal", h=(third, S(2)))
    assert torch.equal(last["h"][:, ::2], corrected["h"])  # corrected ones were published
    assert bus.held_bytes == 0 and bus.peak_bytes == second.numel() * 4


def test_reading_what_nobody_published_is_an_error():
    with pytest.raises(BusError, match="stage 0 published nothing for 'm'"):
        HiddenStateBus(4, (2,)).stage(1).exchange("m", "temporal", h=(h(8), S(2)))


def test_publishing_twice_is_an_error():
    bus = HiddenStateBus(4, (2,))
    bus.stage(0).exchange("m", "temporal", h=(h(4), S(1)))
    with pytest.raises(BusError, match="twice"):
        bus.stage(0).exchange("m", "temporal", h=(h(4), S(1)))


@pytest.mark.parametrize("kv_operator", ["A1/A2", "S"])
@pytest.mark.parametrize("part", ["spatial", "temporal"])
def test_a_part_that_is_off_neither_reads_nor_publishes(part, kv_operator):
    correction = Correction(**{part: False}, kv_operator=kv_operator)
    bus = HiddenStateBus(4, (2,), correction=correction)
    for s in (0, 1):
        assert bus.stage(s).exchange("m", part, h=(h(4 * (s + 1)), S(s + 1))) is None
    assert bus.peak_bytes == 0


def test_strength_zero_neither_reads_nor_publishes():
    bus = HiddenStateBus(4, (2,))
    assert bus.stage(1, strength=0.0).exchange("m", "temporal", h=(h(8), S(2))) is None
    assert bus.peak_bytes == 0


def test_blend_is_eq_15():
    stage = HiddenStateBus(4, (2,)).stage(1, strength=0.25)
    assert_close(stage.blend(torch.tensor(1.0), torch.tensor(3.0)), torch.tensor(1.5))


def test_draws_depend_on_module_stage_step_and_seed_alone():
    def draws(seed=0, **change):
        bus = HiddenStateBus(4, (2, 2), correction=Correction(draw_seed=seed))
        at = {"index": 1, "step": 0, **change}
        return [type(bus.stage(**at).kv_operator(f"m{i}")) for i in range(64)]

    assert draws() == draws()
    for other in (draws(seed=1), draws(index=2), draws(step=1)):
        assert other != draws()


def test_a1_is_drawn_as_often_as_p_exceeds_a_half():
    bus = HiddenStateBus(4, (2,))
    count = Counter(type(bus.stage(1, step=i).kv_operator("m")) for i in range(4000))
    assert abs(count[A1] / 4000 - 0.309) < 0.03  # four standard deviations
    assert count[A1] + count[A2] == 4000


def test_operators_can_be_fixed():
    def kinds(**setting):
        bus = HiddenStateBus(4, (3,), correction=Correction(**setting))
        return {repr(bus.stage(1, step=i).kv_operator("m")) for i in range(50)}

    assert kinds(kv_operator="S") == {"S(n=3)"}
    assert kinds(a1_probability=1.0) == {"A1(n=3)"} and kinds(a1_probability=0.0) == {"A2(n=3)"}


def test_states_wait_where_they_are_told_to():
    bus = HiddenStateBus(4, (2,), device="meta")
    bus.stage(0).exchange("m", "temporal", h=(h(4), S(1)))
    ((waiting,),) = (states.values() for states in bus._waiting.values())
    assert waiting.x.device.type == "meta" and waiting.home.type == "cpu"


@pytest.mark.parametrize("make", [
    lambda: HiddenStateBus(0), lambda: HiddenStateBus(4, (1,)),
    lambda: HiddenStateBus(4, overlap=4), lambda: HiddenStateBus(4, (2,)).stage(2),
    lambda: HiddenStateBus(4, (2,)).stage(1, strength=1.1)])
def test_numbers_that_make_no_cascade_are_refused(make):
    with pytest.raises(ValueError):
        make()
