"""States that wait in the host's memory: they come back as they were, in time, and take up what was
counted."""

from contextlib import nullcontext
from functools import partial

import pytest
import torch

from zerosmooth import offload
from zerosmooth.offload import Memory, Offloaded, PinnedMemory
from zerosmooth.settings import Running

from .conftest import TINY_FAMILIES, subject
from .fake_cuda import Stream, fake_cuda
from .test_cuda_fake import card_with, needs_no_card, sample

KINDS = {
    "the paper's": {"scale": 4},
    "deep features": {"scale": 2, "reuse": 2, "steps": 3},
}


class Nothing:
    """A stream or an event where all is done at once."""

    def __getattr__(self, _):
        return lambda *_: self


@pytest.fixture
def on_the_cpu(monkeypatch):
    """Everything waits in small pages of the CPU's own memory: the same ways without a card."""
    monkeypatch.setattr(offload, "pin", partial(torch.empty, dtype=torch.uint8))
    monkeypatch.setattr(torch.cuda, "Stream", lambda _: Nothing())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: Nothing())
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(PinnedMemory, "PAGE", 64)
    monkeypatch.setattr(PinnedMemory, "PAGES", 4)
    own = Memory.hold

    def hold(self, x):
        memory = self.pinned.setdefault(x.device, PinnedMemory(x.device))
        return Offloaded(x, memory) if self.device else own(self, x)

    monkeypatch.setattr(Memory, "hold", hold)


def test_tensors_come_back_as_they_were(on_the_cpu):
    made = partial(torch.randn, generator=torch.Generator().manual_seed(0))
    tensors = {"a": made(3, 7), "b": made(5, 6).half()[:, ::2], "c": made(1).bfloat16(),
               "d": made(2, 8, 4).mT}
    memory = Memory(torch.device("cpu"))
    waiting = memory.put(tensors)
    waiting["c"].fetch()  # one before its turn
    assert torch.equal(waiting["a"].get(), tensors["a"])  # and one twice
    assert memory.held_bytes == sum(x.nbytes for x in tensors.values())
    for name, x in memory.take(waiting, {}).items():
        assert x.dtype == tensors[name].dtype and torch.equal(x, tensors[name])
        assert x.stride() == torch.empty_like(tensors[name]).stride()  # and lie as they lay
    assert memory.held_bytes == 0


def test_pages_are_used_again(on_the_cpu):
    memory = Memory(torch.device("cpu"))
    for _ in range(5):
        waiting = memory.put({str(n): torch.ones(16 * n)
                              for n in (1, 3, 2)})  # 6 pages of 16 numbers
        assert [len(x) for x in memory.take(waiting, {}).values()] == [16, 48, 32]
    assert len(memory.pinned[torch.device("cpu")].unused) == 8


@pytest.mark.parametrize("kind", KINDS)
def test_videos_are_the_same_bitwise(any_pipeline, on_the_cpu, kind, monkeypatch):
    monkeypatch.setattr(PinnedMemory, "PAGE", 1000)
    ways = [Running(sequential_guidance=True, offload=offload) for offload in (False, True)]
    settings = {"seeds": 3, "steps": 2, "guidance_scale": 3.0, **KINDS[kind]}
    here, there = (any_pipeline.sample(**subject(any_pipeline), running=way, **settings)[0]
                   for way in ways)
    assert all(torch.equal(a, b) for a, b in zip(here.latents, there.latents))


def races(family: str, running: Running = Running(offload=True), **asked) -> tuple[set[str],
                                                                                   list[int]]:
    """What could meet on a card, and how many products it has to do while each copy is under
    way."""
    with card_with(family) as (pipeline, card, _), card.streams:
        sample(pipeline, running, **{"scale": 2, **asked})
    return set(card.streams.races), card.streams.meanwhile


@needs_no_card
@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_copies_meet_nothing_and_have_time(family):
    """All but those of a stage's first module, of three states at most, are under way while the
    card multiplies."""
    met, meanwhile = races(family)
    assert not met and len(meanwhile) > 20 and sum(not n for n in meanwhile) <= 3


