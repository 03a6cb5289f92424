"""Tensors that mean something only together: multiplied out to what the module computes, or refused by name."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

from sparsekit.errors import UserError
from sparsekit.models.saved import SavedModel, open_saved_model


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3))


def saved(tensors: dict[str, Tensor], path: Path) -> SavedModel:
    torch.save(tensors, path)
    return open_saved_model("MODEL", path)


def masked(model: nn.Sequential) -> None:
    for module in (model[0], model[3]):
        prune.random_unstructured(module, "weight", 0.5)
    prune.random_unstructured(model[3], "bias", 0.4)


def twice(model: nn.Sequential) -> None:
    masked(model)
    prune.l1_unstructured(model[0], "weight", 0.3)


def normalised(model: nn.Sequential) -> None:
    weight_norm(model[0])
    weight_norm(model[3], dim=1)


def whole_norm(model: nn.Sequential) -> None:
    weight_norm(model[3], dim=None)


def parametrized(model: nn.Sequential) -> None:
    parametrizations.weight_norm(model[0])
    parametrizations.weight_norm(model[3], dim=1)


def both(model: nn.Sequential) -> None:
    weight_norm(model[0])
    prune.l1_unstructured(model[0], "weight_v", 0.5)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("change", [masked, twice, normalised, whole_norm, parametrized, both])
@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_a_file_is_read_to_the_weights_that_the_model_uses(
    change: Callable[[nn.Sequential], None], kind: str, tmp_path: Path
) -> None:
    model = network()
    change(model)
    with torch.no_grad():
        for module in (model[0], model[3]):  # away from where the norms start
            for name, parameter in module.named_parameters():
                if not name.endswith("bias"):
                    parameter.mul_(torch.rand_like(parameter) + 0.5)
    for _ in range(2):  # the hooks compute the weights anew, one from what the other computed before
        model(torch.zeros(1, 1, 4, 4))
    path = tmp_path / f"model.{kind}"
    (save_file if kind == "safetensors" else torch.save)(model.state_dict(), path)
    found = open_saved_model("MODEL", path).tensors()
    assert set(found) == set(network().state_dict())
    for index in ("0", "3"):
        for name in ("weight", "bias"):
            used = getattr(model[int(index)], name).detach()
            torch.testing.assert_close(found[f"{index}.{name}"], used, rtol=1e-6, atol=1e-7)
            assert torch.equal(found[f"{index}.{name}"] == 0, used == 0)


def test_the_mask_beside_a_weight_is_its_mask_even_where_a_kept_weight_is_0(tmp_path: Path) -> None:
    model = network()
    masked(model)
    state = model.state_dict()
    kept = state["3.weight_mask"].nonzero()[0]
    state["3.weight_orig"][tuple(kept)] = 0.0
    masks = saved(state, tmp_path / "m.pt").masks(["0.weight", "3.weight"])
    assert torch.equal(masks["3.weight"], state["3.weight_mask"].bool())
    assert bool(masks["3.weight"][tuple(kept)])
    assert torch.equal(masks["0.weight"], state["0.weight_mask"].bool())


def test_weight_normalisation_by_hand(tmp_path: Path) -> None:
    tensors = {"a.weight_g": torch.tensor([[2.0], [3.0]]), "a.weight_v": torch.tensor([[3.0, 4.0], [0.0, 5.0]])}
    found = saved(tensors, tmp_path / "m.pt").tensors()["a.weight"]
    assert found.flatten().tolist() == pytest.approx([2 * 0.6, 2 * 0.8, 0.0, 3.0])


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_torchs_quantised_tensors_are_refused_by_name(tmp_path: Path) -> None:
    weight = torch.quantize_per_tensor(torch.ones(2, 3), 0.1, 0, torch.qint8)
    with pytest.raises(UserError, match=r"0\.weight is qint8.*dequantise"):
        saved({"0.weight": weight}, tmp_path / "m.pt").tensors()


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def custom(model: nn.Module) -> None:
    parametrize.register_parametrization(model, "weight", Doubled())


QUANTISED = {
    "GPTQ": {"0.qweight": torch.zeros(2, 3, dtype=torch.int32), "0.scales": torch.ones(3)},
    "bitsandbytes": {"0.weight": torch.zeros(2, 3, dtype=torch.int8), "0.SCB": torch.ones(2)},
    "bitsandbytes 4": {"0.weight": torch.zeros(2, dtype=torch.uint8), "0.weight.absmax": torch.ones(1)},
    "compressed-tensors": {"0.weight_packed": torch.zeros(2, dtype=torch.int32), "0.weight_scale": torch.ones(1)},
    "scaled": {"0.weight": torch.zeros(2, 3, dtype=torch.int8), "0.weight_scale": torch.ones(2)},
    "integers": {"0.weight": torch.zeros(2, 3, dtype=torch.int8)},
    "aware": {"0.weight": torch.ones(2), "0.weight_fake_quant.scale": torch.ones(1)},
}
REFUSED: dict[str, tuple[dict[str, Tensor], str]] = {
    **{name: (tensors, "0.|quantised|dequantise") for name, tensors in QUANTISED.items()},
    "float8": ({"0.weight": torch.ones(2, 3).to(torch.float8_e4m3fn)}, "0.weight|float8_e4m3fn|bfloat16|scale"),
    "LoRA": ({"a.lora_A.weight": torch.ones(2, 3), "a.lora_B.weight": torch.ones(3, 2)}, "a.lora_A.weight|merge"),
    "no values": ({"0.weight": torch.ones(2, device="meta")}, "0.weight|without values"),
    "a mask": ({"0.weight": torch.ones(2, 3), "0.weight_mask": torch.ones(2, 3)}, "0.weight_mask|multiply"),
    "a mask's module": ({"0.weight": torch.ones(2, 3), "0.mask": torch.ones(2, 3)}, "0.mask|0.weight|multiply"),
    "no mask": ({"0.weight_orig": torch.ones(2, 3)}, "0.weight_orig|save"),
    "other shapes": ({"0.weight_g": torch.ones(2, 3), "0.weight_v": torch.ones(2, 3)}, "0.weight_g|0.weight_v|save"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_plain_weight_is_refused_by_name(name: str, tmp_path: Path) -> None:
    tensors, words = REFUSED[name]
    with pytest.raises(UserError) as caught:
        saved(tensors, tmp_path / "m.pt").tensors()
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in (f"MODEL {tmp_path / 'm.pt'}", *words.split("|"))), caught.value


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("change", [custom, spectral_norm, parametrizations.spectral_norm, parametrizations.orthogonal])
def test_other_reparametrisations_are_refused_with_the_weight_and_the_way_out(
    change: Callable[[nn.Module], object], tmp_path: Path
) -> None:
    model = network()
    change(model[3])
    with pytest.raises(UserError, match=r"3\.weight.*remove_(parametrizations|spectral_norm)"):
        saved(model.state_dict(), tmp_path / "m.pt").names()


def test_names_that_only_look_like_it_are_left_alone(tmp_path: Path) -> None:
    tensors = {
        "attn.weight": torch.ones(3, 3),
        "attn.attn_mask": torch.ones(2, 2),
        "act.scale": torch.ones(1),
        "base_layer.weight": torch.ones(2, 2),
        "logit_scale": torch.ones(1),
        "index": torch.arange(4),
        "count": torch.tensor(3),
    }
    found = saved(tensors, tmp_path / "m.pt").tensors()
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("layout", ["coo", "csr", "bsr"])
def test_sparse_tensors_are_read_dense(layout: str, tmp_path: Path) -> None:
    weight = torch.eye(4) * torch.arange(4.0)
    sparse = {"coo": weight.to_sparse(), "csr": weight.to_sparse_csr(), "bsr": weight.to_sparse_bsr((2, 2))}[layout]
    found = saved({"a.weight": sparse}, tmp_path / "m.pt")
    assert torch.equal(found.read("a.weight"), weight)
    assert torch.equal(found.masks(["a.weight"])["a.weight"], weight != 0)


def test_complex_tensors_keep_both_parts(tmp_path: Path) -> None:
    weight = torch.randn(3, 2, dtype=torch.complex64)
    assert torch.equal(saved({"a": weight.conj()}, tmp_path / "m.pt").read("a"), copy.deepcopy(weight).conj())
