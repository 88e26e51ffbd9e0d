"""A distilled set on the Hugging Face hub: the file and its card."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from ..config import InputError
from .card import CARD, card_file, card_text
from .pairs import DistilledSet

RepoType = Literal["dataset", "model"]


def push(
    artifact: str | os.PathLike[str],
    repo: str,
    *,
    repo_type: RepoType = "dataset",
    private: bool = False,
    endpoint: str | None = None,
) -> str:
    """Upload ``artifact`` and its card to the repository ``repo`` ("NAME" or "OWNER/NAME"); return its address.

    The repository is made if it is not there. The card is the file beside the artifact, or a new one if there is none.
    ``private``: a new repository is private (False: as the hub has it by default).
    ``endpoint``: the address of the hub (default: that of ``huggingface_hub``).

    Raises :class:`InputError` if the file is no distilled set, ``huggingface_hub`` or its token is missing, or the hub
    refuses.
    """
    file = Path(artifact)
    pairs = DistilledSet.load(file)
    library = _library()
    beside = card_file(file)
    text = beside.read_bytes() if beside.is_file() else card_text(pairs, file.name).encode()
    token = library.get_token()
    if not token:
        raise InputError("push: there is no Hugging Face token; run `hf auth login`, or set HF_TOKEN")
    api = library.HfApi(endpoint=endpoint, token=token)
    added = [
        library.CommitOperationAdd(path_in_repo=file.name, path_or_fileobj=str(file)),
        library.CommitOperationAdd(path_in_repo=CARD, path_or_fileobj=text),
    ]
    try:
        made = api.create_repo(repo, repo_type=repo_type, private=private or None, exist_ok=True)
        api.create_commit(
            made.repo_id, added, commit_message=f"{len(pairs)} distilled images ({file.name})", repo_type=repo_type
        )
    except Exception as error:  # of the library, of HTTP, of the network: a user reads only the message
        why = str(error).strip().partition("\n")[0] or type(error).__name__
        if answer := getattr(error, "server_message", None):
            why += f"; {answer}"
        raise InputError(f"push: {repo}: the hub does not take it ({why})") from None
    return str(made)


def _library() -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise InputError("push: needs huggingface_hub; install it with: pip install 'ssdd[hf]'") from None
    return huggingface_hub
