"""minDALL-E's transformer: the checkpoints' names, and cached steps against one plain pass."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prior_art.networks import mindalle
from prior_art.networks.mindalle import ARConfig, ARTransformer, Cache, lay_out, prefill

KINDS = {
    "text": ARConfig(3, 32, 4, 50, 24, 40, 8),
    "class": ARConfig(3, 32, 4, 50, 24, None, classes=5),
    "free": ARConfig(3, 32, 4, 50, 24, None),
}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make(config: ARConfig) -> ARTransformer:
    """Large random weights, so that everything that could be left out would show."""
    source = torch.Generator().manual_seed(3)
    network = ARTransformer(config)
    for parameter in network.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=source)
    return network.eval().requires_grad_(False)


def context_of(config: ARConfig, rows: int = 1) -> Tensor | None:
    if config.text_vocab is None and config.classes is None:
        return None
    source = torch.Generator().manual_seed(4)
    size = config.text_vocab or config.classes
    return torch.randint(size, (1, config.context), generator=source).expand(rows, -1)


def tokens_of(config: ARConfig, rows: int) -> Tensor:
    source = torch.Generator().manual_seed(5)
    return torch.randint(config.image_vocab, (rows, config.image_tokens), generator=source)


def plain(network: ARTransformer, context: Tensor | None, tokens: Tensor) -> Tensor:
    """Logits after context and each of ``tokens`` ``[B, t]``, from the weights by their names."""
    w, config = network.state_dict(), network.config
    rows, heads = len(tokens), config.heads
    if config.text_vocab is not None:
        x = w["tok_emb_txt.weight"][context] + w["pos_emb_txt.weight"]
    elif config.classes is not None:
        x = w["sos.weight"][context]
    else:
        x = w["sos"]
    images = w["tok_emb_img.weight"][tokens] + w["pos_emb_img.weight"][: tokens.shape[1]]
    x = torch.cat([x.expand(rows, -1, -1), images], dim=1)
    length, width = x.shape[1:]

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (width,), w[f"{name}.weight"], w[f"{name}.bias"], eps=1e-5)

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    for i in range(config.layers):
        y = norm(x, f"blocks.{i}.ln1")
        q, k, v = (
            linear(y, f"blocks.{i}.attn.{name}").view(rows, length, heads, -1).transpose(1, 2)
            for name in ("query", "key", "value")
        )
        scores = q @ k.transpose(2, 3) / (width // heads) ** 0.5
        y = scores.masked_fill(future, -torch.inf).softmax(-1) @ v
        x = x + linear(y.transpose(1, 2).reshape(rows, length, width), f"blocks.{i}.attn.proj")
        y = linear(norm(x, f"blocks.{i}.ln2"), f"blocks.{i}.mlp.0")
        x = x + linear(F.gelu(y), f"blocks.{i}.mlp.2")
    head = w["head_img.weight" if config.text_vocab is not None else "head.weight"]
    return norm(x[:, config.context - 1 :], "ln_f") @ head.T


def test_names_of_the_published_checkpoints() -> None:
    published = ARConfig(42, 1536, 24)
    with torch.device("meta"):
        network = ARTransformer(published)
        variants = [
            ARTransformer(ARConfig(1, 8, 2, text_vocab=None, classes=classes))
            for classes in (1000, None)
        ]
    state = network.state_dict()
    assert len(state) == 680
    assert sum(parameter.numel() for parameter in network.parameters()) == 1_291_081_728
    block = {name.split(".", 2)[2] for name in state if name.startswith("blocks.41.")}
    linears = ("attn.key", "attn.query", "attn.value", "attn.proj", "mlp.0", "mlp.2", "ln1", "ln2")
    assert block == {f"{name}.{part}" for name in linears for part in ("weight", "bias")}
    assert {name for name in state if not name.startswith("blocks.")} == {
        *(f"{kind}_emb_{what}.weight" for kind in ("tok", "pos") for what in ("txt", "img")),
        *("ln_f.weight", "ln_f.bias", "head_img.weight", "head_txt.weight"),
    }
    shared = {"tok_emb_img.weight", "pos_emb_img.weight", "ln_f.weight", "ln_f.bias", "head.weight"}
    for variant, start in zip(variants, ("sos.weight", "sos"), strict=True):
        names = {name for name in variant.state_dict() if not name.startswith("blocks.")}
        assert names == {*shared, start}
    assert variants[1].sos.shape == (1, 1, 8)


def test_context() -> None:
    assert ARConfig(1, 8, 2).context == 64
    assert ARConfig(1, 8, 2, text_vocab=None).context == 1


def test_refuses_a_width_that_heads_do_not_divide() -> None:
    with pytest.raises(ValueError, match="multiple"):
        ARTransformer(ARConfig(1, 10, 4))


@pytest.mark.parametrize("kind", KINDS)
def test_forward(kind: str) -> None:
    network = make(KINDS[kind])
    context, tokens = context_of(network.config, 3), tokens_of(network.config, 3)
    expected = plain(network, context, tokens)[:, :-1]
    torch.testing.assert_close(network(context, tokens), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 2, 4, 7])
@pytest.mark.parametrize("kept", [0, 5])
@pytest.mark.parametrize("runs", [[1] * 19, [6, 1, 1, 11]], ids=["steps", "runs"])
def test_cached(kind: str, rows: int, kept: int, runs: list[int]) -> None:
    """Logits of a prefix and what follows, fed one by one or several at once."""
    network = make(KINDS[kind])
    context, tokens = context_of(network.config), tokens_of(network.config, rows)
    tokens[:, :kept] = tokens[:1, :kept]
    prefix = prefill(network, context, tokens[:1, :kept] if kept else None, torch.float32)
    cache = Cache(network, prefix, rows, network.config.image_tokens - kept)
    hidden, done = [prefix.hidden.expand(rows, 1, -1)], kept
    for run in runs:
        hidden.append(cache.extend(network, tokens[:, done : done + run]))
        done += run
    assert cache.images == done
    ours = network.logits(torch.cat(hidden, dim=1))
    expected = plain(network, context, tokens[:, :done])[:, kept:]
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("inference", [False, True], ids=["", "in a host's inference mode"])
@torch.no_grad()
def test_layout(monkeypatch: pytest.MonkeyPatch, inference: bool) -> None:
    """Weights are stored by column for one row and by row for a few, with all values as before."""
    monkeypatch.setattr(mindalle, "_LARGE", 4 * 32 * 32)
    network = make(KINDS["text"])
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    weight = network.blocks[1].mlp[0].weight
    with torch.inference_mode(inference):
        for rows, steps, by_column in (
            (1, 99, False),
            (1, 100, True),
            (4, 99, True),
            (7, 100, True),
            (3, 100, False),
            (2, 100, True),
        ):
            lay_out(network, rows, steps)
            assert weight.is_contiguous() != by_column
            assert weight is network.blocks[1].mlp[0].weight
            tokens = tokens_of(network.config, 3)
            prefix = prefill(network, context_of(network.config), None, torch.float32)
            cache = Cache(network, prefix, 3, 4)
            ours = network.logits(cache.extend(network, tokens[:, :1]))
            expected = plain(network, context_of(network.config), tokens[:, :1])[:, 1:]
            torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name])
    small = network.blocks[1].attn.key.weight
    assert small.is_contiguous()


def test_layout_is_the_host_s_where_it_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mindalle, "_LARGE", 1)
    network = make(KINDS["text"])
    network.blocks[0].mlp[0].weight_function = [lambda weight: weight]
    network.blocks[1].mlp[0].bfloat16()
    lay_out(network, 1, 256)
    stored = [block.mlp[0].weight.is_contiguous() for block in network.blocks]
    assert stored == [True, True, False]


def test_a_prefix_serves_many() -> None:
    """Candidates write into their own room only."""
    network = make(KINDS["text"])
    prefix = prefill(network, context_of(network.config), None, torch.float32)
    before = [tensor.clone() for tensor in [*prefix.keys, *prefix.values]]
    for rows in (1, 3):
        tokens = tokens_of(network.config, rows)
        Cache(network, prefix, rows, 4).extend(network, tokens[:, :4])
    assert all(map(torch.equal, before, [*prefix.keys, *prefix.values]))


def test_layers_that_a_host_has_swapped_are_called() -> None:
    """A few rows use weights directly, unless the host patches or casts them when called."""

    class Patched(nn.Linear):
        def __init__(self, plain: nn.Linear) -> None:
            nn.Module.__init__(self)
            self.weight, self.bias = plain.weight, plain.bias
            self.weight_function = [lambda weight: weight * 2]

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight_function[0](self.weight), self.bias)

    network = make(KINDS["text"])
    tokens = tokens_of(network.config, 3)
    patched = make(KINDS["text"])
    for block in network.blocks:
        block.mlp[0] = Patched(block.mlp[0])
    for block in patched.blocks:
        block.mlp[0].weight.data *= 2
    found = []
    for each in (network, patched):
        prefix = prefill(each, context_of(each.config), None, torch.float32)
        found.append(Cache(each, prefix, 3, 4).extend(each, tokens[:, :1]))
    torch.testing.assert_close(*found, atol=1e-4, rtol=0)


def test_initialise() -> None:
    network = ARTransformer(KINDS["text"])
    network.initialise()
    assert 0.018 < network.blocks[0].mlp[0].weight.std() < 0.022
    assert 0.018 < network.tok_emb_img.weight.std() < 0.022
    assert not network.blocks[1].attn.key.bias.any()
    assert bool((network.ln_f.weight == 1).all())


def test_few_rows_is_the_layer() -> None:
    source = torch.Generator().manual_seed(0)
    layer = nn.Linear(48, 96)
    x = torch.randn(4, 1, 48, generator=source)
    torch.testing.assert_close(mindalle._few_rows(layer, x), layer(x), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("rows", "few"), [(1, False), (2, True), (4, True), (5, False)])
def test_few_rows_take_the_faster_product(
    rows: int, few: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    used, single = [], mindalle._few_rows
    monkeypatch.setattr(mindalle, "_few_rows", lambda *args: used.append(0) or single(*args))
    network = make(KINDS["text"])
    prefix = prefill(network, context_of(network.config), None, torch.float32)
    Cache(network, prefix, rows, 1).extend(network, tokens_of(network.config, rows)[:, :1])
    assert len(used) == (6 * network.config.layers if few else 0)
