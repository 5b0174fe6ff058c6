"""What a training step costs, in counts that no machine changes: passes, tokens, bytes and FLOPs.

These are the promises of docs/results/speed.md that hold everywhere; seconds are for `benchmarks/`.
"""

import json
import shutil
import subprocess
import sys
from dataclasses import asdict

import pytest
import torch
from benchmarks.measure import flop_counter
from torch.utils._python_dispatch import TorchDispatchMode

from ifam.config import LossConfig, TrainConfig
from ifam.data import Benchmark
from ifam.training.losses import weighted_sum
from ifam.training.module import Training, prepare
from ifam.types import Batch, Mask

# ViT: 64 px, 4 x 4 patches of 16, class token, width 48, 3 heads, 2 blocks (see conftest).
IMAGES, PATCHES, PREFIX, WIDTH, DEPTH, PARTS, CLASSES = 4, 16, 1, 48, 2, 3, 5
SHOWN = (1, 4, 8, 3)  # a quarter of 64 patches, in varied counts
BENCHMARK = Benchmark("random", {}, tuple("abcde"), ("all",))


@pytest.fixture
def step(make_model):
    """A step of training with given masks; `step.model` and `step.run()`."""

    class Step:
        def __init__(self, **settings):
            fields = {k: v for k, v in settings.items() if k in ("mask_gradient", "execution", "num_parts")}
            self.model = make_model(**{"mask_gradient": "none", **fields})
            config = TrainConfig(**{k: v for k, v in settings.items() if k not in fields})
            prepare(self.model, config)
            self.training = Training(self.model, config, LossConfig(), BENCHMARK, 100).train()
            self.visible = torch.zeros(IMAGES, PATCHES, dtype=torch.bool)
            for row, count in zip(self.visible, SHOWN, strict=True):
                row[:count] = True
            self.model.mask = self.mask
            torch.manual_seed(0)
            self.batch = Batch(torch.randn(IMAGES, 3, 64, 64), torch.arange(IMAGES))

        def mask(self, selection, images=None):
            foreground = selection.part_maps[:, :-1].sum(dim=1)
            visible = self.visible.view(IMAGES, 4, 4)
            return Mask(visible, visible.float() + (foreground - foreground.detach()))

        def loss(self):
            terms = self.training.terms(self.batch)
            weights = asdict(LossConfig())
            return weighted_sum(terms, {name: weights[name] for name in terms})

        def run(self):
            self.loss().backward()

    return Step


def _block_flops(tokens, read=None):
    """Matrix products of one block: queries, keys and values, projection, two layers of the perceptron."""
    read = tokens if read is None else read
    return 2 * WIDTH * WIDTH * (2 * tokens + read + read + 8 * read)


def _attention_flops(queries, keys):
    return 2 * 2 * queries * keys * WIDTH


def test_one_pass_of_each_stage_and_no_token_that_is_not_needed(step):
    """The selector sees images and transformed images at once; the predictor sees visible patches of images alone."""
    setting = step(execution="packed")
    seen = []

    def watch(name):
        return lambda _, args: seen.append((name, args[0].shape[:2].numel()))

    for name, stage in (("selector", setting.model.selector), ("predictor", setting.model.predictor)):
        for block in stage.backbone.vit.blocks:
            block.mlp.fc1.register_forward_pre_hook(watch(name))
    # A hook on a block's inside makes the last block compute everything, so it is taken off it again.
    setting.run()
    everything = 2 * IMAGES * (PATCHES + PREFIX)
    shown = sum(SHOWN) + IMAGES * PREFIX
    assert seen == [("selector", everything)] * DEPTH + [("predictor", shown)] * DEPTH


def test_flops_of_a_forward_pass(step):
    """Counted operation by operation, and by hand from the tokens that each stage needs."""
    setting = step(execution="packed")
    with flop_counter() as counter:
        setting.loss()
    passes, tokens = 2 * IMAGES, PATCHES + PREFIX
    patch = 2 * 3 * 16 * 16 * WIDTH
    selector = passes * (PATCHES * patch + _block_flops(tokens) + _attention_flops(tokens, tokens))
    selector += passes * (_block_flops(tokens, PATCHES) + _attention_flops(PATCHES, tokens))
    predictor = sum(SHOWN) * patch
    # On a processor attention alone is padded: all images at once, in rows as long as the longest.
    longest = max(SHOWN) + PREFIX
    for count in SHOWN:
        predictor += _block_flops(count + PREFIX) + _attention_flops(longest, longest)
        predictor += _block_flops(count + PREFIX, 1) + _attention_flops(1, longest)
    # Similarity for both passes, pooling, both classifiers, cosine of the K + 1 features.
    parts = PARTS + 1
    heads = passes * 2 * PATCHES * WIDTH * parts + IMAGES * 2 * PATCHES * WIDTH * parts
    heads += IMAGES * 2 * WIDTH * CLASSES * (PARTS + 1) + IMAGES * 2 * parts * parts * WIDTH
    # The coordinates that the images are transformed by, and the maps back in two steps.
    grids = 2 * 2 * 3 * (64 * 64 + 2 * PATCHES)
    assert counter.get_total_flops() == selector + predictor + heads + grids


