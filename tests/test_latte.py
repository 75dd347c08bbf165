"""Latte in `examples/`: its published folder, its encoder of prompts, its videos. Its figures are
in `tests/golden`."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.testing import assert_close

from weights_convert import __main__ as cli
from weights_convert.engine import ConversionError, convert, plan
from zerosmooth.bus import HiddenStateBus
from zerosmooth.cascade import cascade_step
from zerosmooth.checkpoint import load, tensor_shapes
from zerosmooth.config import ModelConfig
from zerosmooth.extensions.reuse import reusing
from zerosmooth.family import Networks, load_family
from zerosmooth.fields import UserError
from zerosmooth.guidance import Branch, Guidance
from zerosmooth.models.compiled import compilable
from zerosmooth.models.layers import frame_chunks
from zerosmooth.offload import Memory
from zerosmooth.pipeline import Pipeline, Subject
from zerosmooth.samplers import DDIMConfig
from zerosmooth.settings import Running, settings_for
from zerosmooth_cli import arguments
from zerosmooth_cli.estimate import needs

from .command import run
from .conformance import check, check_family, report
from .fake_cuda import fake_cuda
from .full_size import shapes
from .parity import weight
from .test_cuda_fake import needs_no_card, on_the_card

ROOT = Path(__file__).parent.parent
# as the commands load it
latte = sys.modules[type(load_family(str(ROOT / "examples/latte.py"), {})).__module__]
FULL = latte.FAMILY.config
TINY = replace(
    FULL,
    unet=replace(FULL.unet, heads=2, head_dim=8, layers=4, context_dim=12, frames=4, grid=4),
    vae=replace(FULL.vae, channels=8, channel_mult=(1, 2), res_blocks=1, groups=4),
    encoder=latte.T5Config(tokens=9, width=12),
    defaults=replace(FULL.defaults, height=16, width=24, steps=2, prompt="a test"))
SMALL = replace(TINY, vae=replace(FULL.vae, channels=32),  # of as many levels as is published
                defaults=replace(TINY.defaults, height=64, width=64, steps=1))
TEMPORAL = replace(FULL, vae=latte.TEMPORAL)
SMALL_TEMPORAL = replace(SMALL, vae=replace(latte.TEMPORAL, channels=32))


class Letters:
    """A tokenizer of letters; 1 ends a text, 0 fills it up."""

    pad_token_id = 0

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [*(2 + ord(letter) % 50 for letter in text), 1]}


class Encoder(nn.Module):
    """Stands in for T5: states that depend on all tokens but padding, and on their places."""

    def __init__(self, width: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(52, width)
        self.config = SimpleNamespace(d_model=width)
        self.device = torch.device("cpu")
        self.itself = [self]  # so that counting references does not free it

    def forward(self, ids: Tensor, attention_mask: Tensor) -> tuple[Tensor]:
        x = self.embedding(ids)
        mean = (x * attention_mask[..., None]).sum(1) / attention_mask.sum()
        return (x + mean[:, None] + torch.arange(ids.shape[1])[:, None] / 10,)


@pytest.fixture
def loads(monkeypatch) -> list:
    """The encoders that were loaded, weakly, with nothing encoded before."""
    found: list = []

    def load_t5(folder, device, dtype):
        if not current:
            current.append(Encoder(TINY.encoder.width))
            found.append(weakref.ref(current[0]))
        return Letters(), current[0]

    current: list = []
    load_t5.cache_clear = current.clear
    monkeypatch.setattr(latte, "load_t5", load_t5)
    monkeypatch.setattr(latte, "folder_of", lambda config: Path("nowhere"))
    monkeypatch.setattr(latte, "ENCODED", {})
    return found


def pipeline_of(config: ModelConfig = TINY) -> Pipeline:
    torch.manual_seed(0)
    return Pipeline(latte.FAMILY, config, Networks(latte.FAMILY, config))


# --- its published folder


def published(decoder: str) -> dict[str, tuple[int, ...]]:
    return {prefix + name: shape
            for prefix, manifest in {"transformer.": "latte_transformer_authors",
                                     "vae.": decoder}.items()
            for name, shape in shapes(manifest).items()}


@pytest.mark.parametrize(("config", "decoder"), [
    (FULL, "lavie_vae_diffusers"),
    pytest.param(TEMPORAL, "svd_vae_diffusers", marks=pytest.mark.long)])
def test_every_published_tensor_has_its_place(config, decoder):
    """At full size: names and shapes only. All are read but the buffer that only the authors' class
    has."""
    source, read = published(decoder), []
    unused = "transformer.caption_projection.y_embedding"
    assert source[unused] == (120, 4096)

    def read_meta(name: str) -> Tensor:
        read.append(name)
        return torch.empty(source[name], device="meta")

    expected = tensor_shapes(latte.FAMILY, config)
    for held in (source, {name: shape for name, shape in source.items() if name != unused}):
        read.clear()
        made = {name: tuple(x.shape)
                for name, x in convert(latte.table(config), held, read_meta, expected)}
        assert made == expected and sorted([*read, unused]) == sorted(source)
    for gone in (read[0], read[-1]):
        rest = {name: shape for name, shape in source.items() if name != gone}
        with pytest.raises(ConversionError, match="has no tensor for 1|of another shape 1"):
            convert(latte.table(config), rest, read_meta, expected)


@pytest.fixture(scope="module")
def small_folder(tmp_path_factory) -> Path:
    """The published folder in a small size."""
    path = tmp_path_factory.mktemp("Latte-1")
    for part, decoder, config in (("vae", "lavie_vae_diffusers", SMALL),
                                  ("vae_temporal_decoder", "svd_vae_diffusers", SMALL_TEMPORAL)):
        held: dict[str, dict[str, Tensor]] = {"transformer": {}, "vae": {}}
        ours = tensor_shapes(latte.FAMILY, config)
        for target, names in plan(latte.table(config), published(decoder))[0].items():
            if target not in ours:  # of a layer or level that the small one has not
                continue
            whole = weight(target, ours[target])
            for name, one in zip(names, whole.chunk(len(names))):
                of, _, rest = name.partition(".")
                held[of][rest] = one.contiguous()
        for of, tensors in {"transformer": held["transformer"], part: held["vae"]}.items():
            (path / of).mkdir(parents=True, exist_ok=True)
            save_file(tensors, path / of / "diffusion_pytorch_model.safetensors")
    return path


@pytest.fixture
def small_family(monkeypatch):
    """The family in a small size, so that the commands can run on small files."""
    monkeypatch.setattr(latte.LatteFamily, "config", SMALL)
    monkeypatch.setattr(latte, "TEMPORAL", SMALL_TEMPORAL.vae)
    monkeypatch.setattr(cli, "load_family", lambda name, built_in: latte.FAMILY)


def converted(source: Path, out: Path, *flags: str) -> int:
    return cli.main(["--family", "examples/latte.py", str(source), "-o", str(out), *flags])


def test_a_small_folder_converts_and_samples(tmp_path, small_folder, small_family, loads):
    """With both decoders; from a file of the authors' training."""
    source = shutil.copytree(small_folder, tmp_path / "Latte-1")
    whole, mixed = tmp_path / "a.safetensors", tmp_path / "b.pt"
    assert converted(source, whole) == 0
    transformer = source / "transformer/diffusion_pytorch_model.safetensors"
    held = {f"module.{name}": x for name, x in load_file(transformer).items()}
    torch.save({"model": {}, "ema": held, "opt": {}}, mixed)
    transformer.unlink()
    other = tmp_path / "c.safetensors"
    assert converted(source, other, "--temporal_decoder", "--transformer", str(mixed)) == 0
    a, b = load_file(whole), load_file(other)
    assert all(torch.equal(a[name], b[name]) for name in a if name.startswith("unet."))
    for out, temporal in ((whole, False), (other, True)):
        pipeline = load(out, family=latte.FAMILY)
        assert pipeline.config.encoder.folder == str(source) and pipeline.config.side == 16
        assert pipeline.config.vae.temporal == temporal
        (video,) = pipeline.sample("a test", scale=2)
        assert [tuple(x.shape) for x in video.frames] == [(4, 64, 64, 3), (8, 64, 64, 3)]


