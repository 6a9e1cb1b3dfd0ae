# SPDX-License-Identifier: Apache-2.0
"""What the ``mark`` commands read: models, keys, notaries, commitments; whatever has to be made is made and said."""

import json
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from privguard.cli._output import stderr

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import nn

    from privguard.attest.log import Extract
    from privguard.attest.notary import LocalNotary
    from privguard.attest.statement import SigningKey
    from privguard.watermark.claims.commitment import Standing, Trust
    from privguard.watermark.claims.leaf import Tree
    from privguard.watermark.claims.offline import Table
    from privguard.watermark.image.profile import ImageProfile
    from privguard.watermark.model.classifier import Public, Suspect
    from privguard.watermark.secret import Secret

Made = TypeVar("Made")


def signing_key(path: Path) -> "SigningKey":
    """The signing key in a file, made there with its public half beside it when there is none."""
    from privguard.attest.statement import SigningKey

    if path.exists():
        return SigningKey.read(path)
    made = SigningKey.generate()
    made.write(path)
    made.identity.write(path.with_suffix(".pub"))
    stderr().print(f"Made {path} and its public half {path.with_suffix('.pub')}.")
    return made


def image_profile(path: Path, trust: Path) -> "ImageProfile":
    """The profile of an image mark that the owner of a public key signed."""
    from privguard.attest.statement import Identity
    from privguard.watermark.image.profile import ImageProfile

    return ImageProfile.read(path, by=Identity.read(trust))


def image_secret(path: Path) -> "Secret":
    """The owner's secret in a file."""
    from privguard.watermark.secret import Secret

    return Secret.read(path)


def local_notary(path: Path) -> "LocalNotary":
    """The local notary in a file, made there when there is none."""
    from privguard.attest.notary import LocalNotary

    if path.exists():
        return LocalNotary.read(path)
    made = LocalNotary.generate()
    made.write(path)
    stderr().print(f"Made a local notary, {path}: it proves nothing against whoever holds that file.")
    return made


def table(claim: Path, notary: Path, verifier: Path) -> "Table":
    """Owner, verifier and local notary in one process."""
    from privguard.attest.notary import LocalNotary
    from privguard.watermark.claims.commitment import Commitment
    from privguard.watermark.claims.offline import Table
    from privguard.watermark.secret import Secret

    return Table(
        commitment=Commitment.read(claim / "commitment.json"),
        secret=Secret.read(claim / "secret"),
        notary=LocalNotary.read(notary),
        verifier=signing_key(verifier),
        notary_file=notary,
    )


def trusted(path: Path | None, notary: Path | None) -> "Trust":
    """Whom to believe: a trust file, else the local notary alone."""
    from privguard.attest.notary import LocalNotary
    from privguard.watermark.claims import offline
    from privguard.watermark.claims.commitment import Trust

    if path is None and notary is None:
        raise ValueError("--trust, --notary: expected one of them, so that the claim's order can be checked")
    return Trust.read(path) if path is not None else offline.trust(LocalNotary.read(notary)) if notary else Trust()


def standing(claim: Path, trust: "Trust") -> "Standing":
    """The claim's commitment, checked."""
    from privguard.watermark.claims import commitment as claims

    return claims.check(claims.Commitment.read(claim / "commitment.json"), trust=trust)


def leaves(claim: Path) -> "Tree":
    """The owner's leaves of a claim."""
    from privguard.watermark.claims import commitment as claims
    from privguard.watermark.claims.leaf import Tree
    from privguard.watermark.secret import Secret

    manifest = claims.read_manifest(claims.Commitment.read(claim / "commitment.json"))
    return Tree.derive(Secret.read(claim / "secret"), manifest.sizes)


def require_committed(standing: "Standing", state: "dict[str, NDArray[Any]]") -> None:
    """Refuse a model that is not the one committed to."""
    from privguard.errors import ProtocolInvalidError
    from privguard.watermark.claims import offline

    found = offline.tensors_digest("", state).sha256
    if found != standing.manifest.model.sha256:
        raise ProtocolInvalidError("weights: not the unmarked model that was committed to; use that very file")