@pytest.mark.parametrize("side", [32, 64, 128])
def test_flops_of_an_answer_by_the_size_that_the_selector_sees(make_model, images, mask, side):
    """Half of it, a quarter of the patches: the predictor's share is the same."""
    model = make_model(selector_image_size=side, execution="packed")
    model.mask = lambda *_: Mask(mask, mask.float())
    with flop_counter() as counter, torch.no_grad():
        model(images)
    patches, patch = (side // 16) ** 2, 2 * 3 * 16 * 16 * WIDTH
    tokens, parts = patches + PREFIX, PARTS + 1
    selector = patches * patch + _block_flops(tokens) + _attention_flops(tokens, tokens)
    selector += _block_flops(tokens, patches) + _attention_flops(patches, tokens)
    # Similarity, pooling and the classifier of the parts.
    selector += 2 * 2 * patches * WIDTH * parts + 2 * WIDTH * CLASSES * PARTS
    predictor = 2 * IMAGES * WIDTH * CLASSES
    counts = mask.flatten(1).sum(dim=1).tolist()
    longest = max(counts) + PREFIX
    for count in counts:
        predictor += count * patch + _block_flops(count + PREFIX) + _attention_flops(longest, longest)
        predictor += _block_flops(count + PREFIX, 1) + _attention_flops(1, longest)
    assert counter.get_total_flops() == IMAGES * selector + predictor


@pytest.mark.slow
@pytest.mark.parametrize(("tuning", "share"), [("none", 0.0), ("tokens", 1.0), ("all", 2.0)])
def test_flops_of_the_backward_pass_through_the_selector(step, tuning, share):
    """Nothing for a trunk that is not trained; no product with its weights' gradients for one that is frozen."""
    setting = step(selector_tuning=tuning)
    with flop_counter() as counter:
        patches = setting.model.selector.patches(setting.batch.images)
        forward = counter.get_total_flops()
        if patches.requires_grad:
            patches.sum().backward()
        backward = counter.get_total_flops() - forward
    embedding = IMAGES * PATCHES * 2 * 3 * 16 * 16 * WIDTH
    expected = share * (forward - embedding) + (embedding if tuning == "all" else 0)
    # Attention's backward pass computes its weights once more.
    assert expected <= backward <= 1.1 * expected


class _Largest(TorchDispatchMode):
    """Remembers the largest tensor that any operation makes."""

    def __init__(self):
        super().__init__()
        self.bytes, self.shape = 0, None

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):
                size = tensor.untyped_storage().nbytes()
                if size > self.bytes:
                    self.bytes, self.shape = size, tuple(tensor.shape)
        return out


@pytest.mark.slow
@pytest.mark.parametrize("gradient", ["none", "visible", "full"])
def test_the_largest_tensor_is_a_layer_of_the_selector(step, gradient):
    """No [B, D, K + 1, H, W], no mask of tokens by tokens: not even with 40 parts is anything larger."""
    setting = step(mask_gradient=gradient, num_parts=40)
    hidden = 2 * IMAGES * (PATCHES + PREFIX) * 4 * WIDTH * 4  # the perceptron's hidden layer, in bytes
    images = 2 * setting.batch.images.nbytes
    with _Largest() as largest:
        setting.run()
    assert largest.bytes <= max(hidden, images), largest.shape


