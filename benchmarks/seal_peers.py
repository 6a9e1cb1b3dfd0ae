# SPDX-License-Identifier: Apache-2.0
"""The other encrypting writers of ``benchmarks.seal``; each is left out where it is not installed."""

import os
from pathlib import Path
from typing import Any

import torch

MIB = 1 << 20


def cryptotensors_peer(weights: dict[str, torch.Tensor], _: bytes) -> tuple[str, Any, Any]:
    import base64

    import cryptotensors
    import cryptotensors.torch
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    def word(raw: bytes) -> str:
        return base64.b64encode(raw).decode()

    signer = Ed25519PrivateKey.generate()
    encrypt = {"kty": "oct", "alg": "aes256gcm", "kid": "e", "k": word(os.urandom(32))}
    sign = {
        "kty": "okp",
        "alg": "ed25519",
        "kid": "s",
        "d": word(signer.private_bytes_raw()),
        "x": word(signer.public_key().public_bytes_raw()),
    }
    cryptotensors.register_direct_key_provider(keys=[encrypt, sign])
    config = {"enc_kid": "e", "sign_kid": "s"}

    def load(path: Path) -> object:
        return {name: tensor.clone() for name, tensor in cryptotensors.torch.load_file(path).items()}

    return "cryptotensors", lambda path: cryptotensors.torch.save_file(weights, path, config=config), load


def pyrage_peer(_: object, flat: bytes) -> tuple[str, Any, Any]:
    import pyrage

    key = pyrage.x25519.Identity.generate()
    return (
        "pyrage",
        lambda path: path.write_bytes(pyrage.encrypt(flat, [key.to_public()])),
        lambda path: pyrage.decrypt(path.read_bytes(), [key]),
    )


def tink_peer(_: object, flat: bytes) -> tuple[str, Any, Any]:
    import tink
    from tink import streaming_aead

    streaming_aead.register()
    templates = streaming_aead.streaming_aead_key_templates
    primitive = tink.new_keyset_handle(templates.AES256_GCM_HKDF_1MB).primitive(streaming_aead.StreamingAead)

    def save(path: Path) -> None:
        with path.open("wb") as file, primitive.new_encrypting_stream(file, b"") as stream:
            for start in range(0, len(flat), MIB):
                stream.write(flat[start : start + MIB])

    def load(path: Path) -> object:
        with path.open("rb") as file, primitive.new_decrypting_stream(file, b"") as stream:
            return stream.read()

    return "tink", save, load


def tensorizer_peer(weights: dict[str, torch.Tensor], _: bytes) -> tuple[str, Any, Any]:
    from tensorizer import DecryptionParams, EncryptionParams, TensorDeserializer, TensorSerializer

    params = EncryptionParams.random()
    reverse = DecryptionParams.from_key(params.key)

    def save(path: Path) -> None:
        serializer = TensorSerializer(str(path), encryption=params)
        serializer.write_state_dict(weights)
        serializer.close()

    def load(path: Path) -> object:
        with TensorDeserializer(str(path), device="cpu", encryption=reverse) as found:
            return dict(found.items())

    return "tensorizer", save, load


ALL = (cryptotensors_peer, pyrage_peer, tink_peer, tensorizer_peer)