def test_a_folder_without_its_parts_is_refused(tmp_path, small_folder, small_family, capsys):
    shutil.copytree(small_folder / "transformer", tmp_path / "transformer")
    assert converted(tmp_path, tmp_path / "a.safetensors", "--temporal_decoder") == 1
    assert "vae_temporal_decoder has no weights" in capsys.readouterr().err


def test_a_checkpoint_of_before_there_were_options_is_the_same():
    """Of DDIM's first timestep: what an older file lacks."""
    text = json.loads(replace(TINY, sampler=DDIMConfig()).to_json())
    del text["sampler"]["first_timestep"]
    assert TINY.like(json.dumps(text)).sampler.timesteps(50)[-1] == 1
    assert FULL.sampler.timesteps(50) == list(range(980, -1, -20))


@pytest.mark.parametrize("change", [{"heads": 1, "head_dim": 6}, {"heads": 0}, {"patch": 0},
                                    {"head_dim": 1 << 16}])
def test_a_config_that_is_no_network_is_refused(change):
    with pytest.raises(UserError, match="a multiple of 4"):
        replace(TINY.unet, **change)


# --- its encoder of prompts

CAPTIONS = json.loads((ROOT / "tests/manifests/latte_captions.json").read_text())["rows"]


@pytest.mark.parametrize("row", CAPTIONS, ids=[row["prompt"][:30] for row in CAPTIONS])
def test_prompts_are_cleaned_as_published(row):
    assert latte.cleaned(row["prompt"]) == row["clean"]