def _saved(module, run):
    """Bytes that autograd keeps for the backward pass, parameters excepted."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    storages = {}

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = run()
    return sum(size for pointer, size in storages.items() if pointer not in parameters), out


def test_frozen_blocks_keep_nothing_and_frozen_weights_little(step):
    """An untrained selector has no graph at all; with its tokens trained, no layer keeps its input for its weights.

    Of each block these are: all tokens before queries, keys and values; and of the tokens that are read, those before
    the perceptron, and its hidden layer, which is four times as wide. The last block reads patches alone.
    """
    kept = {}
    for tuning in ("none", "tokens", "all"):
        setting = step(selector_tuning=tuning)
        selector, images = setting.model.selector, setting.batch.images
        kept[tuning], patches = _saved(selector, lambda stage=selector, batch=images: stage.patches(batch))
        assert patches.requires_grad == (tuning != "none")
    assert kept["none"] == 0
    inputs = DEPTH * (PATCHES + PREFIX) + (1 + 4) * ((DEPTH - 1) * (PATCHES + PREFIX) + PATCHES)
    assert 0 < kept["tokens"] <= kept["all"] - IMAGES * inputs * WIDTH * images.element_size()


def test_checkpointing_keeps_the_tokens_between_blocks_and_nothing_inside(make_backbone, images):
    """What one block more keeps: its input, where the layers inside of it would keep theirs."""
    tokens = images.shape[0] * (PATCHES + PREFIX) * WIDTH * images.element_size()

    def kept(checkpointing, depth):
        backbone = make_backbone(depth=depth)
        backbone.vit.set_grad_checkpointing(checkpointing)
        return _saved(backbone, lambda: backbone(images, queries="patches"))[0]

    # The least that is inside of a block is the tokens once more.
    assert tokens <= kept(True, 4) - kept(True, 3) < 2 * tokens
    # Queries, keys and values take three times the tokens, the hidden layer of the perceptron four times.
    assert kept(False, 4) - kept(False, 3) >= 8 * tokens


@pytest.mark.slow
def test_checkpointing_learns_the_same(step):
    gradients = {}
    for checkpointing in (False, True):
        setting = step(checkpointing=checkpointing, selector_tuning="all", mask_gradient="visible")
        torch.manual_seed(1)
        setting.run()
        gradients[checkpointing] = {name: p.grad for name, p in setting.model.named_parameters()}
    assert any(gradient is not None and gradient.any() for gradient in gradients[False].values())
    for name, gradient in gradients[False].items():
        if gradient is None:
            assert gradients[True][name] is None
        else:
            torch.testing.assert_close(gradients[True][name], gradient, rtol=1e-4, atol=1e-6)


# Run on its own: the shape checks of these tests are code that the compiler cannot read.
COMPILED = """
import json
import sys
import torch
from ifam import IFAM
from ifam import ModelConfig

def graphs_of(gradient, compiler, size, depth):
    torch._dynamo.reset()
    torch.manual_seed(0)
    kwargs = {"embed_dim": 48, "num_heads": 3, "depth": depth}
    config = ModelConfig("vit_tiny_patch16_224", size, backbone_kwargs=kwargs, mask_gradient=gradient)
    predictor = IFAM(config, pretrained=False).predictor.train()
    images, patches = torch.randn(2, 3, size, size), (size // 16) ** 2

    def run(mask):
        gate = mask.float().requires_grad_()
        logits = predictor(images, mask, gate)
        logits.sum().backward()
        weight = predictor.backbone.vit.blocks[0].attn.qkv.weight
        results = logits.detach(), weight.grad.clone(), gate.grad if gradient == "visible" else torch.zeros(1)
        predictor.zero_grad()
        return results

    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph

    masks = [torch.rand(2, patches) < share for share in torch.linspace(0.05, 1.0, 12).tolist()]
    expected = [run(mask) for mask in masks]
    predictor.backbone.compile_blocks(backend=count if compiler == "none" else compiler)
    for mask, before in zip(masks, expected, strict=True):
        for compiled, plain in zip(run(mask), before, strict=True):
            assert (compiled - plain).norm() <= 1e-4 * plain.norm()
    made = len(graphs)
    for mask in masks:
        run(mask.flip(0).roll(7, dims=1))
    return made, len(graphs)

torch.set_num_threads(1)
print(json.dumps([graphs_of(*case) for case in json.loads(sys.argv[1])]))
"""


@pytest.fixture(scope="module")
def compiled_graphs():
    """Graphs that were made for some batches, and after some more; the script itself compares values and gradients."""
    cases = [("none", "none", 224, 3), ("visible", "none", 224, 3)]
    cases += [("visible", "inductor", 64, 2)] if shutil.which("g++") else []
    command = [sys.executable, "-c", COMPILED, json.dumps(cases)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(zip(map(tuple, cases), json.loads(done.stdout.splitlines()[-1]), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("gradient", ["none", "visible"])
def test_compiled_blocks_are_made_once_whatever_is_visible(compiled_graphs, gradient):
    """Fewer graphs than batches for a dozen batches of other visible counts, and none for a dozen more."""
    made, later = compiled_graphs[gradient, "none", 224, 3]
    assert 1 <= made < 12
    assert later == made


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
def test_compiled_code_gives_the_same_numbers(compiled_graphs):
    assert ("visible", "inductor", 64, 2) in compiled_graphs
