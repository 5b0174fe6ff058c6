"""Layouts of visible tokens: rows and one row say the same."""

import pytest
import torch
from torch.nn import functional as F

from ifam.backbones.token_layout import Dense, Packed, Padded

VISIBLE = torch.tensor([[0, 1, 0, 1, 1], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0]], dtype=torch.bool)
LAYOUTS = {
    "padded": lambda visible, prefix: Padded(visible, prefix),
    "bucketed": lambda visible, prefix: Padded(visible, prefix, bucket=4),
    "dense": Dense,
    "packed": lambda visible, prefix: Packed(visible, prefix),
}


@pytest.fixture(params=LAYOUTS)
def make(request):
    return LAYOUTS[request.param]


def _by_image(layout, patches, prefix=0):
    """What a layout holds of each image, without padding."""
    rows, real = layout.rows(layout.assemble(torch.zeros(1, prefix, patches.shape[-1]), patches))
    return [row[keep][prefix:] for row, keep in zip(rows, real, strict=True)]


def test_patches_are_gathered_in_order(make):
    values = torch.arange(30.0).view(3, 5, 2)
    gathered = _by_image(make(VISIBLE, 0), make(VISIBLE, 0).gather(values))
    assert [f.tolist() for f in gathered] == [values[b][VISIBLE[b]].tolist() for b in range(3)]


def test_several_rows_show_one_image(make):
    values, sources = torch.arange(20.0).view(2, 5, 2), torch.tensor([1, 0, 1])
    layout = make(VISIBLE, 0)
    assert torch.equal(layout.gather(values, sources), layout.gather(values[sources]))


def test_a_batch_of_one_stands_for_every_image(make):
    layout, values = make(VISIBLE, 0), torch.arange(10.0).view(1, 5, 2)
    assert torch.equal(layout.gather(values), layout.gather(values.expand(3, -1, -1)))


def test_prefix_tokens_come_before_the_patches_of_each_image(make):
    layout, prefix = make(VISIBLE, 2), torch.tensor([[[-1.0], [-2.0]]])
    rows, real = layout.rows(layout.assemble(prefix, layout.gather(torch.arange(15.0).view(3, 5, 1))))
    assembled = [row[keep, 0].tolist() for row, keep in zip(rows, real, strict=True)]
    assert assembled == [[-1, -2, 1, 3, 4], [-1, -2, 9], [-1, -2]]
    values = layout.with_prefix(layout.gather(torch.arange(15.0).view(3, 5)), -7.0)
    rows, real = layout.rows(values[..., None])
    assert [row[keep, 0].tolist() for row, keep in zip(rows, real, strict=True)] == [
        [-7, -7, 1, 3, 4],
        [-7, -7, 9],
        [-7, -7],
    ]


def test_the_first_token_of_each_image(make):
    layout = make(VISIBLE, 1)
    tokens = layout.assemble(torch.tensor([[[5.0]]]), layout.gather(torch.arange(15.0).view(3, 5, 1)))
    assert layout.first(tokens).flatten().tolist() == [5, 5, 5]
    # Of the images' own tokens, where there are no others.
    shown = VISIBLE.clone()
    shown[2, 3] = True
    layout = make(shown, 0)
    if not (isinstance(layout, Padded) and layout.mask.shape[1] == 5):  # dense rows begin with whatever is there
        assert layout.first(layout.gather(torch.arange(15.0).view(3, 5, 1))).flatten().tolist() == [1, 9, 13]


def test_what_is_in_the_padding_never_gets_out(make):
    """Hidden values, NaN among them, are in no tensor of the layout."""
    values = torch.where(VISIBLE[:, :, None], torch.ones(3, 5, 2), torch.nan)
    assert make(VISIBLE, 0).gather(values).isfinite().all()


@pytest.mark.parametrize("only_first", [False, True], ids=["every token asks", "the first token asks"])
@pytest.mark.parametrize("biased", [False, True])
def test_images_attend_to_themselves_alone(make, biased, only_first):
    """Each image's result is that of the image on its own."""
    torch.manual_seed(0)
    layout, heads, size = make(VISIBLE, 1), 2, 4
    tokens = torch.randn(3, 5, heads * size).double()
    prefix = torch.randn(1, 1, heads * size).double()
    bias = torch.randn(3, 5).double() if biased else torch.zeros(3, 5).double()
    x = layout.assemble(prefix, layout.gather(tokens))
    query = layout.first(x) if only_first else x

    def split(t):
        return t.unflatten(2, (heads, size)).transpose(1, 2)

    keys_bias = layout.with_prefix(layout.gather(bias), 0.0) if biased else None
    out = layout.attend(split(query), split(x), split(x), keys_bias).transpose(1, 2).flatten(2)
    if only_first:
        outputs = list(out.reshape(3, 1, -1))
    else:
        rows, real = layout.rows(out)
        outputs = [row[keep] for row, keep in zip(rows, real, strict=True)]
    for b in range(3):
        own = torch.cat([prefix[0], tokens[b][VISIBLE[b]]])[None]
        mask = torch.cat([torch.zeros(1).double(), bias[b][VISIBLE[b]]])[None, None, None]
        asks = own[:, :1] if only_first else own
        alone = F.scaled_dot_product_attention(split(asks), split(own), split(own), attn_mask=mask)
        torch.testing.assert_close(outputs[b], alone[0].transpose(0, 1).flatten(1), rtol=0, atol=1e-12)


def test_padding_is_to_the_longest_or_to_the_next_bucket():
    assert Padded(VISIBLE, 0).index.shape == (3, 3)
    assert Padded(VISIBLE, 0, bucket=2).index.shape == (3, 4)
    assert Padded(VISIBLE, 0, bucket=32).index.shape == (3, 5)  # there are no more patches than there are
    assert Dense(VISIBLE, 2).counts == [7, 7, 7]
    assert Packed(VISIBLE, 2).counts == [5, 3, 2]


@pytest.mark.parametrize("shown", [True, False])
def test_without_padding_there_is_no_mask(shown):
    """Kernels are faster without, and all or nothing needs none."""
    assert Padded(torch.full((2, 4), shown), 1).real is None
    assert Padded(VISIBLE, 1).real is not None


def test_an_empty_batch(make):
    layout = make(torch.zeros(0, 5, dtype=torch.bool), 1)
    tokens = layout.assemble(torch.zeros(1, 1, 4), layout.gather(torch.zeros(0, 5, 4)))
    assert layout.rows(tokens)[0].numel() == 0
    assert layout.first(tokens).numel() == 0


def test_the_gradient_of_what_all_images_share_does_not_depend_on_threads(make):
    """Positions are read by every image: their gradient is summed in the same order, however many threads there are."""
    visible = torch.rand(32, 100) < 0.4
    table = torch.randn(1, 100, 192, requires_grad=True)
    layout = make(visible, 5)
    grad = torch.randn_like(layout.gather(table))
    threads, gradients = torch.get_num_threads(), []
    try:
        for number in (1, *[4] * 20):
            torch.set_num_threads(number)
            gradients += torch.autograd.grad(layout.gather(table), table, grad)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(gradient, gradients[0]) for gradient in gradients)