@needs_no_card
@pytest.mark.parametrize("kind", KINDS)
def test_copies_meet_nothing_in_any_order(kind):
    """With two branches that have states of their own."""
    met, meanwhile = races("svd", Running(offload=True, sequential_guidance=True),
                           guidance_scale=3.0, **KINDS[kind])
    assert not met and meanwhile


def no_wait_before(self, other):
    pass


def no_wait_after(self, event):
    pass


def forget(self):
    self.source = None


def fetch_at_once(self):
    before, self.memory.stream.wait_stream = self.memory.stream.wait_stream, lambda other: None
    try:
        return OWN_FETCH(self)
    finally:
        self.memory.stream.wait_stream = before


OWN_FETCH = Offloaded.fetch


@needs_no_card
@pytest.mark.parametrize(
    "fault, met",
    [
        ((Stream, "wait_stream", no_wait_before), "copy_ reads what"),
        ((Offloaded, "fetch", fetch_at_once), "copy_ writes what"),
        ((PinnedMemory, "wait", no_wait_after), "reads what"),
        ((Offloaded, "settle", forget), "memory is given back"),
    ],
)
def test_a_missing_wait_is_caught(monkeypatch, fault, met):
    monkeypatch.setattr(*fault)
    assert any(met in race for race in races("svd", scale=4)[0])


@needs_no_card
def test_attention_reads_what_it_is_given():
    with fake_cuda() as (card, _), card.streams:
        q, memory = torch.empty(1, 2, 8, 16, dtype=torch.float16,
                                device="cuda"), PinnedMemory(torch.device("cuda"))
        with torch.cuda.stream(memory.stream):
            q.zero_()
        torch.nn.functional.scaled_dot_product_attention(q, q, q)
    assert "attention reads what another stream may be using" in card.streams.races


@needs_no_card
@pytest.mark.parametrize("where", ["get", "copy"])
@pytest.mark.parametrize("waits", [True, False])
def test_what_is_under_way_when_a_step_breaks_off_meets_nothing(monkeypatch, where, waits):
    """Within a copy too, whose event is not there yet."""
    owner = {"get": Offloaded, "copy": PinnedMemory}[where]
    own, count = getattr(owner, where), []

    def broken(self, *args):
        if where == "copy":
            result = own(self, *args)
        count.append(where == "get" or args[0][0].is_cuda)  # to the card
        if sum(count) == 3:
            raise KeyboardInterrupt
        return result if where == "copy" else own(self, *args)

    monkeypatch.setattr(owner, where, broken)
    if not waits:
        monkeypatch.setattr(PinnedMemory, "wait_for_all", lambda self: None)
    with card_with("vc2") as (pipeline, card, _), card.streams:
        with pytest.raises(KeyboardInterrupt):
            sample(pipeline, Running(offload=True))
    assert bool(card.streams.races) != waits


def test_pages_are_used_outside_inference_mode_too(on_the_cpu):
    memory, x = Memory(torch.device("cpu")), torch.ones(7)
    for mode in (True, False):
        with torch.inference_mode(mode):
            assert torch.equal(memory.take(memory.put({"a": x}), {})["a"], x)


def test_a_memory_that_was_cleared_holds_nothing(on_the_cpu):
    memory = Memory(torch.device("cpu"))
    memory.put({"a": torch.ones(5)})
    memory.clear()
    assert memory.held_bytes == 0 and not memory.leaving and not memory.pinned


@needs_no_card
def test_the_host_pins_what_was_counted():
    """Of a video of published size; torch pins powers of two. Beside what waits: ends of pages, and
    some of the pages that are pinned at once."""
    with card_with("vc2") as (pipeline, card, _):
        video = sample(pipeline, Running(offload=True), height=320, width=512, scale=4)
    held, pinned_at_once = video.bus_peak_bytes, PinnedMemory.PAGE * PinnedMemory.PAGES
    assert held <= card.pinned <= 1.1 * held + pinned_at_once