def contexts(prompts: list[str], negative: str = "") -> list[Tensor]:
    encoder = latte.PromptEncoder(TINY.encoder)
    return encoder.encode(prompts, negative, torch.device("cpu"), torch.float32)


def test_the_negative_prompt_is_as_long_as_the_prompt(loads):
    """Padding and all, which is not masked."""
    alone = Encoder(12)
    for prompt, tokens in (("abc", 4), ("a long prompt", 9)):
        context, uncond = contexts([prompt])
        assert context.shape == uncond.shape == (1, tokens, 12)
        ids = torch.tensor([[1] + 8 * [0]])
        assert_close(uncond, alone(ids, (ids > 0).long())[0][:, :tokens])


def test_prompts_of_a_batch_do_not_see_each_other(loads):
    """Whatever their lengths: each has the video that it has alone."""
    network = pipeline_of().networks.unet
    x, t = torch.randn(1, 4, 4, 4, 4), torch.full((1,), 300)
    prompts = ["ab", "abcdef"]
    both = [network(x.expand(2, -1, -1, -1, -1), t.expand(2), context)
            for context in contexts(prompts)]
    for i, prompt in enumerate(prompts):
        for together, context in zip(both, contexts([prompt])):
            assert_close(together[i : i + 1], network(x, t, context))
    assert contexts(["ab", "cd"])[0].shape[-1] == 12  # of one length: nothing to mask


def test_t5_is_loaded_once_for_all_prompts_and_gone_before_the_networks(loads):
    settings = settings_for(latte.FAMILY, TINY)
    prompts = ["a", "bc", "a", "a prompt that is too long"]
    latte.FAMILY.encode_first(TINY, prompts, settings, torch.device("cpu"))
    assert len(loads) == 1 and loads[0]() is None
    pipeline = pipeline_of()
    for prompt in prompts:
        pipeline.sample(prompt, scale=1)
    assert len(loads) == 1
    assert latte.FAMILY.lost_tokens(pipeline.networks, prompts[-1]) == 24 + 1 + 1 - 9
    pipeline.sample("another", scale=1)
    assert len(loads) == 2 and loads[1]() is None
    pipeline.networks.encoder.keep = True
    pipeline.sample(["more", "and more"], scale=1)
    assert len(loads) == 3 and loads[2]() is not None


def test_what_the_encoder_needs_is_told(tmp_path, monkeypatch):
    def read(folder: Path | str) -> None:
        config = latte.T5Config(str(folder))
        latte.PromptEncoder(config).read(["a"], "", torch.device("cpu"), torch.float32)

    monkeypatch.delenv("LATTE_TEXT", raising=False)
    with pytest.raises(UserError, match="has no folder text_encoder/.*LATTE_TEXT"):
        read("/nowhere")
    for part in ("text_encoder", "tokenizer"):
        (tmp_path / part).mkdir()
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setenv("LATTE_TEXT", str(tmp_path))
    with pytest.raises(UserError, match=r'pip install "\.\[t5\]"'):
        read("/nowhere")
    monkeypatch.undo()
    if importlib.util.find_spec("transformers"):
        with pytest.raises(UserError, match="no T5 that transformers can load"):
            read(tmp_path)


