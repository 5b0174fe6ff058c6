"""Shapes are checked in all tests but the slow ones: jaxtyping's import hook wraps what has any, before its import."""

from importlib.util import find_spec
from pathlib import Path

from jaxtyping import config as jaxtyping_config
from jaxtyping import install_import_hook

PACKAGE = Path(find_spec("ifam").origin).parent
SHAPED = [
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    for path in PACKAGE.rglob("*.py")
    if "from ifam._typing import" in path.read_text(encoding="utf-8")
]
install_import_hook(SHAPED, "typechecker.checked")

import asyncio  # noqa: E402
import gc  # noqa: E402
import logging  # noqa: E402
import socket  # noqa: E402
import traceback  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402

from hub_server import stub as stub  # noqa: E402
from ifam.backbones.gated_attention import OverrideSDPA  # noqa: E402
from ifam.pulse import Pulse  # noqa: E402

# It is called at each operation within a block, and has no shapes.
OverrideSDPA.__torch_function__.__no_type_check__ = True

# Four ways in which vision transformers lay out prefix tokens and positions: name, image size.
LAYOUTS = {
    "class token in the table": ("vit_tiny_patch16_224", 64),
    "class and registers out of the table": ("vit_small_patch14_reg4_dinov2", 56),
    "no class token": ("vit_base_patch16_siglip_224", 64),
    "norm before the blocks": ("vit_base_patch16_clip_224", 64),
}
LOCAL = ("127.0.0.1", "::1", "localhost", "0.0.0.0", None)
TINY_VIT = {"depth": 2, "embed_dim": 48, "num_heads": 3}


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Check no shapes in slow tests: they repeat what the others have checked, and would take twice as long."""
    unchecked = any(item.get_closest_marker(name) for name in ("slow", "shapes_unchecked"))
    jaxtyping_config.update("jaxtyping_disable", unchecked)


@pytest.fixture(scope="session", autouse=True)
def _no_lines_of_slow_work():
    """Lines that only a slow machine logs, after ten seconds, are left to the tests that ask for them (`often`)."""
    assert (Pulse.first, Pulse.interval) == (10.0, 60.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pulse, "first", 24 * 3600.0)
        yield


@pytest.fixture(autouse=True)
def _seeded():
    """Every test starts from the same random state."""
    torch.manual_seed(0)


@pytest.fixture
def one_thread():
    """One thread in this process, as in each of `processes.in_processes`: their number decides about the last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def wake(module):
    """Random values in every weight, so that no layer scale, bias or token near zero hides an error."""
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if name.endswith("prototypes"):
                weight.normal_(std=0.4)
            elif weight.ndim == 1 and not name.endswith("bias"):
                weight.uniform_(0.5, 1.5)
            else:
                weight.normal_(std=0.3 if weight.ndim == 1 or "embed" in name or "token" in name else 0.15)
    return module


def close_event_loops():
    """Close those that Gradio has left open, which would be warnings in whatever test runs next."""
    for loop in [one for one in gc.get_objects() if issubclass(type(one), asyncio.AbstractEventLoop)]:
        if not loop.is_running():
            loop.close()


@pytest.fixture(scope="module")
def network():
    """Every address outside of this machine that this process asks for; none is reached."""
    asked = []
    with pytest.MonkeyPatch.context() as patch:
        connect, look_up = socket.socket.connect, socket.getaddrinfo

        def note(address):
            """The client that stands in for visitors is none of the server's business."""
            if not any("gradio_client" in frame.filename for frame in traceback.extract_stack()):
                asked.append(address)

        def guarded(self, address):
            if isinstance(address, tuple) and address[0] not in LOCAL:
                note(address)
                raise OSError("no network here")
            return connect(self, address)

        def resolved(host, *args, **kwargs):
            if host not in LOCAL:
                note(host)
                raise socket.gaierror("no network here")
            return look_up(host, *args, **kwargs)

        patch.setattr(socket.socket, "connect", guarded)
        patch.setattr(socket, "getaddrinfo", resolved)
        yield asked


@pytest.fixture(params=LAYOUTS.values(), ids=LAYOUTS)
def layout(request):
    """(name, image size) of a backbone of each layout."""
    return request.param


@pytest.fixture
def make_backbone():
    """A tiny backbone with random weights, of any name."""
    from ifam.backbones.backbone import Backbone

    def make(name="vit_tiny_patch16_224", image_size=64, **kwargs):
        return wake(Backbone(name, image_size=image_size, pretrained=False, **{**TINY_VIT, **kwargs})).eval()

    return make


