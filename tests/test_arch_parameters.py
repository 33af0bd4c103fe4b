"""Architecture parameters: where they live, how they start, and what is read from them."""

from __future__ import annotations

import io
import json
import math

import pytest
import torch
from tiny import tiny_space

from search.gradient.mixes.base import Draw
from search.gradient.mixes.gumbel import Gumbel
from search.gradient.mixes.softmax import Softmax
from search.gradient.parameters import ArchParameters, arch, entropy, snapshot, to

HALF = [torch.tensor(v, dtype=torch.float64) for v in ([0.5, 0.5], [1.0], [0.0, 1.0, 0.0], [0.25] * 4)]


def test_one_small_vector_in_double_precision() -> None:
    space = tiny_space()
    first, same, other = (ArchParameters(space, seed) for seed in (3, 3, 4))
    sizes = [len(gene.options) for gene in space.genes]
    assert 1 in sizes  # genes without a choice have an entry
    assert [vector.numel() for vector in first.logits()] == sizes
    assert list(first.state_dict()) == ["flat"]
    assert (first.flat.dtype, first.flat.device.type) == (torch.float64, "cpu")
    assert torch.equal(first.flat, same.flat)
    assert not torch.equal(first.flat, other.flat)
    many = torch.cat([ArchParameters(space, seed).flat.detach() for seed in range(200)])
    assert many.std().item() == pytest.approx(1e-3, rel=0.05)
    assert abs(many.mean().item()) < 1e-4


def test_the_start_leaves_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    ArchParameters(tiny_space(), 0)
    assert torch.equal(state, torch.get_rng_state())


def test_logits_are_views_and_pass_gradients() -> None:
    parameters = ArchParameters(tiny_space(), 0)
    torch.stack([(i + 1) * vector.sum() for i, vector in enumerate(parameters.logits())]).sum().backward()
    expected = [i + 1.0 for i, vector in enumerate(parameters.logits()) for _ in vector]
    assert parameters.flat.grad is not None
    assert parameters.flat.grad.tolist() == expected
    with torch.no_grad():
        parameters.logits()[0].fill_(7.0)
    assert parameters.flat[0].item() == 7.0


def test_saved_and_read_again() -> None:
    space = tiny_space()
    first, second = ArchParameters(space, 0), ArchParameters(space, 1)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(first.flat, second.flat)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_one_transfer_to_the_network(dtype: torch.dtype) -> None:
    parameters = ArchParameters(tiny_space(), 0)
    draw = Softmax().draw(parameters.logits(), torch.Generator(), 0.0, False)
    sent = to(draw, "cpu", dtype)
    assert len({vector.untyped_storage().data_ptr() for vector in sent}) == 1
    for vector, source in zip(sent, draw.probs, strict=True):
        assert torch.equal(vector, source.to(dtype))
    torch.stack([vector[0] * (i + 1) for i, vector in enumerate(sent)]).sum().backward()
    found = parameters.flat.grad
    assert found is not None
    assert found.dtype == torch.float64
    expected = torch.stack([p[0] * (i + 1) for i, p in enumerate(v.softmax(0) for v in parameters.logits())]).sum()
    assert torch.allclose(found, torch.autograd.grad(expected, parameters.flat)[0], rtol=0, atol=1e-2)


def test_one_hot_stays_exact_in_low_precision() -> None:
    parameters = ArchParameters(tiny_space(), 0)
    draw = Gumbel(True, 10.0, 0.1).draw(parameters.logits(), torch.Generator().manual_seed(0), 0.3, False)
    for vector in to(draw, "cpu", torch.bfloat16):
        assert set(vector.tolist()) <= {0.0, 1.0}
        assert vector.sum() == 1


def test_entropy() -> None:
    assert entropy(HALF).tolist() == pytest.approx([math.log(2), 0, 0, math.log(4)], abs=1e-15)
    assert entropy(HALF, normalised=True).tolist() == pytest.approx([1, 0, 0, 1], abs=1e-15)
    probs = [torch.tensor([0.1, 0.2, 0.7], dtype=torch.float64), torch.tensor([0.6, 0.4], dtype=torch.float64)]
    for i, p in enumerate(probs):
        exact = torch.distributions.Categorical(p).entropy().item()
        assert entropy(probs)[i].item() == pytest.approx(exact, rel=1e-12)
        assert entropy(probs, normalised=True)[i].item() == pytest.approx(exact / math.log(len(p)), rel=1e-12)


def test_the_first_of_equals_is_chosen_and_the_arch_is_canonical() -> None:
    space = tiny_space(choose="block")
    equal = [torch.full((len(gene.options),), 1 / len(gene.options)).double() for gene in space.genes]
    assert arch(space, equal) == space.smallest()
    last = [torch.eye(len(gene.options)).double()[-1] for gene in space.genes]
    assert arch(space, last) == space.largest()
    # Depths take their first option, all others their last: the kernels of skipped blocks must not count.
    shallow = [equal[i] if gene.key == "depth" else last[i] for i, gene in enumerate(space.genes)]
    chosen = arch(space, shallow)
    codes = [0 if gene.key == "depth" else len(gene.options) - 1 for gene in space.genes]
    assert chosen == space.decode(codes)
    assert space.encode(chosen) != tuple(codes)


def test_arch_of_a_draw_with_gradients() -> None:
    space = tiny_space()
    parameters = ArchParameters(space, 5)
    draw = Softmax().draw(parameters.logits(), torch.Generator(), 0.0, False)
    codes = [max(range(len(p)), key=p.__getitem__) for p in snapshot(draw.probs)]
    assert arch(space, draw.probs) == space.decode(codes)


def test_snapshots_are_plain() -> None:
    assert json.loads(json.dumps(snapshot(HALF))) == [[0.5, 0.5], [1.0], [0.0, 1.0, 0.0], [0.25] * 4]


def test_a_draw_runs_its_support_unless_it_says_more() -> None:
    assert Draw((HALF[0],), ((0, 1),)).drawn is None