def test_a_real_t5_is_read_from_its_folder(tmp_path):
    """A tiny one with random weights, in two precisions."""
    transformers = pytest.importorskip("transformers")
    sentencepiece = pytest.importorskip("sentencepiece")
    for part in ("text_encoder", "tokenizer"):
        (tmp_path / part).mkdir()
    words = [f"{a} {b} circle" for a in ("a", "the") for b in ("red", "blue", "green")]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(words * 3), model_prefix=str(tmp_path / "tokenizer/spiece"),
        vocab_size=30, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, hard_vocab_limit=False,
        minloglevel=2)
    (tmp_path / "tokenizer/tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "T5Tokenizer", "eos_token": "</s>", "pad_token": "<pad>",
        "unk_token": "<unk>", "extra_ids": 0}))
    config = transformers.T5Config(vocab_size=40, d_model=12, d_kv=4, d_ff=16, num_layers=1,
                                   num_heads=2, feed_forward_proj="gated-gelu")
    with torch.inference_mode(False):
        transformers.T5EncoderModel(config).save_pretrained(tmp_path / "text_encoder")
        encoder = latte.PromptEncoder(latte.T5Config(str(tmp_path), tokens=12, width=12))
        found = {}
        for dtype in (torch.float32, torch.bfloat16):
            found[dtype] = encoder.encode(["A RED circle"], "", torch.device("cpu"), dtype)
        wrong = latte.PromptEncoder(latte.T5Config(str(tmp_path), width=16))
        with pytest.raises(UserError, match="12 channels, not 16"):
            wrong.encode(["a"], "", torch.device("cpu"), torch.float32)
    context, uncond = found[torch.float32]
    assert context.shape == uncond.shape and 2 < context.shape[1] < 12
    for full, half in zip(found[torch.float32], found[torch.bfloat16]):
        assert half.dtype == torch.bfloat16
        assert_close(half.float(), full, rtol=0.05, atol=0.05)


def test_the_command_encodes_all_prompts_before_it_loads_the_networks(
        tmp_path, small_folder, small_family, loads, monkeypatch):
    """Those of videos that are not there yet."""
    out, prompts = tmp_path / "a.safetensors", tmp_path / "prompts.txt"
    assert converted(small_folder, out) == 0
    seen, load_described = [], arguments.load_described
    monkeypatch.setattr(arguments, "load_family", lambda *_: latte.FAMILY)
    monkeypatch.setattr(arguments, "load_described", lambda *given: (
        seen.append([text for *_, text, whole in latte.ENCODED if not whole]),
        load_described(*given))[1])
    for lines, wanted in (("a\nb", ["a", "b"]), ("b\nc", ["c"])):
        latte.ENCODED.clear()
        prompts.write_text(lines)
        said = run("--family", "examples/latte.py", "--ckpt", out, "--prompt_file", prompts,
                   "--outdir", tmp_path / "out", "--device", "cpu", "--scale", "1",
                   "--set", "page=false")
        assert seen.pop() == wanted and not seen, said
    assert len(loads) == 2 and not any(encoder() for encoder in loads)
    said = run("--family", "examples/latte.py", "--ckpt", out, "--check", "--device", "cpu")
    assert "a whole latte checkpoint" in said
    assert "before the networks: the T5 in nowhere, 19.05 GB" in said


# --- its network


def test_it_conforms():
    broken = check_family(latte.FAMILY)
    assert not broken, report(broken)


class EndlessPositions(latte.Latte):
    def positions(self, f, stage, device=None):
        return super().positions(f, None, device)


class KeepsOutput(latte.Latte):
    """Reuses what inner blocks gave, not what they added."""

    deep_adds = False


def test_a_broken_copy_is_named():
    torch.manual_seed(0)
    network = EndlessPositions(TINY.unet).eval()
    context = torch.randn(1, 5, 12)

    def run(x: Tensor, stage=None) -> Tensor:
        return network(x, torch.full((len(x),), 300), context.expand(len(x), -1, -1), None, stage)

    found = {b.rule for b in check(network, run, 4, (4, 4, 4), positions=network.positions)}
    assert "positions" in found


