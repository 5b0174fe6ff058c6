import ast
import inspect

import pytest
import torch
from tools.pretrain_tiny.textures import draw_scenes, hsv_to_rgb, patch_coverage

from tools.pretrain_tiny import textures


def generator(seed):
    return torch.Generator().manual_seed(seed)


def test_same_seed_same_scenes_other_seed_others():
    first, again, other = (draw_scenes(4, generator(seed)) for seed in (3, 3, 4))
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.foreground, again.foreground)
    assert not torch.equal(first.images, other.images)


@pytest.mark.parametrize("size", [32, 80])
def test_scenes_are_finite_images_with_a_label_per_pixel(size):
    scenes = draw_scenes(6, generator(0), size=size)
    assert scenes.images.shape == (6, 3, size, size)
    assert scenes.foreground.shape == (6, size, size)
    for values in (scenes.images, scenes.foreground):
        assert values.isfinite().all()
        assert values.min() >= 0
        assert values.max() <= 1


def test_the_thing_covers_8_to_35_percent():
    area = draw_scenes(300, generator(1)).foreground.mean((1, 2))
    assert area.min() > 0.06
    assert area.max() < 0.38
    assert 0.18 < area.mean() < 0.25


def test_every_scene_has_sure_background_and_sure_foreground():
    flat = draw_scenes(100, generator(2)).foreground.flatten(1)
    assert ((flat > 0.99).float().mean(1) > 0.03).all()
    assert ((flat < 0.01).float().mean(1) > 0.5).all()


@pytest.mark.slow
def test_colour_of_the_thing_does_not_tell_that_of_the_background():
    scenes = draw_scenes(600, generator(5))
    inside = scenes.foreground.unsqueeze(1)
    thing = (scenes.images * inside).sum((2, 3)) / inside.sum((2, 3))
    rest = (scenes.images * (1 - inside)).sum((2, 3)) / (1 - inside).sum((2, 3))
    # Red minus blue: independent of the common illumination. Three standard errors are 0.12.
    tints = torch.stack([thing[:, 0] - thing[:, 2], rest[:, 0] - rest[:, 2]])
    assert torch.corrcoef(tints)[0, 1].abs() < 0.12


def test_patch_coverage_is_the_mean_of_each_patch():
    foreground = torch.zeros(1, 16, 16)
    foreground[0, :8, 8:12] = 1  # half of the second patch
    assert patch_coverage(foreground, 8).tolist() == [[0.0, 0.5, 0.0, 0.0]]


def test_hsv_to_rgb_on_known_colours():
    hsv = torch.tensor([[0.0, 1, 1], [1 / 3, 1, 1], [2 / 3, 1, 0.5], [0.4, 0, 0.7], [1.0, 1, 1]])
    expected = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 0.5], [0.7, 0.7, 0.7], [1, 0, 0]])
    torch.testing.assert_close(hsv_to_rgb(hsv), expected)


def test_imports_nothing_of_a_benchmark():
    tree = ast.parse(inspect.getsource(textures))
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    assert {name for name in imported if name.startswith("ifam")} == {"ifam._typing"}
