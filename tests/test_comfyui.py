"""The ComfyUI nodes against its documented interface, with stand-ins for its own modules."""

import importlib.util
import inspect
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from zerosmooth import UserError

FOLDER = Path(__file__).parent.parent / "examples/comfyui"
WORKFLOW = json.loads((FOLDER / "example_workflows/smooth_video.json").read_text())
TYPES = {"ZEROSMOOTH", "IMAGE", "INT", "FLOAT", "STRING"}


class Interrupted(Exception):
    pass


@pytest.fixture(scope="module")
def comfy(tiny):
    """The nodes, beside what ComfyUI was told: `bars` of progress; `stop` interrupts after so many
    calls."""
    told = SimpleNamespace(bars=[], stop=None)
    models = {"zerosmooth": tiny}

    class ProgressBar:
        def __init__(self, total):
            self.seen = []
            told.bars.append(self.seen)

        def update_absolute(self, value, total=None, preview=None):
            self.seen.append((value, total))

    def interrupt():
        if told.stop is not None and len(told.bars[-1]) >= told.stop:
            raise Interrupted

    def full_path(folder, name):
        path = models[folder] / name
        return str(path) if path.is_file() else None

    parts = {
        "folder_paths": {
            "models_dir": str(tiny.parent), "get_full_path": full_path,
            "get_full_path_or_raise": full_path,
            "add_model_folder_path": lambda name, path: None,
            "get_filename_list": lambda name: sorted(p.name for p in models[name].iterdir())},
        "comfy.model_management": {
            "throw_exception_if_processing_interrupted": interrupt,
            "unload_all_models": lambda: None, "get_torch_device": lambda: torch.device("cpu")},
        "comfy.utils": {"ProgressBar": ProgressBar}, "comfy": {}}
    with pytest.MonkeyPatch.context() as patch:
        for name, content in parts.items():
            patch.setitem(sys.modules, name, module := ModuleType(name))
            vars(module).update(content)
            if "." in name:
                parts["comfy"][name.partition(".")[2]] = module
        spec = importlib.util.spec_from_file_location("comfyui_zerosmooth", FOLDER / "__init__.py")
        told.nodes = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(told.nodes)
        yield told


@pytest.fixture
def sampler(comfy):
    comfy.stop = None
    return comfy.nodes.Sampler()


def loaded(comfy, name: str):
    return comfy.nodes.Loader().load(f"{name}.safetensors", comfy.nodes.BUILT_IN, "default")[0]


ASKED = {"seed": 3, "scale": "4", "preset": "paper", "steps": 2, "guidance_scale": 0.0}


@pytest.mark.parametrize("name", ["ZeroSmoothLoader", "ZeroSmoothSampler"])
def test_nodes_are_as_comfyui_documents_them(comfy, name):
    node = comfy.nodes.NODE_CLASS_MAPPINGS[name]
    assert comfy.nodes.NODE_DISPLAY_NAME_MAPPINGS[name] and node.CATEGORY
    inputs = node.INPUT_TYPES()
    assert inputs.keys() <= {"required", "optional", "hidden"}
    for kind, *options in (given for group in inputs.values() for given in group.values()):
        assert kind in TYPES if isinstance(kind, str) else all(type(x) is str for x in kind)
        assert not options or (len(options) == 1 and isinstance(options[0], dict))
    run = inspect.signature(getattr(node, node.FUNCTION)).parameters
    assert [*run][1:] == [given for group in inputs.values() for given in group]
    assert all(run[given].default is not inspect.Parameter.empty
               for given in inputs.get("optional", ()))
    assert len(node.RETURN_TYPES) == len(node.RETURN_NAMES) and {*node.RETURN_TYPES} <= TYPES
    assert len(getattr(node, "OUTPUT_IS_LIST", node.RETURN_TYPES)) == len(node.RETURN_TYPES)


def test_the_stages_are_image_batches_with_their_rates(comfy, sampler):
    model = loaded(comfy, "vc2")
    densest, fps, stages, rates = sampler.sample(model, **ASKED, prompt="a cat")
    (video,) = model.sample("a cat", seeds=3, scale=4, preset="paper", steps=2)
    assert rates == video.fps and fps == rates[-1] and densest is stages[-1]
    for images, frames in zip(stages, video.frames, strict=True):  # b h w c, 0 to 1
        assert images.dtype == torch.float32 and images.device.type == "cpu"
        assert torch.equal((images * 255).round().byte(), frames) and images.max() <= 1