@pytest.fixture
def make_model():
    """A tiny model with random weights: 4 x 4 patches, 3 parts, 5 classes."""
    from ifam.config import ModelConfig
    from ifam.models.ifam import IFAM

    def make(backbone="vit_tiny_patch16_224", image_size=64, backbone_kwargs=None, **fields):
        config = ModelConfig(
            backbone=backbone,
            image_size=image_size,
            backbone_kwargs={**TINY_VIT, **(backbone_kwargs or {})},
            **{"num_parts": 3, "num_classes": 5, **fields},
        )
        torch.manual_seed(0)
        return wake(IFAM(config, pretrained=False)).eval()

    return make


@pytest.fixture
def tiny_model(make_model):
    """A tiny model in evaluation mode: 64 px, 4 x 4 patches, 3 parts, 5 classes."""
    return make_model()


@pytest.fixture
def images():
    """Four normalized images of 64 x 64 pixels."""
    return torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def mask():
    """Masks of 4 x 4 patches for four images: a few visible, all hidden, all visible, half visible."""
    flat = torch.zeros(4, 16, dtype=torch.bool)
    flat[0, [2, 7, 13]] = True
    flat[2] = True
    flat[3, ::2] = True
    return flat.view(4, 4, 4)


@pytest.fixture
def make_selection():
    """A selection with the given logits [B, K1, H, W], and everything else consistent with it."""
    from ifam.types import Selection

    def make(logits, classes=5, width=6):
        batch, parts = logits.shape[:2]
        scores = torch.randn(batch, parts - 1, classes, dtype=logits.dtype)
        return Selection(
            assignment_logits=logits,
            part_maps=logits.softmax(dim=1),
            similarity=torch.randn(logits.shape, dtype=logits.dtype),
            part_features=torch.randn(batch, parts, width, dtype=logits.dtype),
            part_scores=scores,
            selector_logits=scores.mean(dim=1),
            initial_logits=logits.clone(),
        )

    return make


@pytest.fixture
def gated_tokens():
    """The oracle: a vision transformer written out, whose attention multiplies each key by a gate.

    All patches are queries and keys; the gates may be any number, so they can be differentiated by autograd
    and by finite differences. Only pre-norm blocks, as all layouts here have.
    """

    def attention(attn, x, gates):
        batch, count, _ = x.shape
        qkv = attn.qkv(x).view(batch, count, 3, attn.num_heads, attn.head_dim).permute(2, 0, 3, 1, 4)
        query, key, value = attn.q_norm(qkv[0]), attn.k_norm(qkv[1]), qkv[2]
        weights = gates[:, None, None, :] * (query @ key.mT * attn.head_dim**-0.5).exp()
        mixed = (weights / weights.sum(dim=-1, keepdim=True)) @ value
        return attn.proj(mixed.transpose(1, 2).flatten(2))

    def tokens(vit, images, gate):
        entering = []
        hook = vit.blocks[0].register_forward_pre_hook(lambda _, args: entering.append(args[0]))
        vit.forward_features(images)
        hook.remove()
        (x,) = entering
        gates = torch.cat([gate.new_ones(len(gate), vit.num_prefix_tokens), gate], dim=1)
        for block in vit.blocks:
            x = x + block.ls1(attention(block.attn, block.norm1(x), gates))
            x = x + block.ls2(block.mlp(block.norm2(x)))
        return vit.norm(x)

    return tokens


@pytest.fixture
def gated_logits(gated_tokens):
    """The oracle's class logits of a predictor, as a function of the gate [B, P] of each patch."""

    def logits(predictor, images, gate, mask):
        tokens = gated_tokens(predictor.backbone.vit, images, gate)
        if predictor.backbone.has_class_token:
            pooled = tokens[:, 0]
        else:
            weights = mask.flatten(1).to(tokens)
            pooled = (tokens * weights[:, :, None]).sum(dim=1) / weights.sum(dim=1, keepdim=True)
        return predictor.head(predictor.norm(pooled))

    return logits


@pytest.fixture
def often(monkeypatch, caplog):
    """Many lines a second, in the place of one a minute."""
    monkeypatch.setattr(Pulse, "first", 0.0)
    monkeypatch.setattr(Pulse, "interval", 0.01)
    caplog.set_level(logging.INFO, "ifam")
    return caplog