def json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file."""
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON; {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected one JSON object")  # noqa: TRY004 — the file is wrong, not its type
    return cast("dict[str, Any]", found)


def certified(path: Path, read: "Callable[[str, bytes], Made]") -> "Made":
    """What ``read`` makes of a name and the PEM certificates in a file."""
    try:
        return read(path.stem, path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: expected certificates in PEM; {str(error).splitlines()[0]}") from None


def pulse(path: Path) -> dict[str, Any]:
    """A beacon's JSON of one pulse, in its form; whose it is says ``standing``."""
    from privguard.attest import beacon

    found = json_object(path)
    try:
        beacon.signed_bytes(found.get("pulse", found))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: expected a beacon's JSON of one pulse (beacon 2.0); {error!r}") from None
    return found


def extract(path: Path) -> "Extract":
    """A log's extract: all its entries under a head."""
    from privguard.attest.log import Extract
    from privguard.errors import TamperedError

    try:
        return Extract.from_json(json_object(path))
    except TamperedError as error:
        raise ValueError(f"{path}: expected an extract of a log; {error}") from None


def network(spec: str, state: "dict[str, NDArray[Any]]") -> "nn.Module":
    """The network ``package.module:function`` (else a chain of linear layers) with these tensors.

    Raises:
        ValueError: there is no such function, the tensors are of another network, or their order is not certain.
    """
    from privguard.watermark.model import theft

    model = _made(spec) if spec else _chain(state)
    try:
        return theft.load(model, state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"weights: not those of the network {spec or 'of linear layers'}; {reason[:300]}") from None


def _made(spec: str) -> "nn.Module":
    module, _, name = spec.partition(":")
    try:
        return getattr(import_module(module), name)()
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"--network {spec}: expected package.module:function; {error}") from None


def order(model: "nn.Module", shape: "tuple[int, ...]") -> tuple[str, ...]:
    """The network's weights front to back, found by sending one input of this shape through it."""
    import torch

    from privguard.watermark.model.lay import order as ordering

    try:
        return ordering.order_of(model, torch.zeros(1, *shape))
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--shape {','.join(map(str, shape))}: the network does not take it; {reason}") from None


def _chain(state: "dict[str, NDArray[Any]]") -> "nn.Module":
    """The nn.Sequential of Linear and ReLU whose ``state_dict`` has these names."""
    from collections import OrderedDict

    from torch import nn

    layers: OrderedDict[str, nn.Module] = OrderedDict()
    from privguard.watermark.model.lay import order as ordering

    shapes = {name: value.shape for name, value in state.items()}
    plain = {name for name, shape in shapes.items() if name.endswith(".weight") and len(shape) == 2}  # noqa: PLR2004
    other = sorted(name for name in shapes if name not in plain and name.removesuffix("bias") + "weight" not in plain)
    if other:
        raise ValueError(f"weights: {other[0]} is of no chain of linear layers; name the network with --network")
    for name in ordering.order(shapes):
        value = state[name]
        if layers:
            layers[f"relu before {name.removesuffix('.weight')}"] = nn.ReLU()
        place = name.removesuffix(".weight")
        layers[place] = nn.Linear(value.shape[1], value.shape[0], bias=f"{place}.bias" in state)
    if not layers:
        raise ValueError("weights: expected a chain of linear layers; name the network with --network")
    return nn.Sequential(layers)


def untrained_twin(model: "nn.Module") -> "nn.Module":
    """The same network with fresh random weights."""
    import copy

    import torch

    twin, generator = copy.deepcopy(model), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for item in twin.parameters():
            spread = item[0].numel() ** -0.5 if item.dim() > 1 else 0.0
            item.copy_(spread * (2 * torch.rand(item.shape, generator=generator) - 1))
    return twin


def answerer(model: "nn.Module") -> "Suspect":
    """The model as a black box."""
    from privguard.watermark.model.classifier import Suspect

    return Suspect(model)


def public(path: Path) -> "Public":
    """The ``inputs`` and ``labels`` of an npz file."""
    import torch

    from privguard.audit.loading import examples
    from privguard.watermark.model.classifier import Public

    found = examples(path)
    return Public(inputs=found.inputs, labels=found.labels, generator=torch.Generator().manual_seed(0))


def natural(path: Path) -> "NDArray[Any]":
    """The ``inputs`` of an npz file."""
    import numpy as np

    from privguard.audit.membership.scores import array, read_scores

    return array(read_scores(path), "inputs", path=path).astype(np.float32)