def test_what_is_left_open_is_the_checkpoints_own_and_lines_are_settings(comfy, sampler):
    model, seen = loaded(comfy, "vc2"), []
    model.sample = lambda subjects, **asked: seen.append((subjects, asked)) or 1 / 0
    open_ = {**ASKED, "preset": comfy.nodes.OWN, "steps": 0}
    with pytest.raises(ZeroDivisionError):
        sampler.sample(model, **open_, settings=" eta = 0\n\nspatial=false\n")
    ((subject,), asked), = seen
    assert subject.prompt is None and subject.image is None
    assert asked.pop("progress") and asked == {"seeds": 3, "scale": 4, "eta": 0, "spatial": False}


def test_an_image_is_taken_as_comfyui_gives_it(comfy, sampler):
    model = loaded(comfy, "svd")
    picture = torch.rand(1, 20, 40, 3)
    _, _, stages, _ = sampler.sample(model, **ASKED, image=picture)
    (video,) = model.sample((picture[0] * 255).round().byte(), seeds=3, scale=4, preset="paper",
                            steps=2)
    assert torch.equal((stages[0] * 255).round().byte(), video.frames[0])
    with pytest.raises(UserError, match="2 images; a video is made from one"):
        sampler.sample(model, **ASKED, image=picture.expand(2, -1, -1, -1))
    with pytest.raises(UserError, match="makes videos from image"):
        sampler.sample(model, **ASKED, prompt="a cat")


def test_progress_is_shown_and_an_interruption_ends_it(comfy, sampler):
    model = loaded(comfy, "vc2")
    sampler.sample(model, **ASKED)
    assert comfy.bars[-1] == [(done, 6) for done in range(1, 7)]  # three stages of two steps
    comfy.stop = 2
    with pytest.raises(Interrupted):
        sampler.sample(model, **ASKED)
    assert comfy.bars[-1] == [(1, 6), (2, 6)]


def test_only_families_in_the_models_folder_can_be_named(comfy, tiny):
    (tiny / "mine.py").write_text("from zerosmooth.families import FAMILIES\n"
                                  "FAMILY = FAMILIES['vc2']\n")
    required = comfy.nodes.Loader.INPUT_TYPES()["required"]
    assert required["family"][0] == [comfy.nodes.BUILT_IN, "mine.py"]
    assert {"vc2.safetensors", "vc2-small"} <= {*required["checkpoint"][0]}
    (model,) = comfy.nodes.Loader().load("vc2.safetensors", "mine.py", "bfloat16")
    assert model.dtype == torch.bfloat16
    (tiny / "mine.py").unlink()


def test_the_workflow_fits_the_nodes(comfy):
    nodes = {node["id"]: node for node in WORKFLOW["nodes"]}
    ours = comfy.nodes.NODE_CLASS_MAPPINGS
    for node in nodes.values():
        if node["type"] in ours:
            inputs = {name: given for group in ours[node["type"]].INPUT_TYPES().values()
                      for name, given in group.items()}
            values = iter(node["widgets_values"])
            for name, (kind, *options) in inputs.items():
                if kind in ("IMAGE", "ZEROSMOOTH"):
                    continue
                value = next(values)
                assert value in kind if isinstance(kind, list) else isinstance(
                    value, {"INT": int, "FLOAT": (int, float), "STRING": str}[kind]), name
                if options and options[0].get("control_after_generate"):
                    assert next(values) in ("fixed", "randomize")
            assert not list(values)
            assert [out["type"] for out in node["outputs"]] == [*ours[node["type"]].RETURN_TYPES]
    for number, source, out, target, into, kind in WORKFLOW["links"]:
        given, taken = nodes[source]["outputs"][out], nodes[target]["inputs"][into]
        assert given["type"] == kind == taken["type"]
        assert number in given["links"] and number == taken["link"]


def test_nothing_is_advised_that_cannot_be_written_here(comfy):
    with pytest.raises(UserError, match="there is no setting 'offload'; use one of"):
        list(comfy.nodes.read("offload=true"))
