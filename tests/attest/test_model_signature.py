# SPDX-License-Identifier: Apache-2.0
"""Model signatures: ours are believed by ``model_signing``, and a changed folder is believed by nobody."""

import importlib.util
import subprocess
import sys

import pytest

from privguard.attest import model_signature
from privguard.attest.statement import SigningKey
from privguard.errors import TamperedError

KEY = SigningKey.generate_p256()


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "model"
    (folder / "deep").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 40)
    (folder / "deep" / "config.json").write_text("{}")
    (folder / "deep.txt").write_text("sorts between the folder and its file")
    return folder


@pytest.mark.parametrize("inside", [True, False])
def test_a_signed_folder_is_believed_until_a_file_changes(folder, tmp_path, inside):
    signature = (folder if inside else tmp_path) / "model.sig"
    model_signature.sign_folder(folder, by=KEY, signature=signature)
    said = model_signature.verify_folder(folder, by=KEY.identity, signature=signature)
    assert [item["name"] for item in said.predicate["resources"]] == [
        "deep.txt",
        "deep/config.json",
        "model.safetensors",
    ]
    with pytest.raises(TamperedError, match="not signed by"):
        model_signature.verify_folder(folder, by=SigningKey.generate_p256().identity, signature=signature)
    for change in (
        lambda: (folder / "deep.txt").write_text("x"),
        lambda: (folder / "more.txt").write_text("x"),
        lambda: (folder / "more.txt").unlink() or (folder / "deep.txt").unlink(),
    ):
        change()
        with pytest.raises(TamperedError, match="not the ones"):
            model_signature.verify_folder(folder, by=KEY.identity, signature=signature)


def test_what_cannot_be_signed_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="P-256"):
        model_signature.sign_folder(folder, by=SigningKey.generate(), signature=tmp_path / "sig")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="at least one file"):
        model_signature.sign_folder(tmp_path / "empty", by=KEY, signature=tmp_path / "sig")
    (tmp_path / "sig").write_text("{}")
    with pytest.raises(TamperedError, match="not a sigstore bundle"):
        model_signature.verify_folder(folder, by=KEY.identity, signature=tmp_path / "sig")


@pytest.mark.skipif(importlib.util.find_spec("model_signing") is None, reason="the interop extra is not installed")
@pytest.mark.parametrize("inside", [True, False])
def test_model_signing_verifies_our_signature_and_refuses_a_changed_file(folder, tmp_path, inside):
    signature = (folder if inside else tmp_path) / "model.sig"
    model_signature.sign_folder(folder, by=KEY, signature=signature)
    KEY.identity.write(tmp_path / "key.pub")
    command = [sys.executable, "-m", "model_signing", "verify", "key", str(folder)]
    command += ["--signature", str(signature), "--public_key", str(tmp_path / "key.pub")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (folder / "deep.txt").write_text("changed")
    assert subprocess.run(command, capture_output=True, text=True, check=False).returncode != 0