@pytest.mark.parametrize(("kind", "follows"), [(latte.Latte, True), (KeepsOutput, False)])
def test_a_step_that_reuses_deep_features_still_sees_its_input(kind, follows):
    """To first order: what the outer blocks make of a change in x is most of its effect."""
    torch.manual_seed(0)
    network = kind(TINY.unet).eval()
    context = torch.randn(1, 5, 12)
    x, change = torch.randn(1, 4, 4, 4, 4), 0.1 * torch.randn(1, 4, 4, 4, 4)

    def run(x: Tensor, step: int) -> Tensor:
        stage = HiddenStateBus(4, ()).stage(0, step)
        return network(x, torch.full((1,), 300), context, None, stage)

    wanted = run(x + change, 0) - run(x, 0)
    with reusing(network, 2, Memory(None)):
        got = run(x, 0)
        got = run(x + change, 1) - got
    likeness = torch.cosine_similarity(got.flatten(), wanted.flatten(), dim=0)
    assert (likeness > 0.5) == follows


def test_frames_are_fed_forward_in_chunks_and_layers_between_attention_are_compiled():
    network = latte.Latte(TINY.unet)
    kinds = [type(layer) for layer, _ in compilable(network)]
    assert kinds.count(latte.FeedForward) == 8 and kinds.count(latte.Modulated) == 17
    fed: list[int] = []
    network.temporal_blocks[0].ff.proj_in.register_forward_hook(
        lambda module, given, output: fed.append(output.shape[1]))
    with frame_chunks(network, 3):
        network(torch.randn(1, 4, 4, 4, 4), torch.ones(1), torch.randn(1, 5, 12))
    assert fed == [3, 1]


# --- its videos


@pytest.mark.parametrize("preset", ["paper", "anchored"])
def test_key_frames_are_the_base_videos(loads, preset):
    """Bitwise with the preset `anchored`; with the paper's method they are near."""
    pipeline = pipeline_of()
    seen: list = []
    (base,) = pipeline.sample("a test", scale=1)
    (video,) = pipeline.sample("a test", scale=4, preset=preset,
                               preview=lambda look: seen.extend(look()))
    assert torch.equal(video.latents[0], base.latents[0])
    assert [tuple(x.shape) for x in seen] == 2 * [(4, 8, 12, 3)]
    same = torch.equal(video.latents[2][::4], base.latents[0])
    assert same == (preset == "anchored")


def test_a_batch_is_its_videos(loads):
    pipeline = pipeline_of()
    both = pipeline.sample(["a", "some test"], seeds=[1, 2], scale=2)
    for prompt, seed, video in zip(("a", "some test"), (1, 2), both):
        (alone,) = pipeline.sample(Subject(prompt), seeds=seed, scale=2)
        for x, y in zip(video.latents, alone.latents):
            assert_close(x, y, rtol=0, atol=1e-3)


SAVING = {"plain": Running(), "offload": Running(offload=True),
          "sequential": Running(sequential_guidance=True), "chunks": Running(frame_chunk=4),
          "all": Running(offload=True, sequential_guidance=True, frame_chunk=4)}


@needs_no_card
@pytest.mark.parametrize("saving", [
    pytest.param(saving, marks=[pytest.mark.long] if saving != "all" else []) for saving in SAVING])
def test_memory_on_a_card_is_what_was_counted(saving):
    """Of a step at the published size of video and of layers, with fewer layers."""
    config, running = replace(FULL, unet=replace(FULL.unet, layers=3)), SAVING[saving]
    settings = settings_for(latte.FAMILY, config, scale=2, dtype="float16")
    guess = needs(latte.FAMILY, config, settings, running)
    with torch.device("meta"):
        networks = Networks(latte.FAMILY, config).eval().requires_grad_(False)
    named = {name: x.shape for name, x in networks.state_dict().items()}
    with fake_cuda() as (card, seen):
        unet, cascade = on_the_card(networks, named, torch.float16).unet, settings.cascade
        assert card.live["cuda"] == guess.weights
        context = torch.empty(1, *config.encoder.context_shape, dtype=torch.float16, device="cuda")
        guided = Guidance(unet, [Branch(context), Branch(context.clone())], settings,
                          running.sequential_guidance)
        xs = [torch.empty(1, cascade.frames_of(s), 4, 64, 64, device="cuda") for s in (0, 1)]
        bus, before = cascade.bus("cpu" if running.offload else None), card.live["cuda"]
        card.peak.clear()
        with frame_chunks(unet, running.frame_chunk):
            cascade_step(lambda index, x, stage: guided(x, 500.0, None, stage), xs, bus, 0, 0.8)
    assert (card.peak["cuda"] - before) / guess.step == pytest.approx(1, abs=0.03)
    assert "math" not in seen.taken and not card.doubles
